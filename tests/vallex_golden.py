"""The golden case of VALL-E X: what the original implementation was given, and what it gave."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from golden_cases import golden_tensors
from numpy.typing import NDArray
from support import GOLDEN_VALLEX, golden_checkpoint

from valle_convert.decode.batch import alone
from valle_convert.families.bundle import paths_of
from valle_convert.families.vallex.composed import ComposedNetwork, VallexText
from valle_convert.families.vallex.decode import append_codes, vallex_steps
from valle_convert.families.vallex.symbols import symbol_ids

CHECKPOINT = golden_checkpoint(GOLDEN_VALLEX)
#: "Hi there."
HEARD = "haɪ_ðɛɹ."

decode_vallex = alone(vallex_steps, append_codes)


def set_paths(ar: Path, n_levels_above: int) -> list[Path]:
    """Where the files of a set lie, the AR's first."""
    levels = [f"nar-{level}" for level in range(1, n_levels_above + 1)]
    return list(paths_of(ar, ["ar", "nar", *levels]).values())


@dataclass(frozen=True)
class Golden:
    """One utterance.

    Attributes:
        prompt: [frames, 8]; no frames without a voice.
        codes: greedy, [frames, 8].
        logits: of `ar` [frames + 1, codes + 1], and of some of `nar1` .. `nar7` [frames, codes].
    """

    text: VallexText
    prompt: NDArray[np.int32]
    codes: NDArray[np.int32]
    logits: dict[str, NDArray[np.float32]]


def golden(prefix: str) -> Golden:
    """With a voice (`""`), or without (`noprompt.`)."""
    found, _ = golden_tensors(GOLDEN_VALLEX)
    symbols, languages = found[f"{prefix}in.text"], found[f"{prefix}in.text_languages"]
    prompt = np.zeros((0, 8), np.int32)
    if not prefix:
        # The prompt is English: language 0.
        before = found["in.text_prompt"]
        symbols = np.concatenate([before, symbols])
        languages = np.concatenate([np.zeros_like(before), languages])
        prompt = found["in.prompt_codes"].astype(np.int32)
    codes = found[f"{prefix}gen.codes"].astype(np.int32)
    start = f"{prefix}logits."
    logits = {name.removeprefix(start): x for name, x in found.items() if name.startswith(start)}
    text = VallexText(symbols.astype(np.int32), languages.astype(np.int32))
    return Golden(text, prompt, codes, logits)


def write_voice(path: Path, **changes: Any) -> Path:
    """As VALL-E X's own project writes them: the golden prompt, which says HEARD; None leaves an
    array out."""
    arrays: dict[str, Any] = {
        "audio_tokens": golden("").prompt[None].astype(np.int64),
        "text_tokens": np.array([symbol_ids(HEARD)]),
        "lang_code": 2,
        **changes,
    }
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def all_logits(network: ComposedNetwork, given: Golden) -> dict[str, NDArray[np.float32]]:
    """What a network makes of it, for each of the golden logits."""
    return {
        name: network.continued(given.text, given.prompt[:, 0], given.codes[:, 0])
        if name == "ar"
        else network.pass_nar(given.text, given.prompt, given.codes[:, : int(name[3:])])
        for name in given.logits
    }
