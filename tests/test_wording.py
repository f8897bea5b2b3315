"""Markdown tables, and JSON that is JSON whatever the numbers in it."""

import json
import math
import re
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Cli

from valle_convert.gguf_file.header import Key, pack_header
from valle_convert.wording import markdown_table


@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(st.text(), min_size=n, max_size=n))))
def test_a_table_has_a_line_a_row_and_every_cell_in_it(rows: list[list[str]]) -> None:
    n = len(rows[0]) if rows else 2
    lines = markdown_table(["a|b"] * n, rows).splitlines()
    assert len(lines) == len(rows) + 2
    for line, row in zip(lines[2:], rows, strict=True):
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        assert len(cells) == n or any("\\" in cell for cell in row)
        shown = line.replace("\\|", "|").split()
        assert all(word in " ".join(shown) for cell in row for word in cell.split())


@pytest.mark.parametrize(
    ("cells", "rule"),
    [
        (["1.5", "-3e-05", "1,024 MiB", "97 %", "97.1%", "3.2 (3.1 to 3.3)", ""], "---:"),
        (["Q4_0"], "---"),
        (["4", "four"], "---"),
        (["1 of 3 files"], "---"),
    ],
)
def test_columns_of_numbers_are_aligned_right(cells: list[str], rule: str) -> None:
    assert markdown_table(["x"], [[cell] for cell in cells]).splitlines()[1] == f"|{rule}|"


def refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def strict(text: str) -> object:
    return json.loads(text, parse_constant=refuse)


def test_inspect_prints_json_of_a_file_with_nan_in_its_keys(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "nan.gguf"
    keys = [
        Key("general.architecture", "other", "string"),
        Key("general.nan", math.nan, "f32"),
        Key("general.list", [math.inf, 2.0], "[f64]"),
    ]
    path.write_bytes(pack_header(keys, []))
    value = strict(cli("inspect", path, "--json").out)
    assert isinstance(value, dict)
    assert value["provenance"] == {
        "general.architecture": "other",
        "general.nan": None,
        "general.list": [None, 2.0],
    }
