"""Names of files that are not UTF-8 are names of files all the same."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
from support import PROJECT, Cli, error_of, golden_checkpoint


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
        program = [sys.executable, "-m", "valle_convert", "inspect", path]
        done = subprocess.run(program, capture_output=True, check=True, cwd=PROJECT)
        assert "\\udcff\\udce9" in done.stdout.decode("utf-8")
        assert json.loads(cli("inspect", path, "--json").out)["path"] == str(path)
    copy = out.rename(tmp_path / "copy.gguf")
    fields = gguf.GGUFReader(copy).fields
    assert bytes(fields["valle.source.name"].parts[-1]).decode("utf-8").startswith("\ufffd\ufffd")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (os.fsdecode(b"\xff\xfe"), "name is not valid UTF-8"),
        ("", "name is '', expected some text"),
        (" ", "name is ' ', expected some text"),
    ],
)
def test_a_name_that_is_none_is_refused(name: str, words: str, tmp_path: Path, cli: Cli) -> None:
    result = cli(golden_checkpoint("ar-nar-len"), tmp_path / "o.gguf", "--name", name)
    assert f"The option --name: {words}" in error_of(result, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_config_with_half_a_character_is_no_traceback(tmp_path: Path, cli: Cli) -> None:
    config = tmp_path / "config.yaml"
    config.write_text('{"name": "a\\ud800b"}')
    out = tmp_path / "o.gguf"
    result = cli(golden_checkpoint("ar-nar-len"), out, "--config", config)
    assert result.code == 0, result
    name = bytes(gguf.GGUFReader(out).fields["general.name"].parts[-1])
    assert name.decode("utf-8") == "a\ufffdb"


def test_a_text_that_is_not_utf8_is_refused(cli: Cli) -> None:
    message = error_of(cli("tokenize", "model.gguf", os.fsdecode(b"a\xff")), 2)
    assert "The text is not valid UTF-8" in message
