"""`.pth` / `.pt`: the output of `torch.save`, since torch 1.6 a zip of a pickle and raw tensors.

torch is not needed. `torch_zip` checks the zip, and `torch_pickle` reads the pickle without
importing or calling what it names. The tensors are mapped from the file.
"""

import io
import mmap
import re
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from valle_convert.checkpoint.source import TensorSpec, unreadable
from valle_convert.checkpoint.torch_pickle import (
    PickleReader,
    RefusedError,
    Storage,
    StoredTensor,
    word_for,
)
from valle_convert.checkpoint.torch_zip import check_sums, zip_entries
from valle_convert.errors import InputError
from valle_convert.files import first_bytes, os_faults
from valle_convert.wording import listing

#: A pickle of torch's magic number, the start of its files before they were zips.
_MAGIC = re.compile(rb"\x80[\2-\5](\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)


def load_torch_file(path: Path) -> object:
    """The object inside a file of torch.save; its tensors are `StoredTensor`s.

    A file from before torch 1.6 is a sequence of pickles without a zip.
    """
    is_zip = not _is_bare_pickle(path)
    entries = zip_entries(path) if is_zip else {}
    with os_faults(f"{path} cannot be read"), path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def piece(name: str) -> Storage:
        return Storage(mapped, entries[name].n_bytes, entries[name].start)

    def storage(key: str, n_bytes: int) -> Storage:
        found = piece(f"data/{key}")
        if found.n_bytes != n_bytes:
            raise ValueError(
                "the pickle and the zip table disagree on the size of tensor data: "
                f"{n_bytes} and {found.n_bytes} bytes of {key}"
            )
        return found

    try:
        if not is_zip:
            return _load_bare(mapped)
        if "byteorder" in entries:
            _check_order(bytes(piece("byteorder").read()) == b"little")
        pickled = io.BytesIO(piece("data.pkl").read())
        loaded: object = PickleReader(pickled, storage).load()
    except RefusedError as error:
        raise InputError(
            f"{path} is rejected: its pickle could run code, since it asks for {error!s:.60}. "
            "Save only tensors, dicts, lists, strings and numbers."
        ) from error
    except Exception as error:
        # The file is untrusted, and a pickle reader raises whatever its parts raise
        # (EOFError, KeyError, IndexError, OverflowError, ...).
        reason = str(error).strip() or type(error).__name__
        raise InputError(
            f"{path} cannot be read as a file of torch.save ({reason:.200}); copy or download it "
            "again."
        ) from error
    return loaded


def _load_bare(mapped: mmap.mmap) -> object:
    """Pickles of a magic number, a version, the system, the object and storage keys; then data."""
    stored: dict[str, Storage] = {}

    def storage(key: str, n_bytes: int) -> Storage:
        return stored.setdefault(key, Storage(mapped, n_bytes))

    mapped.seek(0)

    def load() -> Any:  # noqa: ANN401 - any object
        return PickleReader(mapped, storage).load()

    _magic, _version, system, loaded, keys = (load() for _ in range(5))
    _check_order(isinstance(system, dict) and system.get("little_endian", True))
    for key in keys:
        (n,) = struct.unpack("<q", mapped.read(8))
        piece = stored[key]
        piece.start = mapped.tell()
        fits = piece.start + piece.n_bytes <= len(mapped)
        if not fits or (n == 0) != (piece.n_bytes == 0) or piece.n_bytes % (n or 1):
            raise ValueError(f"the data of tensors {key} is out of place")
        mapped.seek(piece.n_bytes, io.SEEK_CUR)
    if any(not piece.start for piece in stored.values()):
        raise ValueError("the data of tensors is missing")
    return loaded


def _check_order(is_little: bool) -> None:
    if not is_little:
        raise ValueError("it was saved on a machine of the other byte order")


class TorchTensors:
    """A `TensorSource` over the tensors of a loaded state dict."""

    def __init__(self, path: Path, state: Mapping[str, object]) -> None:
        self._tensors: dict[str, StoredTensor] = {}
        strange: list[str] = []
        for name, value in state.items():
            if (
                not isinstance(name, str)
                or not isinstance(value, StoredTensor)
                # Fewer numbers than elements: it would expand.
                or value.n_elements * value.numbers.itemsize > value.storage.n_bytes
            ):
                known = name if isinstance(name, str) else f"a {type(name).__name__}"
                strange.append(f"{known:.80} ({word_for(value)})")
                continue
            self._tensors[name] = value
        if strange:
            raise InputError(
                f"{path}: the state dict holds values that are not dense tensors: "
                f"{listing(strange)}; save the model's plain state_dict()."
            )
        self._path = path
        self._is_checked = _is_bare_pickle(path)  # no checksums
        self._checking = threading.Lock()
        self.specs: Mapping[str, TensorSpec] = {
            name: TensorSpec(name, one.numbers.dtype, one.numbers.name, one.shape)
            for name, one in self._tensors.items()
        }

    def read(self, name: str) -> NDArray[Any]:
        """One tensor; a view of the mapped file if it is contiguous there."""
        self.check()
        spec = self.specs[name]
        if spec.dtype is None:
            raise unreadable(self._path, spec)
        return self._tensors[name].read()

    def check(self) -> None:
        """Check the file against its checksums, once."""
        with self._checking:
            if not self._is_checked:
                check_sums(self._path, zip_entries(self._path))
                self._is_checked = True


def is_bare_torch_pickle(head: bytes) -> bool:
    """Whether a file begins like those of torch.save before torch 1.6."""
    return _MAGIC.match(head) is not None


def _is_bare_pickle(path: Path) -> bool:
    return is_bare_torch_pickle(first_bytes(path, 64))
