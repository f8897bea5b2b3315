"""One model on held-out sentences: the likelihood of their codes, and the speech that it makes.

    ListeningTest     the sentences, with their recordings as sound and as mel cepstra
    .listen(network)  -> Listened: tallies of each sentence, and some of the sound

Each sentence is spoken in every way that the model's capabilities allow, with its own seed, so that
two models can be compared sentence by sentence.
"""

import shlex
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from valle_convert.audio.codec import AudioCodec
from valle_convert.audio.files import Audio, write_wav
from valle_convert.decode.ar import append_codes
from valle_convert.decode.batch import Batch
from valle_convert.decode.greedy import decode_transcript
from valle_convert.decode.options import DecodeOptions, Mode, SamplingOptions
from valle_convert.decode.speech import choose_mode, speech_steps
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.listening.likelihood import negative_log_likelihood, teacher_forced_passes
from valle_convert.listening.measures import (
    Tally,
    edit_distance,
    mel_cepstra,
    mel_cepstral_distance,
    normalized,
    plain_words,
)
from valle_convert.llama.context import Settings
from valle_convert.model.inputs import Condition
from valle_convert.model.spec import Model
from valle_convert.network.protocol import Network
from valle_convert.progress import Advance, Progress, silent

#: The place of tallies over all heads, or all ways of speaking.
EVERYWHERE = "all"
_AR_TEMPERATURE = 0.6
#: A recogniser that takes longer for a sentence hangs.
_SECONDS = 600.0
_SHOWN = 300
#: How networks that listen are opened: exact, with room for the sentences of a batch. With 8,
#: Q4_K_M gains no more.
LISTENING = Settings(n_parallel=4)
#: The limit of a way's speech: this many times the recording's length, and a second more.
_MOST = 2
#: Heads without codes, which are not in the mean over all codes.
_NO_CODES = ("len", "stt")


@dataclass(frozen=True)
class Measure:
    """A measure of quality; without a unit, it is a ratio."""

    name: str
    title: str
    meaning: str
    unit: str = ""
    is_better_high: bool = False


NLL = Measure(
    "nll",
    "NLL",
    "negative log likelihood of the held-out codes, given everything before each; over all heads "
    "that give codes",
    "nats per code",
)
PHONEMES = Measure(
    "phoneme_error_rate", "PER", "edits per phoneme of the model's transcripts of the recordings"
)
RETRIEVAL = Measure(
    "retrieval",
    "retrieval",
    "share of the sentences whose own recording is the nearest of all to what was said "
    "(dynamic time warping over normalized mel cepstra)",
    is_better_high=True,
)
DISTANCE = Measure(
    "mel_cepstral_distance",
    "MCD",
    "mel cepstral distance to the recording, both stretched to the same time",
    "dB",
)
DURATION = Measure(
    "duration_error",
    "duration",
    "difference of the duration from the recording's, relative to it",
)
WORDS = Measure("word_error_rate", "WER", "edits per word of what the recognizer hears in it")
CHARACTERS = Measure(
    "character_error_rate", "CER", "edits per letter of what the recognizer hears in it"
)
MEASURES: Mapping[str, Measure] = {
    one.name: one for one in (NLL, PHONEMES, RETRIEVAL, DISTANCE, DURATION, WORDS, CHARACTERS)
}


@dataclass(frozen=True, eq=False)
class Sentence:
    """A held-out sentence."""

    name: str
    text: str  # the words; empty if unknown
    condition: Condition
    codes: NDArray[np.integer]  # the recording's, [frames, levels]
    recording: Audio | None = None  # as sound; None for the codec's sound of the codes


@dataclass(frozen=True)
class Way:
    """A way of speaking: a mode, greedy or drawn at a temperature."""

    mode: Mode
    temperature: float

    @property
    def name(self) -> str:
        """`ar greedy`, `nar-len sampled` and so on."""
        return f"{self.mode} {'sampled' if self.temperature else 'greedy'}"

    def options(self, seconds: float) -> DecodeOptions:
        """Options for a sentence whose recording has this length."""
        sampling = SamplingOptions(self.temperature)
        return DecodeOptions(self.mode, sampling, max_seconds=_MOST * seconds + 1)


