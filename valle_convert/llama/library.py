"""Finding libllama, loading it once, and listening to its log.

In: an installed llama-cpp-python. Out: a `Library` with the low-level API (the ctypes functions of
`llama_cpp.llama_cpp`, named as in llama.h) and a `Log`.

If a call fails, llama.cpp returns NULL or a number and gives the reason in its log only. So the log
is kept in a bounded buffer, not printed, and the warnings and errors of a failed call go into the
message of the exception.
"""

import ctypes
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valle_convert.errors import EnvironmentFault
from valle_convert.extras import install
from valle_convert.threads import limit_openmp_spinning
from valle_convert.wording import listing

INSTALL = install("llama")
#: The tested version, as pinned in constraints.txt.
TESTED = "0.3.36"
INSTALL_TESTED = f"install the version tested here: pip install llama-cpp-python=={TESTED}"
# The build script switches every instruction set; this form works everywhere and is for users
# whose build crashes.
REBUILD = (
    'CMAKE_ARGS="-DGGML_NATIVE=OFF" pip install --force-reinstall --no-deps --no-cache-dir '
    "--no-binary llama-cpp-python llama-cpp-python"
)

# ggml_log_level, from ggml.h. (The binding's own logger has an older numbering.)
LEVEL_WARN = 3
LEVEL_ERROR = 4
LEVEL_CONTINUED = 5

_LOADING = threading.Lock()
LOG_LINES = 1000  # loading a model writes about 150


class Log:
    """The last lines that llama.cpp wrote, oldest first."""

    def __init__(self) -> None:
        #: Each line's number since the start, its level, and its text.
        self._lines: deque[tuple[int, int, str]] = deque(maxlen=LOG_LINES)
        self._count = 0
        self._level = 0
        self._unfinished = ""

    def write(self, level: int, text: str) -> None:
        """Add a piece of log; a line may come in several pieces, and later pieces have no level."""
        if level != LEVEL_CONTINUED:
            self._finish()
            self._level = level
        *lines, rest = (self._unfinished + text).split("\n")
        self._unfinished = ""
        for line in lines:
            self._append(line)
        self._unfinished = rest

    def mark(self) -> int:
        """A point in the log, from which `complaints` starts."""
        self._finish()
        return self._count

    def complaints(self, since: int) -> list[str]:
        """The texts of warnings and errors after a mark, without repetitions."""
        self._finish()
        texts = [
            text.strip()
            for number, level, text in self._lines
            if number >= since and level in {LEVEL_WARN, LEVEL_ERROR}
        ]
        return list(dict.fromkeys(filter(None, texts)))

    def explain(self, since: int) -> str:
        """` llama.cpp says: ...` with the first complaints after a mark; empty if none came."""
        complaints = self.complaints(since)
        return f" llama.cpp says: {listing(complaints, 3, ' | ')}." if complaints else ""

    def _finish(self) -> None:
        if self._unfinished:
            self._append(self._unfinished)
            self._unfinished = ""

    def _append(self, text: str) -> None:
        self._lines.append((self._count, self._level, text))
        self._count += 1


@dataclass(frozen=True)
class Library:
    """libllama, loaded and initialized.

    `api` is the module `llama_cpp.llama_cpp`, which has no types. `callback` is kept here because
    llama.cpp holds its bare address.
    """

    api: Any
    path: Path
    binding_version: str
    log: Log
    callback: object

    def system_info(self) -> str:
        """The instruction sets and backends that llama.cpp was built with, in its own words."""
        return " ".join(bytes(self.api.llama_print_system_info()).decode().split())

    def ggml(self, part: str, functions: Iterable[tuple[str, Any, Sequence[Any]]]) -> Any:  # noqa: ANN401
        """Functions of a library beside libllama: names, types of results and of arguments."""
        path = self.path.with_name(self.path.name.replace("llama", part))
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise EnvironmentFault(
                f"{path} of llama.cpp {self.binding_version} does not load ({error}); "
                f"{INSTALL_TESTED}."
            ) from error
        for name, result, arguments in functions:
            function = getattr(library, name)
            function.restype, function.argtypes = result, list(arguments)
        return library

    def check_gpu(self, n_layers: int) -> None:
        """Refuse to offload layers where llama.cpp was built without a GPU backend."""
        if n_layers and not self.api.llama_supports_gpu_offload():
            raise EnvironmentFault(
                f"llama.cpp {self.binding_version} was built without a GPU backend. Leave "
                "--gpu-layers out, or build it again with CMAKE_ARGS=-DGGML_CUDA=ON."
            )

    def devices(self) -> list[str]:
        """What llama.cpp can compute on, with the memory of each."""
        pointer, size = ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)
        ggml = self.ggml(
            "ggml",
            [
                ("ggml_backend_dev_count", ctypes.c_size_t, []),
                ("ggml_backend_dev_get", pointer, [ctypes.c_size_t]),
            ],
        )
        base = self.ggml(
            "ggml-base",
            [
                ("ggml_backend_dev_name", ctypes.c_char_p, [pointer]),
                ("ggml_backend_dev_description", ctypes.c_char_p, [pointer]),
                ("ggml_backend_dev_memory", None, [pointer, size, size]),
            ],
        )
        found = []
        for i in range(ggml.ggml_backend_dev_count()):
            device, free, total = ggml.ggml_backend_dev_get(i), ctypes.c_size_t(), ctypes.c_size_t()
            base.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
            name, words = (
                bytes(get(device)).decode(errors="replace")
                for get in (base.ggml_backend_dev_name, base.ggml_backend_dev_description)
            )
            memory = f", {total.value / 2**30:.0f} GiB" if total.value else ""  # none of BLAS
            found.append(f"{name}: {words}{memory}")
        return found


def find_library() -> Path | None:
    """The shared library that `load_library` would load; imports and loads nothing.

    Returns None if llama-cpp-python is not installed or its library folder has no libllama.
    """
    override = os.environ.get("LLAMA_CPP_LIB_PATH")  # the binding's own variable
    if override is not None:
        folder = Path(override)
    else:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            return None
        folder = Path(spec.origin).parent / "lib"
    for name in ("libllama.so", "libllama.dylib", "llama.dll", "libllama.dll"):
        if (folder / name).is_file():
            return folder / name
    return None


def load_library() -> Library:
    """Load libllama, silence it and initialize its backends; later calls give the same object."""
    with _LOADING:
        return _load()


@functools.cache
def _load() -> Library:
    api = _import_binding()
    log = Log()

    def receive(level: int, text: bytes | None, _user_data: object) -> None:
        log.write(level, (text or b"").decode("utf-8", errors="replace"))

    callback = api.llama_log_callback(receive)
    api.llama_log_set(callback, None)
    api.llama_backend_init()
    path = find_library()
    return Library(
        api=api,
        path=path if path is not None else Path(api.__file__).parent,
        binding_version=importlib.metadata.version("llama-cpp-python"),
        log=log,
        callback=callback,
    )


def _import_binding() -> Any:  # noqa: ANN401 - a module without types
    limit_openmp_spinning()
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    except ModuleNotFoundError as error:
        raise EnvironmentFault(
            f"llama.cpp's Python binding cannot be imported (no module {error.name}). "
            f"Run {INSTALL}."
        ) from error
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        # OSError: no libllama in the folder. RuntimeError: the loader rejected the library.
        # AttributeError: a libllama of another version, without some function.
        raise EnvironmentFault(
            f"llama.cpp's library does not load: {error}; build it again for this machine: "
            f"{REBUILD}"
        ) from error
