"""VALL-E X speaks: text in three languages and a voice with its transcript in, speech out.

with VallexSpeaker.open("out.gguf", codec=EncodecCodec()) as speaker:
    spoken = speaker.speak("[EN]Hello.[EN][ZH]你好。[ZH]", "voice.npz")

The model continues a voice, so it is told what the voice says: voice files of its own project
have that in them, of recordings the user gives it. Long texts are spoken sentence by sentence,
each after the same voice; without a voice, each after the sentence before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np

from valle_convert.audio.codec import AudioCodec
from valle_convert.audio.codes import SavedCodes
from valle_convert.audio.files import Audio, read_audio
from valle_convert.audio.voice import prompt_audio
from valle_convert.decode import (
    GREEDY,
    SamplingOptions,
    ShouldStop,
    Speech,
    StageSeconds,
    never,
)
from valle_convert.errors import InputError
from valle_convert.families.bundle import Bundle
from valle_convert.families.vallex.composed import ComposedNetwork
from valle_convert.families.vallex.decode import VallexOptions, decode_vallex, decode_vallex_nar
from valle_convert.families.vallex.protocol import VallexText
from valle_convert.families.vallex.symbols import VALLEX_LANGUAGES, symbol_ids
from valle_convert.families.vallex.text import (
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
from valle_convert.llama.context import CacheType
from valle_convert.model.spec import Codes
from valle_convert.progress import Progress, silent
from valle_convert.speech.common import (
    MAX_DRAWS,
    CodeSpeaker,
    OnSentences,
    is_codes_file,
    new_seed,
)
from valle_convert.speech.results import (
    MAX_RECORDING_SECONDS,
    Piece,
    Spoken,
    Timings,
)
from valle_convert.text import known_language

#: A voice, a recording or codes of one, or a file of any of them.
VoiceSource = str | Path | Audio | SavedCodes | VallexVoice


@dataclass(frozen=True)
class VallexSpeakOptions:
    """How VALL-E X speaks; the defaults are those of its own project.

    Attributes:
        language: of text without tags, `en`, `zh` or `ja`; None detects it.
        voice_text: what the voice says, with or without tags; recordings and codes need it.
        accent: the language in whose accent all of the text is spoken; None speaks each
            language in its own.
        sampling: how codes of level 0 are drawn.
        nar_sampling: how those of the levels above are.
        best_of, length_penalty: as in `decode.VallexOptions`.
        max_seconds: of one sentence, at most; None leaves it to the length of its text.
        seed: of all randomness; None takes one, and the result tells which.
    """

    language: str | None = None
    voice_text: str | None = None
    accent: str | None = None
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    nar_sampling: SamplingOptions = GREEDY
    best_of: int = 1
    length_penalty: float = 1.0
    max_seconds: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_seconds is not None and not 0.1 <= self.max_seconds <= MAX_RECORDING_SECONDS:
            raise InputError(
                f"The option max-seconds is {self.max_seconds}, where 0.1 to "
                f"{MAX_RECORDING_SECONDS:g} is expected."
            )


@dataclass(frozen=True)
class _Line:
    """A sentence, ready to be spoken."""

    text: str
    spelled: SpelledText
    rows: VallexText
    notices: tuple[str, ...]
    seconds: float


class VallexSpeaker(CodeSpeaker[VallexSpeakOptions, VoiceSource]):
    """A VALL-E X that speaks. Close it, or use it as a context manager.

    Args:
        network: whatever computes.
        codec: between audio and codes; None speaks codes only, with voices given as codes.

    Raises:
        InputError: the codec is not the model's.
    """

    def __init__(self, network: ComposedNetwork, *, codec: AudioCodec | None = None) -> None:
        super().__init__(network.model, codec)
        self._network = network

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        *,
        codec: AudioCodec | None = None,
        n_threads: int | None = None,
        cache_type: CacheType = "f32",
    ) -> Self:
        """Open a converted set of files on stock llama.cpp.

        Args:
            bundle: the files.
            codec: between audio and codes; None speaks codes only.
            n_threads: None for the cores that this process may use.
            cache_type: of keys and values.

        Raises:
            InputError: the files are no converted VALL-E X, or the codec is not its.
            EnvironmentFault: there is no usable llama.cpp.
        """
        with ExitStack() as stack:
            network = bundle.family.open(bundle, n_threads=n_threads, cache_type=cache_type)
            stack.callback(network.close)
            speaker = cls(network, codec=codec)
            speaker._open = stack.pop_all()
        return speaker

    # ------------------------------------------------------------------------- speaking

    def pieces(
        self,
        text: str,
        voice: VoiceSource | None = None,
        options: VallexSpeakOptions | None = None,
        *,
        is_phonemes: bool = False,
        progress: Progress = silent,
        should_stop: ShouldStop = never,
        on_sentences: OnSentences = lambda _phonemes: None,
    ) -> Iterator[Piece]:
        """Speak a text sentence by sentence, each given as soon as it is done.

        All of the text is spelled before the first sentence is spoken, so that what is wrong with
        it shows at once.

        Args:
            text: of any length, its languages tagged, or in one language a sentence.
            voice: whose voice to speak in; None leaves it to the model, which then goes on with
                the voice that it took for the sentence before.
            options: how to speak.
            is_phonemes: the text is symbols already, and one sentence.
            progress: shows what is being decoded.
            should_stop: asked between steps; where it says so, what there is of the sentence is
                given, if there is any, and is the last.
            on_sentences: called once, before the first is spoken, with the symbols of all.

        Raises:
            InputError: there is nothing to say, a tag is not closed, the language is not the
                model's, or the voice is not usable, or lacks its transcript.
            EnvironmentFault: a package is missing.
        """
        options = self._with_seed(options)
        decoding = self._decoding(options)
        if is_phonemes:
            lines = [self._whole_line(text, options, is_phonemes=True)]
        else:
            lines = self._lines(text, options)
        begin = time.perf_counter()
        given, notices = self._voice(voice, options)
        voice_seconds = time.perf_counter() - begin if given is not None else 0.0
        on_sentences([line.spelled.symbols for line in lines])
        rng = np.random.default_rng(options.seed)
        prompt = given
        for i, line in enumerate(lines):
            for _ in range(MAX_DRAWS if options.sampling.temperature > 0 else 1):
                speech = self._decode(line, prompt, decoding, rng, progress, should_stop)
                if len(speech.codes) or speech.end != "stop":
                    break
            if len(speech.codes) or speech.end == "stop":
                yield self._piece(line, speech, () if i else notices, 0.0 if i else voice_seconds)
            if speech.end == "interrupted":
                return
            if given is None and speech.end == "stop" and len(speech.codes):
                prompt = VallexVoice(speech.codes, line.rows.symbols, line.rows.languages)

    def raise_levels(
        self,
        saved: SavedCodes | str | Path,
        text: str,
        voice: VoiceSource | None = None,
        options: VallexSpeakOptions | None = None,
        *,
        is_phonemes: bool = False,
        progress: Progress = silent,
        should_stop: ShouldStop = never,
    ) -> Spoken:
        """Keep level 0 of some codes, and decode the levels above it anew.

        Args:
            saved: the codes, or a file of them; only their level 0 is read.
            text: what they say.
            voice: whose voice to speak in.
            options: how to speak.
            is_phonemes: the text is symbols already.
            progress: shows the levels.
            should_stop: asked between levels.

        Raises:
            InputError, EnvironmentFault: as `pieces`, and where the codes are not the model's.
        """
        options = self._with_seed(options)
        line = self._whole_line(text, options, is_phonemes=is_phonemes)
        level_0 = self._saved(saved, "the file of codes").codes[:, 0]
        begin = time.perf_counter()
        prompt, notices = self._voice(voice, options)
        voice_done = time.perf_counter()
        codes, is_whole = decode_vallex_nar(
            self._network,
            _rows_before(prompt, line),
            self._prompt_codes(prompt),
            level_0,
            options.nar_sampling,
            np.random.default_rng(options.seed),
            progress=progress,
            should_stop=should_stop,
        )
        seconds = StageSeconds(levels=time.perf_counter() - voice_done)
        speech = Speech(codes, "ar", "stop" if is_whole else "interrupted", seconds)
        piece = self._piece(line, speech, notices, voice_done - begin)
        return self._spoken([piece], options, is_whole=is_whole)

    def _decode(
        self,
        line: _Line,
        prompt: VallexVoice | None,
        decoding: VallexOptions,
        rng: np.random.Generator,
        progress: Progress,
        should_stop: ShouldStop,
    ) -> Speech:
        return decode_vallex(
            self._network,
            _rows_before(prompt, line),
            self._prompt_codes(prompt),
            decoding,
            rng,
            progress=progress,
            should_stop=should_stop,
        )

    def _decoding(self, options: VallexSpeakOptions) -> VallexOptions:
        seconds = options.max_seconds
        return VallexOptions(
            sampling=options.sampling,
            nar_sampling=options.nar_sampling,
            best_of=options.best_of,
            length_penalty=options.length_penalty,
            max_frames=None if seconds is None else max(1, round(seconds * self.frame_rate)),
        )

    def _with_seed(self, options: VallexSpeakOptions | None) -> VallexSpeakOptions:
        options = options or VallexSpeakOptions()
        return options if options.seed is not None else replace(options, seed=new_seed())

    def _prompt_codes(self, prompt: VallexVoice | None) -> Codes:
        return np.zeros((0, self._format.n_levels), np.int32) if prompt is None else prompt.codes

    # ----------------------------------------------------------------------------- text

    def _lines(self, text: str, options: VallexSpeakOptions) -> list[_Line]:
        """The sentences in which there is something to say."""
        sentences, outside = tagged_sentences(text, options.language)
        lines: list[_Line] = []
        silent_parts: list[str] = []
        refusal: InputError | None = None
        for sentence in sentences or [[TaggedText("", VALLEX_LANGUAGES[0])]]:
            try:
                lines.append(_line(sentence, options.accent, spell))
            except InputError as error:
                refusal = refusal or error
                silent_parts.append(_text_of(sentence))
        if not lines and refusal is not None:
            raise refusal
        notices = _outside_notices(outside)
        if silent_parts:
            notices += (
                f"there is nothing to say in {', '.join(map(repr, silent_parts))}; left out",
            )
        lines[0] = replace(lines[0], notices=lines[0].notices + notices)
        return lines

    def _whole_line(self, text: str, options: VallexSpeakOptions, *, is_phonemes: bool) -> _Line:
        """A text that is spoken at one go, however many sentences it has."""
        language = options.language
        if is_phonemes and language is None:
            language = VALLEX_LANGUAGES[0]
        pieces, outside = tagged_pieces(text, language)
        line = _line(pieces, options.accent, spell_symbols if is_phonemes else spell)
        line = replace(line, notices=line.notices + _outside_notices(outside))
        return replace(line, text="") if is_phonemes else line

    # ---------------------------------------------------------------------------- voice

    def _voice(
        self, voice: VoiceSource | None, options: VallexSpeakOptions
    ) -> tuple[VallexVoice | None, tuple[str, ...]]:
        """A voice with what it says, and notices of it."""
        said = options.voice_text
        if voice is None:
            if said is not None:
                raise InputError(
                    "The option voice-text tells what a voice says, and no voice was given; give "
                    "one with --voice."
                )
            return None, ()
        name = str(voice) if isinstance(voice, str | Path) else "the voice"
        if isinstance(voice, str | Path) and is_vallex_voice(Path(voice)):
            voice = read_vallex_voice(Path(voice), self._format)
        if isinstance(voice, VallexVoice):
            if said is not None:
                raise InputError(f"{name} tells by itself what it says; leave --voice-text out.")
            _check_length(len(voice.codes) / self.frame_rate, name)
            return voice, ()
        if said is None:
            raise InputError(
                f"VALL-E X has to be told what is said in {name}, to go on with it; give its "
                "transcript with --voice-text, or a voice file of its project, which has it."
            )
        # The transcript first: codes take longer.
        pieces, outside = tagged_pieces(said, None)
        spelled = spell(pieces)
        codes, notices = self._codes_of(voice, name)
        notices += tuple(f"in the voice's text, {one}" for one in spelled.notices)
        notices += tuple(f"in the voice's text, {one}" for one in _outside_notices(outside))
        rows = _rows(spelled, None)
        return VallexVoice(codes, rows.symbols, rows.languages), notices

    def _codes_of(
        self, voice: str | Path | Audio | SavedCodes, name: str
    ) -> tuple[Codes, tuple[str, ...]]:
        """The codes of all of a recording: of a part, the transcript would say more."""
        notices: tuple[str, ...] = ()
        if is_codes_file(voice) or isinstance(voice, SavedCodes):
            codes = self._saved(voice, name).codes
            seconds = len(codes) / self.frame_rate
            _check_length(seconds, name)
            return codes, ()
        codec = self._needed_codec()
        if isinstance(voice, str | Path):
            rate = codec.description.sample_rate
            voice = read_audio(Path(voice), rate, max_seconds=MAX_RECORDING_SECONDS)
        _check_length(voice.seconds, name)
        audio, notices = prompt_audio(voice, None, name)
        return codec.encode(audio), notices

    # ----------------------------------------------------------------------- the pieces

    def _piece(
        self, line: _Line, speech: Speech, voice_notices: tuple[str, ...], voice_seconds: float
    ) -> Piece:
        begin = time.perf_counter()
        audio = self._sounding(speech.codes)
        codec_seconds = time.perf_counter() - begin
        notices = line.notices + voice_notices
        said = repr((line.text or line.spelled.symbols)[:40])
        if speech.end == "limit":
            seconds = len(speech.codes) / self.frame_rate
            notices += (f"{said} did not end within {seconds:.1f} seconds and is cut off there",)
        if not len(speech.codes):
            notices += (
                (
                    f"the model said nothing for {said}, but ended at once; try another --seed, "
                    "--temperature or --voice"
                ),
            )
        return Piece(
            text=line.text,
            phonemes=line.spelled.symbols,
            language="+".join(dict.fromkeys(line.spelled.languages)),
            codes=speech.codes,
            audio=audio,
            mode=speech.mode,
            end=speech.end,
            notices=notices,
            seconds=Timings(
                text=line.seconds,
                voice=voice_seconds,
                level_0=speech.seconds.level_0,
                levels=speech.seconds.levels,
                codec=codec_seconds,
            ),
        )


def _line(
    pieces: Sequence[TaggedText],
    accent: str | None,
    reads: Callable[[Sequence[TaggedText]], SpelledText],
) -> _Line:
    begin = time.perf_counter()
    spelled = reads(pieces)
    rows = _rows(spelled, accent)
    seconds = time.perf_counter() - begin
    return _Line(_text_of(pieces), spelled, rows, spelled.notices, seconds)


def _rows(spelled: SpelledText, accent: str | None) -> VallexText:
    """What the network is told of a text: symbols, and a language each."""
    if accent is None:
        languages = [VALLEX_LANGUAGES.index(one) for one in spelled.languages]
    else:
        spoken = VALLEX_LANGUAGES.index(known_language(accent, VALLEX_LANGUAGES))
        languages = [spoken] * len(spelled.languages)
    symbols = np.array(symbol_ids(spelled.symbols), np.int32)
    return VallexText(symbols, np.array(languages, np.int32))


def _rows_before(prompt: VallexVoice | None, line: _Line) -> VallexText:
    """The rows of the prompt's text, and those of the line after them."""
    if prompt is None:
        return line.rows
    return VallexText(prompt.symbols, prompt.languages) + line.rows


def _text_of(pieces: Sequence[TaggedText]) -> str:
    return " ".join(piece.text.strip() for piece in pieces)


def _outside_notices(outside: Sequence[str]) -> tuple[str, ...]:
    if not outside:
        return ()
    return (f"what stands outside of language tags is not spoken: {' '.join(outside)[:60]!r}",)


def _check_length(seconds: float, name: str) -> None:
    """Refuse a voice longer than what the model was made for."""
    if seconds > MAX_VOICE_SECONDS:
        raise InputError(
            f"{name} is {seconds:.1f} seconds long, and a voice of VALL-E X has "
            f"{MAX_VOICE_SECONDS:g} at most; cut the recording and what is said in it."
        )
