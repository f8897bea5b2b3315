"""Nothing wrong passes: every kind of damage, in each number format, is noticed.

docs/damages.csv shows what notices each of them; `scripts/damage_table.py` writes it.
"""

import csv
import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from damages import (
    BROKEN,
    DAMAGES,
    SET_DAMAGES,
    SEVEN_DAMAGES,
    Parts,
    files_of,
    put_together,
    take_apart,
)
from gguf import GGUFReader
from make_checkpoint import Shape, make_checkpoint
from support import GOLDEN_VALLEX, PROJECT, golden_checkpoint

from valle_convert import plan_conversion, write_gguf
from valle_convert.families.bundle import Plan, open_files
from valle_convert.families.family import Choices
from valle_convert.gguf_file.read import GgufFile
from valle_convert.llama.library import load_library
from valle_convert.llama.selftest import quantize_file
from valle_convert.verify.report import Report
from valle_convert.verify.run import LEVELS, QUICK, LevelName, verify, verify_path
from valle_convert.verify.whole import verify_whole

TYPES = ("F16", "Q8_0", "Q4_K_M")
SHAPE = Shape(dim=256, heads=4, layers=2, ffn=2, levels=3, audio_tokens=32)
SEVEN = replace(SHAPE, version=7, capabilities=("nar", "len"))
Do = Callable[[dict[str, Parts]], object]
#: By the first word of their names, in which types there are right files of each family.
RIGHT = {"right": TYPES, "set": TYPES[:2], "seven": TYPES[:2]}
TITLES = {"right": "version 5", "set": "VALL-E X", "seven": "version 7"}
SPOIL: dict[str, dict[str, Do]] = {
    "right": {name: lambda parts, do=do: do(parts[""]) for name, do in DAMAGES.items()},
    "set": SET_DAMAGES,
    "seven": SEVEN_DAMAGES,
}
EACH_FILE = [
    pytest.param(which, kind, id=f"{which}-{kind}")
    for which, kinds in RIGHT.items()
    for kind in kinds
]
#: In one type on every level, and in the others without the networks.
EACH_DAMAGE = [
    pytest.param(which, kind, name, levels, id=f"{which}-{kind}-{name}")
    for which, kinds in RIGHT.items()
    for i, name in enumerate(SPOIL[which])
    for j, kind in enumerate(kinds)
    for levels in [LEVELS if (i + j) % len(kinds) == 0 else QUICK]
]
#: What is wrong with weights of a set is seen in them, and in what is computed with them.
BY_WEIGHTS_AND_LOGITS = list(SET_DAMAGES)[:5]


