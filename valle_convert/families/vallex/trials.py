"""Examples and cases of VALL-E X: utterances, random or from voice files, and passes over them.

AR in one batch, code by code, and without a prompt; every level of the NAR, with and without a
prompt; each symbol in its own language.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, pairwise
from operator import methodcaller
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from valle_convert.decode.batch import Element
from valle_convert.decode.options import GREEDY, DecodeOptions
from valle_convert.errors import InputError
from valle_convert.families.family import GREEDY_FRAMES, Case, Speed, median_ms
from valle_convert.families.vallex.composed import ComposedNetwork, Ids, Rows, VallexText
from valle_convert.families.vallex.decode import decode_vallex_ar, decode_vallex_nar
from valle_convert.families.vallex.facts import VallexModel
from valle_convert.families.vallex.symbols import VALLEX_SYMBOLS
from valle_convert.families.vallex.voice import read_vallex_voice
from valle_convert.wording import plural

_N_SYMBOLS, _N_PROMPT_FRAMES, _N_FRAMES = 40, 30, 40
_N_STEPS = 8  # codes that are decoded one by one, at the end
# A request of everyday size: four seconds after three seconds of voice.
_SPEED_SYMBOLS, _SPEED_PROMPT, _SPEED_FRAMES, _SPEED_STEPS = 60, 225, 300, 16
_SPEED_PASSES = 3
#: Symbols and frames: a minute of speech, like the original's first table of positions.
_MAX_ELEMENTS = 4000


@dataclass(frozen=True)
class VallexUtterance:
    """One seeded example; every symbol has its own language."""

    text: VallexText
    prompt: NDArray[np.int32]  # [frames, levels]
    codes: NDArray[np.int32]  # [frames, levels]

    @property
    def said(self) -> NDArray[np.int32]:
        return self.text.symbols


def utterances(
    model: VallexModel, n: int, *, seed: int = 0, length: float = 1.0
) -> Iterator[VallexUtterance]:
    """`n` different utterances, the same for the same seed."""
    for i in range(n):
        draw = np.random.default_rng([seed, i])
        n_symbols, n_prompt, n_codes = (
            round(length * n)
            for n in (_N_SYMBOLS + 9 * i, _N_PROMPT_FRAMES + 5 * i, _N_FRAMES + 7 * i)
        )
        codes = draw.integers(
            0, model.codebook_size, (n_prompt + n_codes, model.n_levels), dtype=np.int32
        )
        yield VallexUtterance(
            VallexText(
                draw.integers(5, len(VALLEX_SYMBOLS), n_symbols, dtype=np.int32),
                draw.integers(0, len(model.languages), n_symbols, dtype=np.int32),
            ),
            codes[:n_prompt],
            codes[n_prompt:],
        )


def cases(model: VallexModel, given: VallexUtterance) -> Iterator[Case[ComposedNetwork]]:
    """Every head, with and without a prompt; the AR in one pass, and one code a step."""
    text, codes = given.text, given.codes
    level_0 = codes[:, 0]
    for name, prompt in (("", given.prompt), (" without prompt", given.prompt[:0])):
        run = methodcaller("continued", text, prompt[:, 0], level_0)
        yield Case(f"ar{name}", "ar", run)
        for level in range(1, model.n_levels):
            if prompt.size or level in (1, model.n_levels - 1):
                run = methodcaller("pass_nar", text, prompt, codes[:, :level])
                yield Case(f"nar.{level}{name}", f"nar.{level}", run)
    before, last = np.split(level_0, [-_N_STEPS])
    stepwise = partial(_stepwise, text, np.concatenate([given.prompt[:, 0], before]), last)
    pairs = ((n, n + 1) for n in range(len(before) + 1, len(codes)))
    rows = (len(before), len(before) + 1, *chain.from_iterable(pairs))
    yield Case("ar one code a step", "ar", stepwise, repeats="ar", rows=rows)


def _stepwise(text: VallexText, before: Ids, codes: Ids, network: ComposedNetwork) -> Rows:
    """In two copies, one code a step, the first copy one behind."""
    place = 1 + len(before)
    steps = [network.begin_ar(text, before, (0, 1), room=len(codes))]
    steps.append(network.append_codes([Element(1, codes[0], place)]))
    for n, (a, b) in enumerate(pairwise(codes), place):
        steps.append(network.append_codes([Element(0, a, n), Element(1, b, n + 1)]))
    network.forget(0)
    network.forget(1)
    return np.concatenate(steps)


def speak_level_0(network: ComposedNetwork, given: VallexUtterance) -> NDArray[np.int32]:
    """The AR's speech without randomness, [frames]."""
    rng, options, prompt = np.random.default_rng(0), DecodeOptions(sampling=GREEDY), given.prompt
    return decode_vallex_ar(
        network, given.text, prompt[:, 0], options, rng, max_frames=GREEDY_FRAMES
    ).codes


def speak_levels(
    network: ComposedNetwork, given: VallexUtterance, level_0: NDArray[np.int32]
) -> NDArray[np.int32]:
    """The levels above without randomness, [frames, levels]."""
    rng = np.random.default_rng(0)
    return decode_vallex_nar(network, given.text, given.prompt, level_0, GREEDY, rng).codes


def measure_speed(network: ComposedNetwork) -> Speed:
    """Time AR steps and NAR passes on a request of everyday size."""
    draw = np.random.default_rng(0)
    symbols = draw.integers(5, 70, _SPEED_SYMBOLS, dtype=np.int32)
    text = VallexText(symbols, np.zeros(_SPEED_SYMBOLS, np.int32))
    n = _SPEED_PROMPT + _SPEED_FRAMES
    codes = draw.integers(
        0, network.model.codebook_size, (n, network.model.n_levels), dtype=np.int32
    )
    network.begin_ar(text, codes[:, 0], room=_SPEED_STEPS)
    places = count(n + 1)
    ar_step = median_ms(lambda: network.append_codes([Element(0, 0, next(places))]), _SPEED_STEPS)
    network.forget(0)
    one_pass = partial(network.pass_nar, text, codes[:_SPEED_PROMPT], codes[_SPEED_PROMPT:, :1])
    return Speed(ar_step, median_ms(one_pass, _SPEED_PASSES), _SPEED_SYMBOLS + n)


def read_utterance(path: Path, model: VallexModel, *, seed: tuple[int, ...]) -> VallexUtterance:
    """One utterance of a voice file; the first three seconds, or half of it, are the prompt."""
    del seed  # nothing is drawn
    voice = read_vallex_voice(path, model)
    n_frames, n_symbols = len(voice.codes), len(voice.text)
    if n_frames < 2 or n_frames + n_symbols > _MAX_ELEMENTS:
        raise InputError(
            f"{path} has {plural(n_symbols, 'symbol')} and {plural(n_frames, 'frame')}, expected "
            f"at least 2 frames and at most {_MAX_ELEMENTS:,} of both; "
            "take another piece of speech."
        )
    n_prompt = min(_SPEED_PROMPT, n_frames // 2)
    return VallexUtterance(voice.text, voice.codes[:n_prompt], voice.codes[n_prompt:])
