"""The input of quantizing: the files of a model, or a checkpoint, which is converted first.

In: a path, and the checkpoint that quality is compared with. Out: `SourceBundle`, with a GGUF file
for llama-quantize for each unit of the family. Converting takes time and disk, but llama.cpp plans
by a file's header alone. So a checkpoint's sources are at first only headers in sparse files;
everything is checked with them, then `SourceBundle.complete` writes the weights.

Temporary files are unnamed (`Scratch`), so the system removes them with the process, however that
ends.
"""

import re
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from valle_convert.checkpoint import Checkpoint, read_checkpoint
from valle_convert.errors import InputError
from valle_convert.families.bundle import Bundle, Plan, open_files, paths_of, plan
from valle_convert.families.family import AnyFamily, Choices, Unit
from valle_convert.files import os_faults, sha256_of, valid_utf8
from valle_convert.gguf_file.header import (
    ALIGNMENT,
    ALIGNMENT_KEY,
    Key,
    pack_header,
    padded,
    tensor_entries,
    write_entries,
)
from valle_convert.gguf_file.keys import DIGEST_KEYS, SOURCE_SHA256_KEY, is_converted
from valle_convert.gguf_file.read import GgufFile, TensorInfo, look_at
from valle_convert.gguf_file.write import header_of, write_plan_to
from valle_convert.progress import Progress, silent
from valle_convert.threads import in_background
from valle_convert.verify.run import plan_like
from valle_convert.verify.structure import check_source

_TYPE_SUFFIX = re.compile(r"[-_.](f16|f32|bf16)$", re.IGNORECASE)
_SPLIT = "split."


