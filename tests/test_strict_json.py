"""What is printed and written as JSON is JSON, whatever the numbers in it."""

import json
import math
from pathlib import Path
from typing import NoReturn

from support import Cli

from valle_convert.gguf_file.header import Key, pack_header
from valle_convert.strict_json import to_json_text


def refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def strict(text: str) -> object:
    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_are_null_wherever_they_stand() -> None:
    value = {"a": math.nan, "b": [1.5, -math.inf, (math.inf, {"c": math.nan})], "d": "nan", "e": 0}
    assert strict(to_json_text(value)) == {
        "a": None,
        "b": [1.5, None, [None, {"c": None}]],
        "d": "nan",
        "e": 0,
    }


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
