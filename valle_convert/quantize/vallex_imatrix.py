"""What a VALL-E X is measured on, and its importance matrices: one for the AR, one for the NAR.

The tensors of both networks have the same names, so that one file cannot hold both:

    out.gguf       of the AR
    out-nar.gguf   of the NAR's body

Each says in `valle.imatrix.part` which it is. Both are made in one run of the PyTorch reference:
the AR in one pass, every level of the NAR, both with and without a prompt.

Given utterances are voice files as VALL-E X's own project writes them (`audio.vallex_voice`),
which hold codes with what is said. The first three seconds, or half of it, are the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from valle_convert.audio.vallex_voice import read_vallex_voice
from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import InputError
from valle_convert.files import atomic_outputs, check_outputs
from valle_convert.gguf_file.vallex import set_paths
from valle_convert.model.vallex import VallexModel, describe_vallex
from valle_convert.network.vallex_protocol import VallexText
from valle_convert.progress import Progress, silent
from valle_convert.quantize.imatrix import (
    ImatrixFile,
    Sums,
    collect_sums,
    encode_imatrix,
    imatrix_of,
    kept_sums,
)
from valle_convert.quantize.utterances import Calibration
from valle_convert.verify.vallex import (
    VallexUtterance,
    n_vallex_cases,
    run_vallex_cases,
    vallex_utterances,
)

if TYPE_CHECKING:
    from torch import Tensor

#: The networks, in the order of their files.
NETS = ("ar", "nar")
_PROMPT_FRAMES = 225
#: Symbols and frames: a minute of speech, as the original's first table of positions.
_MAX_ELEMENTS = 4000


class VallexUtterances(Calibration[VallexModel, VallexUtterance]):
    """What a VALL-E X is run on."""

    arrays = "audio_tokens, text_tokens and lang_code of a voice file of VALL-E X"

    def read(self, path: Path, number: int) -> VallexUtterance:
        """See `read_vallex_utterance`; nothing in it is drawn."""
        del number
        return read_vallex_utterance(path, self.model)

    def draw(self, n: int, seed: int) -> Iterable[VallexUtterance]:
        """See `verify.vallex.vallex_utterances`."""
        return vallex_utterances(self.model, n, seed=seed)


def read_vallex_utterance(path: Path, model: VallexModel) -> VallexUtterance:
    """One utterance of a voice file.

    Raises:
        InputError: it is no such file, is of another model, too short, or too long.
    """
    voice = read_vallex_voice(path, model)
    n_frames, n_symbols = len(voice.codes), len(voice.symbols)
    if n_frames < 2 or n_frames + n_symbols > _MAX_ELEMENTS:
        raise InputError(
            f"{path} has {n_symbols:,} symbols and {n_frames:,} frames, where at least 2 frames "
            f"and at most {_MAX_ELEMENTS:,} of both are expected; take another piece of speech."
        )
    n_prompt = min(_PROMPT_FRAMES, n_frames // 2)
    text = VallexText(voice.symbols, voice.languages)
    return VallexUtterance(text, voice.codes[:n_prompt], voice.codes[n_prompt:])


def imatrix_paths(target: Path) -> list[Path]:
    """Where the matrices of AR and NAR lie, by the path of the first."""
    return set_paths(target, 0)


def make_vallex_imatrix(
    checkpoint: Checkpoint,
    utterances: VallexUtterances,
    target: Path,
    *,
    resume: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> list[ImatrixFile]:
    """Collect and write both matrices; arguments and errors are those of `make_imatrix`.

    Returns:
        Those of AR and NAR.
    """
    sources = (*checkpoint.inputs, *utterances.files)
    paths = imatrix_paths(target)
    check_outputs(paths, force=force, inputs=sources)
    with kept_sums(target, resume=resume, force=force) as state:
        made = collect_vallex_imatrix(
            checkpoint, utterances, state=state, resume=resume, progress=progress
        )
        with atomic_outputs(paths, force=force, sources=sources) as files:
            for file, one in zip(files, made, strict=True):
                file.write(encode_imatrix(one))
    return made


def collect_vallex_imatrix(
    checkpoint: Checkpoint,
    utterances: VallexUtterances,
    *,
    state: Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> list[ImatrixFile]:
    """Run a checkpoint on utterances; `state` and the rest as in `make_imatrix`."""
    from valle_convert.network.vallex_reference import VallexReference

    model = describe_vallex(checkpoint).model
    network = VallexReference(checkpoint.tensors, model)

    def add(utterance: VallexUtterance, sums: Sums) -> None:
        def observe(net: str, name: str, inputs: Tensor) -> None:
            sums.add(f"{net} {name}", inputs.numpy())
            sums.longest = max(sums.longest, len(inputs))

        network.observe = observe
        # The last case is the AR code by code: the same inputs once more.
        n = n_vallex_cases(model) - 1
        sums.n_passes += sum(1 for _ in islice(run_vallex_cases(network, utterance), n))

    sums = collect_sums(checkpoint, utterances, add, state=state, resume=resume, progress=progress)
    return [imatrix_of(sums, checkpoint, utterances, net) for net in NETS]
