"""What a command reads is never replaced by what it writes, whichever of its files that is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Cli, Convert, error_of, golden_checkpoint
from vallex_golden import CHECKPOINT as VALLEX

from valle_convert import plan_conversion, write_gguf
from valle_convert.families.bundle import open_files
from valle_convert.tokenizer.choose import BUILT_IN

CHECKPOINT = golden_checkpoint("ar-nar-len")
LOST = "which would be lost"


@pytest.fixture
def copied(vallex: Path, tmp_path: Path) -> Path:
    """A set that may be lost."""
    for path in open_files(vallex).paths:
        shutil.copy(path, tmp_path)
    return tmp_path / vallex.name


@pytest.fixture
def quantized(tmp_path: Path, converted: Convert, cli: Cli) -> Path:
    """A folder of quantized files."""
    folder = tmp_path / "set"
    source = converted("ar-nar-len", "f16")
    made = cli("quantize", source, folder, "--types", "Q8_0")
    assert made.code == 0, made
    return folder


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_no_file_of_a_set_is_replaced_by_one_of_another(
    link: Callable[[Path, Path], None], copied: Path, tmp_path: Path, cli: Cli
) -> None:
    files = open_files(copied).paths
    before = [path.read_bytes() for path in files]
    (tmp_path / "out").mkdir()
    link(copied.with_name(f"{copied.stem}-nar.gguf"), tmp_path / "out" / "y-nar.gguf")
    out = tmp_path / "out" / "y.gguf"
    run = ("quantize", copied, out, "Q8_0", "--force")
    assert LOST in error_of(cli(*run), 2)
    assert [path.read_bytes() for path in files] == before
    assert list(out.parent.iterdir()) == [out.parent / "y-nar.gguf"]


@pytest.mark.parametrize("name", ["x-nar-3.gguf", "x.measurements.json", "manifest.json"])
def test_no_file_of_a_set_and_nothing_beside_it_is_replaced_by_a_report(
    name: str, tmp_path: Path, cli: Cli
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_gguf(plan_conversion(VALLEX), folder / "x.gguf")
    report, part = tmp_path / "r.json", folder / name
    if not part.exists():
        part.write_text("{}")
    report.symlink_to(part)
    before = part.read_bytes()
    run = ("evaluate", folder / "x.gguf", "--checkpoint", VALLEX, "--force", "--report", report)
    assert LOST in error_of(cli(*run), 2)
    assert part.read_bytes() == before


def test_the_report_of_verify_replaces_no_file_of_a_set(copied: Path, cli: Cli) -> None:
    run = ("verify", VALLEX, copied, "--level", "structure", "--force", "--report")
    assert LOST in error_of(cli(*run, copied.with_name(f"{copied.stem}-nar.gguf")), 2)


def test_metadata_is_not_replaced_by_a_file_of_the_set(tmp_path: Path, cli: Cli) -> None:
    metadata = tmp_path / "x-nar.gguf"
    metadata.write_text('{"author": "me"}')
    run = (VALLEX, tmp_path / "x.gguf", "--metadata", metadata, "--force", "--verify", "none")
    assert LOST in error_of(cli(*run), 2)
    assert metadata.read_text() == '{"author": "me"}'


@pytest.mark.parametrize("name", ["m-Q8_0.gguf", "manifest.json", "SHA256SUMS"])
def test_no_file_of_a_folder_replaces_the_checkpoint(name: str, tmp_path: Path, cli: Cli) -> None:
    checkpoint, source = tmp_path / "c.sft", tmp_path / "m.gguf"
    shutil.copy(CHECKPOINT, checkpoint)
    assert cli(checkpoint, source, "--outtype", "f16", "--verify", "none").code == 0
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(checkpoint)
    run = ("quantize", source, out, "--types", "Q8_0", "--force")
    assert LOST in error_of(cli(*run, "--checkpoint", checkpoint), 2)
    assert checkpoint.read_bytes() == CHECKPOINT.read_bytes()
    assert [path.name for path in out.iterdir()] == [name]


@pytest.mark.parametrize("name", ["manifest.json", "*-Q8_0.gguf"])
def test_the_card_replaces_nothing_that_is_published(name: str, quantized: Path, cli: Cli) -> None:
    (path,) = quantized.glob(name)
    before = path.read_bytes()
    (quantized / "README.md").symlink_to(path.name)
    assert LOST in error_of(cli("publish", quantized, "--force"), 2)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_card_is_a_file(kind: str, quantized: Path, cli: Cli) -> None:
    """The hub is sent what it reads back."""
    card = quantized / "README.md"
    if kind == "pipe":
        os.mkfifo(card)
    else:
        card.symlink_to("/dev/null")
    assert "expected a regular file" in error_of(cli("publish", quantized, "--force"), 2)


def test_a_tokenizer_beside_a_checkpoint_stays(tmp_path: Path, cli: Cli) -> None:
    tokenizer, checkpoint = tmp_path / "tokenizer.json", tmp_path / "a.sft"
    shutil.copy(BUILT_IN, tokenizer)
    shutil.copy(CHECKPOINT, checkpoint)
    assert "is the input file itself" in error_of(cli(checkpoint, tokenizer, "--force"), 2)
    assert tokenizer.read_bytes() == BUILT_IN.read_bytes()


def test_an_export_goes_into_a_folder_only(converted: Convert, tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    source = converted("ar-nar-len", "f16")
    for there in (file, "/dev/null"):
        assert "expected a folder" in error_of(cli("export", source, there), 2)
    assert file.read_text() == "mine"
    out = tmp_path / "out"
    out.mkdir()
    (out / "fp32.sft").symlink_to(tmp_path / "nothing" / "x")
    assert "does not exist" in error_of(cli("export", source, out), 2)
