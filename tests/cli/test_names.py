"""Names of files that are not UTF-8 are names of files all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
from support import PROJECT, Cli, error_of, golden_checkpoint

PROGRAM = [sys.executable, "-m", "valle_convert"]


@pytest.mark.parametrize("name", ["ar-nar-len", "v6-text-head"], ids=["safetensors", "torch"])
def test_a_name_that_is_not_utf8_goes_all_the_way(name: str, tmp_path: Path) -> None:
    original = golden_checkpoint(name)
    checkpoint = os.fsencode(tmp_path) + b"/\xff\xe9" + original.suffix.encode()
    out, codes = checkpoint + b".gguf", checkpoint + b".npz"
    with open(checkpoint, "wb") as file:  # noqa: PTH123 - a name of bytes
        file.write(original.read_bytes())
    (tmp_path / "plain").mkdir()
    plain = tmp_path / "plain" / f"a{original.suffix}"
    plain.write_bytes(original.read_bytes())

    def run(*arguments: bytes | str | Path) -> bytes:
        done = subprocess.run([*PROGRAM, *arguments], capture_output=True, check=False, cwd=PROJECT)
        assert done.returncode == 0, done
        return done.stdout

    run(checkpoint, out, "--outtype", "f32")
    run("verify", checkpoint, out)
    for path in (checkpoint, out):
        assert "\\udcff\\udce9" in run("inspect", path).decode("utf-8")
        assert json.loads(run("inspect", path, "--json"))["path"] == os.fsdecode(path)
    run("tokenize", out, "həlˈoʊ")
    run("speak", out, "Hi.", "--save-codes", codes, "--set", "max_seconds=0.1", "--threads", "1")
    again = ["--save-codes", checkpoint + b".2.npz", "--threads", "1"]
    run("speak", out, "Hi.", "--codes", codes, *again)

    copy = tmp_path / "copy.gguf"
    os.rename(out, copy)  # noqa: PTH104 - likewise
    fields = gguf.GGUFReader(copy).fields
    assert bytes(fields["valle.source.name"].parts[-1]).decode("utf-8").startswith("\ufffd\ufffd")
    run(plain, tmp_path / "plain.gguf", "--outtype", "f32")
    size = (tmp_path / "plain.gguf").stat().st_size
    assert abs(copy.stat().st_size - size) < 1000


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
