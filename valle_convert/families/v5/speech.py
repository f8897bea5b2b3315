"""Text and a voice in, speech out: the Python interface to everything that speaks.

with Speaker.open("model.gguf", codec=EncodecCodec()) as speaker:
    spoken = speaker.speak("Hello world.", "prompt.wav")
    write_wav(Path("hello.wav"), spoken.audio)

Long texts are spoken sentence by sentence; `pieces` gives each as soon as it is done. Nothing
in here prints: what a user should know comes as `notices` in the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np

from valle_convert.audio.codec import AudioCodec
from valle_convert.audio.codes import (
    SavedCodes,
)
from valle_convert.audio.files import Audio, read_audio
from valle_convert.audio.voice import fit_prompt, prompt_audio
from valle_convert.checkpoint.lora import LoraFile
from valle_convert.decode import (
    ArOptions,
    LengthOptions,
    MaskedOptions,
    NarOptions,
    Prefix,
    ShouldStop,
    Speech,
    SpeechOptions,
    StageSeconds,
    TranscribeOptions,
    choose_mode,
    decode_nar,
    decode_speech,
    decode_transcript,
    never,
)
from valle_convert.errors import InputError
from valle_convert.families.bundle import Bundle
from valle_convert.llama.context import CacheType
from valle_convert.model.inputs import NULL_PHONEMES, Condition
from valle_convert.model.spec import LANGUAGES, Codes
from valle_convert.network.protocol import Network
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
    Heard,
    Piece,
    SpeakOptions,
    Spoken,
    Timings,
)
from valle_convert.text import (
    assumed_language_notices,
    check_phonemes,
    detect_languages,
    known_language,
    listed,
    split_sentences,
    to_phonemes,
    unknown_phonemes,
    unsaid_characters,
    unsaid_notice,
)

#: Phonemes to the ids that the model was trained on, with the marks around them.
Tokenize = Callable[[str], list[int]]
#: And back, without the marks.
Detokenize = Callable[[Sequence[int]], str]

#: A recording, its codes, or a file of either.
Recording = str | Path | Audio | SavedCodes


@dataclass(frozen=True)
class _Line:
    """A sentence, ready to be spoken."""

    text: str
    phonemes: str
    language: str
    ids: Codes
    notices: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class _Prompt:
    """A voice, ready to be used."""

    codes: Codes | None
    notices: tuple[str, ...]
    seconds: float


class Speaker(CodeSpeaker[SpeakOptions, Recording]):
    """A model that speaks. Close it, or use it as a context manager.

    Args:
        network: whatever computes.
        tokenize: phonemes to ids.
        detokenize: ids to phonemes; only `transcribe` needs it.
        codec: between audio and codes; None speaks codes only, with voices given as codes.

    Raises:
        InputError: the codec is not the model's.
    """

    def __init__(
        self,
        network: Network,
        *,
        tokenize: Tokenize,
        detokenize: Detokenize | None = None,
        codec: AudioCodec | None = None,
    ) -> None:
        super().__init__(network.model.config, codec)
        self._network = network
        self._tokenize = tokenize
        self._detokenize = detokenize

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        *,
        codec: AudioCodec | None = None,
        n_threads: int | None = None,
        cache_type: CacheType = "f32",
        adapters: Sequence[LoraFile] = (),
    ) -> Self:
        """Open a converted file on stock llama.cpp.

        Args:
            bundle: the file.
            codec: between audio and codes; None speaks codes only.
            n_threads: None for the cores that this process may use.
            cache_type: of keys and values. f16 makes passes in both directions faster and logits
                a little less exact.
            adapters: LoRAs kept apart, applied while it runs.

        Raises:
            InputError: the file is no converted checkpoint, or the codec is not its model's.
            EnvironmentFault: there is no usable llama.cpp.
        """
        from valle_convert.tokenizer.compiled import TRUE_IDS_KEY
        from valle_convert.tokenizer.oracle import LlamaTokenizer

        with ExitStack() as stack:
            network = bundle.family.open(
                bundle, n_threads=n_threads, cache_type=cache_type, adapters=adapters
            )
            stack.callback(network.close)
            llama = LlamaTokenizer(bundle.path)
            stack.callback(llama.close)
            true_ids: list[int] = bundle.main.keys[TRUE_IDS_KEY]

            def tokenize(phonemes: str) -> list[int]:
                ids = llama.encode(phonemes, add_special=True, parse_special=False)
                return [true_ids[i] for i in ids]

            speaker = cls(network, tokenize=tokenize, detokenize=llama.decode, codec=codec)
            speaker._open = stack.pop_all()
        return speaker

    # ------------------------------------------------------------------------- speaking

    def pieces(
        self,
        text: str,
        voice: Recording | None = None,
        options: SpeakOptions | None = None,
        *,
        is_phonemes: bool = False,
        progress: Progress = silent,
        should_stop: ShouldStop = never,
        on_sentences: OnSentences = lambda _phonemes: None,
    ) -> Iterator[Piece]:
        """Speak a text sentence by sentence, each given as soon as it is done.

        All of the text is turned into phonemes before the first sentence is spoken, so that
        what is wrong with it shows at once.

        Args:
            text: of any length.
            voice: whose voice to speak in; None leaves it to the model.
            options: how to speak.
            is_phonemes: the text is IPA already, and one sentence.
            progress: shows what is being decoded.
            should_stop: asked between steps; where it says so, what there is of the sentence is
                given, if there is any, and is the last.
            on_sentences: called once, before the first is spoken, with the phonemes of all.

        Raises:
            InputError: there is nothing to say, the language is not the model's, the voice is not
                usable, or the text is too long.
            EnvironmentFault: a package is missing.
        """
        options = self._with_seed(options)
        speech_options = self._speech_options(options)
        choose_mode(self._network.model, options.mode)
        lines = self._phoneme_line(text, options) if is_phonemes else self._lines(text, options)
        prompt = self._prompt(voice, options.prompt_seconds, "the voice")
        on_sentences([line.phonemes for line in lines])
        rng = np.random.default_rng(options.seed)
        history: list[tuple[_Line, Codes]] = []
        for i, line in enumerate(lines):
            speech = decode_speech(
                self._network,
                self._condition(line, prompt),
                speech_options,
                rng,
                prefix=_prefix(history, line, options.context_history),
                progress=progress,
                should_stop=should_stop,
            )
            draws = 1
            while speech.end == "stop" and not len(speech.codes) and draws < MAX_DRAWS:
                if options.sampling.temperature == 0:
                    break  # it would come out the same
                draws += 1
                speech = decode_speech(
                    self._network,
                    self._condition(line, prompt),
                    speech_options,
                    rng,
                    prefix=_prefix(history, line, options.context_history),
                    progress=progress,
                    should_stop=should_stop,
                )
            if len(speech.codes):
                history.append((line, speech.codes))
            if len(speech.codes) or speech.end == "stop":
                yield self._piece(line, prompt if i == 0 else replace(prompt, seconds=0.0), speech)
            if speech.end == "interrupted":
                return

    def convert(
        self,
        source: Recording,
        voice: Recording,
        text: str,
        options: SpeakOptions | None = None,
        *,
        is_phonemes: bool = False,
        progress: Progress = silent,
        should_stop: ShouldStop = never,
    ) -> Spoken:
        """Say what a recording says, with its timing, in another voice.

        Args:
            source: the recording.
            voice: whose voice to speak in.
            text: what the recording says.
            options: how to speak; of the modes, only `nar-len` can do this.
            is_phonemes: the text is IPA already.
            progress: shows what is being decoded.
            should_stop: asked between steps.

        Raises:
            InputError, EnvironmentFault: as `pieces`, and where the model has no `nar-len`.
        """
        options = self._with_seed(options)
        line = self._whole_line(text, options, is_phonemes=is_phonemes)
        recording = self._prompt(source, None, "the recording")
        prompt = self._prompt(voice, options.prompt_seconds, "the voice")
        assert recording.codes is not None  # noqa: S101 - only no recording has no codes
        speech = decode_speech(
            self._network,
            self._condition(line, prompt),
            self._speech_options(options),
            np.random.default_rng(options.seed),
            source=recording.codes[:, 0],
            progress=progress,
            should_stop=should_stop,
        )
        both = _Prompt(
            prompt.codes,
            recording.notices + prompt.notices,
            recording.seconds + prompt.seconds,
        )
        return self._spoken_at_once(self._piece(line, both, speech), options)

    def clean(
        self,
        recording: Recording,
        task: Literal["ns", "sr"],
        text: str = "",
        options: SpeakOptions | None = None,
        *,
        is_phonemes: bool = False,
        progress: Progress = silent,
        should_stop: ShouldStop = never,
    ) -> Spoken:
        """Take the noise out of a recording (`ns`), or the speech (`sr`).

        Args:
            recording: all of it is used, and the answer is as long.
            task: what to do.
            text: what is said in it; may be empty.
            options: how to speak.
            is_phonemes: the text is IPA already.
            progress: shows what is being decoded.
            should_stop: asked between steps.

        Raises:
            InputError, EnvironmentFault: as `pieces`, and where the model does not know the task.
        """
        model = self._network.model
        if task not in model.tasks:
            raise InputError(
                f"This model does not know the task {task}; it knows {', '.join(model.tasks)}."
            )
        options = self._with_seed(options)
        if text:
            line = self._whole_line(text, options, is_phonemes=is_phonemes)
        else:
            language = self._checked_language(options.language or self._languages[0])
            line = _Line("", "", language, np.array(NULL_PHONEMES, np.int32), (), 0.0)
        prompt = self._prompt(recording, None, "the recording")
        speech = decode_speech(
            self._network,
            replace(self._condition(line, prompt), task=task),
            self._speech_options(options),
            np.random.default_rng(options.seed),
            progress=progress,
            should_stop=should_stop,
        )
        return self._spoken_at_once(self._piece(line, prompt, speech), options)

    def raise_levels(
        self,
        saved: SavedCodes | str | Path,
        text: str,
        voice: Recording | None = None,
        options: SpeakOptions | None = None,
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
            is_phonemes: the text is IPA already.
            progress: shows the levels.
            should_stop: asked between levels.

        Raises:
            InputError, EnvironmentFault: as `pieces`, and where the codes are not the model's.
        """
        options = self._with_seed(options)
        line = self._whole_line(text, options, is_phonemes=is_phonemes)
        level_0 = self._saved(saved, "the file of codes").codes[:, 0]
        prompt = self._prompt(voice, options.prompt_seconds, "the voice")
        begin = time.perf_counter()
        raised = decode_nar(
            self._network,
            self._condition(line, prompt),
            level_0,
            self._speech_options(options).nar,
            np.random.default_rng(options.seed),
            progress=progress,
            should_stop=should_stop,
        )
        seconds = StageSeconds(levels=time.perf_counter() - begin)
        mode = choose_mode(self._network.model, options.mode)
        speech = Speech(raised.codes, mode, raised.end, seconds)
        return self._spoken_at_once(self._piece(line, prompt, speech), options)

    # ------------------------------------------------------------------------ listening

    def transcribe(
        self,
        recording: Recording,
        language: str | None = None,
        options: TranscribeOptions | None = None,
        *,
        progress: Progress = silent,
        should_stop: ShouldStop = never,
    ) -> Heard:
        """The phonemes of a recording.

        Args:
            recording: all of it is heard.
            language: that is spoken; None takes the model's first.
            options: the limit.
            progress: shows the phonemes.
            should_stop: asked between steps.

        Raises:
            InputError: the recording is silent or not readable, or the language is not the
                model's.
        """
        model = self._network.model
        if not model.has_head("stt"):
            raise InputError("This model cannot transcribe: it has no head for the task stt.")
        spoken = self._checked_language(language or self._languages[0])
        prompt = self._prompt(recording, None, "the recording")
        assert prompt.codes is not None  # noqa: S101 - only no recording has no codes
        begin = time.perf_counter()
        transcript = decode_transcript(
            self._network,
            prompt.codes,
            self._language_id(spoken),
            options or TranscribeOptions(),
            progress=progress,
            should_stop=should_stop,
        )
        return Heard(
            phonemes="" if self._detokenize is None else self._detokenize(transcript.phonemes),
            ids=transcript.phonemes,
            language=spoken,
            end=transcript.end,
            notices=prompt.notices,
            voice_seconds=prompt.seconds,
            decode_seconds=time.perf_counter() - begin,
        )

    # ----------------------------------------------------------------------------- text

    def _lines(self, text: str, options: SpeakOptions) -> list[_Line]:
        """The sentences in which there is something to say."""
        lines: list[_Line] = []
        silent_parts: list[str] = []
        refusal: InputError | None = None
        given = options.language and self._checked_language(options.language)
        sentences = split_sentences(text, language=given) or [""]
        languages = self._languages_of(sentences, options)
        for sentence, language in zip(sentences, languages, strict=True):
            begin = time.perf_counter()
            try:
                phonemes = to_phonemes(sentence, language)
            except InputError as error:
                refusal = refusal or error
                silent_parts.append(sentence)
                continue
            lines.append(self._line(sentence, phonemes, language, begin))
        if not lines and refusal is not None:
            raise refusal
        notices = list(lines[0].notices)
        if silent_parts:
            notices.append(
                f"there is nothing to say in {', '.join(map(repr, silent_parts))}; left out"
            )
        if options.language is None:
            notices += assumed_language_notices(sentences, languages, self._languages)
        lines[0] = replace(lines[0], notices=tuple(notices))
        return lines

    def _phoneme_line(self, phonemes: str, options: SpeakOptions) -> list[_Line]:
        begin = time.perf_counter()
        check_phonemes(phonemes)
        language = self._checked_language(options.language or self._languages[0])
        return [self._line("", phonemes, language, begin)]

    def _whole_line(self, text: str, options: SpeakOptions, *, is_phonemes: bool) -> _Line:
        """A text that is spoken at one go, however many sentences it has."""
        if is_phonemes:
            return self._phoneme_line(text, options)[0]
        begin = time.perf_counter()
        language = self._languages_of([text], options)[0]
        return self._line(text, to_phonemes(text, language), language, begin)

    def _line(self, text: str, phonemes: str, language: str, begin: float) -> _Line:
        ids = self._tokenize(phonemes)
        notices: tuple[str, ...] = ()
        if text and (unsaid := unsaid_characters(text, language)):
            notices += (unsaid_notice(unsaid, language),)
        if unknown := unknown_phonemes(phonemes, self._tokenize):
            notices += (
                f"the model's vocabulary lacks these phonemes of the text: {listed(unknown)}",
            )
        seconds = time.perf_counter() - begin
        return _Line(text, phonemes, language, np.array(ids, np.int32), notices, seconds)

    @property
    def _languages(self) -> tuple[str, ...]:
        """Those that the model was told apart in training; of others it has all there are."""
        return self._network.model.languages or LANGUAGES

    def _languages_of(self, sentences: Sequence[str], options: SpeakOptions) -> list[str]:
        if options.language is None:
            return detect_languages(sentences, self._languages)
        return [self._checked_language(options.language)] * len(sentences)

    def _checked_language(self, language: str) -> str:
        return known_language(language, self._languages)

    def _language_id(self, language: str) -> int | None:
        model = self._network.model
        return model.languages.index(language) if model.has_table("language") else None

    # ---------------------------------------------------------------------------- voice

    def _prompt(self, recording: Recording | None, seconds: float | None, name: str) -> _Prompt:
        """The codes of a recording, cut or repeated to so many seconds; None takes all of it."""
        if recording is None:
            return _Prompt(None, (), 0.0)
        begin = time.perf_counter()
        notices: tuple[str, ...] = ()
        if is_codes_file(recording) or isinstance(recording, SavedCodes):
            codes = self._saved(recording, name).codes
        else:
            if isinstance(recording, str | Path):
                name = str(recording)
                rate = self._needed_codec().description.sample_rate
                recording = read_audio(Path(recording), rate, max_seconds=MAX_RECORDING_SECONDS)
            audio, notices = prompt_audio(recording, seconds, name)
            codes = self._needed_codec().encode(audio)
        if seconds is not None:
            codes, more = fit_prompt(codes, max(1, round(seconds * self.frame_rate)), name)
            notices += more
        return _Prompt(codes, notices, time.perf_counter() - begin)

    # ----------------------------------------------------------------------- the pieces

    def _condition(self, line: _Line, prompt: _Prompt) -> Condition:
        return Condition(
            phonemes=line.ids,
            language=self._language_id(line.language),
            prompt=prompt.codes,
        )

    def _speech_options(self, options: SpeakOptions) -> SpeechOptions:
        max_frames = max(1, round(options.max_seconds * self.frame_rate))
        return SpeechOptions(
            mode=options.mode,
            ar=ArOptions(options.sampling, options.guidance, max_frames),
            masked=MaskedOptions(
                options.max_steps,
                options.sampling,
                options.guidance,
            ),
            length=LengthOptions(
                duration_padding=options.duration_padding,
                min_frames=round(self.frame_rate),
                max_frames=max_frames,
            ),
            nar=NarOptions(options.nar_sampling, options.guidance),
        )

    def _piece(self, line: _Line, prompt: _Prompt, speech: Speech) -> Piece:
        begin = time.perf_counter()
        audio = self._sounding(speech.codes)
        codec_seconds = time.perf_counter() - begin
        notices = line.notices + prompt.notices
        if speech.end == "limit" and line.text:
            seconds = f"{len(speech.codes) / self.frame_rate:.1f} seconds"
            if speech.mode == "ar":
                what = f"did not end within {seconds} and is cut off there"
            else:
                what = f"has to fit into {seconds}, the limit"
            notices += (f"{line.text[:40]!r} {what}",)
        if not len(speech.codes):
            said = repr((line.text or line.phonemes)[:40])
            notice = (
                f"the model said nothing for {said}, but ended at once; try another --seed, "
                "--temperature or --voice, or --mode nar-len"
            )
            notices += (notice,)
        return Piece(
            text=line.text,
            phonemes=line.phonemes,
            language=line.language,
            codes=speech.codes,
            audio=audio,
            mode=speech.mode,
            end=speech.end,
            notices=notices,
            seconds=Timings(
                text=line.seconds,
                voice=prompt.seconds,
                length=speech.seconds.length,
                level_0=speech.seconds.level_0,
                levels=speech.seconds.levels,
                codec=codec_seconds,
            ),
            # Without a text (noise, or speech to take out) these are no phonemes of it.
            ids=tuple(map(int, line.ids)) if line.phonemes else (),
            language_id=self._language_id(line.language),
        )

    def _with_seed(self, options: SpeakOptions | None) -> SpeakOptions:
        options = options or SpeakOptions()
        return options if options.seed is not None else replace(options, seed=new_seed())

    def _spoken_at_once(self, piece: Piece, options: SpeakOptions) -> Spoken:
        return self._spoken([piece], options, is_whole=piece.end != "interrupted")


def _prefix(history: list[tuple[_Line, Codes]], line: _Line, n: int) -> Prefix | None:
    """What was said before, of the last `n` sentences as far as they are in the same language."""
    recent = history[-n:] if n else []
    same = [(said, codes) for said, codes in recent if said.language == line.language]
    if not same:
        return None
    phonemes = np.concatenate(
        [
            *(said.ids[:-1] if i == 0 else said.ids[1:-1] for i, (said, _) in enumerate(same)),
            line.ids[-1:],
        ]
    )
    return Prefix(phonemes, np.concatenate([codes for _, codes in same]))
