"""The program in its surroundings: streams, signals, other systems, names of files."""

import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import gguf
import pytest
from support import Cli, Convert, golden_checkpoint, run_program, run_python

from valle_convert.gguf_file.read import GgufFile

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


HASHES_FOR_MINUTES = """
import hashlib, os, signal, sys, threading, time
from valle_convert.cli import main

digest = hashlib.file_digest

def hashes(*arguments):
    if threading.current_thread() is threading.main_thread():
        return digest(*arguments)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(300)

hashlib.file_digest = hashes
main()
"""


@pytest.mark.parametrize("command", ["convert", "quantize"])
def test_an_interrupt_does_not_wait_for_the_digest_of_the_source(
    command: str, gguf: Path, tmp_path: Path
) -> None:
    arguments = {"convert": [CHECKPOINT], "quantize": ["quantize", gguf, "--types", "F16"]}[command]
    done = run_python("-c", HASHES_FOR_MINUTES, *arguments, tmp_path / "out", timeout=30)
    assert done.returncode == 130
    assert done.stderr.endswith("error: Interrupted; no unfinished file was left behind.\n")
    assert list(tmp_path.iterdir()) == []


# Without POSIX

AS_ON_WINDOWS = """
import os, signal, sys
for name in ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"):
    sys.modules[name] = None
for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_TMPFILE", "fchmod", "geteuid", "getuid",
             "pwrite", "sched_getaffinity"):
    delattr(os, name)
for name in ("ITIMER_REAL", "SIGALRM", "SIGBUS", "SIGHUP", "SIGKILL", "getitimer", "setitimer"):
    delattr(signal, name)
sys.argv[0] = "valle-convert"
from valle_convert.cli import main
main()
"""


@pytest.mark.parametrize("command", ["inspect", "dry run", "convert", "verify", "quantize"])
def test_a_checkpoint_is_converted_without_posix(
    command: str, converted: Convert, tmp_path: Path
) -> None:
    checkpoint, out = golden_checkpoint("ar-nar-len"), tmp_path / "o.gguf"
    arguments = {
        "inspect": ["inspect", checkpoint],
        "dry run": [checkpoint, "--dry-run"],
        "convert": [checkpoint, out, "--outtype", "f32", "--verify", "none"],
        "verify": ["verify", checkpoint, converted("ar-nar-len", "f32"), "--level", "tensors"],
        "quantize": ["quantize", converted("ar-nar-len", "f32"), out, "Q8_0"],
    }[command]
    done = run_python("-c", AS_ON_WINDOWS, *arguments)
    assert done.returncode == 0, done.stderr
    if command == "convert":
        assert out.read_bytes() == converted("ar-nar-len", "f32").read_bytes()
        run_python("-c", AS_ON_WINDOWS, *arguments, "--force", check=True)
        assert list(tmp_path.iterdir()) == [out]


# Names that are not UTF-8


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
