"""VALL-E X speaks: text in three languages and a voice with its transcript in, speech out.

The model continues a voice, so it needs the words of the voice: its project's voice files have
them, and the user gives those of a recording. Long texts are spoken sentence by sentence, each
after the same voice; without a voice, each after the last complete one.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from valle_convert.audio.codec import AudioCodec
from valle_convert.audio.codes import SavedCodes
from valle_convert.decode.batch import Steps
from valle_convert.decode.speech import Speech
from valle_convert.errors import InputError
from valle_convert.families.vallex.composed import ComposedNetwork, VallexText
from valle_convert.families.vallex.decode import n_copies, vallex_steps
from valle_convert.families.vallex.symbols import VALLEX_LANGUAGES, symbol_ids
from valle_convert.families.vallex.text.tagged import (
    SpelledText,
    TaggedText,
    spell,
    spell_symbols,
    tagged_pieces,
    tagged_sentences,
)
from valle_convert.families.vallex.voice import (
    MAX_VOICE_SECONDS,
    VallexVoice,
    is_vallex_voice,
    read_vallex_voice,
)
from valle_convert.model.spec import Codes
from valle_convert.speech.recordings import Recording
from valle_convert.speech.results import SpeakOptions
from valle_convert.speech.speaker import Line, SentenceInputs, Speaker, sayable
from valle_convert.text.languages import known_language

#: A voice, or a recording or codes of one, or a file of any of them.
VoiceSource = Recording | VallexVoice


class VallexSpeaker(Speaker[VoiceSource, VallexText, VallexVoice]):
    """A VALL-E X that speaks. Close it, or use it as a context manager."""

    def __init__(
        self,
        network: ComposedNetwork,
        *,
        codec: AudioCodec | None = None,
        opened: ExitStack | None = None,
    ) -> None:
        super().__init__(network.model, network.append_codes, codec, opened)
        self._network = network

    # ------------------------------------------------------------------------- speaking

    def _decode(self, given: SentenceInputs[VallexText, VallexVoice]) -> Steps[Speech]:
        text, prompt = self._before(given.voice, given.said)
        seconds = given.options.max_seconds
        return vallex_steps(
            self._network,
            text + given.line.rows,
            prompt,
            given.options,
            given.rng,
            max_frames=None if seconds is None else self._frames(seconds),
            level_0=given.level_0,
            watch=given.watch,
        )

    def _n_sequences(self, options: SpeakOptions) -> int:
        return n_copies(options)

    def _follows(self, voice: VallexVoice | None, options: SpeakOptions) -> bool:
        del options
        return voice is None

    def _before(
        self, voice: VallexVoice | None, said: Sequence[tuple[Line[VallexText], Speech]]
    ) -> tuple[VallexText, Codes]:
        """The prefix to continue: a voice, or else the last complete sentence."""
        if voice is not None:
            return voice.text, voice.codes
        # After a sentence that was cut off, the text would say more than the codes.
        for line, speech in reversed(said):
            if speech.end == "stop":
                return line.rows, speech.codes
        nothing = np.zeros(0, np.int32)
        return VallexText(nothing, nothing), np.zeros((0, self._format.n_levels), np.int32)

    # ----------------------------------------------------------------------------- text

    def _lines(
        self, text: str, options: SpeakOptions, *, is_phonemes: bool, whole: bool
    ) -> list[Line[VallexText]]:
        language = options.language
        if is_phonemes:
            pieces, outside = tagged_pieces(text, language or VALLEX_LANGUAGES[0])
            line = _line(pieces, options.accent, spell_symbols)
            return [replace(line, text="", notices=line.notices + _outside_notices(outside))]
        if whole:
            pieces, outside = tagged_pieces(text, language)
            sentences = [pieces]
        else:
            sentences, outside = tagged_sentences(text, language)
        return sayable(
            (
                (_text_of(sentence), partial(_line, sentence, options.accent, spell))
                for sentence in sentences or [[TaggedText("", VALLEX_LANGUAGES[0])]]
            ),
            _outside_notices(outside),
        )

    # ---------------------------------------------------------------------------- voice

    def _voice(
        self, voice: VoiceSource | None, options: SpeakOptions
    ) -> tuple[VallexVoice | None, tuple[str, ...]]:
        said = options.voice_text
        if voice is None:
            if said is not None:
                raise InputError(
                    "--voice-text is the transcript of a voice, but there is none; pass one with "
                    "--voice."
                )
            return None, ()
        name = str(voice) if isinstance(voice, str | Path) else "the voice"
        if isinstance(voice, str | Path) and is_vallex_voice(Path(voice)):
            voice = read_vallex_voice(Path(voice), self._format)
        if isinstance(voice, VallexVoice):
            if said is not None:
                raise InputError(f"{name} contains its transcript; leave --voice-text out.")
            _check_length(len(voice.codes) / self.frame_rate, name)
            return voice, ()
        if said is None:
            raise InputError(
                f"VALL-E X continues the voice and needs the transcript of {name}; pass it with "
                "--voice-text, or use a voice file of its project."
            )
        # The transcript first: codes take longer.
        pieces, outside = tagged_pieces(said, None)
        spelled = spell(pieces)
        rows = _rows(spelled, None)
        # The whole recording: the transcript would say more than a part of it.
        heard = self._read(voice, name)
        _check_length(
            len(heard.codes) / self.frame_rate if isinstance(heard, SavedCodes) else heard.seconds,
            name,
        )
        codes, notices = self._codes_of(heard, None, name)
        of_text = (*spelled.notices, *_outside_notices(outside))
        notices += tuple(f"in the voice's text, {one}" for one in of_text)
        return VallexVoice(codes, rows), notices


def _line(
    pieces: Sequence[TaggedText],
    accent: str | None,
    reads: Callable[[Sequence[TaggedText]], SpelledText],
) -> Line[VallexText]:
    spelled = reads(pieces)
    language = "+".join(dict.fromkeys(spelled.languages))
    rows = _rows(spelled, accent)
    return Line(_text_of(pieces), spelled.symbols, language, rows, spelled.notices)


def _rows(spelled: SpelledText, accent: str | None) -> VallexText:
    """The network's input for a text: symbols, and a language each."""
    if accent is None:
        languages = [VALLEX_LANGUAGES.index(one) for one in spelled.languages]
    else:
        spoken = VALLEX_LANGUAGES.index(known_language(accent, VALLEX_LANGUAGES))
        languages = [spoken] * len(spelled.languages)
    symbols = np.array(symbol_ids(spelled.symbols), np.int32)
    return VallexText(symbols, np.array(languages, np.int32))


def _text_of(pieces: Sequence[TaggedText]) -> str:
    return " ".join(piece.text.strip() for piece in pieces)


def _outside_notices(outside: Sequence[str]) -> tuple[str, ...]:
    if not outside:
        return ()
    return (f"text outside of language tags is skipped: {' '.join(outside)[:60]!r}",)


def _check_length(seconds: float, name: str) -> None:
    """Reject a voice longer than the model supports."""
    if seconds > MAX_VOICE_SECONDS:
        raise InputError(
            f"{name} is {seconds:.1f} seconds long; a voice of VALL-E X has at most "
            f"{MAX_VOICE_SECONDS:g}. Cut the recording and its transcript."
        )
