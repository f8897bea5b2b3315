"""The importance matrix: the magnitude of the inputs of every matrix, column by column.

The file is llama.cpp's: a GGUF file of `general.type` "imatrix". For a matrix `X` [rows, columns]
it has two float32 tensors: `X.in_sum2` [1, columns], the sum of the squares of every input column,
and `X.counts` [1, 1], the number of inputs. llama-quantize divides the first by the second.

    imatrix.datasets     [string]  the inputs in words
    imatrix.chunk_count  u32       passes of the network
    imatrix.chunk_size   u32       elements of the longest of them

It is made by running the PyTorch reference over utterances in every mode (AR with and without
prompt and condition, every NAR level, demasking, duration, transcription, and the tasks on
recordings). `token_embd.weight` counts as the head: its inputs are the final hidden states. A
family of several networks has a file for each unit, since their tensors have the same names;
`valle.imatrix.part` tells them apart. One example is in memory at a time.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import InputError
from valle_convert.families.bundle import Plan, paths_of
from valle_convert.families.family import AnyFamily
from valle_convert.files import (
    atomic_outputs,
    check_input_file,
    check_outputs,
    sha256_of,
    valid_utf8,
)
from valle_convert.gguf_file.header import Key, pack_header, tensor_entries, write_entries
from valle_convert.gguf_file.keys import NO_DIGEST
from valle_convert.gguf_file.read import GgufFile, look_at
from valle_convert.gguf_file.types import F32
from valle_convert.progress import Progress, silent

if TYPE_CHECKING:
    from valle_convert.quantize.examples import Examples
    from valle_convert.quantize.source import Scratch, Source

PREFIX = "valle.imatrix."
SOURCE_KEY = f"{PREFIX}source_sha256"
_PART = f"{PREFIX}part"
_SUM, _COUNTS = ".in_sum2", ".counts"
_MAX_TEXT = 127  # bytes of a string in llama.cpp's list of overrides


@dataclass(frozen=True, eq=False)
class Entry:
    """One matrix: the sums of the squares of each input column, float32 [columns]."""

    sums: NDArray[np.float32]
    count: int

    def mean(self) -> NDArray[np.float32]:
        """Mean squares as llama-quantize computes them: 1 for a matrix without inputs."""
        if self.count == 0:
            return np.ones_like(self.sums)
        return np.ascontiguousarray(self.sums / np.float32(self.count))


@dataclass(frozen=True, eq=False)
class ImatrixFile:
    """The contents of a file; `part` is its network in a model of several."""

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    extra: tuple[Key, ...] = field(default=())
    part: str = ""

    def keys(self, file_name: str) -> list[Key]:
        """The keys that llama-quantize writes into a file made with this matrix."""
        keys = [Key("quantize.imatrix.file", _cut(file_name), "string")]
        if self.datasets:
            keys.append(Key("quantize.imatrix.dataset", _cut(self.datasets[0]), "string"))
        keys.append(Key("quantize.imatrix.entries_count", len(self.entries), "u32"))
        if self.chunk_count > 0:
            keys.append(Key("quantize.imatrix.chunks_count", self.chunk_count, "u32"))
        return keys


@dataclass(frozen=True)
class ImatrixInput:
    """An importance matrix file, read and hashed."""

    path: Path
    name: str
    contents: ImatrixFile
    sha256: str

    @property
    def is_placeholder(self) -> bool:
        return self.sha256 == NO_DIGEST

    @classmethod
    def read(cls, path: Path) -> ImatrixInput:
        return cls(path, valid_utf8(path.name), read_imatrix(path), sha256_of(path))


def encode_imatrix(imatrix: ImatrixFile) -> bytes:
    keys = [
        Key("general.type", "imatrix", "string"),
        Key("imatrix.datasets", list(imatrix.datasets), "[string]"),
        Key("imatrix.chunk_count", imatrix.chunk_count, "u32"),
        Key("imatrix.chunk_size", imatrix.chunk_size, "u32"),
        *([Key(_PART, imatrix.part, "string")] if imatrix.part else []),
        *imatrix.extra,
    ]
    data = {
        name + suffix: values.astype("<f4")
        for name, entry in sorted(imatrix.entries.items())
        for suffix, values in ((_SUM, entry.sums), (_COUNTS, np.array([entry.count])))
    }
    tensors = tensor_entries((name, (1, len(values)), F32) for name, values in data.items())
    out = io.BytesIO()
    write_entries(out, pack_header(keys, tensors), tensors, data.values())
    return out.getvalue()


def read_imatrix(path: Path) -> ImatrixFile:
    """Read an importance matrix file, ours or llama-imatrix's."""
    check_input_file(path, "importance matrix")
    kind, file = look_at(path)
    if kind != "imatrix" or not isinstance(file, GgufFile):
        raise InputError(
            f"{path} is not an importance matrix in GGUF; make one with `valle-convert imatrix`. "
            "`llama-imatrix --in-file OLD.dat -o NEW.gguf` converts the format before GGUF."
        )
    file.refuse_part()
    keys = file.keys
    entries: dict[str, Entry] = {}
    for name in file.tensors:
        matrix = name.removesuffix(_SUM)
        if matrix == name:
            continue
        sums, counts = _read(file, name), _read(file, matrix + _COUNTS)
        if counts.size != 1 or not np.isfinite(sums).all() or (sums < 0).any():
            raise InputError(
                f"{path}: the entry of {matrix} is not a list of sums of squares; make the "
                "importance matrix again."
            )
        if not (np.isfinite(counts).all() and counts[0] >= 0):
            raise InputError(f"{path}: the entry of {matrix} counts {counts[0]} inputs.")
        entries[matrix] = Entry(sums, round(float(counts[0])))
    if not entries:
        raise InputError(f"{path} is an importance matrix without entries; make it again.")
    datasets = keys.get("imatrix.datasets", [])
    chunk_count = keys.get("imatrix.chunk_count", 0)
    chunk_size = keys.get("imatrix.chunk_size", 0)
    if not isinstance(datasets, list) or not isinstance(chunk_count, int):
        raise InputError(f"{path}: imatrix.datasets or imatrix.chunk_count has a wrong type.")
    part = keys.get(_PART, "")
    return ImatrixFile(
        entries,
        tuple(map(str, datasets)),
        chunk_count,
        chunk_size,
        part=part if isinstance(part, str) else "",
    )


