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


@pytest.mark.parametrize("name", ["ar-nar-len", "v6-text-head"], ids=["safetensors", "torch"])
def test_a_name_that_is_not_utf8_goes_all_the_way(
    name: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = golden_checkpoint(name)
    checkpoint, out, codes, more = (
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9" + suffix))
        for suffix in (original.suffix.encode(), b".gguf", b".npz", b".2.npz")
    )
    shutil.copy(original, checkpoint)
    # pytest's own stream refuses such a name; the program's is tried below.
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), errors="backslashreplace"))
    spoken = ["--set", "max_seconds=0.1", "--threads", 1]
    for arguments in (
        [checkpoint, out, "--outtype", "f32"],
        ["tokenize", out, "həlˈoʊ"],
        ["speak", out, "Hi.", "--save-codes", codes, *spoken],
        ["speak", out, "Hi.", "--codes", codes, "--save-codes", more, "--threads", 1],
    ):
        result = cli(*arguments)
        assert result.code == 0, result.err
    for path in (checkpoint, out):
        assert "\\udcff\\udce9" in run_program("inspect", path).stdout
        assert json.loads(cli("inspect", path, "--json").out)["path"] == str(path)
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
