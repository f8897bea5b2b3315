"""Sentences side by side: as one by one, in order, whatever runs beside them."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support import GOLDEN_VALLEX, ONE_THREAD, Convert

from valle_convert.decode.options import GREEDY, SamplingOptions
from valle_convert.errors import InputError
from valle_convert.families.bundle import open_bundle
from valle_convert.families.v5.speech import VersionFiveSpeaker
from valle_convert.llama.context import Settings
from valle_convert.llama.tuning import kept_settings
from valle_convert.speech.results import Piece, SpeakOptions
from valle_convert.speech.speaker import AnySpeaker, Watch

WORDS = "hello world the old man sees a red apple tree and what is this good morning".split()
ROOM = 4
#: In Q8_0, llama.cpp computes a row of a batch as it computes it alone; in F16 and F32 it does so
#: from two rows on.
EXACT_ALONE = "q8_0"
FAMILIES = [("ar-nar-len", "q8_0"), (GOLDEN_VALLEX, "q8_0"), (GOLDEN_VALLEX, "f32")]


@pytest.fixture(scope="module", params=FAMILIES, ids="-".join)
def opened(
    request: pytest.FixtureRequest, converted: Convert
) -> Iterator[tuple[str, AnySpeaker, AnySpeaker]]:
    """The type, a speaker of one sentence at a time, and one of several."""
    folder, out_type = request.param
    bundle = open_bundle(converted(folder, out_type))
    with ExitStack() as held:
        one, several = (
            held.enter_context(
                bundle.family.speaker(bundle, settings=Settings(n_threads=1, n_parallel=n))
            )
            for n in (1, ROOM)
        )
        yield out_type, one, several


def options_of(speaker: AnySpeaker, rng: np.random.Generator) -> SpeakOptions:
    """Random ones, of a voice that needs no words."""
    options = SpeakOptions(
        mode="ar",
        language="en",
        sampling=(GREEDY, SamplingOptions(), SamplingOptions(0.7, top_k=20))[rng.integers(3)],
        nar_sampling=(GREEDY, SamplingOptions(0.5))[rng.integers(2)],
        max_seconds=float(rng.uniform(0.1, 0.25)),
        seed=int(rng.integers(1000)),
    )
    if isinstance(speaker, VersionFiveSpeaker):
        return replace(options, guidance_strength=float(rng.choice((0, 0, 3))))
    return replace(options, best_of=int(rng.choice((1, 1, 2))))


def voice_of(speaker: AnySpeaker) -> object:
    """What an earlier text said, with its words where a voice needs them."""
    options = SpeakOptions(mode="ar", language="en", sampling=GREEDY, max_seconds=0.3, seed=0)
    spoken = speaker.speak("Hello.", None, options)
    return spoken.saved_codes


def text_of(rng: np.random.Generator) -> str:
    sentences = [" ".join(rng.choice(WORDS, rng.integers(1, 6))) for _ in range(rng.integers(1, 6))]
    return " ".join(f"{one.capitalize()}." for one in sentences)


def request_of(speaker: AnySpeaker, seed: int) -> tuple[str, object, SpeakOptions]:
    rng = np.random.default_rng(seed)
    text, options = text_of(rng), options_of(speaker, rng)
    if isinstance(speaker, VersionFiveSpeaker):
        return text, voice_of(speaker) if rng.integers(2) else None, options
    return text, voice_of(speaker), replace(options, voice_text="Hello.")


def codes(pieces: Sequence[Piece]) -> list[NDArray[np.int32]]:
    return [piece.codes for piece in pieces]


def same(one: Sequence[NDArray[np.int32]], other: Sequence[NDArray[np.int32]]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


@pytest.mark.parametrize("seed", range(3))
def test_sentences_are_as_one_by_one_and_in_order(
    opened: tuple[str, AnySpeaker, AnySpeaker], seed: int
) -> None:
    out_type, one, several = opened
    text, voice, options = request_of(one, seed)
    alone = [*one.pieces(text, voice, options)]
    found = []
    for width in (1 + seed, ROOM):
        several.batch.width = width
        found.append([*several.pieces(text, voice, options)])
    narrow, wide = found
    assert [piece.text for piece in wide] == [piece.text for piece in alone]
    assert same(codes(narrow), codes(wide))
    if out_type == EXACT_ALONE or options.sampling == GREEDY:
        assert same(codes(alone), codes(wide))
    assert all(piece.seconds.level_0 > 0 for piece in wide)


@pytest.mark.parametrize("seed", range(2))
def test_texts_share_a_batch_and_one_that_leaves_changes_no_other(
    opened: tuple[str, AnySpeaker, AnySpeaker], seed: int
) -> None:
    """Five texts take turns; one is closed, and one is stopped, at a random time."""
    _, _, several = opened
    several.batch.width = ROOM
    requests = [request_of(several, 10 * seed + i) for i in range(5)]
    expected = [codes([*several.pieces(*one)]) for one in requests]
    rng = np.random.default_rng(seed)
    closed_at, stopped_at = rng.integers(1, 25, 2)
    now = 0
    watches = [Watch() for _ in requests]
    watches[1] = Watch(should_stop=lambda: now >= stopped_at)
    running = {i: several.turns(*one, watch=watches[i]) for i, one in enumerate(requests)}
    found: list[list[Piece]] = [[] for _ in requests]
    while running:
        now += 1
        if now == closed_at and 0 in running:
            running.pop(0).close()
        for i, turns in [*running.items()]:
            for piece in turns:
                if piece is None:
                    break
                found[i].append(piece)
            else:
                del running[i]
        several.batch.step()
    for i in range(2, 5):
        assert same(codes(found[i]), expected[i]), i
    for i in range(2):
        whole = [piece for piece in found[i] if piece.end != "interrupted"]
        assert same(codes(whole), expected[i][: len(whole)])
    # Whoever left took nothing along: there is room for all again.
    again = codes([*several.pieces(*requests[4])])
    assert same(again, expected[4])


def test_the_first_sentence_comes_before_later_ones_are_done(
    opened: tuple[str, AnySpeaker, AnySpeaker],
) -> None:
    _, _, several = opened
    several.batch.width = 2
    _, voice, options = request_of(several, 0)
    pieces = several.pieces("One. Two. Three. Four. Five.", voice, options)
    assert next(pieces).text == "One."
    begun = [*several.batch._running, *(one for queue in several.batch._turns for one in queue)]
    assert sum(not one.is_done for one in begun) <= 2
    assert [piece.text for piece in pieces] == ["Two.", "Three.", "Four.", "Five."]


def test_sentences_that_go_on_from_earlier_ones_wait_for_them(
    opened: tuple[str, AnySpeaker, AnySpeaker],
) -> None:
    out_type, one, several = opened
    several.batch.width = ROOM
    options = SpeakOptions(mode="ar", language="en", max_seconds=0.3, seed=4)
    if isinstance(one, VersionFiveSpeaker):
        options = replace(options, context_history=2)
    found, alone = (
        codes([*speaker.pieces("One. Two. Three.", None, options)]) for speaker in (several, one)
    )
    if out_type == EXACT_ALONE:
        assert same(found, alone)
    assert several.batch.width == ROOM


def test_a_sentence_decoded_at_once_is_heard_before_the_next_begins(converted: Convert) -> None:
    bundle, options = (
        open_bundle(converted("ar-nar-len", "q8_0")),
        SpeakOptions(max_steps=2, seed=1),
    )
    with bundle.family.speaker(bundle, settings=ONE_THREAD) as speaker:
        turns = [speaker.turns("Hello.", None, options) for _ in range(3)]
        heard = []
        for _ in range(4):
            heard.append([next(one, None) is not None for one in turns])
            speaker.batch.step()
    assert heard[:2] == [[False] * 3, [True, False, False]]
    assert [sum(one) for one in heard] == [0, 1, 1, 1]


@pytest.mark.parametrize("folder", ["ar-nar-len", GOLDEN_VALLEX])
def test_the_number_is_that_of_the_search(
    converted: Convert, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Other processes take nothing: a search that a busy machine disturbs finds none.
    monkeypatch.setattr("valle_convert.llama.tuning.busy_seconds", time.process_time)
    bundle, found = (
        open_bundle(converted(folder, "q8_0")),
        Settings(n_threads=1, n_parallel=0, tune="auto"),
    )
    with bundle.family.speaker(bundle, settings=found) as speaker:
        assert speaker.batch.width == 1  # so small a model is not searched
    monkeypatch.setattr("valle_convert.network.tuned.SMALL_MODEL", 0)
    with bundle.family.speaker(bundle, settings=found) as speaker:
        kept = kept_settings()
        assert kept
        assert speaker.batch.width in {one.n_parallel for one in kept}
        pieces = speaker.pieces("One. Two.", voice_of(speaker), request_of(speaker, 0)[2])
        assert len([*pieces]) == 2


def test_a_batch_that_does_not_fit_into_memory_is_refused(converted: Convert) -> None:
    bundle = open_bundle(converted("ar-nar-len", "auto"))
    for n in (257, 1 << 22):
        with pytest.raises(InputError, match=f"{n} sequences of .* Give a smaller --parallel"):
            bundle.family.speaker(bundle, settings=Settings(n_threads=1, n_parallel=n))
