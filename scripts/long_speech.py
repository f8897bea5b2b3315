"""Check that memory stays flat while one process speaks for half an hour.

    python scripts/long_speech.py [--minutes 30] [--sentences 700]

Converts the miniature, lets it speak into a pipe, and reads the resident memory of the process
meanwhile. Prints a table of both, and how much the memory grew from the first tenth of the sound to
the last.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

PROJECT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-m", "miniature"]
_RATE = 24_000
_SAMPLE_BYTES = 2
_TEXTS = (
    "The ship sails at noon.",
    "Bring the old lamp from the attic.",
    "Where did all the water go?",
    "Seven men walked along the shore.",
    "We shall never know who it was!",
)


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="of sound, after which it ends")
    parser.add_argument("--sentences", type=int, default=2000)
    given = parser.parse_args()
    text = " ".join(islice(cycle(_TEXTS), given.sentences))
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model.gguf"
        source = PROJECT / "miniature" / "miniature.sft"
        convert = [*PROGRAM, source, model, "--verify", "none"]
        subprocess.run(convert, check=True, cwd=PROJECT, capture_output=True)
        options = "--codec miniature/codec.safetensors --voice miniature/voice-plain.flac".split()
        options += "--set prompt_seconds=0.8,mode=ar,max_seconds=4".split()
        options += "--temperature 0.6 --seed 0".split()
        started = time.monotonic()
        # The text goes by stdin, since a command line has an end.
        process = subprocess.Popen(
            [*PROGRAM, "speak", str(model), "-", "-o", "-", *options],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin is not None  # noqa: S101 - for the type checker
        assert process.stdout is not None  # noqa: S101
        process.stdin.write(text.encode())
        process.stdin.close()
        points: list[tuple[float, float]] = []
        n_bytes = 0
        while data := process.stdout.read(1 << 16):
            n_bytes += len(data)
            minutes = n_bytes / (60 * _RATE * _SAMPLE_BYTES)
            if process.poll() is None and (memory := resident_mb(process.pid)):
                points.append((minutes, memory))
            if minutes >= given.minutes:
                process.terminate()
                process.stdout.read()
                break
        code = process.wait()
        took = time.monotonic() - started
    for part in range(11):
        minutes, memory = points[min(len(points) - 1, part * len(points) // 10)]
        print(f"{minutes:6.1f} minutes of sound   {memory:7.1f} MB")
    tenth = max(1, len(points) // 10)
    early = max(memory for _, memory in points[:tenth])
    late = max(memory for _, memory in points[-tenth:])
    print(
        f"{points[-1][0]:.1f} minutes of sound in {took:.0f} s, exit code {code}; the highest of "
        f"the first tenth {early:.1f} MB, of the last {late:.1f} MB: {late - early:+.1f} MB"
    )


if __name__ == "__main__":
    main()