def _read(file: GgufFile, name: str) -> NDArray[np.float32]:
    tensor = file.tensors.get(name)
    if tensor is None or tensor.ggml_type != F32:
        raise InputError(f"{file.path} has no tensor {name} of type F32; make the file again.")
    return tensor.rows().reshape(-1)


def _cut(text: str) -> str:
    """The beginning of a text that llama.cpp keeps, cut between characters."""
    return valid_utf8(text).encode()[:_MAX_TEXT].decode(errors="ignore")


@dataclass
class Sums:
    """The sums so far, by part and matrix; `squares` are float64 [columns]."""

    squares: dict[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    n_passes: int = 0
    longest: int = 0

    def add(self, part: str, name: str, inputs: NDArray[np.float32]) -> None:
        """Add inputs of a matrix, [n, columns]."""
        key = part, name
        squares = np.square(inputs, dtype=np.float64).sum(0)
        self.squares[key] = self.squares[key] + squares if key in self.squares else squares
        self.counts[key] = self.counts.get(key, 0) + len(inputs)
        self.longest = max(self.longest, len(inputs))

    def entries(self, part: str) -> dict[str, Entry]:
        return {
            name: Entry(squares.astype(np.float32), self.counts[of_part, name])
            for (of_part, name), squares in self.squares.items()
            if of_part == part
        }


def make_imatrices(
    conversion: Plan,
    examples: Examples,
    target: Path,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> dict[Path, ImatrixFile]:
    """Collect and write the importance matrices of a checkpoint, one a unit of its family."""
    inputs = (*conversion.checkpoint.inputs, *examples.files)
    paths = imatrix_paths(conversion.family, conversion.description.contents, target)
    check_outputs(list(paths.values()), force=force, inputs=inputs)
    made = collect_imatrices(conversion, examples, progress=progress)
    with atomic_outputs(list(paths.values()), force=force, inputs=inputs) as files:
        for file, part in zip(files, paths, strict=True):
            file.write(encode_imatrix(made[part]))
    return {path: made[part] for part, path in paths.items()}


def imatrix_paths(family: AnyFamily, parts: Iterable[str], target: Path) -> dict[str, Path]:
    """The paths of a model's importance matrices, by the parts of its units."""
    return paths_of(target, [unit.part for unit in family.units(list(parts))])


def collect_imatrices(
    conversion: Plan, examples: Examples, *, progress: Progress = silent
) -> dict[str, ImatrixFile]:
    """Run a checkpoint on examples; the matrices by the parts of the family's units."""
    family, description = conversion.family, conversion.description
    network = family.reference(description.tensors, description)
    sums = Sums()
    with progress("importance", examples.count, "utterances") as advance:
        for example in examples:
            observe(family, network, example, sums)
            advance(1)
    parts = [unit.part for unit in family.units(list(description.contents))]
    return {
        part: ImatrixFile(
            sums.entries(part),
            datasets=(examples.description,),
            chunk_count=sums.n_passes,
            chunk_size=sums.longest,
            extra=_origin(conversion.checkpoint, examples),
            part=part if len(parts) > 1 else "",
        )
        for part in parts
    }


def _origin(checkpoint: Checkpoint, examples: Examples) -> tuple[Key, ...]:
    return (
        Key(SOURCE_KEY, checkpoint.sha256(), "string"),
        Key(f"{PREFIX}source_lora", checkpoint.lora or "", "string"),
        Key(f"{PREFIX}sequences_sha256", examples.digest, "string"),
        Key(f"{PREFIX}utterances", examples.count, "u32"),
    )


def made_of(path: Path, checkpoint: Checkpoint, examples: Examples, part: str = "") -> bool:
    try:
        keys = GgufFile(path).keys
    except InputError:
        return False
    same = all(keys.get(one.name) == one.value for one in _origin(checkpoint, examples))
    return same and keys.get(_PART, "") == part


def observe(family: AnyFamily, network: Any, example: object, sums: Sums) -> None:  # noqa: ANN401
    """Run one example in every mode and add up the inputs of the matrices."""
    from valle_convert.network.arithmetic import INPUTS, unobserved

    def watch(part: str, name: str, inputs: Any, outputs: Any) -> None:  # noqa: ANN401 - tensors
        del outputs
        if name != INPUTS:
            sums.add(part, name, inputs.numpy())

    network.observe = watch
    try:
        for case in family.trials.cases(network.model, example):
            if not case.repeats:
                case.run(network)
                sums.n_passes += 1
    finally:
        network.observe = unobserved


def check_fits(imatrix: ImatrixInput, source: Source) -> None:
    """Reject a matrix of another model, whose columns would stop llama-quantize halfway."""
    for name, entry in imatrix.contents.entries.items():
        tensor = source.header.tensors.get(name)
        if tensor is None or tensor.shape[-1] != len(entry.sums):
            found = "no such tensor" if tensor is None else f"{tensor.shape[-1]} columns"
            raise InputError(
                f"The importance matrix {imatrix.path} belongs to another model: its {name} has "
                f"{len(entry.sums)} columns, but {source.name} has {found}."
            )


def placeholder(source: Source, name: str, description: str, scratch: Scratch) -> ImatrixInput:
    """A matrix of ones, with a digest of zeros: llama.cpp plans by the entries, not the values."""
    entries = {
        name: Entry(np.ones(tensor.shape[-1], np.float32), 1)
        for name, tensor in source.header.tensors.items()
        if len(tensor.shape) == 2
    }
    contents = ImatrixFile(entries, (description,), 1, 1)
    return replace(in_scratch(contents, name, scratch), sha256=NO_DIGEST)


def in_scratch(contents: ImatrixFile, name: str, scratch: Scratch) -> ImatrixInput:
    """An importance matrix for the time of a run."""
    data = encode_imatrix(contents)
    file, path = scratch.new()
    file.write(data)
    file.flush()
    return ImatrixInput(path, name, contents, hashlib.sha256(data).hexdigest())
