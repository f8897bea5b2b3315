"""Attacks, and payloads that leave a canary."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: `{}` is the hostile path, `{out}` a name that is free.
CHECKPOINT = ("inspect {}", "{} {out}.gguf --verify none", "{} {out}.gguf --dry-run")
CONVERTED = ("verify {}", "tokenize {} a", "quantize {} {out}.gguf Q8_0")
CODEC = ("codec {} {out}.gguf",)

#: Writes an attack into a folder and gives its path; gets the canary's path, too.
Made = Callable[[Path, Path], Path]


@dataclass(frozen=True)
class Attack:
    tries: str  # what it tries, in words
    make: Made
    #: A pattern of the refusal; empty if the file is read, and nothing in it may run.
    says: str
    commands: tuple[str, ...] = CHECKPOINT  # what reads it


def one_file(name: str, data: Callable[[Path], bytes]) -> Made:
    """A file alone; its bytes may name the canary."""

    def make(folder: Path, canary: Path) -> Path:
        path = folder / name
        path.write_bytes(data(canary))
        return path

    return make


class Calls:
    """Pickled, it is a call of a function with arguments."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._call


def touch(canary: Path) -> Calls:
    """The classic: a command of the shell."""
    return Calls(os.system, f"touch '{canary}'")


def python(canary: Path) -> str:
    """Python that makes the canary."""
    return f"open({str(canary)!r}, 'w').close()"


def dumped(value: object, protocol: int = 2) -> bytes:
    return pickle.dumps(value, protocol)


def called(module: str, name: str, *arguments: object) -> bytes:
    """A pickle that calls a function by its name, which need not be there to write it."""
    values = b"".join(dumped(one)[2:-1] for one in arguments)
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + values + b"tR."


def looked_up(module: str, name: str) -> bytes:
    """A pickle that only imports a module, and gets something of it."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"."
