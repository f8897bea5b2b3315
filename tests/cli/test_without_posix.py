"""What a checkpoint becomes a file by needs no module that Windows has not."""

from pathlib import Path

import pytest
from support import Convert, golden_checkpoint, run_python

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
