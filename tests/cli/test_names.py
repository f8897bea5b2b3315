"""Names of files that are not UTF-8 are names of files all the same."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import gguf
import pytest
from support import Cli, golden_checkpoint, run_program

from valle_convert.gguf_file.read import GgufFile


@pytest.mark.parametrize("name", ["ar-nar-len", "v6-text-head"], ids=["safetensors", "torch"])
def test_a_name_that_is_not_utf8_goes_all_the_way(
    name: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(suffix: str) -> Path:
        return Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9" + suffix.encode()))

    original = golden_checkpoint(name)
    checkpoint, out, codes, matrix = map(named, (original.suffix, ".gguf", ".npz", "-m.gguf"))
    folder, report, single = map(named, ("", ".json", "-8.gguf"))
    shutil.copy(original, checkpoint)
    # pytest's own stream refuses such a name; the program's is tried below.
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), errors="backslashreplace"))
    one, spoken = ("--threads", 1), ("--set", "max_seconds=0.1", "--threads", 1)
    quantized = ("quantize", checkpoint, folder, "--types", "Q4_0", "--imatrix", matrix, *one)
    for arguments in (
        (checkpoint, out, "--outtype", "f32"),
        ("tokenize", out, "həlˈoʊ"),
        ("speak", out, "Hi.", "--save-codes", codes, *spoken),
        ("speak", out, "Hi.", "--codes", codes, "--save-codes", named(".2.npz"), *one),
        ("imatrix", checkpoint, "-o", matrix, "--utterances", 1, "--json"),
        quantized,
        (*quantized, "--resume"),
        ("evaluate", folder, "--checkpoint", checkpoint, "--utterances", 1, "--report", report),
        ("check-manifest", folder),
        ("quantize", out, single, "Q8_0", "--llama-quantize", "library"),
    ):
        result = cli(*arguments)
        assert result.code == 0, result.err
    for path in (checkpoint, out):
        assert "\\udcff\\udce9" in run_program("inspect", path).stdout
        assert json.loads(cli("inspect", path, "--json").out)["path"] == str(path)
    # Texts within files are UTF-8.
    told = json.loads(report.read_bytes())
    assert told["files"][0]["name"] == "\ufffd\ufffd-Q4_0.gguf"
    assert told["checkpoint"]["name"] == f"\ufffd\ufffd{original.suffix}"
    (made,) = folder.glob("*.gguf")
    assert GgufFile(made).keys["quantize.imatrix.file"] == "\ufffd\ufffd-m.gguf"
    assert GgufFile(single).keys["valle.quantize.source_name"] == "\ufffd\ufffd.gguf"
    copy = out.rename(tmp_path / "copy.gguf")
    fields = gguf.GGUFReader(copy).fields
    assert bytes(fields["valle.source.name"].parts[-1]).decode("utf-8").startswith("\ufffd\ufffd")


def test_a_config_with_half_a_character_is_no_traceback(tmp_path: Path, cli: Cli) -> None:
    config = tmp_path / "config.yaml"
    config.write_text('{"name": "a\\ud800b"}')
    out = tmp_path / "o.gguf"
    result = cli(golden_checkpoint("ar-nar-len"), out, "--config", config)
    assert result.code == 0, result
    name = bytes(gguf.GGUFReader(out).fields["general.name"].parts[-1])
    assert name.decode("utf-8") == "a\ufffdb"
