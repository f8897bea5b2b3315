"""A verdict outlives its readers, and a signal ends the program in one line."""

import json
import os
import signal
from pathlib import Path

import pytest
from support import Convert, golden_checkpoint, run_program, run_python

CHECKPOINT = str(golden_checkpoint("ar-nar-len"))
GONE = "reader gone"
TO_F32 = ("--outtype", "f32", "--verify", "none")


def run_with(streams: dict[int, str | None], *arguments: str) -> tuple[int, str]:
    """Run with descriptors closed (None), opened on a path, or a pipe that nobody reads."""

    def prepare() -> None:
        for number, what in streams.items():
            if what is None:
                os.close(number)
                continue
            if what == GONE:
                reader, opened = os.pipe()
                os.close(reader)
            else:
                opened = os.open(what, os.O_RDWR)
            os.dup2(opened, number)
            os.close(opened)

    done = run_program(*arguments, preexec_fn=prepare)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("stdout", "form"),
    [(None, ["--json"]), (GONE, []), ("/dev/full", []), ("/dev/full", ["--json"])],
)
def test_no_reader_turns_a_failed_verdict_into_another(
    stdout: str | None, form: list[str], converted: Convert, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.gguf"
    data = bytearray(converted("ar-nar-len", "f32").read_bytes())
    data[-500:-496] = b"\0\0\0@"  # one weight
    damaged.write_bytes(data)
    given = ["verify", CHECKPOINT, str(damaged), "--level", "tensors", *form]
    code, err = run_with({1: stdout}, *given)
    assert code == 1, err
    assert "Traceback" not in err


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_the_work_is_done_whichever_streams_are_closed(
    closed: tuple[int, ...], tmp_path: Path, converted: Convert
) -> None:
    out = tmp_path / "o.gguf"
    code, err = run_with(dict.fromkeys(closed), CHECKPOINT, str(out), *TO_F32)
    assert (code, "Traceback" in err) == (0, False)
    assert out.read_bytes() == converted("ar-nar-len", "f32").read_bytes()
    assert run_with(dict.fromkeys(closed), "inspect", str(tmp_path / "nothing"))[0] == 2


@pytest.mark.parametrize("arguments", [["inspect", CHECKPOINT], ["--help"], ["--version"]])
def test_data_that_a_full_disk_does_not_take_are_told(arguments: list[str]) -> None:
    code, err = run_with({1: "/dev/full"}, *arguments)
    assert code == 3
    assert "Standard output is incomplete: no space left on device" in err
    assert "Traceback" not in err
    assert run_with({1: "/dev/full", 2: "/dev/full"}, *arguments)[0] == 3
    assert run_with({1: GONE}, *arguments)[0] == 0


def test_any_encoding_of_the_terminal_will_do(converted: Convert) -> None:
    for encoding in ("ascii", "latin-1", "utf-16"):
        words, where = ("həlˈoʊ", "--json"), os.environ | {"PYTHONIOENCODING": encoding}
        gguf = converted("ar-nar-len", "f32")
        done = run_program("tokenize", gguf, *words, check=True, env=where, encoding=encoding)
        assert json.loads(done.stdout)["text"] == "həlˈoʊ"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
def test_a_signal_while_modules_are_imported_is_no_traceback(how: signal.Signals) -> None:
    # main() is there from the first: what comes before it is Python's own start.
    code = (
        "import os, sys, threading, time\nfrom valle_convert.cli import interrupt, main\n"
        "ready = interrupt.before_work\n"
        "def start():\n"
        "    ready()\n"
        "    threading.Timer(float(sys.argv.pop()), os.kill, (os.getpid(), int(sys.argv.pop())))"
        ".start()\n"
        "interrupt.before_work = start\nmain()\n"
    )
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1, 0.15):
        done = run_python("-c", code, "inspect", CHECKPOINT, int(how), delay)
        assert done.returncode in {0, 130}
        assert "Traceback" not in done.stderr
        if done.returncode:
            last = done.stderr.splitlines()[-1]
            assert last == "error: Interrupted; no unfinished file was left behind."
        assert done.returncode == 130 or delay > 0.05


SWALLOWED = """
import os, signal, sys, time
from valle_convert.cli import app, interrupt

class Swallows:
    def __del__(self):
        os.kill(os.getpid(), signal.{signal})
        for _ in range(1000):
            pass

def work():
    one = Swallows()
    del one
    time.sleep(300)

app.app = lambda **_: work()
app.run()
"""


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_a_signal_that_a_destructor_swallows_ends_the_program_all_the_same(how: str) -> None:
    done = run_python("-c", SWALLOWED.format(signal=how))
    assert done.returncode == 130
    assert done.stderr == "error: Interrupted; no unfinished file was left behind.\n"
