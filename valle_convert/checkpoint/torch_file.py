"""`.pth` / `.pt`: what `torch.save` writes since torch 1.6, a zip of a pickle and raw tensors.

The pickle is loaded by torch with `weights_only=True`, which builds tensors, containers
and plain values and nothing else; there is no option to turn that off. Whatever else a pickle
names becomes a `StandIn`, so that nothing of the file is imported or called; those of paths,
numpy's numbers and namespaces of arguments know the plain value that they stand for. The tensors
are mapped from the file. Before torch sees the file,
the zip's table of contents is checked, so that a small file cannot claim terabytes. The
checksums of that table are held against the pickle at once, and against the tensors before the
first of them is read.
"""

from __future__ import annotations

import mmap
import pickle
import re
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from zlib_ng import zlib_ng

from valle_convert.checkpoint.source import BFLOAT16, DTYPES, TensorSpec
from valle_convert.checkpoint.stand_ins import is_harmful, stand_in_for
from valle_convert.errors import InputError
from valle_convert.files import (
    check_free_space,
    check_input_file,
    explained_writes,
    os_fault,
    valid_utf8,
)
from valle_convert.wording import listing

if TYPE_CHECKING:
    import torch

# A VALL-E checkpoint's pickle has some hundred tensors and a vocabulary: tens of KiB.
_MAX_PICKLE_BYTES = 64 << 20
_MAX_ENTRIES = 100_000
_PIECE_BYTES = 1 << 20
#: A pickle of torch's own number, with which its files began before they were zips.
_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LAST_BYTES = 1 << 16
_UNSUPPORTED = re.compile(r"Unsupported (?:global|class): (?:GLOBAL )?(\S+)")
# What stands before an entry: magic, version, flags, method, time, date, checksum, two sizes, and
# the lengths of its name and of the extra field.
_LOCAL = struct.Struct("<4s5H3I2H")


def load_torch_file(path: Path, *, plain_only: bool = False) -> object:
    """The object inside a file of torch.save, tensors mapped from it.

    One from before torch 1.6 is a row of pickles without a zip; its tensors are read at once, and
    it may hold nothing but tensors, containers and plain values.
    """
    is_zip = not _is_bare_pickle(path)
    if is_zip:
        _check_zip(path)
    import torch

    try:
        with warnings.catch_warnings():
            # torch warns that mapped memory is read-only; nothing here writes to it.
            warnings.simplefilter("ignore")
            with _utf8_path(path) as name:
                if not is_zip:
                    return torch.load(name, map_location="cpu", weights_only=True)
                foreign = torch.serialization.get_unsafe_globals_in_checkpoint(name)
                harmful = plain_only or any(map(is_harmful, foreign))
                stand_ins = [] if harmful else [(stand_in_for(one), one) for one in foreign]
                with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
                    loaded: object = torch.load(
                        name, map_location="cpu", weights_only=True, mmap=True
                    )
    except pickle.UnpicklingError as error:
        # torch goes on to explain how the class could be allowed, which is no advice for a file
        # of somebody else.
        reason = _first_line(error)
        asked = _UNSUPPORTED.search(reason)
        raise InputError(
            f"{path} is refused, because its pickle holds more than tensors and plain values, and "
            f"loading it could run code: {f'it asks for {asked[1]}.' if asked else reason} "
            "Save it again with tensors, dicts, lists, strings and numbers only, or export it to "
            ".sft with the training project."
        ) from error
    except Exception as error:
        # The file is untrusted and torch's reader raises whatever its parts raise (RuntimeError,
        # EOFError, KeyError, OverflowError, ...); each means that the file is damaged.
        raise InputError(
            f"{path} cannot be read as a file of torch.save ({_first_line(error)}); "
            "copy or download it again."
        ) from error
    return loaded


@contextmanager
def _utf8_path(path: Path) -> Iterator[Path]:
    """The path, or one that torch can open where it is no UTF-8."""
    if valid_utf8(str(path)) == str(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="valle-convert-") as folder:
        link = Path(folder) / f"checkpoint{path.suffix}"
        link.symlink_to(path.absolute())
        yield link


