"""A command parses each GGUF file once, and reads a checkpoint as often as its work asks for."""

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from make_checkpoint import Shape, make_checkpoint
from make_vallex import VallexShape, make_vallex
from support import Cli

IO = Path("/proc/self/io")
#: How often files were mapped, as every parsed GGUF file is.
MAPPED = Counter[Path]()


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "mmap.__new__" and arguments[0] >= 0:
        MAPPED[Path(f"/proc/self/fd/{arguments[0]}").readlink()] += 1


if IO.exists():
    sys.addaudithook(_hook)


def n_read() -> int:
    """Bytes that this process has read, except through mappings."""
    return int(IO.read_text(encoding="ascii").split()[1])  # rchar


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
        made, given = folder / "made", ("--checkpoint", checkpoint, "--utterances", 1)
        for command in (
            [checkpoint, out, "--verify", "quick"],
            ["verify", checkpoint, out],
            ["verify", out],
            ["inspect", out],
            ["quantize", out, made, "--types", "Q8_0,Q5_0,Q4_0"],
            ["evaluate", made, *given],
            ["merge", made, folder / "merged"],
            ["publish", made],
            ["compare", made / "out-Q8_0.gguf", made / "out-Q4_0.gguf"],
        ):
            MAPPED.clear()
            before = n_read()
            assert cli(*command).code == 0
            parsed = {path: n for path, n in MAPPED.items() if path.suffix == ".gguf"}
            assert set(parsed.values()) == {1}, (command, parsed)
            # At first, whatever is imported is read as well.
            if folder.name == "counted" and checkpoint in command[:2]:
                assert n_read() - before < (n_times + 0.5) * checkpoint.stat().st_size
