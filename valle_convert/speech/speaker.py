"""Text and a voice in, speech out: the Python interface to everything that speaks.

bundle = open_bundle(Path("model.gguf"))
with bundle.family.speaker(bundle, codec=EncodecCodec()) as speaker:
    spoken = speaker.speak("Hello world.", "prompt.wav")
    write_wav(Path("hello.wav"), spoken.audio)

Long texts are spoken sentence by sentence; `pieces` yields each one when it is done. With
`settings=Settings(n_parallel=4)`, four of them are decoded side by side. Nothing here prints:
remarks for the user are `notices` of the result.
"""

import secrets
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from valle_convert.audio.codec import AudioCodec
from valle_convert.audio.codes import SavedCodes
from valle_convert.closing import Closing
from valle_convert.decode.batch import Append, Batch, Decoding, Steps
from valle_convert.decode.options import Callbacks
from valle_convert.decode.speech import Speech, Timings
from valle_convert.errors import InputError
from valle_convert.model.spec import CodeFormat, Codes
from valle_convert.progress import silent
from valle_convert.speech.recordings import ModelCodec
from valle_convert.speech.results import Piece, SpeakOptions, Spoken

#: How often a sentence is drawn if the model ends before its first frame.
MAX_DRAWS = 3

RowsT = TypeVar("RowsT")
SourceT = TypeVar("SourceT")
VoiceT = TypeVar("VoiceT")


@dataclass(frozen=True)
class Watch(Callbacks):
    """Callbacks to follow and stop the work.

    If `should_stop` gives true, the finished part of the sentence is returned as the last piece.
    """

    #: Called once, before the first sentence, with the phonemes of all.
    on_sentences: Callable[[Sequence[str]], object] = lambda _phonemes: None
    on_piece: Callable[[Piece], object] = lambda _piece: None  # called with each finished sentence


UNWATCHED = Watch()


@dataclass(frozen=True, eq=False)
class Line(Generic[RowsT]):
    """A sentence, ready to be spoken."""

    text: str  # empty if phonemes were given
    phonemes: str  # the text in the model's alphabet
    language: str
    rows: RowsT  # input of the network
    notices: tuple[str, ...] = ()  # remarks for the user
    ids: tuple[int, ...] = ()  # as in `Piece`
    language_id: int | None = None


@dataclass(frozen=True, eq=False)
class SentenceInputs(Generic[RowsT, VoiceT]):
    """What a sentence is decoded from."""

    line: Line[RowsT]
    voice: VoiceT | None
    said: Sequence[tuple[Line[RowsT], Speech]]  # earlier sentences of the text
    options: SpeakOptions
    rng: np.random.Generator
    watch: Watch
    level_0: Codes | None = None  # codes [frames] to decode only the other levels; None decodes all