class TorchTensors:
    """A `TensorSource` over the tensors of a loaded state dict."""

    def __init__(
        self, path: Path, state: Mapping[str, object], *, has_checksums: bool = True
    ) -> None:
        import torch

        self._tensors: dict[str, torch.Tensor] = {}
        specs: dict[str, TensorSpec] = {}
        strange: list[str] = []
        for name, value in state.items():
            if (
                not isinstance(name, str)
                or not isinstance(value, torch.Tensor)
                or value.layout != torch.strided
                or value.is_quantized
                or value.device.type != "cpu"
                # Made of fewer numbers, each of which stands for many: it would unfold.
                or value.numel() * value.element_size() > value.untyped_storage().nbytes()
            ):
                strange.append(f"{name!s} ({type(value).__name__})")
                continue
            self._tensors[name] = value.detach()
            kind = str(value.dtype).removeprefix("torch.")
            specs[name] = TensorSpec(name, DTYPES.get(kind), kind, tuple(value.shape))
        if strange:
            raise InputError(
                f"{path}: the state dict holds values that are no dense tensors: "
                f"{listing(strange)}; save the model's plain state_dict()."
            )
        if has_checksums:
            _check_storages(path, self._tensors)
        self._path = path
        self._is_checked = not has_checksums
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)

    def read(self, name: str) -> NDArray[Any]:
        """One tensor; a view of the mapped file where it is contiguous there."""
        import torch

        self.check()
        spec = self.specs[name]
        if spec.dtype is None:
            raise InputError(
                f"{self._path}: the tensor {name} has the type {spec.dtype_name}, which cannot be "
                "read; float32, float16 and bfloat16 can."
            )
        tensor = self._tensors[name].contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(BFLOAT16)
        return tensor.numpy()

    def check(self) -> None:
        """Hold the file against its checksums, once."""
        if not self._is_checked:
            check_sums(self._path)
            self._is_checked = True


@contextmanager
def packed_again(folder: Path) -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """A file of torch.save that was unpacked into a folder, for as long as it takes to open it.

    Yields the file, whose data can be read afterwards, too, and those of the folder.
    """
    files = sorted(one for one in folder.rglob("*") if not one.is_dir())
    for one in files:
        check_input_file(one)
    with tempfile.TemporaryDirectory(prefix="valle-convert-") as place:
        packed = Path(place) / f"{folder.name or 'archive'}.pth"
        check_free_space(packed, sum(one.stat().st_size for one in files))
        with explained_writes(packed), zipfile.ZipFile(packed, "w") as archive:
            for one in files:
                archive.write(one, Path("archive") / one.relative_to(folder))
        yield packed, tuple(files)


def is_bare_torch_pickle(head: bytes) -> bool:
    """Whether a file begins as torch.save began them before torch 1.6."""
    return head.startswith(_MAGIC)


def _is_bare_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return is_bare_torch_pickle(file.read(len(_MAGIC)))


def check_sums(path: Path, *, pickle_only: bool = False) -> None:
    """Hold the entries of a zip file against their checksums.

    A file that was saved without checksums (torch's `set_crc32_options(False)`) has 0 for each, and
    nothing to compare with.
    """
    with _open_zip(path) as archive:
        entries = _data_offsets(path, archive)
    if not any(entry.CRC for entry in entries.values()):
        return
    piece = memoryview(bytearray(_PIECE_BYTES))
    try:
        with path.open("rb", buffering=0) as file:
            for start, entry in entries.items():
                if pickle_only and not entry.filename.endswith("data.pkl"):
                    continue
                file.seek(start)
                left, found = entry.file_size, 0
                while left and (n_bytes := file.readinto(piece[: min(left, _PIECE_BYTES)])):
                    found = zlib_ng.crc32(piece[:n_bytes], found)
                    left -= n_bytes
                if left or found != entry.CRC:
                    raise InputError(
                        f"{path} is damaged: the entry {entry.filename} is not what was written, "
                        "by its checksum; copy or download it again."
                    )
    except OSError as error:
        raise os_fault(f"{path} cannot be read", error) from error


