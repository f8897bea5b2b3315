import json
from pathlib import Path
from typing import Any

import pytest
from quantize.making import flip
from support import Cli, error_of

from valle_convert.errors import InputError
from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.manifest import check_manifest, read_manifest


def test_a_folder_as_it_was_made_passes(cli: Cli, made: Path) -> None:
    for path in (made, made / "manifest.json"):
        result = cli("check-manifest", path)
        assert result.code == 0
        assert "PASSED: 2 files, " in result.out


def test_a_changed_weight_is_found_and_its_tensor_named(cli: Cli, made: Path) -> None:
    path = made / "wide-Q8_0.gguf"
    header = GgufFile(path)
    tensor = header.tensors["blk.1.attn_v.weight"]
    flip(path, header.data_start + tensor.offset + 5)
    result = cli("check-manifest", made, "--json")
    assert result.code == 1
    problems = [finding["problem"] for finding in json.loads(result.out)["findings"]]
    assert any("1 tensor differs: blk.1.attn_v.weight" in problem for problem in problems)


def test_a_changed_key_is_told_from_changed_weights(made: Path) -> None:
    path = made / "wide-Q8_0.gguf"
    raw = path.read_bytes()
    flip(path, raw.index(b"text-to-speech"))
    problems = [finding.problem for finding in check_manifest(made).findings]
    assert any("only the metadata differs" in problem for problem in problems)


def test_missing_and_shortened_files_are_found(made: Path) -> None:
    path = made / "wide-Q8_0.gguf"
    path.write_bytes(path.read_bytes()[:-32])
    assert "bytes, where the manifest says" in check_manifest(made).findings[0].problem
    path.unlink()
    assert check_manifest(made).findings[0].problem == "the file is missing"


def test_sums_that_say_something_else_are_found(made: Path) -> None:
    flip(made / "SHA256SUMS", 0)
    assert check_manifest(made).findings[0].name == "SHA256SUMS"


def changed(made: Path, **values: Any) -> Path:
    path = made / "manifest.json"
    value = json.loads(path.read_text())
    value["files"][0] |= values
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize(
    "values",
    [
        {"name": "../secret"},
        {"name": "/etc/passwd"},
        {"name": ".."},
        {"name": ""},
        {"name": 7},
        {"sha256": "ff"},
        {"sha256": None},
        {"bytes": -1},
        {"bytes": "many"},
        {"tensors": 5},
        {"tensors": [{"name": "t"}]},
        {"tool": []},
        {"arguments": [1]},
        {"name": "a\0b"},
        {"sha256": "f" * 64 + "\n"},
    ],
)
def test_a_hostile_manifest_is_refused(cli: Cli, made: Path, values: dict[str, Any]) -> None:
    path = changed(made, **values)
    with pytest.raises(InputError, match="is not a manifest of this program"):
        read_manifest(path)
    error_of(cli("check-manifest", made), 2)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "[" * 100_000, "\0", '{"schema_version": 9}', '{"files": []}', "{"]
)
def test_what_is_no_manifest_is_refused_without_patterns(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"^[^$`\\]*$"):
        check_manifest(tmp_path)


def test_what_has_no_manifest_is_bad_input(cli: Cli, made: Path, tmp_path: Path) -> None:
    assert "Give its folder" in error_of(cli("check-manifest", made / "wide-Q8_0.gguf"), 2)
    assert "There is no manifest" in error_of(cli("check-manifest", tmp_path), 2)
