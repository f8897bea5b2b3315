"""The importance matrix: how large the inputs of every matrix are, column by column.

The file is llama.cpp's: a GGUF file of `general.type` "imatrix". For a matrix `X`
[rows, columns] it has two float32 tensors: `X.in_sum2` [1, columns], the sum of the squares of
every input column, and `X.counts` [1, 1], over how many inputs. llama-quantize divides the one
by the other.

    imatrix.datasets     [string]  what the inputs were, in words
    imatrix.chunk_count  u32       passes of the network
    imatrix.chunk_size   u32       elements of the longest of them

It is made by running the PyTorch reference over utterances in every mode (AR with and without
prompt and condition, every NAR level, demasking, duration, transcription, and the tasks on
recordings). `token_embd.weight` counts as the head that it is: its inputs are the final hidden
states. A VALL-E X has a file for each network (`vallex_imatrix.py`), since the tensors of the two
have the same names. One utterance is in memory at a time. The sums are kept on disk as they grow,
so that a run that was stopped goes on where it was; since sums are added in the same order, the
result is the same to the bit.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import InputError
from valle_convert.files import (
    atomic_output,
    check_outputs,
    is_stream,
    read_small_file,
    sha256_of,
    valid_utf8,
)
from valle_convert.gguf_file.header import Key, TensorEntry, pack_header, padded
from valle_convert.gguf_file.read import GgufFile, is_gguf
from valle_convert.gguf_file.types import F32
from valle_convert.npz_file import read_npz
from valle_convert.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

    from valle_convert.network.reference import ReferenceNetwork
    from valle_convert.quantize.source import Reference, Scratch, Source
    from valle_convert.quantize.utterances import Calibration, Utterances
    from valle_convert.verify.cases import Utterance

PREFIX = "valle.imatrix."
_PART = f"{PREFIX}part"
_SUM, _COUNTS = ".in_sum2", ".counts"
_VERSION = 3  # of GGUF
_MAX_TEXT = 127  # bytes of a string that llama.cpp's list of overrides holds
_STATE_VERSION = 2
_AGAIN = "remove it, or leave out --resume"
_SAVE_EVERY = 8  # utterances
#: The digest of a matrix that stands in for one which is still to be made.
NOT_MADE_YET = "0" * 64
_MAX_LEGACY = 1 << 30
_MAX_STATE = 1 << 30  # bytes; 12 layers of 1024 take one megabyte


@dataclass(frozen=True, eq=False)
class Entry:
    """What is known of one matrix.

    Attributes:
        sums: of the squares of each input column, float32 [columns].
        count: over how many inputs.
    """

    sums: NDArray[np.float32]
    count: int

    def mean(self) -> NDArray[np.float32]:
        """Mean squares as llama-quantize computes them: 1 where there was no input."""
        if self.count == 0:
            return np.ones_like(self.sums)
        return np.ascontiguousarray(self.sums / np.float32(self.count))


@dataclass(frozen=True, eq=False)
class ImatrixFile:
    """The contents of an importance matrix file.

    Attributes:
        entries: by the name of the matrix.
        datasets: what the inputs were, in words.
        chunk_count: sequences.
        chunk_size: elements of the longest.
        extra: further keys, of this project.
        part: which of several networks of a model it is of; empty for the only one, and in files
            that do not say it.
    """

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    extra: tuple[Key, ...] = field(default=())
    part: str = ""

    def keys(self, file_name: str) -> list[Key]:
        """What llama-quantize writes into a file that it made with this matrix."""
        keys = [Key("quantize.imatrix.file", _cut(file_name), "string")]
        if self.datasets:
            keys.append(Key("quantize.imatrix.dataset", _cut(self.datasets[0]), "string"))
        keys.append(Key("quantize.imatrix.entries_count", len(self.entries), "u32"))
        if self.chunk_count > 0:
            keys.append(Key("quantize.imatrix.chunks_count", self.chunk_count, "u32"))
        return keys


@dataclass(frozen=True)
class ImatrixInput:
    """An importance matrix file, read and hashed.

    Attributes:
        path: where it is.
        name: its name for metadata and reports.
        contents: what is in it.
        sha256: of the file.
    """

    path: Path
    name: str
    contents: ImatrixFile
    sha256: str

    @property
    def is_made(self) -> bool:
        """Whether it is the real one, and does not stand in for one that is still to be made."""
        return self.sha256 != NOT_MADE_YET

    @classmethod
    def read(cls, path: Path) -> ImatrixInput:
        """Read and hash a file; its name is the path's."""
        return cls(path, valid_utf8(path.name), read_imatrix(path), sha256_of(path))


