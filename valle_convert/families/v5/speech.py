"""Everything that versions 5 and 6 speak, on any `network.protocol.Network`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np

from valle_convert.audio.codec import AudioCodec
from valle_convert.audio.voice import fit_prompt
from valle_convert.decode import (
    ArOptions,
    LengthOptions,
    MaskedOptions,
    NarOptions,
    Prefix,
    Speech,
    SpeechOptions,
    TranscribeOptions,
    decode_speech,
    decode_transcript,
)
from valle_convert.errors import InputError
from valle_convert.model.inputs import NULL_PHONEMES, Condition
from valle_convert.model.spec import LANGUAGES, Codes
from valle_convert.network.protocol import Network
from valle_convert.speech.results import Heard, SpeakOptions, Spoken, Timings
from valle_convert.speech.speaker import (
    UNWATCHED,
    Line,
    Recording,
    Speaker,
    Watch,
    sayable,
    seeded,
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

#: Of one sentence, at most, where the options leave it open.
MAX_SECONDS = 12.0


class VersionFiveSpeaker(Speaker[Recording, Codes, Codes]):
    """A model that speaks, answers recordings and hears. Close it, or use it as a context manager.

    Args:
        network: whatever computes.
        tokenize: phonemes to ids.
        detokenize: ids to phonemes; only `transcribe` needs it.
        codec: between audio and codes; None speaks codes only, with voices given as codes.
        opened: closed with it.

    Raises:
        InputError: the codec is not the model's.
    """

    remedies = f"{Speaker.remedies}, or --mode nar-len"

    def __init__(
        self,
        network: Network,
        *,
        tokenize: Tokenize,
        detokenize: Detokenize | None = None,
        codec: AudioCodec | None = None,
        opened: ExitStack | None = None,
    ) -> None:
        super().__init__(network.model.config, codec, opened)
        self._network = network
        self._tokenize = tokenize
        self._detokenize = detokenize

    # ------------------------------------------------------------------------- speaking

    def _decode(
        self,
        line: Line[Codes],
        voice: Codes | None,
        said: Sequence[tuple[Line[Codes], Speech]],
        options: SpeakOptions,
        rng: np.random.Generator,
        watch: Watch,
        level_0: Codes | None = None,
    ) -> Speech:
        return decode_speech(
            self._network,
            Condition(phonemes=line.rows, language=line.language_id, prompt=voice),
            self._decoding(options),
            rng,
            level_0=level_0,
            prefix=_prefix(said, line, options.context_history),
            progress=watch.progress,
            should_stop=watch.should_stop,
        )

    def _decoding(self, options: SpeakOptions) -> SpeechOptions:
        max_frames = self._frames(options.max_seconds or MAX_SECONDS)
        return SpeechOptions(
            mode=options.mode,
            ar=ArOptions(
                options.sampling,
                options.guidance,
                max_frames,
                options.repetition,
                options.length_penalty or 0.0,
            ),
            masked=MaskedOptions(options.max_steps, options.sampling, options.guidance),
            length=LengthOptions(
                duration_padding=options.duration_padding,
                min_frames=round(self.frame_rate),
                max_frames=max_frames,
            ),
            nar=NarOptions(options.nar_sampling, options.guidance),
        )

    def answer(
        self,
        task: Literal["vc", "ns", "sr"],
        source: Recording,
        text: str = "",
        voice: Recording | None = None,
        options: SpeakOptions | None = None,
        *,
        is_phonemes: bool = False,
        watch: Watch = UNWATCHED,
    ) -> Spoken:
        """Answer a recording with one as long.

        Args:
            task: `vc` says the same with the same timing in another voice, which of the modes only
                `nar-len` can; `ns` takes the noise out; `sr` takes the speech out.
            source: the recording, all of which is used.
            text: what is said in it; only vc needs it.
            voice: whose voice to speak in; only vc takes one.
            options: how to speak.
            is_phonemes: the text is IPA already.
            watch: who follows the work.

        Raises:
            InputError, EnvironmentFault: as `pieces`, and where the model does not know the task.
        """
        tasks = self._network.model.tasks
        if task != "vc" and task not in tasks:
            raise InputError(
                f"This model does not know the task {task}; it knows {', '.join(tasks)}."
            )
        options = seeded(options)
        begin = time.perf_counter()
        if text or task == "vc":
            (line,) = self._lines(text, options, is_phonemes=is_phonemes, whole=True)
        else:
            line = self._silence(options)
        text_done = time.perf_counter()
        recording, notices = self._prompt(source, None, "the recording")
        prompt, of_voice = self._voice(voice, options) if task == "vc" else (recording, ())
        seconds = Timings(text=text_done - begin, voice=time.perf_counter() - text_done)
        speech = decode_speech(
            self._network,
            Condition(
                phonemes=line.rows,
                language=line.language_id,
                prompt=prompt,
                task="tts" if task == "vc" else task,
            ),
            self._decoding(options),
            np.random.default_rng(options.seed),
            source=recording[:, 0] if task == "vc" else None,
            progress=watch.progress,
            should_stop=watch.should_stop,
        )
        piece = self._piece(line, speech, notices + of_voice, seconds)
        return self._at_once(piece, options, watch)

    # ------------------------------------------------------------------------ listening

    def transcribe(
        self,
        recording: Recording,
        language: str | None = None,
        options: TranscribeOptions | None = None,
        *,
        watch: Watch = UNWATCHED,
    ) -> Heard:
        """The phonemes of a recording.

        Args:
            recording: all of it is heard.
            language: that is spoken; None takes the model's first.
            options: the limit.
            watch: who follows the work.

        Raises:
            InputError: the recording is silent or not readable, or the language is not the
                model's.
        """
        model = self._network.model
        if not model.has_head("stt"):
            raise InputError("This model cannot transcribe: it has no head for the task stt.")
        spoken = self._language(language)
        begin = time.perf_counter()
        codes, notices = self._prompt(recording, None, "the recording")
        voice_done = time.perf_counter()
        transcript = decode_transcript(
            self._network,
            codes,
            self._language_id(spoken),
            options or TranscribeOptions(),
            progress=watch.progress,
            should_stop=watch.should_stop,
        )
        return Heard(
            phonemes="" if self._detokenize is None else self._detokenize(transcript.phonemes),
            ids=transcript.phonemes,
            language=spoken,
            end=transcript.end,
            notices=notices,
            voice_seconds=voice_done - begin,
            decode_seconds=time.perf_counter() - voice_done,
        )

    # ----------------------------------------------------------------------------- text

    def _lines(
        self, text: str, options: SpeakOptions, *, is_phonemes: bool, whole: bool
    ) -> list[Line[Codes]]:
        if is_phonemes:
            check_phonemes(text)
            return [self._line("", text, self._language(options.language))]
        given = options.language and self._language(options.language)
        sentences = [text] if whole else split_sentences(text, language=given) or [""]
        notices: tuple[str, ...] = ()
        if given:
            languages = [given] * len(sentences)
        else:
            languages = detect_languages(sentences, self._languages)
            notices = tuple(assumed_language_notices(sentences, languages, self._languages))

        def reader(sentence: str, language: str) -> Callable[[], Line[Codes]]:
            return lambda: self._line(sentence, to_phonemes(sentence, language), language)

        return sayable(
            (
                (sentence, reader(sentence, language))
                for sentence, language in zip(sentences, languages, strict=True)
            ),
            notices,
        )

    def _line(self, text: str, phonemes: str, language: str) -> Line[Codes]:
        rows = np.array(self._tokenize(phonemes), np.int32)
        notices: tuple[str, ...] = ()
        if text and (unsaid := unsaid_characters(text, language)):
            notices += (unsaid_notice(unsaid, language),)
        if unknown := unknown_phonemes(phonemes, self._tokenize):
            notices += (
                f"the model's vocabulary lacks these phonemes of the text: {listed(unknown)}",
            )
        ids = tuple(rows.tolist())
        return Line(text, phonemes, language, rows, notices, ids, self._language_id(language))

    def _silence(self, options: SpeakOptions) -> Line[Codes]:
        """What is said in a recording of which nobody tells what is said."""
        language = self._language(options.language)
        rows = np.array(NULL_PHONEMES, np.int32)
        return Line("", "", language, rows, language_id=self._language_id(language))

    @property
    def _languages(self) -> tuple[str, ...]:
        """Those that the model was told apart in training; of others it has all there are."""
        return self._network.model.languages or LANGUAGES

    def _language(self, given: str | None) -> str:
        return known_language(given or self._languages[0], self._languages)

    def _language_id(self, language: str) -> int | None:
        model = self._network.model
        return model.languages.index(language) if model.has_table("language") else None

    # ---------------------------------------------------------------------------- voice

    def _voice(
        self, voice: Recording | None, options: SpeakOptions
    ) -> tuple[Codes | None, tuple[str, ...]]:
        if voice is None:
            return None, ()
        return self._prompt(voice, options.prompt_seconds, "the voice")

    def _prompt(
        self, recording: Recording, seconds: float | None, name: str
    ) -> tuple[Codes, tuple[str, ...]]:
        """The codes of a recording, cut or repeated to so many seconds; None takes all of it."""
        name = str(recording) if isinstance(recording, str | Path) else name
        codes, notices = self._codes_of(self._read(recording, name), seconds, name)
        if seconds is None:
            return codes, notices
        codes, more = fit_prompt(codes, self._frames(seconds), name)
        return codes, notices + more


def _prefix(said: Sequence[tuple[Line[Codes], Speech]], line: Line[Codes], n: int) -> Prefix | None:
    """What was said before, of the last `n` sentences as far as they are in the same language."""
    recent = said[-n:] if n else []
    same = [(before, speech) for before, speech in recent if before.language == line.language]
    if not same:
        return None
    phonemes = np.concatenate(
        [
            *(
                before.rows[:-1] if i == 0 else before.rows[1:-1]
                for i, (before, _) in enumerate(same)
            ),
            line.rows[-1:],
        ]
    )
    return Prefix(phonemes, np.concatenate([speech.codes for _, speech in same]))
