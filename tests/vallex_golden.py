"""The golden case of VALL-E X: what the original implementation was given, and what it gave."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from support import GOLDEN

from valle_convert.network.vallex import SymbolText, VallexNetwork

CHECKPOINT = GOLDEN / "valle-x-small" / "vallex-checkpoint.pt"


@dataclass(frozen=True)
class Golden:
    """One utterance.

    Attributes:
        prompt: [frames, 8]; no frames without a voice.
        codes: greedy, [frames, 8].
        logits: of `ar` [frames + 1, codes + 1], and of some of `nar1` .. `nar7` [frames, codes].
    """

    text: SymbolText
    prompt: NDArray[np.int64]
    codes: NDArray[np.int64]
    logits: dict[str, NDArray[np.float32]]


@cache
def tensors() -> dict[str, NDArray[Any]]:
    """All of the golden file."""
    with safe_open(CHECKPOINT.with_name("golden.safetensors"), framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def golden(prefix: str) -> Golden:
    """With a voice (`""`), or without (`noprompt.`)."""
    found = tensors()
    symbols, languages = found[f"{prefix}in.text"], found[f"{prefix}in.text_languages"]
    prompt = np.zeros((0, 8), np.int64)
    if not prefix:
        # The prompt is English: language 0.
        before = found["in.text_prompt"]
        symbols = np.concatenate([before, symbols])
        languages = np.concatenate([np.zeros_like(before), languages])
        prompt = found["in.prompt_codes"]
    start = f"{prefix}logits."
    logits = {name.removeprefix(start): x for name, x in found.items() if name.startswith(start)}
    return Golden(SymbolText(symbols, languages), prompt, found[f"{prefix}gen.codes"], logits)


def all_logits(network: VallexNetwork, given: Golden) -> dict[str, NDArray[np.float32]]:
    """What a network makes of it, for each of the golden logits."""
    return {
        name: network.continued(given.text, given.prompt[:, 0], given.codes[:, 0])
        if name == "ar"
        else network.refine(int(name[3:]), given.text, given.prompt, given.codes)
        for name in given.logits
    }


def greedy_codes(network: VallexNetwork, given: Golden) -> NDArray[np.int64]:
    """Level 0 code by code until stop, then level by level, the best of each."""
    model = network.model
    codes: list[int] = []
    logits = network.begin(given.text, given.prompt[:, 0])
    while (best := int(logits.argmax())) != model.stop_code:
        codes.append(best)
        assert len(codes) <= 16 * len(given.text.symbols)
        logits = network.step(np.array([best]))[0]
    frames = np.array(codes)[:, None]
    for level in range(1, model.n_levels):
        best_codes = network.refine(level, given.text, given.prompt, frames).argmax(-1)
        frames = np.concatenate([frames, best_codes[:, None]], 1)
    return frames