class Speaker(ModelCodec, Closing, Generic[SourceT, RowsT, VoiceT]):
    """A model that speaks. Close it, or use it as a context manager.

    SourceT is a voice as given, VoiceT a voice for the network, RowsT a text for the network.
    """

    #: Advice if the model generates nothing.
    remedies: ClassVar[str] = "try another --seed, --temperature or --voice"
    #: The rest of the advice where `--parallel` does not apply.
    stepwise: ClassVar[str] = ""

    def __init__(
        self,
        model: CodeFormat,
        append: Append,
        codec: AudioCodec | None,  # None works with codes only
        opened: ExitStack | None = None,  # closed with the speaker
    ) -> None:
        super().__init__(model, codec)
        self.batch = Batch(append)  # the sentences that are being decoded
        self._opened = ExitStack() if opened is None else opened.pop_all()

    def close(self) -> None:
        """Release the model."""
        self._opened.close()

    # ------------------------------------------------------------ what a family supplies

    @abstractmethod
    def _lines(
        self, text: str, options: SpeakOptions, *, is_phonemes: bool, whole: bool
    ) -> list[Line[RowsT]]:
        """The sentences that can be spoken; a single one if `whole`."""

    @abstractmethod
    def _voice(
        self, voice: SourceT | None, options: SpeakOptions
    ) -> tuple[VoiceT | None, tuple[str, ...]]:
        """A voice for the network, and remarks for the user."""

    @abstractmethod
    def _n_sequences(self, options: SpeakOptions) -> int:
        """Sequences that a sentence has in `batch`; 0 if all its frames are decoded at once."""

    def _follows(self, voice: VoiceT | None, options: SpeakOptions) -> bool:
        """Whether a sentence is decoded after the codes of earlier ones, so that it waits."""
        del voice
        return options.context_history > 0

    @abstractmethod
    def _decode(self, given: SentenceInputs[RowsT, VoiceT]) -> Steps[Speech]:
        """Decode one sentence, after the earlier ones."""

    # ------------------------------------------------------------------------- speaking

    def check_options(self, options: SpeakOptions, n_parallel: int) -> None:
        """Reject options that the model cannot speak with, in so many sentences side by side."""
        if not self._n_sequences(options) and n_parallel > 1:
            raise InputError(
                "This model decodes all frames of a sentence at once, so --parallel does not apply;"
                f" leave it out{self.stepwise}."
            )

    def pieces(
        self,
        text: str,
        voice: SourceT | None = None,
        options: SpeakOptions | None = None,
        *,
        is_phonemes: bool = False,
        watch: Watch = UNWATCHED,
    ) -> Iterator[Piece]:
        """Speak a text, and yield each sentence when it is done.

        All of the text is turned into phonemes before the first sentence, so that errors show at
        once. Without a voice, the model chooses one; with `is_phonemes`, the text is the phonemes
        of one sentence. `watch.on_piece` is not called.

        Raises:
            InputError: there is nothing to say, the model does not have the language, the voice is
                not usable, or the text is too long.
            EnvironmentFault: a package is missing.
        """
        for piece in self.turns(text, voice, options, is_phonemes=is_phonemes, watch=watch):
            if piece is None:
                self.batch.step()
            else:
                yield piece

    def turns(
        self,
        text: str,
        voice: SourceT | None = None,
        options: SpeakOptions | None = None,
        *,
        is_phonemes: bool = False,
        watch: Watch = UNWATCHED,
    ) -> Iterator[Piece | None]:
        """As `pieces`, for several texts at once: None means that `batch` has to step first."""
        options = seeded(options)
        lines, prompt, notices, seconds = self._inputs(
            text, voice, options, is_phonemes=is_phonemes, whole=is_phonemes
        )
        watch.on_sentences([line.phonemes for line in lines])
        n_sequences = max(1, self._n_sequences(options))
        n_ahead = 1 if self._follows(prompt, options) else max(1, self.batch.width // n_sequences)
        left = deque(enumerate(lines))
        begun: deque[tuple[Line[RowsT], Decoding[Speech]]] = deque()
        said: list[tuple[Line[RowsT], Speech]] = []
        try:
            while left or begun:
                while left and sum(not one.is_done for _, one in begun) < n_ahead:
                    n, line = left.popleft()
                    shown = replace(watch, progress=silent) if begun else watch
                    rng = np.random.default_rng([options.seed or 0, n])
                    steps = self._draw(SentenceInputs(line, prompt, said, options, rng, shown))
                    decoding = self.batch.add(steps, n_sequences=n_sequences, is_first=n == 0)
                    begun.append((line, decoding))
                line, decoding = begun[0]
                if not decoding.is_done:
                    yield None
                    continue
                begun.popleft()
                speech = decoding.result()
                if len(speech.codes):
                    said.append((line, speech))
                if len(speech.codes) or speech.end == "stop":
                    yield self._piece(line, speech, decoding.seconds, notices, seconds)
                    notices, seconds = (), Timings()
                if speech.end == "interrupted":
                    return
        finally:
            for _, decoding in begun:
                decoding.close()

    def _inputs(
        self,
        text: str,
        voice: SourceT | None,
        options: SpeakOptions,
        *,
        is_phonemes: bool,
        whole: bool,
    ) -> tuple[list[Line[RowsT]], VoiceT | None, tuple[str, ...], Timings]:
        """Text and voice for the network, remarks on the voice, and the seconds of both.

        Each takes half a second at first, so that they are read side by side.
        """
        begin = time.perf_counter()
        with ThreadPoolExecutor(1) as pool:
            heard = pool.submit(self._voice, voice, options)
            lines = self._lines(text, options, is_phonemes=is_phonemes, whole=whole)
            text_done = time.perf_counter()
            prompt, notices = heard.result()
        seconds = Timings(text=text_done - begin, voice=time.perf_counter() - text_done)
        return lines, prompt, notices, seconds

    def _draw(self, given: SentenceInputs[RowsT, VoiceT]) -> Steps[Speech]:
        """Decode a sentence, again if nothing comes of it."""
        # At temperature 0 the result would be the same.
        n_draws = MAX_DRAWS if given.options.sampling.temperature > 0 else 1
        for _ in range(n_draws):
            speech = yield from self._decode(given)
            if len(speech.codes) or speech.end != "stop":
                break
        return speech

    def speak(
        self,
        text: str,
        voice: SourceT | None = None,
        options: SpeakOptions | None = None,
        *,
        is_phonemes: bool = False,
        watch: Watch = UNWATCHED,
        keep_audio: bool = True,
    ) -> Spoken:
        """Speak a text; arguments and errors are those of `pieces`.

        If `watch.should_stop` interrupts it, the result has what is done. Without `keep_audio`,
        only `watch.on_piece` gets the audio, so that memory does not grow with the text.
        """
        options = seeded(options)
        stopped = False

        def noting_stop() -> bool:
            # If interrupted between two sentences, the last piece is complete.
            nonlocal stopped
            stopped = stopped or watch.should_stop()
            return stopped

        noting = replace(watch, should_stop=noting_stop)
        pieces: list[Piece] = []
        for piece in self.pieces(text, voice, options, is_phonemes=is_phonemes, watch=noting):
            watch.on_piece(piece)
            pieces.append(piece if keep_audio else replace(piece, audio=None))
        if pieces and not any(len(piece.codes) for piece in pieces):
            raise InputError(f"There is nothing to write: {pieces[0].notices[-1]}.")
        return self._spoken(pieces, options, is_whole=not stopped)

    def regenerate_levels(
        self,
        saved: SavedCodes | str | Path,
        text: str,
        voice: SourceT | None = None,
        options: SpeakOptions | None = None,
        *,
        is_phonemes: bool = False,
        watch: Watch = UNWATCHED,
    ) -> Spoken:
        """Keep level 0 of saved codes of a text, and decode the other levels again.

        The other arguments and errors are those of `pieces`; `watch.on_piece` is called.
        """
        options = seeded(options)
        level_0 = self._saved(saved, "the file of codes").codes[:, 0]
        (line,), prompt, notices, seconds = self._inputs(
            text, voice, options, is_phonemes=is_phonemes, whole=True
        )
        rng = np.random.default_rng(options.seed)
        steps = self._decode(SentenceInputs(line, prompt, (), options, rng, watch, level_0))
        return self._at_once(line, steps, notices, seconds, options, watch)

    # ----------------------------------------------------------------------- the pieces

    def _piece(
        self,
        line: Line[RowsT],
        speech: Speech,
        decoded: float,
        notices: tuple[str, ...],
        seconds: Timings,
    ) -> Piece:
        """A sentence with its audio, the seconds of decoding it, and what came before."""
        begin = time.perf_counter()
        audio = self._audio_of(speech.codes)
        notices = line.notices + notices
        said = (line.text or line.phonemes)[:40]
        if speech.end == "limit" and said:
            length = f"{len(speech.codes) / self.frame_rate:.1f} seconds"
            if speech.mode == "ar":
                notices += (f"{said!r} did not end within {length} and is cut off there",)
            else:
                notices += (f"{said!r} was shortened to {length}, the limit",)
        if not len(speech.codes):
            notices += (f"the model generated nothing for {said!r}; {self.remedies}",)
        here = Timings(level_0=decoded - speech.seconds.total, codec=time.perf_counter() - begin)
        return Piece(
            text=line.text,
            phonemes=line.phonemes,
            language=line.language,
            codes=speech.codes,
            audio=audio,
            mode=speech.mode,
            end=speech.end,
            notices=notices,
            seconds=seconds + speech.seconds + here,
            ids=line.ids,
            language_id=line.language_id,
        )

    def _at_once(
        self,
        line: Line[RowsT],
        steps: Steps[Speech],
        notices: tuple[str, ...],
        seconds: Timings,
        options: SpeakOptions,
        watch: Watch,
    ) -> Spoken:
        """Decode a text of one sentence."""
        decoding = self.batch.run(steps)
        piece = self._piece(line, decoding.result(), decoding.seconds, notices, seconds)
        watch.on_piece(piece)
        return self._spoken([piece], options, is_whole=piece.end != "interrupted")

    def _spoken(self, pieces: list[Piece], options: SpeakOptions, *, is_whole: bool) -> Spoken:
        assert options.seed is not None  # noqa: S101 - `seeded` was called first
        return Spoken(
            tuple(pieces),
            self._format.n_levels,
            self.codec_description,
            self._format.codebook_size,
            options.seed,
            is_whole,
        )


AnySpeaker = Speaker[Any, Any, Any]


def seeded(options: SpeakOptions | None) -> SpeakOptions:
    """Options with a 32-bit seed."""
    options = options or SpeakOptions()
    return options if options.seed is not None else replace(options, seed=secrets.randbits(32))


def sayable(
    sentences: Iterable[tuple[str, Callable[[], Line[RowsT]]]], notices: tuple[str, ...] = ()
) -> list[Line[RowsT]]:
    """The lines that can be spoken; the first one has a notice about those that cannot."""
    lines: list[Line[RowsT]] = []
    silent_parts: list[str] = []
    refusal: InputError | None = None
    for text, make in sentences:
        try:
            lines.append(make())
        except InputError as error:
            refusal = refusal or error
            silent_parts.append(text)
    if not lines and refusal is not None:
        raise refusal
    if silent_parts:
        left_out = ", ".join(map(repr, silent_parts))
        notices += (f"skipped, nothing to say: {left_out}",)
    return [replace(lines[0], notices=lines[0].notices + notices), *lines[1:]]