def ways_of(model: Model) -> tuple[Way, ...]:
    """How a model can speak; demasking starts at temperature 1, which falls."""
    found: list[Way] = []
    modes: tuple[Mode, ...] = ("ar", "nar-len")
    for mode in modes:
        try:
            choose_mode(model, mode)
        except InputError:
            continue
        found += [Way(mode, 0.0), Way(mode, _AR_TEMPERATURE if mode == "ar" else 1.0)]
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Listened:
    """The result of one model."""

    #: By measure and place: a head, a way of speaking, or `EVERYWHERE`.
    tallies: Mapping[str, Mapping[str, Tally]]
    #: The audio of the first sentences, for each way of speaking; None where nothing was said.
    clips: Mapping[str, tuple[Audio | None, ...]] = field(default_factory=dict)

    def places(self, measure: Measure) -> list[str]:
        """Where it was measured; the total comes last."""
        return list(self.tallies.get(measure.name, ()))

    def total(self, measure: Measure) -> Tally | None:
        """Over all places; None if it was not measured."""
        return self.tallies.get(measure.name, {}).get(EVERYWHERE)


class Recogniser:
    """A speech recogniser: any command that takes the path of a wav and prints a text."""

    def __init__(self, command: str) -> None:
        self.command = command
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise InputError(f"--asr is {command!r}, which is not a command: {error}.") from error
        if not self._words:
            raise InputError("--asr is empty; give a command that prints what it hears in a wav.")
        if shutil.which(self._words[0]) is None:
            raise EnvironmentFault(
                f"--asr needs the program {self._words[0]}, which is not installed, or not in PATH."
            )

    def hear(self, audio: Audio) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "speech.wav"
            write_wav(path, audio)
            words = [word.replace("{}", str(path)) for word in self._words]
            if words == self._words:
                words.append(str(path))
            try:
                done = subprocess.run(  # noqa: S603 - the user's own command
                    words,
                    capture_output=True,
                    check=False,
                    stdin=subprocess.DEVNULL,
                    timeout=_SECONDS,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise EnvironmentFault(
                    f"The recognizer {self.command!r} failed: {error}."
                ) from error
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())[-_SHOWN:]
            raise EnvironmentFault(
                f"The recognizer {self.command!r} ended with exit code {done.returncode}"
                + (f": {said}" if said else "")
                + "; it must print what it hears in the wav whose path it gets."
            )
        return done.stdout.decode(errors="replace").strip()


