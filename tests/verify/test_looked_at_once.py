"""A command parses each GGUF file once, and reads a checkpoint as often as its work asks for."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from make_checkpoint import Shape, make_checkpoint
from make_vallex import VallexShape, make_vallex
from support import Cli

IO = Path("/proc/self/io")


@dataclass
class Looks:
    """What was done to files of one folder.

    Attributes:
        opened: how often each was opened by Python, by name.
        parsed: how often each was mapped, as every parsed GGUF file is.
        n_read: bytes that the process read from anything, but for what is mapped.
    """

    folder: Path
    opened: Counter[str] = field(default_factory=Counter)
    parsed: Counter[str] = field(default_factory=Counter)
    n_read: int = 0


_looking: list[Looks] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _looking or event not in ("open", "mmap.__new__"):
        return
    place = arguments[0]
    if event == "mmap.__new__":
        place = str(Path(f"/proc/self/fd/{place}").readlink()) if place >= 0 else None
    if isinstance(place, str | Path) and Path(place).parent == _looking[0].folder:
        counted = _looking[0].opened if event == "open" else _looking[0].parsed
        counted[Path(place).name] += 1


sys.addaudithook(_hook)


@contextmanager
def looks(folder: Path) -> Iterator[Looks]:
    """Count in what runs inside of it."""

    def read() -> int:
        return int(IO.read_text(encoding="ascii").split()[1])  # rchar

    found = Looks(folder)
    start = read()
    _looking.append(found)
    try:
        yield found
    finally:
        _looking.clear()
        found.n_read = read() - start


def large(path: Path) -> None:
    make_checkpoint(path, Shape(dim=256, heads=4, layers=1, levels=2))


def large_set(path: Path) -> None:
    make_vallex(path, VallexShape(dim=256, heads=4, layers=1, levels=2))


@pytest.mark.skipif(not IO.exists(), reason="only Linux counts what a process reads")
@pytest.mark.parametrize(
    ("make", "name", "n_times"),
    # Once for the hash; zip archives of torch once more for their checksums.
    [(large, "large.sft", 1), (large_set, "large.pt", 2)],
)
def test_files_are_looked_at_once(
    make: Callable[[Path], None], name: str, n_times: int, tmp_path: Path, cli: Cli
) -> None:
    for folder in (tmp_path / "first", tmp_path / "counted"):
        folder.mkdir()
        checkpoint, out = folder / name, folder / "out.gguf"
        make(checkpoint)
        os.utime(checkpoint, (0, 1))  # a file that has just been written may change again
        for command in ([checkpoint, out, "--verify", "quick"], ["verify", checkpoint, out]):
            with looks(folder) as found:
                assert cli(*command).code == 0
            parsed = {one: n for one, n in found.parsed.items() if one.endswith(".gguf")}
            assert parsed == dict.fromkeys((one.name for one in folder.glob("*.gguf")), 1)
            # At first, whatever is imported is read as well.
            if folder.name == "counted":
                assert found.n_read < (n_times + 0.5) * checkpoint.stat().st_size
