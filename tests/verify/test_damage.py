"""Nothing wrong passes: forty kinds of damage, in three number formats, each noticed.

docs/verdict.md shows what notices each of them; `scripts/damage_table.py` writes it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from damages import BROKEN, DAMAGES, put_together, take_apart
from gguf import GGUFReader
from make_checkpoint import Shape, make_checkpoint
from support import PROJECT

from valle_convert import plan_conversion, read_checkpoint, write_gguf
from valle_convert.families.family import Choices
from valle_convert.gguf_file.plan import GgufPlan
from valle_convert.gguf_file.read import GgufFile
from valle_convert.llama.library import load_library
from valle_convert.llama.selftest import quantize_file
from valle_convert.verify.report import Report
from valle_convert.verify.run import verify, verify_path
from valle_convert.verify.whole import verify_whole

TYPES = ("F16", "Q8_0", "Q4_K_M")
SHAPE = Shape(dim=256, heads=4, layers=2, ffn=2, levels=3, audio_tokens=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint and a right file of each type."""
    folder = tmp_path_factory.mktemp("damage")
    make_checkpoint(folder / "right.sft", SHAPE)
    write_gguf(plan_conversion(folder / "right.sft", Choices("f16")), folder / "F16.gguf")
    for name in TYPES[1:]:
        quantize_file(load_library(), folder / "F16.gguf", folder / f"{name}.gguf", name)
    return folder


@pytest.fixture(scope="module")
def plan(folder: Path) -> GgufPlan:
    return plan_conversion(folder / "right.sft")


def judge(plan: GgufPlan, path: Path) -> Report:
    return verify(plan, GgufFile(path), n_texts=500, n_utterances=1)


@pytest.mark.parametrize("kind", TYPES)
def test_the_right_file_passes_as_it_is_and_written_by_another(
    kind: str, folder: Path, plan: GgufPlan, tmp_path: Path
) -> None:
    report = judge(plan, folder / f"{kind}.gguf")
    assert report.passed, report.verdict()
    if kind == "Q4_K_M":
        kinds = {tensor.tensor_type.name for tensor in GGUFReader(folder / f"{kind}.gguf").tensors}
        assert {"Q4_K", "Q6_K", "F32"} <= kinds
    put_together(take_apart(folder / f"{kind}.gguf"), tmp_path / "same.gguf")
    report = judge(plan, tmp_path / "same.gguf")
    assert report.passed, report.verdict()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_fails(
    name: str, kind: str, folder: Path, plan: GgufPlan, tmp_path: Path
) -> None:
    parts = take_apart(folder / f"{kind}.gguf")
    DAMAGES[name](parts)
    path = tmp_path / "damaged.gguf"
    put_together(parts, path)
    report = judge(plan, path)
    assert report.outcome == "failed"
    assert report.exit_code == 1


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_a_failed_check(
    name: str, kind: str, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(BROKEN[name]((folder / f"{kind}.gguf").read_bytes()))
    report = verify_path(read_checkpoint(folder / "right.sft"), path)
    assert [check.name for check in report.failures] == ["file"]
    assert report.exit_code == 1


def test_a_file_alone_tells_whether_it_is_as_it_was_written(folder: Path, tmp_path: Path) -> None:
    report = verify_whole(folder / "F16.gguf")
    assert report.passed, report.verdict()
    (origin,) = report.notes
    assert "made of right.sft with sha256 " in origin
    # By llama-quantize itself, which copies all keys.
    assert verify_whole(folder / "Q4_K_M.gguf").outcome == "not verified"
    data = (folder / "F16.gguf").read_bytes()
    start = GgufFile(folder / "F16.gguf").data_start
    path = tmp_path / "changed.gguf"
    for at in (data.index(b"valle.positions") + 30, start + 1000, len(data) - 40):
        changed = bytearray(data)
        changed[at] ^= 2
        path.write_bytes(changed)
        report = verify_whole(path)
        assert report.exit_code == 1
        assert [check.name for check in report.failures] == ["header" if at < start else "data"]


@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_alone_notices_every_damage(name: str, folder: Path, tmp_path: Path) -> None:
    parts = take_apart(folder / "F16.gguf")
    DAMAGES[name](parts)
    put_together(parts, tmp_path / "damaged.gguf")
    assert verify_whole(tmp_path / "damaged.gguf").outcome == "failed"


def test_the_table_in_the_docs_names_every_damage() -> None:
    text = (PROJECT / "docs" / "verdict.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")}
    assert rows >= DAMAGES.keys() | BROKEN.keys()