class Scratch(ExitStack):
    """Unnamed files for the time of a run."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        while not folder.exists():
            folder = folder.parent
        self._folder = folder

    def new(self) -> tuple[BinaryIO, Path]:
        """An empty file, and a path by which this process and its children can open it."""
        with os_faults(f"No file can be made in {self._folder}"):
            file = self.enter_context(tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115
        return file, Path(f"/dev/fd/{file.fileno()}")


@dataclass(eq=False)
class Source:
    """A file for llama-quantize."""

    path: Path
    #: For metadata, reports and the names of its results; bytes that are not UTF-8 become U+FFFD,
    #: since manifests and GGUF strings cannot hold them.
    name: str
    header: GgufFile
    given: Path  # the file whose digest is recorded: the user's, or `path`
    digest: Future[str] | None = None  # of `given`, if it is computed in the background

    @property
    def sha256(self) -> str:
        return sha256_of(self.given) if self.digest is None else self.digest.result()

    @property
    def stem(self) -> str:
        # Manifests cannot hold a backslash, nor SHA256SUMS a line break.
        return re.sub(r"[\\\r\n]", "_", _TYPE_SUFFIX.sub("", Path(self.name).stem))


@dataclass(eq=False)
class SourceBundle:
    name: str
    bundle: Bundle  # the files; those of a checkpoint have no names
    units: dict[Unit, Source]  # the files for llama-quantize, by part, the main one first
    #: The plan of the checkpoint that files are compared with, or None.
    conversion: Plan | None = None
    #: Whether the files were made by this plan, not given by the user.
    is_converted_here: bool = False
    _is_done: bool = False

    @property
    def main(self) -> Source:
        return next(iter(self.units.values()))

    @property
    def family(self) -> AnyFamily:
        return self.bundle.family

    @property
    def model(self) -> Any:  # noqa: ANN401 - the family's own
        if self.is_converted_here and self.conversion is not None:
            return self.conversion.model
        return self.bundle.model

    @property
    def checkpoint_sha256(self) -> str | None:
        """The digest of the checkpoint that the files are made from, if they have it."""
        if self.is_converted_here and self.conversion is not None:
            return self.conversion.checkpoint.sha256()
        return self.bundle.main.keys.get(SOURCE_SHA256_KEY)

    @property
    def is_complete(self) -> bool:
        """Whether the weights are in the files; those of a checkpoint begin as headers."""
        return not self.is_converted_here or self._is_done

    @property
    def paths(self) -> tuple[Path, ...]:
        """The given files; none for a checkpoint."""
        return () if self.is_converted_here else self.bundle.paths

    @property
    def copied(self) -> dict[str, GgufFile]:
        """The files that no unit quantizes, by part."""
        quantized = {unit.part for unit in self.units}
        return {part: file for part, file in self.bundle.files.items() if part not in quantized}

    def complete(self, progress: Progress = silent) -> None:
        """Convert the checkpoint, if it is one, and start to compute the digests."""
        if self._is_done:
            return
        with os_faults(f"The conversion of {self.name} cannot be written"):
            if self.is_converted_here and self.conversion is not None:
                for part, one in self.bundle.files.items():
                    with one.path.open("r+b") as file:
                        write_plan_to(self.conversion.files[part], file, progress=progress)
                # Digests are in the headers now.
                files = {
                    part: GgufFile(one.path, allow_part=True)
                    for part, one in self.bundle.files.items()
                }
                self.bundle = Bundle(self.bundle.family, files)
            for unit, source in self.units.items():
                if unit.first is not None:
                    _join(self.bundle, unit, source.path)
        self.start_digests()
        self._is_done = True

    def start_digests(self) -> None:
        for source in self.units.values():
            if source.digest is None:
                source.digest = in_background(partial(sha256_of, source.given), awaited=False)


def open_source(path: Path, checkpoint: Checkpoint | None, scratch: Scratch) -> SourceBundle:
    """The files to quantize, with their checkpoint if it is given."""
    kind, file = look_at(path)
    if kind == "other":
        if checkpoint is None:
            checkpoint = read_checkpoint(path)
        elif path != checkpoint.given and not checkpoint.path.samefile(path):
            raise InputError(
                f"{path} is a checkpoint, and files made from it are compared with it; leave out "
                f"--checkpoint {checkpoint.given or checkpoint.path}."
            )
        return convert_in_scratch(plan(checkpoint), scratch)
    bundle = open_checked(file)
    if not bundle.main.tensors:
        raise InputError(f"{path} has no tensors, so there is nothing to quantize.")
    conversion = None if checkpoint is None else conversion_of(bundle, checkpoint)
    units = {
        unit: _unit_source(bundle, unit, scratch) for unit in bundle.family.units([*bundle.files])
    }
    return SourceBundle(valid_utf8(path.name), bundle, units, conversion)


def open_checked(path: Path | GgufFile) -> Bundle:
    """The files of a model, after a check that llama.cpp survives them."""
    bundle = open_files(path)
    refusal = bundle.family.refusal(bundle.main)
    if refusal:
        raise InputError(refusal)
    if is_converted(bundle.main.keys):
        bundle.check()
    return bundle


def conversion_of(bundle: Bundle, checkpoint: Checkpoint) -> Plan:
    """The plan of a checkpoint, with the choices that its files show."""
    check = check_source(checkpoint, bundle.main)
    if check is not None and not check.passed:
        raise InputError(f"{check.summary}.")
    return plan_like(bundle, bundle.family.comparable(checkpoint, bundle), Choices())


def convert_in_scratch(conversion: Plan, scratch: Scratch) -> SourceBundle:
    """The headers of a conversion, in files without names; `complete` adds the weights."""
    name = f"{valid_utf8(conversion.checkpoint.title)}.gguf"
    files: dict[str, GgufFile] = {}
    for part, planned in conversion.files.items():
        file, place = scratch.new()
        header = header_of(planned)
        file.write(header)
        file.truncate(len(header) + planned.data_bytes)  # flushes
        files[part] = GgufFile(place, allow_part=True)
    bundle = Bundle(conversion.family, files)
    names = {part: path.name for part, path in paths_of(Path(name), files).items()}
    units = {}
    for unit in conversion.family.units([*files]):
        source = _unit_source(bundle, unit, scratch)
        source.name = names[unit.part]
        units[unit] = source
    return SourceBundle(name, bundle, units, conversion, True)


def _unit_source(bundle: Bundle, unit: Unit, scratch: Scratch) -> Source:
    """The file of a unit for llama-quantize: the file itself, or a joined one."""
    file = bundle.files[unit.part]
    name = valid_utf8(file.path.name)
    if unit.first is None and file.alignment == ALIGNMENT:
        return Source(file.path, name, file, file.path)
    opened, path = scratch.new()
    if unit.first is not None:
        _join(bundle, unit, path, empty=True)
        return Source(path, name, GgufFile(path), file.path)
    with os_faults(f"{name} cannot be copied to be aligned to {ALIGNMENT} bytes"):
        keys = [key for key in keys_of_file(file) if key.name != ALIGNMENT_KEY]
        write_tensors(opened, keys, [*file.tensors.values()])
        opened.flush()
    return Source(path, name, GgufFile(path), file.path)


def _join(bundle: Bundle, unit: Unit, path: Path, *, empty: bool = False) -> None:
    """A part and its first part as one file; `empty` leaves the data zero."""
    if unit.first is None:
        return
    first, body = bundle.files[unit.first], bundle.files[unit.part]
    keys = [key for key in keys_of_file(first) if not key.name.startswith(_SPLIT)]
    with path.open("r+b") as out:
        write_tensors(out, keys, [*first.tensors.values(), *body.tensors.values()], empty=empty)


def split_off(source: SourceBundle, unit: Unit, made: GgufFile, scratch: Scratch) -> GgufFile:
    """The part of a file that was made from a unit; the file itself if nothing was joined."""
    if unit.first is None:
        return made
    part = source.bundle.files[unit.part]
    own = [tensor for tensor in made.tensors.values() if tensor.name in part.tensors]
    opened, path = scratch.new()
    write_tensors(opened, keys_of_file(part), own)
    opened.flush()
    return GgufFile(path, allow_part=True)


def quantized_tensors(bundle: Bundle) -> tuple[TensorInfo, ...]:
    """The tensors of the parts that llama-quantize makes."""
    units = bundle.family.units([*bundle.files])
    return tuple(one for unit in units for one in bundle.files[unit.part].tensors.values())


def keys_of_file(file: GgufFile) -> list[Key]:
    """All keys except the digests, which are only valid for a conversion."""
    names = [name for name in file.keys if name not in DIGEST_KEYS]
    return [Key(name, file.keys[name], file.key_types[name]) for name in names]


def write_tensors(
    out: BinaryIO, keys: Sequence[Key], tensors: Sequence[TensorInfo], *, empty: bool = False
) -> None:
    """A file with keys and tensors of others; `empty` leaves the data zero."""
    entries = tensor_entries((one.name, one.shape, one.ggml_type) for one in tensors)
    header = pack_header(keys, entries)
    out.seek(0)
    if empty:
        out.write(header)
        last = entries[-1]
        out.truncate(len(header) + padded(last.offset + last.n_bytes))
        return
    write_entries(out, header, entries, (one.data for one in tensors))
