"""Short English sentences spoken by espeak-ng in a few voices, from a seed.

The same seed gives the same texts, voices, phonemes and, in a new process, the same samples (the
library goes on where the last sentence left it); `digest` says so. Nothing of it is kept in the
repository. A sentence belongs to the training, the validation or the test set by a hash of its
text alone; sentences with one of the `words.UNSEEN` are never trained on.
"""

from __future__ import annotations

import ctypes
import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniature.words import (
    ADJECTIVES,
    GREETINGS,
    NOUNS,
    NUMBERS,
    PAST,
    PLACES,
    UNSEEN,
    VERBS,
    WHOM,
)
from valle_convert.text.phonemes import to_phonemes

SAMPLE_RATE = 24_000
#: espeak-ng's voice and pitch (0 .. 100).
VOICES: dict[str, tuple[str, int]] = {
    "plain": ("en-us", 45),
    "female": ("en-us+f3", 55),
    "deep": ("en-us+m5", 20),
}

#: One in this many sentences is for testing, and one for validation.
_TEST_SHARE = 12
#: Utterances per process; the library keeps a state between them.
_CHUNK = 250


@dataclass(frozen=True)
class Utterance:
    text: str
    voice: str  # one of `VOICES`
    phonemes: str  # IPA, as the converter writes it for the text
    samples: NDArray[np.float32]  # trimmed of silence, [n], at `SAMPLE_RATE`


def sentences(seed: int, nouns: Sequence[str] = ()) -> Iterator[str]:
    """An endless stream of sentences, with repetitions; `nouns` replace those of training."""
    choose = random.Random(seed).choice  # noqa: S311 - no secret
    things = list(nouns) or NOUNS
    while True:
        kind = choose("sssppnngavq")
        if kind == "s":
            text = f"the {choose(things)} {choose(VERBS)} the {choose(things)}"
        elif kind == "p":
            text = f"{choose(('we', 'they', 'she', 'I'))} {choose(PAST)} {_a(choose(things))}"
            text += choose(("", " " + choose(PLACES)))
        elif kind == "n":
            text = " ".join(choose(NUMBERS) for _ in range(choose((2, 3, 4))))
        elif kind == "g":
            text = f"{choose(GREETINGS)} {choose(WHOM)}"
        elif kind == "a":
            text = f"{_a(choose(ADJECTIVES))} {choose(ADJECTIVES)} {choose(things)}"
        elif kind == "v":
            text = f"the {choose(ADJECTIVES)} {choose(things)} is {choose(ADJECTIVES)}"
        else:
            text = f"where is the {choose(ADJECTIVES)} {choose(things)}"
        mark = "?" if kind == "q" else choose(("", ".", ".", "."))
        yield text[0].upper() + text[1:] + mark


def part_of(text: str) -> str:
    """The part of a sentence: "training", "validation" or "test"; its last mark does not matter."""
    bare = text.rstrip(".?").lower()
    if bare == "hello world" or not set(bare.split()).isdisjoint(UNSEEN):
        return "test"
    drawn = int.from_bytes(hashlib.sha256(bare.encode()).digest()[:4], "little") % _TEST_SHARE
    return {0: "test", 1: "validation"}.get(drawn, "training")


def to_be_said(part: str, seed: int, n: int) -> list[list[tuple[str, str]]]:
    """The texts of one part in chunks, with voices in turn.

    A chunk is for one new process: what the library says depends a little on what it said before.
    """
    texts = (text for text in sentences(seed) if part_of(text) == part)
    pairs = list(zip(islice(texts, n), cycle(VOICES), strict=False))
    return [pairs[i : i + _CHUNK] for i in range(0, n, _CHUNK)]


def training_set(seed: int, n: int) -> Iterator[Utterance]:
    """Utterances to train on, spoken by this process."""
    for pairs in to_be_said("training", seed, n):
        yield from (speak(text, voice) for text, voice in pairs)


def held_out_texts(seed: int, n: int, *, unseen: bool = False) -> list[str]:
    """Different sentences outside of every training set; `unseen` ones have unseen words."""
    source = sentences(seed, UNSEEN if unseen else ())
    found: dict[str, str] = {}
    for text in source:
        bare = text.rstrip(".?").lower()
        new_word = not set(bare.split()).isdisjoint(UNSEEN)
        if part_of(text) == "test" and new_word == unseen:
            found.setdefault(bare, bare[0].upper() + bare[1:] + ("?" if "?" in text else "."))
        if len(found) == n:
            return list(found.values())
    raise AssertionError("sentences have no end")


def speak(text: str, voice: str) -> Utterance:
    return Utterance(
        text, voice, to_phonemes(text, "en"), _trimmed(_Espeak.only().say(text, voice))
    )


def digest(utterance: Utterance) -> bytes:
    """SHA-256 of text, voice, phonemes and 16-bit samples."""
    total = hashlib.sha256(f"{utterance.voice}\0{utterance.text}\0{utterance.phonemes}\0".encode())
    total.update((utterance.samples * 32767).round().astype("<i2").tobytes())
    return total.digest()


def _a(thing: str) -> str:
    return f"an {thing}" if thing[0] in "aeiou" else f"a {thing}"


def _trimmed(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Trim the silence at both ends to 20 ms."""
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    if not len(loud):
        return samples
    edge = SAMPLE_RATE // 50
    return samples[max(0, loud[0] - edge) : loud[-1] + edge]


class _Espeak:
    """The espeak-ng library of espeakng-loader, see speak_lib.h."""

    _SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS
    _PITCH = 3  # espeakPITCH
    _UTF8 = 1  # espeakCHARS_UTF8

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = str(espeakng_loader.get_data_path()).encode()
        self._rate = self._library.espeak_Initialize(self._SYNCHRONOUS, 0, data, 0)
        if self._rate <= 0:
            raise RuntimeError("espeak-ng cannot be used; install espeakng-loader anew")
        self._chunks: list[NDArray[np.int16]] = []
        callback = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        self._callback = callback(self._take)  # kept, or it would be collected
        self._library.espeak_SetSynthCallback(self._callback)

    @staticmethod
    @cache
    def only() -> _Espeak:
        """The instance of this process: the library has global state."""
        return _Espeak()

    def _take(self, samples: Any, n: int, _events: Any) -> int:  # noqa: ANN401 - ctypes
        if samples and n:
            self._chunks.append(np.ctypeslib.as_array(samples, (n,)).copy())
        return 0

    def say(self, text: str, voice: str) -> NDArray[np.float32]:
        """Samples at `SAMPLE_RATE`, [n]."""
        import soxr

        name, pitch = VOICES[voice]
        self._chunks.clear()
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # of breath and flutter
        failed = self._library.espeak_SetVoiceByName(name.encode())
        failed = failed or self._library.espeak_SetParameter(self._PITCH, pitch, 0)
        said = text.encode()
        failed = failed or self._library.espeak_Synth(
            said, ctypes.c_size_t(len(said) + 1), 0, 0, 0, self._UTF8, None, None
        )
        self._library.espeak_Synchronize()
        if failed or not self._chunks:
            raise RuntimeError(f"espeak-ng did not say {text!r} in the voice {name}")
        samples = np.concatenate(self._chunks).astype(np.float32) / 32768
        result: NDArray[np.float32] = soxr.resample(samples, self._rate, SAMPLE_RATE)
        return result
