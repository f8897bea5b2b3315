"""The fuzzer finds what is planted; every reader stands a short run of it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import run_python

from fuzz.mutate import VALUES
from fuzz.runner import Run, distinct, make_input, table
from fuzz.targets import TARGETS, Files, Target

#: As it is when nothing was made yet.
KNOWN = json.dumps(VALUES)


def one_file(_rng: Random) -> Files:
    return {"x": b"data"}


def crash(_folder: Path) -> None:
    {}["missing"]


def leave_behind(folder: Path) -> None:
    (folder / "left").write_text("x")


def hang_in_python(_folder: Path) -> None:
    while True:
        pass


def hang_quietly(_folder: Path) -> None:
    try:
        while True:
            pass
    except Exception:  # noqa: S110 - as some readers do
        pass


def die(_folder: Path) -> None:
    os.kill(os.getpid(), 9)


def take_memory(_folder: Path) -> None:
    bytearray(3 << 30)


def start_a_program(_folder: Path) -> None:
    os.system("true")  # noqa: S605


def write_elsewhere(folder: Path) -> None:
    (folder.parents[1] / "elsewhere").write_text("x")


def tell_too_much(_folder: Path) -> None:
    from valle_convert.errors import InputError

    raise InputError("x" * 100_000)


PLANTED = {
    crash: "KeyError",
    leave_behind: "AssertionError",
    hang_in_python: "hang",
    hang_quietly: "hang",
    die: "killed by SIGKILL",
    take_memory: "MemoryError",
    start_a_program: "_ForbiddenError",
    write_elsewhere: "_ForbiddenError",
    tell_too_much: "AssertionError",
}


@pytest.mark.parametrize(("read", "what"), PLANTED.items(), ids=[read.__name__ for read in PLANTED])
def test_what_is_planted_is_found(
    read: Callable[[Path], None], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fuzz.runner.SECONDS_PER_INPUT", 0.3)
    target = Target("planted", one_file, read, list)
    count = Run(tmp_path, targets={"planted": target}).turn(target, 20.0, most=2)
    assert (count.inputs, count.findings) == (2, 2)
    ((finding, n),) = distinct(tmp_path / "findings")
    assert (finding.what, n) == (what, 2)


def test_a_target_that_refuses_what_is_right_is_no_test(tmp_path: Path) -> None:
    from valle_convert.errors import InputError

    def refuse(_folder: Path) -> None:
        raise InputError("no")

    target = Target("picky", one_file, refuse, lambda: [{"x": b""}])
    with pytest.raises(RuntimeError, match="a valid input was refused"):
        Run(tmp_path, targets={"picky": target}).turn(target, 20.0, most=1)


@given(st.sampled_from(sorted(TARGETS)), st.integers(0, 1 << 40))
@settings(max_examples=150)
def test_an_input_is_made_again_by_its_number(name: str, index: int) -> None:
    once, again = (make_input(TARGETS[name], 0, index) for _ in range(2))
    assert once == again


def test_what_was_made_before_changes_nothing() -> None:
    alone = {index: make_input(TARGETS["report"], 3, index) for index in (5_000, 5_001)}
    for index in range(3_000):
        make_input(TARGETS["report"], 3, index)
    assert {index: make_input(TARGETS["report"], 3, index) for index in alone} == alone
    assert json.dumps(VALUES) == KNOWN


def test_every_reader_stands_a_short_run(tmp_path: Path) -> None:
    # In a process of its own: memory is limited there, and llama.cpp has no threads of other tests.
    done = run_python("-m", "fuzz", "--inputs", 150, "--seed", 7, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "counts.jsonl").read_text().splitlines()
    counts = {line["target"]: line for line in map(json.loads, lines)}
    assert set(counts) == set(TARGETS)
    for name, count in counts.items():
        assert count["inputs"] == 150, name
        # A target of which everything is refused, or nothing, tests one half of a reader.
        assert count["accepted"] > 0 < count["refused"], name
    # The next run goes on behind it.
    run_so_far = Run(tmp_path, seed=7)
    assert run_so_far.next_index("gguf") == 150
    assert [row[:2] for row in table(run_so_far.counts())][1:] == [(one, 150) for one in TARGETS]


def test_what_reaches_new_code_is_kept_and_led_on(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    done = run_python("-m", "fuzz.guided", "pickle", corpus, "-runs=400", "-seed=1")
    assert done.returncode == 0, done.stderr
    assert "Done 400 runs" in done.stderr
    assert len(list(corpus.iterdir())) > 1  # more than the valid one