class ListeningTest:
    """Sentences to speak, and their recordings."""

    def __init__(
        self,
        sentences: Sequence[Sentence],
        codec: AudioCodec,
        model: Model,
        *,
        seed: int = 0,
        n_clips: int = 0,
        recogniser: Recogniser | None = None,
    ) -> None:
        if len(sentences) < 2:
            raise InputError(
                "Listening compares speech with the recordings of all sentences, expected two or "
                "more; give more utterances."
            )
        if recogniser is not None:
            silent_ones = [one.name for one in sentences if not plain_words(one.text)]
            if silent_ones:
                raise InputError(
                    f"{silent_ones[0]} lacks the words that are said in it "
                    f"({len(silent_ones)} of {len(sentences)} do), which --asr needs; "
                    "make it again with `valle-convert utterances` and --text."
                )
        self.sentences, self.codec, self.seed = tuple(sentences), codec, seed
        self.ways = ways_of(model)
        self.n_clips = n_clips
        self._recogniser = recogniser
        self.recordings = [
            codec.decode(np.asarray(one.codes, np.int32))
            if one.recording is None
            else one.recording
            for one in sentences
        ]
        self._cepstra = [mel_cepstra(one) for one in self.recordings]
        self._normalized = [normalized(one) for one in self._cepstra]

    def recordings_alone(self) -> Listened:
        """What the recogniser hears in the recordings, and in the codec's versions of them."""
        codec = self.codec
        again = [codec.decode(np.asarray(one.codes, np.int32)) for one in self.sentences]
        found = dict(self._sounds("recording", again))
        return Listened(_by_measure(found))

    def listen(
        self, network: Network, progress: Progress = silent, label: str = "listening"
    ) -> Listened:
        found: dict[tuple[str, str], Tally] = {}
        clips: dict[str, tuple[Audio | None, ...]] = {}
        n_steps = len(self.sentences) * (1 + len(self.ways))
        with progress(label, n_steps, "sentences") as advance:
            found |= self._likelihoods(network, advance)
            for i, way in enumerate(self.ways):
                said = self._say(network, way, (self.seed, i), advance)
                found |= self._sounds(way.name, said)
                clips[way.name] = tuple(said[: self.n_clips])
        return Listened(_by_measure(found), clips)

    # ------------------------------------------------------------------------------- codes

    def _likelihoods(
        self, network: Network, advance: Advance
    ) -> Iterator[tuple[tuple[str, str], Tally]]:
        nats: dict[str, list[tuple[float, int]]] = defaultdict(list)
        edits: list[tuple[float, int]] = []
        for n, sentence in enumerate(self.sentences):
            # The masks are the same for every model and seed.
            rng = np.random.default_rng(n)
            for one_pass in teacher_forced_passes(
                network.model, sentence.condition, sentence.codes, rng
            ):
                values = negative_log_likelihood(network, one_pass)
                nats[one_pass.head].append((float(values.sum()), len(values)))
            if "stt" in nats:
                true = np.asarray(sentence.condition.phonemes)[1:-1].tolist()
                heard = decode_transcript(
                    network,
                    np.asarray(sentence.codes, np.int32),
                    sentence.condition.language,
                    2 * len(true) + 10,
                ).codes
                edits.append((edit_distance(heard.tolist(), true), len(true)))
            advance(1)
        for head, counted in nats.items():
            yield (NLL.name, head), _tally(counted)
        if edits:
            yield (PHONEMES.name, "stt"), _tally(edits)

    # ------------------------------------------------------------------------------- sound

    def _say(
        self, network: Network, way: Way, seed: tuple[int, ...], advance: Advance
    ) -> list[Audio | None]:
        """All sentences, some side by side; each has its own random generator."""
        network.make_room(LISTENING.n_parallel)
        batch = Batch(partial(append_codes, network), LISTENING.n_parallel)
        rate = self.codec.description.frame_rate
        decodings = []
        for n, one in enumerate(self.sentences):
            options = way.options(len(one.codes) / rate)
            rng = np.random.default_rng((*seed, n))
            steps = speech_steps(network, one.condition, options, rng, rate)
            decodings.append(batch.add(steps))
        said = []
        for decoding in decodings:
            while not decoding.is_done:
                batch.step()
            codes = decoding.result().codes
            said.append(self.codec.decode(codes) if len(codes) else None)
            advance(1)
        return said

    def _sounds(
        self, place: str, said: Sequence[Audio | None]
    ) -> Iterator[tuple[tuple[str, str], Tally]]:
        """Measures of the speech, compared with the recordings."""
        right, distances, durations = [], [], []
        for n, (audio, recording) in enumerate(zip(said, self.recordings, strict=True)):
            if audio is None:
                right.append(0.0)
                distances.append(float("nan"))
                durations.append(1.0)
                continue
            cepstra = mel_cepstra(audio)
            words = mel_cepstral_distance(normalized(cepstra), self._normalized)
            right.append(float(self._is_same(int(words.argmin()), n)))
            distances.append(float(mel_cepstral_distance(cepstra, [self._cepstra[n]])[0]))
            durations.append(abs(audio.seconds - recording.seconds) / recording.seconds)
        yield (RETRIEVAL.name, place), Tally.each(right)
        yield (DISTANCE.name, place), Tally.each(distances)
        yield (DURATION.name, place), Tally.each(durations)
        if self._recogniser is not None:
            yield from self._words(self._recogniser, place, said)

    def _is_same(self, found: int, n: int) -> bool:
        """Whether two recordings are of the same sentence."""
        a, b = (np.asarray(self.sentences[i].condition.phonemes) for i in (found, n))
        return found == n or np.array_equal(a, b)

    def _words(
        self, recogniser: Recogniser, place: str, said: Sequence[Audio | None]
    ) -> Iterator[tuple[tuple[str, str], Tally]]:
        words, letters = [], []
        for sentence, audio in zip(self.sentences, said, strict=True):
            true = plain_words(sentence.text)
            heard = [] if audio is None else plain_words(recogniser.hear(audio))
            words.append((edit_distance(heard, true), len(true)))
            spelled = " ".join(true)
            letters.append((edit_distance(" ".join(heard), spelled), len(spelled)))
        yield (WORDS.name, place), _tally(words)
        yield (CHARACTERS.name, place), _tally(letters)


def _tally(values: Sequence[tuple[float, int]]) -> Tally:
    of_what, out_of = np.array(values, np.float64).T
    return Tally(of_what, out_of)


def _by_measure(found: Mapping[tuple[str, str], Tally]) -> dict[str, dict[str, Tally]]:
    """Tallies by measure and place, with the total of each measure."""
    by_measure: dict[str, dict[str, Tally]] = defaultdict(dict)
    for (measure, place), tally in found.items():
        by_measure[measure][place] = tally
    for measure, places in by_measure.items():
        left_out = _NO_CODES if measure == NLL.name else ()
        pooled = [tally for place, tally in places.items() if place not in left_out]
        if pooled:
            places[EVERYWHERE] = Tally.pooled(pooled)
    return dict(by_measure)
