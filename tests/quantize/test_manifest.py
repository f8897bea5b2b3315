from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import Cli, error_of

from valle_convert.errors import InputError
from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.manifest import check_manifest, read_manifest


@pytest.fixture
def folder(cli: Cli, gguf_256: Path, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    arguments = ["--types", "Q8_0", "--threads", "1"]
    assert cli("quantize", gguf_256, out, *arguments).code == 0
    return out


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_a_folder_as_it_was_made_passes(cli: Cli, folder: Path) -> None:
    for path in (folder, folder / "manifest.json"):
        result = cli("check-manifest", path)
        assert result.code == 0
        assert "PASSED: 1 file, " in result.out


def test_a_changed_weight_is_found_and_its_tensor_named(cli: Cli, folder: Path) -> None:
    path = folder / "wide-Q8_0.gguf"
    header = GgufFile(path)
    tensor = header.tensors["blk.1.attn_v.weight"]
    flip(path, header.data_start + tensor.offset + 5)
    result = cli("check-manifest", folder, "--json")
    assert result.code == 1
    problems = [finding["problem"] for finding in json.loads(result.out)["findings"]]
    assert any("1 tensor differs: blk.1.attn_v.weight" in problem for problem in problems)


def test_a_changed_key_is_told_from_changed_weights(folder: Path) -> None:
    path = folder / "wide-Q8_0.gguf"
    raw = path.read_bytes()
    flip(path, raw.index(b"text-to-speech"))
    problems = [finding.problem for finding in check_manifest(folder).findings]
    assert any("what differs is the metadata" in problem for problem in problems)


def test_missing_and_shortened_files_are_found(folder: Path) -> None:
    path = folder / "wide-Q8_0.gguf"
    path.write_bytes(path.read_bytes()[:-32])
    assert "bytes, where the manifest says" in check_manifest(folder).findings[0].problem
    path.unlink()
    assert check_manifest(folder).findings[0].problem == "the file is missing"


def test_sums_that_say_something_else_are_found(folder: Path) -> None:
    flip(folder / "SHA256SUMS", 0)
    assert check_manifest(folder).findings[0].name == "SHA256SUMS"


def changed(folder: Path, **values: Any) -> Path:
    path = folder / "manifest.json"
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
def test_a_hostile_manifest_is_refused(cli: Cli, folder: Path, values: dict[str, Any]) -> None:
    path = changed(folder, **values)
    with pytest.raises(InputError, match=r"is not a manifest of this program: [^$`\\]*$"):
        read_manifest(path)
    error_of(cli("check-manifest", folder), 2)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, '{"schema_version": 2}', "\0"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError):
        check_manifest(tmp_path)


@pytest.mark.parametrize("text", ['{"schema_version": 9}', '{"files": []}', "[]", "{"])
def test_a_fault_of_a_manifest_is_said_without_patterns(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"^[^$`\\]*$"):
        read_manifest(tmp_path / "manifest.json")


def test_a_model_is_not_taken_for_a_manifest(cli: Cli, folder: Path) -> None:
    (model,) = list(folder.glob("*.gguf"))[:1]
    assert "Give its folder" in error_of(cli("check-manifest", model), 2)


def test_a_folder_without_a_manifest_is_bad_input(cli: Cli, tmp_path: Path) -> None:
    assert "There is no manifest" in error_of(cli("check-manifest", tmp_path), 2)