def write_imatrix(
    imatrix: ImatrixFile, target: Path, *, force: bool, sources: Sequence[Path] = ()
) -> None:
    """Write the file, or leave nothing.

    Raises:
        InputError: the target must not be written.
        EnvironmentFault: it cannot be.
    """
    with atomic_output(target, force=force, sources=sources) as file:
        file.write(encode_imatrix(imatrix))


def encode_imatrix(imatrix: ImatrixFile) -> bytes:
    """The file as bytes."""
    keys = [
        Key("general.type", "imatrix", "string"),
        Key("imatrix.datasets", list(imatrix.datasets), "[string]"),
        Key("imatrix.chunk_count", imatrix.chunk_count, "u32"),
        Key("imatrix.chunk_size", imatrix.chunk_size, "u32"),
        *([Key(_PART, imatrix.part, "string")] if imatrix.part else []),
        *imatrix.extra,
    ]
    tensors: list[TensorEntry] = []
    data: list[bytes] = []
    offset = 0
    for name, entry in sorted(imatrix.entries.items()):
        for suffix, values in ((_SUM, entry.sums), (_COUNTS, np.array([entry.count]))):
            tensors.append(TensorEntry(name + suffix, (1, len(values)), F32, offset))
            raw = values.astype("<f4").tobytes()
            data.append(raw.ljust(padded(len(raw)), b"\0"))
            offset += len(data[-1])
    return b"".join([pack_header(keys, tensors), *data])


