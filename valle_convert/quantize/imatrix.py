"""The importance matrix of a checkpoint: how large the inputs of every matrix are.

In: utterances. Out: llama.cpp's file (imatrix_file.py). The PyTorch reference runs each of
them in every mode (AR with and without prompt and condition, every NAR level, demasking,
duration, transcription, and the tasks on recordings), and what goes into a linear layer is
squared and summed, column by column, in float64. `token_embd.weight` counts as the head that
it is: its inputs are the final hidden states.

One utterance is in memory at a time. The sums are kept on disk as they grow, so that a run
that was stopped goes on where it was; since sums are added in the same order, the result is
the same to the bit.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.read import sha256_of
from valle_convert.errors import InputError
from valle_convert.files import atomic_output, check_target
from valle_convert.gguf_file.header import read_header
from valle_convert.gguf_file.keys import Key
from valle_convert.model.description import Description
from valle_convert.progress import Progress, silent
from valle_convert.quantize.imatrix_file import Entry, ImatrixFile, write_imatrix
from valle_convert.quantize.sequences import Sequences
from valle_convert.verify.cases import Utterance, cases, run_case

if TYPE_CHECKING:
    from torch import Tensor

    from valle_convert.network.reference import ReferenceNetwork

PREFIX = "valle.imatrix."
_STATE_VERSION = 1
_SAVE_EVERY = 8  # utterances
_MARK = "state"


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
    checkpoint: Checkpoint,
    description: Description,
    sequences: Sequences,
    target: Path,
    *,
    resume: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> ImatrixFile:
    """Collect and write the importance matrix of a checkpoint.

    Args:
        checkpoint: the source of the weights.
        description: what its family said of it.
        sequences: what it is run on.
        target: the file; `.NAME.state` beside it keeps the sums while they grow.
        resume: go on with such a state, if it is of this very work.
        force: whether an existing file may be replaced.
        progress: hears of each utterance.

    Raises:
        InputError: the target must not be written, or the state is of other work.
        EnvironmentFault: it cannot be written.
    """
    from valle_convert.network.reference import ReferenceNetwork

    sources = (*checkpoint.inputs, *sequences.files)
    check_target(target, force=force, sources=sources)
    source_sha256 = sha256_of(checkpoint.path)
    work = hashlib.sha256(f"{source_sha256} {checkpoint.lora} {sequences.digest}".encode())
    state = target.with_name(f".{target.name}.{_MARK}")
    sums = _load(state, work.hexdigest()) if resume and state.exists() else Sums()
    network = ReferenceNetwork(checkpoint, description)
    with progress("importance", sequences.count, "utterances") as advance:
        advance(sums.n_utterances)
        for i, utterance in enumerate(sequences):
            if i < sums.n_utterances:
                continue
            observe(network, utterance, sums)
            advance(1)
            if sums.n_utterances % _SAVE_EVERY == 0:
                _save(state, sums, work.hexdigest())
    imatrix = ImatrixFile(
        entries={
            name: Entry(squares.astype(np.float32), sums.counts[name])
            for name, squares in sums.squares.items()
        },
        datasets=(sequences.description,),
        chunk_count=sums.n_passes,
        chunk_size=sums.longest,
        extra=(
            Key(f"{PREFIX}source_sha256", source_sha256, "string"),
            Key(f"{PREFIX}source_lora", checkpoint.lora or "", "string"),
            Key(f"{PREFIX}sequences_sha256", sequences.digest, "string"),
            Key(f"{PREFIX}utterances", sums.n_utterances, "u32"),
        ),
    )
    write_imatrix(imatrix, target, force=force, sources=sources)
    with suppress(FileNotFoundError):
        state.unlink()
    return imatrix


def made_of(path: Path, checkpoint: Checkpoint, sequences: Sequences) -> bool:
    """Whether a file is the importance matrix of this checkpoint over these utterances."""
    try:
        header = read_header(path)
    except InputError:
        return False
    names = ("sequences_sha256", "utterances", "source_lora", "source_sha256")
    *found, said = [header.value(PREFIX + name) for name in names]
    wanted = [sequences.digest, sequences.count, checkpoint.lora or ""]
    return found == wanted and bool(said == sha256_of(checkpoint.path))


def observe(network: ReferenceNetwork, utterance: Utterance, sums: Sums) -> None:
    """Run one utterance in every mode and add up what goes into the matrices."""
    n_inputs = 0

    def hear(name: str, inputs: Tensor) -> None:
        nonlocal n_inputs
        n_inputs = max(n_inputs, len(inputs))
        sums.add(name, inputs.numpy())

    network.observe = hear
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
    sums.n_utterances += 1


def _save(state: Path, sums: Sums, work: str) -> None:
    facts = {
        "version": _STATE_VERSION,
        "work": work,
        "counts": sums.counts,
        "n_utterances": sums.n_utterances,
        "n_passes": sums.n_passes,
        "longest": sums.longest,
    }
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, facts=np.array(json.dumps(facts)), **_named(sums.squares))
    with atomic_output(state, force=True) as file:
        file.write(buffer.getbuffer())


def _named(squares: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    return {f"sum {name}": values for name, values in squares.items()}


def _load(state: Path, work: str) -> Sums:
    try:
        with np.load(state, allow_pickle=False) as arrays:
            facts = json.loads(str(arrays["facts"]))
            same = facts["version"] == _STATE_VERSION and facts["work"] == work
            sums = Sums(
                squares={str(name): arrays[f"sum {name}"] for name in facts["counts"]},
                counts={str(name): int(n) for name, n in facts["counts"].items()},
                n_utterances=int(facts["n_utterances"]),
                n_passes=int(facts["n_passes"]),
                longest=int(facts["longest"]),
            )
    except Exception as error:
        # A damaged archive raises whatever zipfile, numpy and json raise.
        raise InputError(
            f"{state} is a damaged state ({error}); remove it, or leave out --resume."
        ) from error
    if not same:
        raise InputError(
            f"{state} is the state of other work (another checkpoint, other utterances); "
            "remove it, or leave out --resume."
        )
    return sums