def make_right(folder: Path) -> dict[str, Plan]:
    """A right file, or set of files, of each type; the plans by the first word of their names."""
    make_checkpoint(folder / "right.sft", SHAPE)
    make_checkpoint(folder / "seven.sft", SEVEN)
    sources = {
        "right": folder / "right.sft",
        "set": golden_checkpoint(GOLDEN_VALLEX),
        "seven": folder / "seven.sft",
    }
    for which, source in sources.items():
        for kind in RIGHT[which]:
            out = folder / f"{which}-{kind}.gguf"
            if which == "right" and kind != "F16":
                quantize_file(load_library(), folder / "right-F16.gguf", out, kind)
            else:
                write_gguf(plan_conversion(source, Choices(kind)), out)
    return {which: plan_conversion(source, Choices("f16")) for which, source in sources.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damage")


@pytest.fixture(scope="module", autouse=True)
def plans(folder: Path) -> dict[str, Plan]:
    return make_right(folder)


def judge(plan: Plan, path: Path, levels: Sequence[LevelName] = LEVELS) -> Report:
    return verify(plan, open_files(path), n_texts=100, levels=levels)


_apart = cache(take_apart)


def damaged(main: Path, folder: Path, do: Do = lambda _parts: None) -> Path:
    """The files of a model taken apart, changed and written again; the path of the main one."""
    files = files_of(main)
    parts = {part: deepcopy(_apart(path)) for part, path in files.items()}
    do(parts)
    for part, path in files.items():
        put_together(parts[part], folder / path.name)
    return folder / main.name


@pytest.mark.parametrize(("which", "kind"), EACH_FILE)
def test_the_right_file_passes_as_it_is_and_written_by_another(
    which: str, kind: str, folder: Path, plans: dict[str, Plan], tmp_path: Path
) -> None:
    path = folder / f"{which}-{kind}.gguf"
    report = judge(plans[which], path)
    assert report.passed, report.verdict()
    if kind == "Q4_K_M":
        kinds = {tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
        assert {"Q4_K", "Q6_K", "F32"} <= kinds
    report = judge(plans[which], damaged(path, tmp_path))
    assert report.passed, report.verdict()


@pytest.mark.parametrize(("which", "kind", "name", "levels"), EACH_DAMAGE)
def test_every_damage_fails(
    which: str,
    kind: str,
    name: str,
    levels: Sequence[LevelName],
    folder: Path,
    plans: dict[str, Plan],
    tmp_path: Path,
) -> None:
    path = damaged(folder / f"{which}-{kind}.gguf", tmp_path, SPOIL[which][name])
    report = judge(plans[which], path, levels)
    assert report.outcome == "failed"
    assert report.exit_code == 1
    if name in BY_WEIGHTS_AND_LOGITS:
        failed = {level.name for level in report.levels if level.failed}
        assert failed == {"tensors", "logits"} & {*levels}, report.verdict()


@pytest.mark.parametrize(("which", "kind"), EACH_FILE)
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_a_failed_check(
    name: str, which: str, kind: str, folder: Path, plans: dict[str, Plan], tmp_path: Path
) -> None:
    """The last one of several, so that the others are found right."""
    main = folder / f"{which}-{kind}.gguf"
    for path in files_of(main).values():
        shutil.copy(path, tmp_path)
    path = tmp_path / path.name
    path.write_bytes(BROKEN[name](path.read_bytes()))
    report = verify_path(plans[which].checkpoint, tmp_path / main.name)
    assert [check.name for check in report.failures] == ["files"]
    assert path.name in report.verdict()
    assert report.exit_code == 1


def test_a_file_alone_tells_whether_it_is_as_it_was_written(folder: Path, tmp_path: Path) -> None:
    report = verify_whole(folder / "right-F16.gguf")
    assert report.passed, report.verdict()
    (origin,) = report.notes
    assert "made from right.sft with sha256 " in origin
    # By llama-quantize itself, which copies all keys.
    assert verify_whole(folder / "right-Q4_K_M.gguf").outcome == "not verified"
    data = (folder / "right-F16.gguf").read_bytes()
    start = GgufFile(folder / "right-F16.gguf").data_start
    path = tmp_path / "changed.gguf"
    for at in (data.index(b"valle.positions") + 30, start + 1000, len(data) - 40):
        changed = bytearray(data)
        changed[at] ^= 2
        path.write_bytes(changed)
        report = verify_whole(path)
        assert report.exit_code == 1
        assert [check.name for check in report.failures] == ["header" if at < start else "data"]


@pytest.mark.parametrize(
    ("which", "name"), [(which, name) for which in RIGHT for name in SPOIL[which]]
)
def test_a_file_alone_notices_every_damage(
    which: str, name: str, folder: Path, tmp_path: Path
) -> None:
    path = damaged(folder / f"{which}-F16.gguf", tmp_path, SPOIL[which][name])
    assert verify_whole(path).outcome == "failed"


def test_the_table_in_the_docs_names_every_damage() -> None:
    with (PROJECT / "docs" / "damages.csv").open(encoding="utf-8", newline="") as file:
        rows = {tuple(row[:2]) for row in csv.reader(file)}
    assert rows >= {
        (title, name)
        for which, title in TITLES.items()
        for name in {"nothing", *SPOIL[which], *BROKEN}
    }
