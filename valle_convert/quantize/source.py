"""The input of quantizing: the files of a model, or a checkpoint, which is converted first.

In: a path, and the checkpoint that quality is compared with. Out: `SourceBundle`, with a GGUF file
for llama-quantize for each unit of the family. A checkpoint is converted when its files are first
used, so what needs no file is checked before.

Temporary files are unnamed (`Scratch`), so the system removes them with the process, however that
ends.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

from valle_convert.checkpoint import Checkpoint, read_checkpoint
from valle_convert.errors import InputError
from valle_convert.families.bundle import Bundle, Plan, open_files, paths_of, plan_bundle
from valle_convert.families.family import AnyFamily, Choices, Unit
from valle_convert.files import check_free_space, os_faults, sha256_of, valid_utf8
from valle_convert.gguf_file.header import (
    ALIGNMENT,
    ALIGNMENT_KEY,
    Key,
    pack_header,
    tensor_entries,
    write_entries,
)
from valle_convert.gguf_file.keys import DIGEST_KEYS, is_converted
from valle_convert.gguf_file.read import GgufFile, TensorInfo, look_at
from valle_convert.gguf_file.write import write_plan_to
from valle_convert.quantize.options import RunLog
from valle_convert.threads import in_background
from valle_convert.verify.run import plan_like
from valle_convert.verify.structure import check_source

_TYPE_SUFFIX = re.compile(r"[-_.](f16|f32|bf16)$", re.IGNORECASE)


class Scratch(ExitStack):
    """Unnamed files for the time of a run."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        while not folder.exists():
            folder = folder.parent
        self.folder = folder

    def new(self) -> tuple[BinaryIO, Path]:
        """An empty file, and a path by which this process and its children can open it."""
        with os_faults(f"No file can be made in {self.folder}"):
            file = self.enter_context(tempfile.TemporaryFile(dir=self.folder))  # noqa: SIM115
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

    @cached_property
    def digest(self) -> Future[str]:
        return in_background(partial(sha256_of, self.given), awaited=False)

    @property
    def sha256(self) -> str:
        return self.digest.result()


@dataclass(eq=False)
class SourceBundle:
    """A model to quantize; a checkpoint is converted when `bundle` or `units` are first used."""

    name: str
    given: Bundle | Plan
    #: The plan of the checkpoint that files are compared with, or None.
    conversion: Plan | None
    scratch: Scratch
    log: RunLog

    @property
    def family(self) -> AnyFamily:
        return self.given.family

    @property
    def model(self) -> Any:  # noqa: ANN401 - the family's own
        return self.given.model

    @property
    def keys(self) -> Mapping[str, Any]:
        keys = self.given.main.keys
        return keys if isinstance(keys, Mapping) else {key.name: key.value for key in keys}

    @property
    def stem(self) -> str:
        # Manifests cannot hold a backslash, nor SHA256SUMS a line break.
        return re.sub(r"[\\\r\n]", "_", _TYPE_SUFFIX.sub("", Path(self.name).stem))

    @property
    def paths(self) -> tuple[Path, ...]:
        """The given files; none for a checkpoint."""
        return self.given.paths if isinstance(self.given, Bundle) else ()

    def check_space(self) -> None:
        """Check that a checkpoint can be converted, before other work."""
        if isinstance(self.given, Plan):
            needed = sum(planned.data_bytes for planned in self.given.files.values())
            check_free_space(self.scratch.folder / f"the conversion of {self.name}", needed)

    @cached_property
    def bundle(self) -> Bundle:
        """The files; those of a checkpoint are converted now, and have no names."""
        if isinstance(self.given, Bundle):
            return self.given
        self.check_space()
        self.log.message(f"converting {valid_utf8(self.given.checkpoint.path.name)}")
        files = {}
        with os_faults(f"The conversion of {self.name} cannot be written"):
            for part, planned in self.given.files.items():
                file, path = self.scratch.new()
                write_plan_to(planned, file, progress=self.log.progress)
                file.flush()
                files[part] = GgufFile(path, allow_part=True)
        return Bundle(self.family, files)

    @cached_property
    def units(self) -> dict[Unit, Source]:
        """The files for llama-quantize, the main one first."""
        names = paths_of(Path(self.name), self.bundle.files)
        return {
            unit: _unit_source(self.bundle, unit, names[unit.part].name, self.scratch)
            for unit in self.family.units([*self.bundle.files])
        }

    @property
    def main(self) -> Source:
        return next(iter(self.units.values()))

    @property
    def copied(self) -> dict[str, GgufFile]:
        """The files that no unit quantizes, by part."""
        quantized = {unit.part for unit in self.units}
        return {part: file for part, file in self.bundle.files.items() if part not in quantized}