def read_imatrix(path: Path) -> ImatrixFile:
    """Read an importance matrix file, ours or llama-imatrix's, of its older format too.

    Raises:
        InputError: it is none, or damaged.
    """
    if not is_gguf(path):
        return _read_legacy(path)
    file = GgufFile(path)
    keys = file.keys
    if keys.get("general.type") != "imatrix":
        raise InputError(
            f"{path} is a GGUF file, but no importance matrix (general.type is "
            f"{keys.get('general.type')!r}); make one with `valle-convert imatrix`."
        )
    entries: dict[str, Entry] = {}
    for name in file.tensors:
        matrix = name.removesuffix(_SUM)
        if matrix == name:
            continue
        sums, counts = _read(file, name), _read(file, matrix + _COUNTS)
        if counts.size != 1 or not np.isfinite(sums).all() or (sums < 0).any():
            raise InputError(
                f"{path}: the entry of {matrix} is no list of sums of squares; make the "
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
        raise InputError(f"{path}: imatrix.datasets or imatrix.chunk_count is of a wrong type.")
    part = keys.get(_PART, "")
    return ImatrixFile(
        entries,
        tuple(map(str, datasets)),
        chunk_count,
        chunk_size,
        part=part if isinstance(part, str) else "",
    )


def _read_legacy(path: Path) -> ImatrixFile:
    """What llama-imatrix wrote before it wrote GGUF, a `.dat`.

    i32 entries; of each: i32 length, name, i32 calls, i32 n, f32[n] mean squares times calls
    i32 calls of the last, i32 length, name of the data set: not in the oldest
    """
    data = read_small_file(path, "importance matrix", _MAX_LEGACY)
    at = 0

    def integer() -> int:
        return int.from_bytes(take(4), "little", signed=True)

    def take(n: int) -> bytes:
        nonlocal at
        if not 0 <= n <= len(data) - at:
            raise InputError(
                f"{path} is no importance matrix, neither a GGUF file nor a whole one of "
                "llama-imatrix's older format (.dat); make one with `valle-convert imatrix`."
            )
        at += n
        return data[at - n : at]

    entries: dict[str, Entry] = {}
    for _ in range(integer()):
        name = take(integer()).decode("utf-8", "replace")
        count, n = integer(), integer()
        sums = np.frombuffer(take(4 * n), "<f4")
        if not name or count < 0 or n < 1 or not np.isfinite(sums).all() or (sums < 0).any():
            raise InputError(
                f"{path}: the entry {name!r:.80} is no list of sums of squares; make the "
                "importance matrix again."
            )
        entries[name] = Entry(sums, count)
    if not entries:
        raise InputError(f"{path} is an importance matrix without entries; make it again.")
    chunk_count, dataset = 0, ""
    if at < len(data):
        chunk_count = integer()
        dataset = take(integer()).decode("utf-8", "replace")
    return ImatrixFile(entries, (dataset,) if dataset else (), max(chunk_count, 0), 0)


def _read(file: GgufFile, name: str) -> NDArray[np.float32]:
    tensor = file.tensors.get(name)
    if tensor is None or tensor.ggml_type != F32:
        raise InputError(f"{file.path} has no tensor {name} of type F32; make the file again.")
    return tensor.rows().reshape(-1)


def _cut(text: str) -> str:
    """As much of a text as llama.cpp keeps of it, cut between characters."""
    return valid_utf8(text).encode()[:_MAX_TEXT].decode(errors="ignore")


Example = TypeVar("Example")


@dataclass
class Sums:
    """What was collected so far.

    Attributes:
        squares: by matrix, float64 [columns].
        counts: by matrix, inputs seen.
        n_utterances: how many are in it.
        n_passes: runs of the network.
        longest: elements of the longest run.
    """

    squares: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    n_utterances: int = 0
    n_passes: int = 0
    longest: int = 0

    def add(self, name: str, inputs: NDArray[np.float32]) -> None:
        """Take what goes into a matrix, [n, columns]."""
        squares = np.square(inputs, dtype=np.float64).sum(0)
        self.squares[name] = self.squares[name] + squares if name in self.squares else squares
        self.counts[name] = self.counts.get(name, 0) + len(inputs)


def make_imatrix(
    reference: Reference,
    utterances: Utterances,
    target: Path,
    *,
    resume: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> ImatrixFile:
    """Collect and write the importance matrix of a checkpoint.

    Args:
        reference: the checkpoint.
        utterances: what it is run on.
        target: the file; the one of `state_of` keeps the sums while they grow.
        resume: go on with such a state, if it is of this very work.
        force: whether an existing file may be replaced.
        progress: shows how many utterances are done.

    Raises:
        InputError: the target must not be written, or the state is of other work.
        EnvironmentFault: it cannot be written.
    """
    sources = (*reference.checkpoint.inputs, *utterances.files)
    check_outputs([target], force=force, inputs=sources)
    with kept_sums(target, resume=resume, force=force) as state:
        imatrix = collect_imatrix(
            reference, utterances, state=state, resume=resume, progress=progress
        )
        write_imatrix(imatrix, target, force=force, sources=sources)
    return imatrix


@contextmanager
def kept_sums(target: Path, *, resume: bool, force: bool) -> Iterator[Path | None]:
    """Where the sums of an importance matrix are kept, until it is done; None beside a device.

    Args:
        target: the importance matrix.
        resume: whether they may be there already.
        force: whether something else that lies there may be replaced.

    Raises:
        InputError: something else lies there.
    """
    if is_stream(target):
        yield None
        return
    state = state_of(target)
    if not resume and os.path.lexists(state):
        _check_ours(state, force=force)
    yield state
    state.unlink(missing_ok=True)


def state_of(target: Path) -> Path:
    """Where the sums of an importance matrix are kept while they grow."""
    name = f".{target.name}.state"
    if len(os.fsencode(name)) > 255:
        name = f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()}.state"
    return target.with_name(name)


def _check_ours(state: Path, *, force: bool) -> None:
    """Refuse to replace, and to remove in the end, a file that no run of this program left.

    Raises:
        InputError: it is one, and there is no `force`.
    """
    try:
        _facts(state)
    except InputError as error:
        if force and state.is_file() and not state.is_symlink():
            return
        raise InputError(
            f"The sums of an importance matrix are kept in {state} while they grow, and that is "
            "there and is something else; move it away, or give another name for the output."
        ) from error


def collect_imatrix(
    reference: Reference,
    utterances: Utterances,
    *,
    state: Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> ImatrixFile:
    """Run a checkpoint on utterances; `state` and the rest as in `make_imatrix`."""
    from valle_convert.network.reference import ReferenceNetwork

    checkpoint = reference.checkpoint
    network = ReferenceNetwork(checkpoint.tensors, reference.description)
    sums = collect_sums(
        checkpoint,
        utterances,
        lambda utterance, sums: observe(network, utterance, sums),
        state=state,
        resume=resume,
        progress=progress,
    )
    return imatrix_of(sums, checkpoint, utterances)


def collect_sums(
    checkpoint: Checkpoint,
    utterances: Calibration[Any, Example],
    add: Callable[[Example, Sums], None],
    *,
    state: Path | None,
    resume: bool,
    progress: Progress,
) -> Sums:
    """Go through all utterances; `add` runs one and adds what it gives to the sums."""
    source_sha256 = checkpoint.sha256()
    work = hashlib.sha256(
        os.fsencode(f"{source_sha256} {checkpoint.lora} {utterances.digest}")
    ).hexdigest()
    sums = _load(state, work) if resume and state is not None and state.exists() else Sums()
    with progress("importance", utterances.count, "utterances") as advance:
        advance(sums.n_utterances)
        for i, utterance in enumerate(utterances):
            if i < sums.n_utterances:
                continue
            add(utterance, sums)
            sums.n_utterances += 1
            advance(1)
            if state is not None and sums.n_utterances % _SAVE_EVERY == 0:
                _save(state, sums, work)
    return sums


def imatrix_of(
    sums: Sums, checkpoint: Checkpoint, utterances: Calibration[Any, Any], part: str = ""
) -> ImatrixFile:
    """The file of what was collected; of a part, whose names begin with it and a blank."""
    prefix = f"{part} " if part else ""
    return ImatrixFile(
        entries={
            name.removeprefix(prefix): Entry(squares.astype(np.float32), sums.counts[name])
            for name, squares in sums.squares.items()
            if name.startswith(prefix)
        },
        datasets=(utterances.description,),
        chunk_count=sums.n_passes,
        chunk_size=sums.longest,
        extra=(
            Key(f"{PREFIX}source_sha256", checkpoint.sha256(), "string"),
            Key(f"{PREFIX}source_lora", checkpoint.lora or "", "string"),
            Key(f"{PREFIX}sequences_sha256", utterances.digest, "string"),
            Key(f"{PREFIX}utterances", sums.n_utterances, "u32"),
        ),
        part=part,
    )


def made_of(
    path: Path, checkpoint: Checkpoint, utterances: Calibration[Any, Any], part: str = ""
) -> bool:
    """Whether a file is the importance matrix of this checkpoint over these utterances."""
    try:
        keys = GgufFile(path).keys
    except InputError:
        return False
    names = ("sequences_sha256", "utterances", "source_lora", "source_sha256")
    *found, said = [keys.get(PREFIX + name) for name in names]
    wanted = [utterances.digest, utterances.count, checkpoint.lora or ""]
    same = found == wanted and keys.get(_PART, "") == part
    return same and bool(said == checkpoint.sha256())


def observe(network: ReferenceNetwork, utterance: Utterance, sums: Sums) -> None:
    """Run one utterance in every mode and add up what goes into the matrices."""
    from valle_convert.verify.cases import cases, run_case

    n_inputs = 0

    def add(name: str, inputs: Tensor) -> None:
        nonlocal n_inputs
        n_inputs = max(n_inputs, len(inputs))
        sums.add(name, inputs.numpy())

    network.observe = add
    try:
        for case in cases(network.model, utterance):
            # Element by element is the same inputs once more; the text head has no task.
            if case.stepwise or case.head == "text":
                continue
            run_case(network, case)
            sums.n_passes += 1
    finally:
        network.observe = None
    sums.longest = max(sums.longest, n_inputs)


def _save(state: Path, sums: Sums, work: str) -> None:
    facts = {
        "version": _STATE_VERSION,
        "work": work,
        "counts": {name: sums.counts[name] for name in sums.squares},
        "columns": [len(values) for values in sums.squares.values()],
        "n_utterances": sums.n_utterances,
        "n_passes": sums.n_passes,
        "longest": sums.longest,
    }
    buffer = io.BytesIO()
    squares = np.concatenate(list(sums.squares.values()))
    np.savez(buffer, facts=np.array(json.dumps(facts)), squares=squares)
    with atomic_output(state, force=True) as file:
        file.write(buffer.getbuffer())


def _facts(state: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a state."""
    return read_npz(
        state,
        ("facts", "squares"),
        max_bytes=_MAX_STATE,
        what="state of an importance matrix",
        hint=_AGAIN,
    )


def _load(state: Path, work: str) -> Sums:
    arrays = _facts(state)
    try:
        facts = json.loads(str(arrays["facts"]))
        same = facts["version"] == _STATE_VERSION and facts["work"] == work
        counts = {str(name): int(n) for name, n in facts["counts"].items()}
        ends = np.cumsum([int(n) for n in facts["columns"]])
        squares = np.split(arrays["squares"].astype(np.float64, casting="safe"), ends[:-1])
        sums = Sums(
            squares=dict(zip(counts, squares, strict=True)),
            counts=counts,
            n_utterances=int(facts["n_utterances"]),
            n_passes=int(facts["n_passes"]),
            longest=int(facts["longest"]),
        )
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise InputError(f"{state} is a damaged state ({error}); {_AGAIN}.") from error
    if not same:
        raise InputError(
            f"{state} is the state of other work (another checkpoint, other utterances); {_AGAIN}."
        )
    return sums


def check_fits(imatrix: ImatrixInput, source: Source) -> None:
    """Refuse a matrix of another model, whose columns would stop llama-quantize halfway.

    Raises:
        InputError: a tensor of it is not in the source, or has other columns.
    """
    for name, entry in imatrix.contents.entries.items():
        tensor = source.header.tensors.get(name)
        if tensor is None or tensor.shape[-1] != len(entry.sums):
            found = "no such tensor" if tensor is None else f"{tensor.shape[-1]} columns"
            raise InputError(
                f"The importance matrix {imatrix.path} is of another model: it has {name} with "
                f"{len(entry.sums)} columns, and {source.name} has {found}."
            )


def stand_in(source: Source, name: str, description: str, scratch: Scratch) -> ImatrixInput:
    """A matrix of ones: llama.cpp plans by the entries, not by their values.

    Args:
        source: what will be quantized.
        name: of the file that the real one will be.
        description: of the utterances that the real one will be made of.
        scratch: where it is written.
    """
    entries = {
        name: Entry(np.ones(tensor.shape[-1], np.float32), 1)
        for name, tensor in source.header.tensors.items()
        if len(tensor.shape) == 2
    }
    contents = ImatrixFile(entries, (description,), 1, 1)
    return replace(in_scratch(contents, name, scratch), sha256=NOT_MADE_YET)


def in_scratch(contents: ImatrixFile, name: str, scratch: Scratch) -> ImatrixInput:
    """An importance matrix for the time of a run."""
    data = encode_imatrix(contents)
    file, path = scratch.new()
    file.write(data)
    file.flush()
    return ImatrixInput(path, name, contents, hashlib.sha256(data).hexdigest())
