"""One model on held-out sentences: the likelihood of their codes, and the speech that it makes.

    ListeningTest     the sentences, with their recordings as sound and as mel cepstra
    .listen(network)  -> Listened: tallies of each sentence, and some of the sound

Each sentence is spoken in every way that the model supports, with its own seed, so that two models
can be compared sentence by sentence. A family's listen.py knows its heads and ways of speaking.
"""

import shlex
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.audio.codec import AudioCodec
from valle_convert.audio.files import Audio, write_wav
from valle_convert.errors import EnvironmentFault, InputError
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
from valle_convert.network.protocol import AnyNetwork
from valle_convert.progress import Progress, silent

#: The place of tallies over all heads, or all ways of speaking.
EVERYWHERE = "all"
#: A recogniser that takes longer for a sentence hangs.
_SECONDS = 600.0
_SHOWN = 300
#: How networks that listen are opened: exact, with room for the sentences of a batch. With 8,
#: Q4_K_M gains no more.
LISTENING = Settings(n_parallel=4)
#: A measure and a head, with a sum and what it is divided by.
Counted = tuple[str, str, float, int]


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

    def total(self, measure: Measure, place: str = EVERYWHERE) -> Tally | None:
        """Over all places, or at one; None if it was not measured."""
        return self.tallies.get(measure.name, {}).get(place)


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
    """Sentences to speak, and their recordings.

    `family` is the listen.py of a family, with these functions:

    ways_of(model)                       how a network can speak, by name
    measure_codes(network, sentence, n)  what is `Counted` on the n-th recording's codes
    say(network, sentences, way, seed, frame_rate)   codes of each sentence, [frames, levels]

    and `WITHOUT_CODES`, the heads that are not in the mean over all codes.
    """

    def __init__(
        self,
        sentences: Sequence[Sentence],
        codec: AudioCodec,
        family: Any,  # noqa: ANN401 - a module of the family's own
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
        self._family, self.n_clips = family, n_clips
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
        self, network: AnyNetwork, progress: Progress = silent, label: str = "listening"
    ) -> Listened:
        ways, rate = self._family.ways_of(network.model), self.codec.description.frame_rate
        counted: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
        clips: dict[str, tuple[Audio | None, ...]] = {}
        with progress(label, len(self.sentences) * (1 + len(ways)), "sentences") as advance:
            for n, sentence in enumerate(self.sentences):
                for measure, head, *count in self._family.measure_codes(network, sentence, n):
                    counted[measure, head].append(count)
                advance(1)
            found = {place: _tally(counts) for place, counts in counted.items()}
            for i, (name, way) in enumerate(ways.items()):
                said: list[Audio | None] = []
                for codes in self._family.say(network, self.sentences, way, (self.seed, i), rate):
                    said.append(self.codec.decode(codes) if len(codes) else None)
                    advance(1)
                found |= self._sounds(name, said)
                clips[name] = tuple(said[: self.n_clips])
        return Listened(_by_measure(found, self._family.WITHOUT_CODES), clips)

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


def _tally(counts: Sequence[tuple[float, int]]) -> Tally:
    of_what, out_of = np.array(counts, np.float64).T
    return Tally(of_what, out_of)


def _by_measure(
    found: Mapping[tuple[str, str], Tally], without_codes: Sequence[str] = ()
) -> dict[str, dict[str, Tally]]:
    """Tallies by measure and place, with the total of each measure."""
    by_measure: dict[str, dict[str, Tally]] = defaultdict(dict)
    for (measure, place), tally in found.items():
        by_measure[measure][place] = tally
    for measure, places in by_measure.items():
        left_out = without_codes if measure == NLL.name else ()
        pooled = [tally for place, tally in places.items() if place not in left_out]
        if pooled:
            places[EVERYWHERE] = Tally.pooled(pooled)
    return dict(by_measure)