def open_source(
    path: Path, checkpoint: Checkpoint | None, scratch: Scratch, log: RunLog
) -> SourceBundle:
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
        return source_of_plan(plan_bundle(checkpoint), scratch, log)
    bundle = open_checked(file)
    if not bundle.main.tensors:
        raise InputError(f"{path} has no tensors, so there is nothing to quantize.")
    conversion = None if checkpoint is None else conversion_of(bundle, checkpoint)
    return SourceBundle(valid_utf8(path.name), bundle, conversion, scratch, log)


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


def source_of_plan(conversion: Plan, scratch: Scratch, log: RunLog) -> SourceBundle:
    name = f"{valid_utf8(conversion.checkpoint.title)}.gguf"
    return SourceBundle(name, conversion, conversion, scratch, log)


def _unit_source(bundle: Bundle, unit: Unit, name: str, scratch: Scratch) -> Source:
    """The file of a unit for llama-quantize: the file itself, or an aligned or joined copy."""
    file = bundle.files[unit.part]
    if unit.first is None and file.alignment == ALIGNMENT:
        return Source(file.path, name, file, file.path)
    parts = [file] if unit.first is None else [bundle.files[unit.first], file]
    keys = keys_of_file(parts[0])
    keys = [one for one in keys if one.name != ALIGNMENT_KEY and not one.name.startswith("split.")]
    with os_faults(f"{name} cannot be copied for llama-quantize"):
        copy = _in_scratch(scratch, keys, [one for part in parts for one in part.tensors.values()])
    return Source(copy.path, name, copy, file.path)


def split_off(source: SourceBundle, unit: Unit, made: GgufFile) -> GgufFile:
    """The part of a file that was made from a unit; the file itself if nothing was joined."""
    if unit.first is None:
        return made
    part = source.bundle.files[unit.part]
    own = [tensor for tensor in made.tensors.values() if tensor.name in part.tensors]
    return _in_scratch(source.scratch, keys_of_file(part), own)


def _in_scratch(scratch: Scratch, keys: Sequence[Key], tensors: Sequence[TensorInfo]) -> GgufFile:
    file, path = scratch.new()
    write_tensors(file, keys, tensors)
    file.flush()
    return GgufFile(path, allow_part=True)


def quantized_tensors(bundle: Bundle) -> tuple[TensorInfo, ...]:
    """The tensors of the parts that llama-quantize makes."""
    units = bundle.family.units([*bundle.files])
    return tuple(one for unit in units for one in bundle.files[unit.part].tensors.values())


def keys_of_file(file: GgufFile) -> list[Key]:
    """All keys except the digests, which are only valid for a conversion."""
    names = [name for name in file.keys if name not in DIGEST_KEYS]
    return [Key(name, file.keys[name], file.key_types[name]) for name in names]


def write_tensors(out: BinaryIO, keys: Sequence[Key], tensors: Sequence[TensorInfo]) -> None:
    """A file with keys and tensors of others."""
    entries = tensor_entries((one.name, one.shape, one.ggml_type) for one in tensors)
    out.seek(0)
    write_entries(out, pack_header(keys, entries), entries, (one.data for one in tensors))
