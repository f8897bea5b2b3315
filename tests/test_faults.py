"""A small run of scripts/faults.py: what is left is the old file or the whole new one."""

import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from support import PROJECT, run_python

sys.path[:0] = [str(PROJECT / "tests" / "verify")]  # old_files, which makes what is repaired

from scripts import faults  # noqa: E402
from scripts.faults import BROKEN, NEW, OLD, OPERATIONS, Stage, faults_of, prepare, table  # noqa: E402

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    # Another user has to come by, and pytest's own folders let nobody in.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        given = folder / "given"
        given.mkdir()
        prepare(given)
        yield Stage(OPERATIONS[0], given, folder)


def test_whatever_happens_the_old_file_or_the_whole_new_one_is_left(
    stage: Stage, tmp_path: Path
) -> None:
    rows: dict[tuple[str, str], Counter[str]] = {}
    for fault, counts in faults_of(stage, 8, Random(0), tmp_path):  # noqa: S311
        assert counts[BROKEN] == counts["child left"] == counts["tracebacks"] == 0, (fault, counts)
        assert counts[OLD] + counts[NEW] >= 2, (fault, counts)
        rows[fault, "convert"] = counts
    assert rows["kill -9", "convert"]["exit -9"] > 0
    # Before and after its work, the program ends as any does that is told to, or is done.
    for fault in ("SIGTERM", "Ctrl-C twice"):
        ended = {key for key in rows[fault, "convert"] if key[:5] == "exit "}
        assert ended <= {"exit 0", "exit 130", "exit -15", "exit -2"}, ended
    assert rows["largest file (RLIMIT_FSIZE)", "convert"] == {OLD: 2, "exit 3": 2}
    if os.geteuid() == 0:
        for fault in ("full disk (tmpfs)", "folder of another user"):
            assert rows[fault, "convert"] == {OLD: 2, "exit 3": 2}, fault
        # Whichever reads first: the thread that hashes, or the one that has the file mapped.
        failed = rows["read errors (FUSE)", "convert"]
        assert failed[OLD] == failed["exit 3"] + failed[f"exit {-signal.SIGBUS}"] == 2, failed
    heading, *lines = table(rows)
    assert {len(line) for line in lines} == {len(heading)}
    assert len(lines) == len(rows)


def test_a_half_file_and_a_strange_one_are_noticed(stage: Stage) -> None:
    with stage.folder(with_old=True) as out:
        assert stage.judge(out, with_old=True) == (OLD, 0)
        (out / ".valle-convert-0123456789abcdef.partial").write_bytes(b"half")
        assert stage.judge(out, with_old=True) == (OLD, 1)
        target = out / "o.gguf"
        target.write_bytes(target.read_bytes()[:-1])
        assert stage.judge(out, with_old=True) == (BROKEN, 0)
    with stage.folder(with_old=False) as out:
        assert stage.judge(out, with_old=False) == (OLD, 0)
        (out / "stranger").touch()
        assert stage.judge(out, with_old=False) == (BROKEN, 0)


@ROOT_ONLY
@pytest.mark.parametrize("command", ["convert", "codec", "torch"])
def test_a_disk_that_fails_is_told(stage: Stage, tmp_path: Path, command: str) -> None:
    arguments = {
        "convert": ["{}/model.sft", tmp_path / "o.gguf", "--verify", "none"],
        "codec": ["codec", "{}/codec", tmp_path / "c.gguf"],
        "torch": ["{}/x.pt", tmp_path / "o.gguf"],
    }[command]
    with faults.failing(stage.given, tmp_path / "disk", 0.3):
        words = [str(one).format(tmp_path / "disk") for one in arguments]
        done = faults.run(words)
    if command == "convert" and done.returncode == -signal.SIGBUS:  # it was mapped
        assert "Bus error" in done.stderr
        return
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_what_is_mapped_and_then_cut_off_ends_by_its_signal_and_says_where(tmp_path: Path) -> None:
    code = (
        "import mmap, os, sys\nfrom valle_convert.cli import app\n"
        "def read(**_):\n"
        "    file = open(sys.argv[1], 'r+b'); data = mmap.mmap(file.fileno(), 0)\n"
        "    os.ftruncate(file.fileno(), 0); data[70_000]\n"
        "app.app = read\napp.run()"
    )
    (tmp_path / "x").write_bytes(bytes(100_000))
    done = run_python("-c", code, tmp_path / "x")
    assert done.returncode == -signal.SIGBUS, done
    assert "Bus error" in done.stderr
    assert "in read" in done.stderr
