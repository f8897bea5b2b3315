"""What is printed and written as JSON is JSON, whatever the numbers in it."""

import json
import math
from pathlib import Path
from typing import NoReturn

from support import Cli

from valle_convert.gguf_file.header import Key, pack_header


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
