"""VALL-E X from text and a voice to sound: voices, transcripts, tags, sentences."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from vallex_golden import CHECKPOINT, HEARD, decode_vallex, golden

from valle_convert.audio import Audio, EncodecCodec, SavedCodes, read_audio, write_codes
from valle_convert.checkpoint import read_checkpoint
from valle_convert.decode.options import GREEDY, SamplingOptions
from valle_convert.errors import InputError
from valle_convert.families.vallex import facts
from valle_convert.families.vallex.composed import VallexText
from valle_convert.families.vallex.reference import VallexReference
from valle_convert.families.vallex.speech import VallexSpeaker
from valle_convert.families.vallex.symbols import symbol_ids
from valle_convert.families.vallex.voice import VallexVoice
from valle_convert.model.spec import UNKNOWN_CODEC
from valle_convert.speech.results import SpeakOptions

QUICK = SpeakOptions(sampling=GREEDY, max_seconds=0.2, seed=1)
MAX_FRAMES = 15
SAID = "Hi there."


@pytest.fixture(scope="module")
def network() -> VallexReference:
    checkpoint = read_checkpoint(CHECKPOINT)
    return VallexReference(checkpoint.tensors, facts.describe(checkpoint))


@pytest.fixture
def speaker(network: VallexReference, encodec: EncodecCodec) -> VallexSpeaker:
    return VallexSpeaker(network, codec=encodec)


@pytest.fixture
def codes_only(network: VallexReference) -> VallexSpeaker:
    return VallexSpeaker(network)


def text_of(symbols: str, *languages: int) -> VallexText:
    ids = np.array(symbol_ids(symbols), np.int32)
    return VallexText(ids, np.resize(np.array(languages, np.int32), len(ids)))


def test_text_and_a_voice_file_become_what_the_decoder_makes_of_their_rows(
    speaker: VallexSpeaker, network: VallexReference, voice_file: Path
) -> None:
    spoken = speaker.speak("[EN]Hello.[EN][ZH]你好。[ZH]", voice_file, QUICK)
    pieces = [piece.phonemes for piece in spoken.pieces]
    assert pieces == ["hɛˈloʊ.", "ni↓↑xɑʊ↓↑."]
    expected = [
        decode_vallex(
            network,
            text_of(HEARD, 0) + text_of(symbols, language),
            golden("").prompt,
            QUICK,
            np.random.default_rng(0),
            max_frames=MAX_FRAMES,
        ).codes
        for symbols, language in zip(pieces, (0, 1), strict=True)
    ]
    np.testing.assert_array_equal(spoken.codes, np.concatenate(expected))
    assert spoken.audio is not None
    assert len(spoken.audio.samples) == len(spoken.codes) * 320
    assert [piece.language for piece in spoken.pieces] == ["en", "zh"]
    assert spoken.is_whole


def test_a_recording_or_codes_need_their_transcript(
    speaker: VallexSpeaker, voice: Path, tmp_path: Path
) -> None:
    codes = tmp_path / "codes.npz"
    write_codes(codes, SavedCodes(golden("").prompt, UNKNOWN_CODEC, 64))
    for source in (voice, codes, SavedCodes(golden("").prompt, UNKNOWN_CODEC, 64)):
        with pytest.raises(InputError, match=r"needs the transcript of .*--voice-text"):
            speaker.speak("Hello.", source, QUICK)
        spoken = speaker.speak("Hello.", source, replace(QUICK, voice_text=SAID))
        assert 0 < len(spoken.codes) <= MAX_FRAMES


def test_codes_with_a_transcript_are_the_same_voice_as_a_voice_file(
    codes_only: VallexSpeaker, voice_file: Path
) -> None:
    saved = SavedCodes(golden("").prompt, UNKNOWN_CODEC, 64)
    for transcript in (SAID, f"[EN]{SAID}[EN]"):
        spoken = codes_only.speak("Hello.", saved, replace(QUICK, voice_text=transcript))
        np.testing.assert_array_equal(
            spoken.codes, codes_only.speak("Hello.", voice_file, QUICK).codes
        )
    other = codes_only.speak("Hello.", saved, replace(QUICK, voice_text="你好"))
    assert not np.array_equal(other.codes, spoken.codes)


def test_the_whole_recording_is_the_voice(
    speaker: VallexSpeaker, encodec: EncodecCodec, voice: Path
) -> None:
    audio = read_audio(voice, 24_000, max_seconds=60)
    expected = speaker.speak("Hello.", VallexVoice(encodec.encode(audio), SAID_ROWS), QUICK)
    spoken = speaker.speak("Hello.", voice, replace(QUICK, voice_text=SAID))
    np.testing.assert_array_equal(spoken.codes, expected.codes)


SAID_ROWS = text_of(HEARD, 0)


def test_a_voice_file_takes_no_second_transcript(
    codes_only: VallexSpeaker, voice_file: Path
) -> None:
    with pytest.raises(InputError, match="leave --voice-text out"):
        codes_only.speak("Hello.", voice_file, replace(QUICK, voice_text=SAID))
    with pytest.raises(InputError, match="but there is none"):
        codes_only.speak("Hello.", None, replace(QUICK, voice_text=SAID))


def test_a_voice_that_is_too_long_is_refused(speaker: VallexSpeaker) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(24_000 * 16).astype(np.float32)
    long = SavedCodes(np.zeros((75 * 16, 8), np.int32), UNKNOWN_CODEC, 64)
    file = VallexVoice(long.codes, SAID_ROWS)
    with pytest.raises(InputError, match=r"16\.0 seconds long.*has at most 15"):
        speaker.speak("Hello.", file, QUICK)
    for source in (Audio(noise, 24_000), long):
        with pytest.raises(InputError, match=r"16\.0 seconds long.*has at most 15"):
            speaker.speak("Hello.", source, replace(QUICK, voice_text=SAID))


@pytest.mark.parametrize(
    ("text", "ends", "prompt_of_third"),
    [
        ("Home. Yes. Home.", ["stop", "stop"], 1),
        # Of one that was cut off, the text would say more than the codes.
        ("Maybe. Hello. Yes.", ["stop", "limit"], 0),
    ],
)
def test_without_a_voice_a_sentence_goes_on_with_the_last_one_that_was_whole(
    codes_only: VallexSpeaker,
    network: VallexReference,
    text: str,
    ends: list[str],
    prompt_of_third: int,
) -> None:
    options = SpeakOptions(sampling=GREEDY, language="en")
    pieces = codes_only.speak(text, None, options).pieces
    assert [one.end for one in pieces[:2]] == ends
    for piece, before in ((pieces[1], pieces[0]), (pieces[2], pieces[prompt_of_third])):
        expected = decode_vallex(
            network,
            text_of(before.phonemes, 0) + text_of(piece.phonemes, 0),
            before.codes,
            QUICK,
            np.random.default_rng(0),
        )
        np.testing.assert_array_equal(piece.codes, expected.codes)


def test_an_accent_is_one_language_for_every_symbol(
    codes_only: VallexSpeaker, network: VallexReference
) -> None:
    spoken = codes_only.speak("Hello.", None, replace(QUICK, accent="ja"))
    expected = decode_vallex(
        network,
        text_of("hɛˈloʊ.", 2),
        np.zeros((0, 8), np.int32),
        QUICK,
        np.random.default_rng(0),
        max_frames=MAX_FRAMES,
    )
    np.testing.assert_array_equal(spoken.codes, expected.codes)
    assert spoken.pieces[0].language == "en"


def test_symbols_may_be_tagged(codes_only: VallexSpeaker) -> None:
    tagged = codes_only.speak("[ZH]ni↓↑xɑʊ↓↑[ZH]", None, QUICK, is_phonemes=True)
    assert (tagged.pieces[0].phonemes, tagged.pieces[0].language) == ("ni↓↑xɑʊ↓↑.", "zh")


def test_what_cannot_be_said_or_is_not_tagged_is_told(codes_only: VallexSpeaker) -> None:
    spoken = codes_only.speak("well [EN]Hi 你.[EN] [EN]...[EN]", None, QUICK)
    told = " ".join(spoken.notices)
    assert "cannot be read in English and are skipped: 你 (U+4F60)" in told
    assert "outside of language tags is skipped: 'well'" in told
    assert "nothing to say: '...'" in told
    with pytest.raises(InputError, match="nothing to say"):
        codes_only.speak("[EN]...[EN]", None, QUICK)
    with pytest.raises(InputError, match="nothing to say"):
        codes_only.speak("well [EN][EN]", None, QUICK)


def test_the_best_of_several_and_their_length_penalty_count(codes_only: VallexSpeaker) -> None:
    drawn = replace(QUICK, sampling=SamplingOptions(), max_seconds=2)
    first = codes_only.speak("Hello.", None, drawn)
    best = codes_only.speak("Hello.", None, replace(drawn, best_of=6))
    same = codes_only.speak("Hello.", None, replace(drawn, best_of=6, length_penalty=1.0))
    longest = codes_only.speak("Hello.", None, replace(drawn, best_of=6, length_penalty=9.0))
    assert not np.array_equal(first.codes, best.codes)
    np.testing.assert_array_equal(same.codes, best.codes)
    assert len(longest.codes) > len(best.codes)
