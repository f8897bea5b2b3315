"""Finds llama.cpp's own programs: `llama-quantize` and `llama-tokenize`.

The Python binding does not include them. The order of search: an environment variable
(LLAMA_QUANTIZE, LLAMA_TOKENIZE), PATH, and the build of `make llama-tools` in a checkout of this
project. Also the environment of Python children, which run llama.cpp's library.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from valle_convert.errors import EnvironmentFault, InputError

PROGRAMS = ("llama-quantize", "llama-tokenize")


@dataclass(frozen=True)
class Program:
    """A program that was found: `how` is the variable, "PATH" or "make llama-tools"."""

    name: str
    path: Path
    how: str


def find_program(name: str, *, checkout: Path | None = None) -> Program:
    variable = name.upper().replace("-", "_")
    given = os.environ.get(variable)
    if given:
        path = Path(given)
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise InputError(
                f"${variable} is {given}, which is not an executable program; give the path of "
                f"{name}, or unset it."
            )
        return Program(name, path, variable)
    in_path = shutil.which(name)
    if in_path is not None:
        return Program(name, Path(in_path), "PATH")
    folder = Path(__file__).resolve().parents[2] if checkout is None else checkout
    if (folder / "pyproject.toml").is_file():
        # The newest build first, if there are several versions of llama.cpp.
        built = sorted(
            (folder / ".cache" / "llama.cpp").glob(f"*/bin/{name}"),
            key=lambda path: path.stat().st_mtime,
            reverse=True,
        )
        if built:
            return Program(name, built[0], "make llama-tools")
    raise EnvironmentFault(
        f"{name} was not found: not in ${variable}, not in PATH, and not built by this project; "
        f"run `make llama-tools` in a checkout of it, or install llama.cpp and set ${variable}."
    )


def child_environment() -> dict[str, str]:
    """The environment of a Python child that must find this very package, installed or not."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
