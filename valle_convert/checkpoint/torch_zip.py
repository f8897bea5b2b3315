"""The zip of a file of torch.save, checked before anything in it is read.

A small file cannot claim terabytes, the table agrees with the entries, and contents are compared
with the checksums: the pickle at once, tensors before the first is read.
"""

import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zlib_ng import zlib_ng

from valle_convert.errors import InputError
from valle_convert.files import (
    ZIP_MAGIC,
    check_free_space,
    check_input_file,
    explained_writes,
    os_faults,
)
from valle_convert.wording import listing

# A VALL-E checkpoint's pickle has some hundred tensors and a vocabulary: tens of KiB.
_MAX_PICKLE_BYTES = 64 << 20
_MAX_ENTRIES = 100_000
_PIECE_BYTES = 1 << 20
_LAST_BYTES = 1 << 16
# An entry's header: magic, version, flags, method, time, date, checksum, two sizes, and the
# lengths of its name and of the extra field.
_LOCAL = struct.Struct("<4s5H3I2H")


@dataclass(frozen=True)
class ZipEntry:
    start: int
    n_bytes: int
    checksum: int


def zip_entries(path: Path) -> dict[str, ZipEntry]:
    """The entries by their names without the archive's own: `data.pkl`, `data/0`, `byteorder`.

    Rejects what `torch.save` never writes: compression, or more bytes than the file has.
    """
    with _open_zip(path) as archive:
        _check_entries(path, archive)
        found = _data_offsets(path, archive)
    (root,) = (name.removesuffix("data.pkl") for name in found if name.endswith("data.pkl"))
    strange = [name for name in found if not name.startswith(root)]
    if not root or strange:
        raise InputError(
            f"{path} is rejected: {listing(strange) or 'data.pkl'} is outside the folder "
            f"{root or 'archive/'!r} of its zip; save it again with torch.save."
        )
    entries = {name.removeprefix(root): entry for name, entry in found.items()}
    check_sums(path, {"data.pkl": entries["data.pkl"]})
    return entries


def check_sums(path: Path, entries: Mapping[str, ZipEntry]) -> None:
    """Compare entries with their checksums.

    A file saved without checksums (torch's `set_crc32_options(False)`) has 0 for each, and is not
    compared.
    """
    if not any(entry.checksum for entry in entries.values()):
        return
    piece = memoryview(bytearray(_PIECE_BYTES))
    with os_faults(f"{path} cannot be read"), path.open("rb", buffering=0) as file:
        for name, entry in entries.items():
            file.seek(entry.start)
            left, found = entry.n_bytes, 0
            while left and (n_bytes := file.readinto(piece[: min(left, _PIECE_BYTES)])):
                found = zlib_ng.crc32(piece[:n_bytes], found)
                left -= n_bytes
            if left or found != entry.checksum:
                raise InputError(
                    f"{path} is damaged: the entry {name} does not match its checksum; "
                    "copy or download it again."
                )


@contextmanager
def packed_again(folder: Path) -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """A file of torch.save that was unpacked into a folder, while it is opened.

    Yields the file, whose data stays readable, and the files of the folder.
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


def _open_zip(path: Path) -> zipfile.ZipFile:
    with os_faults(f"{path} cannot be read"), path.open("rb") as file:
        # zipfile reports a failing disk as a bad zip.
        file.seek(max(0, path.stat().st_size - _LAST_BYTES))
        file.read()
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"{path} is not a file of torch.save, or it is truncated or damaged ({error!s:.80}); "
            "copy or download it again."
        ) from error


def _check_entries(path: Path, archive: zipfile.ZipFile) -> None:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise InputError(
            f"{path} is rejected: its zip table lists an entry twice, which readers read "
            "differently; save it again with torch.save."
        )
    if any(name.endswith("/constants.pkl") for name in names):
        raise InputError(
            f"{path} is a TorchScript program, not a file of torch.save; save the state_dict() of "
            "torch.jit.load(...) instead."
        )
    pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
    if len(pickles) != 1:
        raise InputError(
            f"{path} is a zip file, but not one of torch.save: it has {len(pickles)} entries named "
            "data.pkl, expected one; give the checkpoint itself, unpacked."
        )
    claimed = sum(entry.file_size for entry in entries)
    size = path.stat().st_size
    packed = [one.filename for one in entries if one.compress_type != zipfile.ZIP_STORED]
    if packed:
        fault = f"{packed[0]!r:.60} is compressed, which torch.save never does"
    elif claimed > size:
        fault = f"its zip table claims {claimed:,} bytes in a file of {size:,}"
    elif len(entries) > _MAX_ENTRIES:
        fault = f"it has {len(entries):,} entries, expected at most {_MAX_ENTRIES:,}"
    elif pickles[0].file_size > _MAX_PICKLE_BYTES:
        size = pickles[0].file_size
        fault = f"its pickle has {size:,} bytes, expected at most {_MAX_PICKLE_BYTES:,}"
    else:
        return
    raise InputError(f"{path} is rejected: {fault}; save it again with torch.save.")


def _data_offsets(path: Path, archive: zipfile.ZipFile) -> dict[str, ZipEntry]:
    """The entries of a zip by their names.

    A zip says everything twice: in a table at its end, which zipfile reads, and before each entry,
    which torch reads too. Both must agree, and no entry may overlap another.
    """
    found: dict[str, ZipEntry] = {}
    end = 0
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    with path.open("rb") as file:
        for entry in entries:
            fits = entry.header_offset >= end  # below zero if the table is damaged
            if fits:
                file.seek(entry.header_offset)
                header = file.read(_LOCAL.size)
                fits = len(header) == _LOCAL.size
            if fits:
                magic, _, flags, method, _, _, *sums, n_name, n_extra = _LOCAL.unpack(header)
                # With the third bit set, checksum and sizes follow the data.
                known = [0, 0, 0] if flags & 8 else [entry.CRC, *[entry.compress_size] * 2]
                name = file.read(n_name)
                start = entry.header_offset + _LOCAL.size + n_name + n_extra
                end = start + entry.compress_size
                fits = (
                    magic == ZIP_MAGIC
                    and (flags, method) == (entry.flag_bits, entry.compress_type)
                    and not flags & 1  # encrypted
                    and not entry.volume  # of an archive on several disks
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
                    f"{path} is rejected: its zip table and the entry {entry.filename!r:.70} "
                    "disagree, so that readers read it differently; save it again with torch.save."
                )
            found[entry.filename] = ZipEntry(start, entry.file_size, entry.CRC)
    return found
