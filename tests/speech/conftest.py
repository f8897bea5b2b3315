"""Speakers of small parts: golden checkpoints, converted, and an EnCodec of their codes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_checkpoint import Shape, make_checkpoint
from support import GOLDEN_VALLEX, ONE_THREAD, Convert

from valle_convert.api import plan_conversion, write_gguf
from valle_convert.audio import EncodecCodec
from valle_convert.decode.options import GREEDY
from valle_convert.families.bundle import Bundle, open_bundle
from valle_convert.families.v5.on_llama import GgufNetwork
from valle_convert.families.v5.speech import VersionFiveSpeaker
from valle_convert.families.vallex.on_llama import VallexGguf
from valle_convert.families.vallex.speech import VallexSpeaker
from valle_convert.speech.results import SpeakOptions
from valle_convert.speech.speaker import AnySpeaker

CODES = 64  # a codebook, in the golden checkpoints


@dataclass(frozen=True)
class Talking:
    """A speaker of one family.

    Attributes:
        quick: 0.2 seconds a sentence, the best codes, from left to right where it can. With what
            the recording `voice` says, for whom needs it.
        hello: the phonemes of "Hello."
        stopping: a speaker whose network draws the stop code first, so many times.
    """

    bundle: Bundle
    speaker: AnySpeaker
    quick: SpeakOptions
    heard: SpeakOptions
    hello: str
    stopping: Callable[[int], AnySpeaker] | None = None


@pytest.fixture(scope="session")
def encodec(codec: Path) -> EncodecCodec:
    """EnCodec of the real architecture with random weights, whose codes are the golden models'."""
    return EncodecCodec(codec)


@pytest.fixture(scope="session")
def bundle(converted: Convert) -> Bundle:
    """The golden checkpoint that is like the published model, in Q8_0."""
    return open_bundle(converted("ar-nar-len", "q8_0"))


@pytest.fixture(scope="session")
def speaker(bundle: Bundle, encodec: EncodecCodec) -> Iterator[VersionFiveSpeaker]:
    with bundle.family.speaker(bundle, codec=encodec, settings=ONE_THREAD) as opened:
        assert isinstance(opened, VersionFiveSpeaker)
        yield opened


class StopsAtOnce(GgufNetwork):
    """A model that draws the stop code first, `n` times."""

    n = 0

    def step(self, *arguments: Any, **options: Any) -> Any:
        return self._stop(super().step(*arguments, **options), options["head"])

    def append(self, *arguments: Any, **options: Any) -> Any:
        return self._stop(super().append(*arguments, **options), options["head"])

    def _stop(self, rows: np.ndarray, head: str) -> np.ndarray:
        if head != "ar" or self.n == 0:
            return rows
        self.n -= 1
        rows = rows.copy()
        rows[:, self.model.config.special_code] = 1e4
        return rows


class VallexStopsAtOnce(VallexGguf):
    """Likewise."""

    n = 0

    def begin_ar(self, *arguments: Any, **options: Any) -> Any:
        rows = super().begin_ar(*arguments, **options)
        if self.n:
            self.n -= 1
            rows = rows.copy()
            rows[:, self.model.codebook_size] = 1e4
        return rows


@pytest.fixture(scope="session")
def version_five(bundle: Bundle, speaker: AnySpeaker, encodec: EncodecCodec) -> Iterator[Talking]:
    quick = SpeakOptions(
        mode="ar", language="en", sampling=GREEDY, max_seconds=0.2, prompt_seconds=0.4, seed=1
    )
    with StopsAtOnce(bundle.files, bundle.model, settings=ONE_THREAD) as network:

        def stopping(n: int) -> AnySpeaker:
            network.n = n
            return VersionFiveSpeaker(network, (lambda _text: [1, 20, 30, 2], str), encodec)

        yield Talking(bundle, speaker, quick, quick, "həlˈoʊ.", stopping)


@pytest.fixture(scope="session")
def vall_e_x(converted: Convert, encodec: EncodecCodec) -> Iterator[Talking]:
    files = open_bundle(converted(GOLDEN_VALLEX, "auto"))
    quick = SpeakOptions(language="en", sampling=GREEDY, max_seconds=0.2, seed=1)
    heard = SpeakOptions(**{**vars(quick), "voice_text": "Hi there."})
    with (
        files.family.speaker(files, codec=encodec, settings=ONE_THREAD) as opened,
        VallexStopsAtOnce(files.files, files.model, settings=ONE_THREAD) as network,
    ):

        def stopping(n: int) -> AnySpeaker:
            network.n = n
            return VallexSpeaker(network, codec=encodec)

        yield Talking(files, opened, quick, heard, "hɛˈloʊ.", stopping)


@pytest.fixture(scope="session")
def version_seven(
    tmp_path_factory: pytest.TempPathFactory, encodec: EncodecCodec
) -> Iterator[Talking]:
    folder = tmp_path_factory.mktemp("version-7")
    shape = Shape(version=7, audio_tokens=CODES, capabilities=("nar", "len"))
    make_checkpoint(folder / "m.sft", shape)
    write_gguf(plan_conversion(folder / "m.sft"), folder / "m.gguf")
    files = open_bundle(folder / "m.gguf")
    quick = SpeakOptions(
        language="en", sampling=GREEDY, max_steps=3, max_seconds=0.2, prompt_seconds=0.4, seed=1
    )
    with files.family.speaker(files, codec=encodec, settings=ONE_THREAD) as opened:
        yield Talking(files, opened, quick, quick, "həlˈoʊ.")


@pytest.fixture(params=["version_five", "vall_e_x", "version_seven"])
def talking(request: pytest.FixtureRequest) -> Talking:
    """Each of the families."""
    found: Talking = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["version_five", "vall_e_x"])
def causal(request: pytest.FixtureRequest) -> Talking:
    """Each of those that speak level 0 from left to right."""
    found: Talking = request.getfixturevalue(request.param)
    return found