def _check_storages(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Hold what the pickle says of the data of tensors against the entries of the zip.

    torch maps as many bytes as the pickle asks for, across the end of an entry too. Where the file
    is mapped, nothing tells but the storages themselves: they lie as far from each other as the
    entries do, and each is as long as its entry.
    """
    storages = {
        storage.data_ptr(): (storage.nbytes(), name)
        for name, tensor in tensors.items()
        if (storage := tensor.untyped_storage()).nbytes()
    }
    if not storages:
        return
    with _open_zip(path) as archive:
        entries = _data_offsets(path, archive)
    sizes = {start: entry.file_size for start, entry in entries.items()}
    first = min(storages)
    starts = (first - offset for offset in sizes)
    # A file is mapped at the beginning of a page.
    for start in (one for one in starts if one % mmap.PAGESIZE == 0):
        wrong = [
            name for at, (n_bytes, name) in storages.items() if sizes.get(at - start) != n_bytes
        ]
        if not wrong:
            return
    raise InputError(
        f"{path} is damaged: its pickle and its zip table do not agree on the size of the data of "
        f"tensors, one of {', '.join(sorted(name for _, name in storages.values())[:3])}...; copy "
        "or download it again."
    )


def _data_offsets(path: Path, archive: zipfile.ZipFile) -> dict[int, zipfile.ZipInfo]:
    """The entries of a zip by where their contents begin.

    A zip says everything twice: in a table at its end, which zipfile reads, and before each entry,
    where torch looks as well. Here both say the same, and no entry lies in another.
    """
    found: dict[int, zipfile.ZipInfo] = {}
    end = 0
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    with path.open("rb") as file:
        for entry in entries:
            fits = entry.header_offset >= end  # which is below zero where the table is damaged
            if fits:
                file.seek(entry.header_offset)
                header = file.read(_LOCAL.size)
                fits = len(header) == _LOCAL.size
            if fits:
                magic, _, flags, method, _, _, *sums, n_name, n_extra = _LOCAL.unpack(header)
                # With the third bit set, checksum and sizes stand behind the data.
                known = [0, 0, 0] if flags & 8 else [entry.CRC, *[entry.compress_size] * 2]
                name = file.read(n_name)
                start = entry.header_offset + _LOCAL.size + n_name + n_extra
                end = start + entry.compress_size
                fits = (
                    magic == b"PK\3\4"
                    and (flags, method) == (entry.flag_bits, entry.compress_type)
                    and not flags & 1  # encrypted
                    and not entry.filename.endswith("/")
                    and not entry.external_attr & 0x10  # a folder, for MS-DOS and torch
                    and (
                        sums == known or (flags & 8 and sums[0] == entry.CRC) or 0xFFFFFFFF in sums
                    )
                    and name.decode("utf-8", "replace") == entry.orig_filename
                    and entry.compress_size == entry.file_size
                    and end <= archive.start_dir
                )
            if not fits:
                raise InputError(
                    f"{path} is refused: its zip table and the entry {entry.filename!r:.70} itself "
                    "do not say the same, so that what is in it depends on the reader; save it "
                    "again with torch.save."
                )
            found[start] = entry
    return found


@contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip of `torch.save`."""
    try:
        with path.open("rb") as file:
            # To zipfile, a disk that fails here is a file that is no zip.
            file.seek(max(0, path.stat().st_size - _LAST_BYTES))
            file.read()
    except OSError as error:
        raise os_fault(f"{path} cannot be read", error) from error
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"{path} begins like a file of torch.save, but is cut off or damaged "
            f"({_first_line(error)}); copy or download it again."
        ) from error
    with archive:
        yield archive


def _check_zip(path: Path) -> None:
    """Refuse what `torch.save` never writes: compression, or more bytes than the file has."""
    with _open_zip(path) as archive:
        _check_entries(path, archive)
        _data_offsets(path, archive)
    check_sums(path, pickle_only=True)


def _check_entries(path: Path, archive: zipfile.ZipFile) -> None:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise InputError(
            f"{path} is refused: its zip table has an entry twice, so that what is in it depends "
            "on the reader; save it again with torch.save."
        )
    pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
    if len(pickles) != 1:
        raise InputError(
            f"{path} is a zip file, but not one of torch.save: it has {len(pickles)} entries named "
            "data.pkl, where one is expected; give the checkpoint itself, unpacked."
        )
    claimed = sum(entry.file_size for entry in entries)
    size = path.stat().st_size
    if (
        any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        or claimed > size
        or len(entries) > _MAX_ENTRIES
        or pickles[0].file_size > _MAX_PICKLE_BYTES
    ):
        raise InputError(
            f"{path} is refused: its zip table claims {claimed:,} bytes in {len(entries):,} "
            f"entries inside a file of {size:,} bytes, or compressed entries, which torch.save "
            "never writes; save it again with torch.save."
        )


def _first_line(error: Exception) -> str:
    """The first sentence of an error's text, since torch appends pages of advice."""
    text = str(error).strip() or type(error).__name__
    for line in text.splitlines():
        if "WeightsUnpickler error" in line:
            return line.strip().removeprefix("WeightsUnpickler error:").strip()
    return text.splitlines()[0]
