"""A run's listening test: its sentences, codec and recogniser, and the speech of quantized files
compared with that of the F16 file.

The sentences are the given utterances (`--data`), or texts (`--sentences`). For texts, the F16 file
speaks the recordings that all files are compared with, with a seed used for nothing else.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from valle_convert.audio.codec import AudioCodec, open_codec
from valle_convert.audio.files import Audio
from valle_convert.errors import InputError
from valle_convert.extras import require
from valle_convert.families.bundle import Bundle
from valle_convert.files import sha256_of, valid_utf8
from valle_convert.listening.listen import (
    DISTANCE,
    LISTENING,
    NLL,
    PHONEMES,
    RETRIEVAL,
    WORDS,
    Listened,
    ListeningTest,
    Measure,
    Recogniser,
    Sentence,
)
from valle_convert.llama.cpu import usable_cores
from valle_convert.progress import Progress
from valle_convert.quantize.examples import Examples
from valle_convert.quantize.options import ListenOptions, MeasureOptions
from valle_convert.quantize.source import SourceBundle
from valle_convert.wording import plural

#: Nothing random is in these.
_STEADY = (NLL, PHONEMES)
#: What is said is judged by these, over all ways of speaking.
_SAID = (RETRIEVAL, DISTANCE, WORDS)
#: The number of sentences with sound in the HTML report.
_N_CLIPS = 4


@dataclass(frozen=True, eq=False)
class Listening:
    """What the files of a run are compared with."""

    baseline: Listened  # what was measured of the F16 file
    repeat: Listened  # the same once more, with another seed and another number of threads
    repeat_how: str
    recordings: Listened | None  # what the recognizer hears in the recordings; None without one
    recogniser: str | None
    references: str
    codec: str
    names: tuple[str, ...]  # of the sentences: the texts, if they are known
    sounds: tuple[Audio, ...] = ()
    n_texts: int = 0  # the number of different sentences

    def noise(self, measure: Measure) -> float:
        """How far the F16 file is from itself with another seed and other threads."""
        one, other = self.baseline.total(measure), self.repeat.total(measure)
        return abs(one.mean - other.mean) if one and other else 0.0

    def beyond_noise(self, file: Listened) -> tuple[str, ...]:
        """How a file is worse than F16 beyond chance, in words.

        NLL and PER, which involve no random draws, may be worse by one standard error of the F16
        file's over sentences (L. Breiman et al., 1984). For the other measures, the interval of the
        difference must not begin above the difference of two F16 runs.
        """
        found: list[str] = []
        for measure in (*_STEADY, *_SAID):
            mine, base = file.total(measure), self.baseline.total(measure)
            if mine is None or base is None:
                continue
            sign = -1 if measure.is_better_high else 1
            difference = mine.minus(base)
            if measure in _STEADY:
                allowed, least = base.estimate().error, difference.mean
            else:
                allowed = self.noise(measure)
                least = min(sign * difference.low, sign * difference.high)
            if not sign * difference.mean <= 0 and not least <= allowed:
                found.append(
                    f"{measure.title} {mine.mean:.3f}, F16 {base.mean:.3f} (worse by "
                    f"{least:.3f}{'' if measure in _STEADY else ' at least'}, noise {allowed:.3f})"
                )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        return {
            "sentences": self.names,
            "different_texts": self.n_texts,
            "references": self.references,
            "codec": self.codec,
            "recogniser": self.recogniser,
            "recordings": self.recordings and listened_to_json(self.recordings),
            "baseline": listened_to_json(self.baseline),
            "repeat": listened_to_json(self.repeat, self.baseline),
            "repeat_how": self.repeat_how,
        }


@dataclass(frozen=True, eq=False)
class FileSpeech:
    """What a file says, compared with F16; valid for the same `key`."""

    key: str
    listened: Listened
    listening: Listening
    beyond_noise: tuple[str, ...]  # what it says worse than F16

    def without_sound(self) -> Self:
        """The stored part; the sound is in the report of the run that listened."""
        one = self.listening
        repeat, baseline = (replace(heard, clips={}) for heard in (one.repeat, one.baseline))
        listening = replace(one, baseline=baseline, repeat=repeat, sounds=())
        return replace(self, listened=replace(self.listened, clips={}), listening=listening)

    def to_json(self) -> dict[str, Any]:
        listened = listened_to_json(self.listened, self.listening.baseline)
        return {"listened": listened, "beyond_noise": self.beyond_noise}


def listened_to_json(listened: Listened, base: Listened | None = None) -> dict[str, Any]:
    """By measure and place: mean and interval, and the difference to another file's."""
    found: dict[str, Any] = {}
    for measure, places in listened.tallies.items():
        for place, tally in places.items():
            other = base.tallies.get(measure, {}).get(place) if base else None
            difference = asdict(tally.minus(other)) if other else None
            entry = asdict(tally.estimate()) | {"difference": difference}
            found.setdefault(measure, {})[place] = entry
    return found


def pareto_front(points: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The points (size, loss) that no other is both smaller and better than."""
    best = float("inf")
    for size, loss in sorted(points):
        if loss < best:
            best = loss
            yield size, loss


@dataclass(frozen=True, eq=False)
class Audience:
    """The inputs of a listening test, all checked at once."""

    codec: AudioCodec
    recogniser: Recogniser | None
    sentences: tuple[Sentence, ...]
    recordings: str  # what the recordings are
    family: Any  # its listen.py
    measuring: MeasureOptions
    listening: ListenOptions

    @classmethod
    def of(
        cls,
        source: SourceBundle,
        examples: Examples,
        measuring: MeasureOptions,
        listening: ListenOptions,
    ) -> Self:
        require("soundfile", "Sound for recognizers and reports")
        model = source.model
        listen = source.family.ability("listen")
        listen.ways_of(model)  # raises if it cannot speak
        recogniser = None if listening.asr is None else Recogniser(listening.asr)
        texts = listening.sentences
        if texts is None and measuring.data is None:
            raise InputError(
                "--listen needs something to say: --data with held-out utterances (made by "
                "`valle-convert utterances`), or --sentences with texts, one a line."
            )
        codec = open_codec(listening.codec, model)
        if texts is None:
            sentences = listen.given_sentences(examples)
            recordings = examples.description
        else:
            header, voice = source.main.header, listening.voice
            sentences = listen.read_sentences(texts, model, header, voice, codec)
            sentences = sentences[: measuring.n_utterances]
            recordings = f"the F16 file's speech of {texts.name}"
        sentences, recordings = tuple(sentences), valid_utf8(recordings)
        audience = cls(codec, recogniser, sentences, recordings, listen, measuring, listening)
        if texts is None:
            audience.test()  # raises now if it is impossible
        return audience

    @property
    def key(self) -> tuple[object, ...]:
        options = self.listening
        given = (options.sentences, options.voice, options.codec)
        digests = [
            sha256_of(Path(path)) if path and Path(path).is_file() else path for path in given
        ]
        return (*digests, options.asr, self.measuring.n_utterances)

    def test(self, *, seed: int = 0) -> ListeningTest:
        """The sentences, ready to be spoken."""
        return ListeningTest(
            self.sentences,
            self.codec,
            self.family,
            seed=seed,
            n_clips=_N_CLIPS,
            recogniser=self.recogniser,
        )

    def listen_to_baseline(
        self, bundle: Bundle, progress: Progress
    ) -> tuple[Listening, ListeningTest]:
        """The F16 file's results, twice; without recordings, it speaks them first."""
        audience = self
        n_threads = self.measuring.threads or usable_cores()

        def opened(n: int) -> Any:  # noqa: ANN401 - the family's own network
            how = replace(LISTENING, n_threads=n, n_gpu_layers=self.measuring.gpu_layers)
            return bundle.family.open(bundle, settings=how, adapters=self.measuring.adapters)

        with opened(n_threads) as network:
            if self.listening.sentences is not None:
                rate = self.codec.description.frame_rate
                spoken = self.family.speak_recordings(network, self.sentences, rate, progress)
                audience = replace(self, sentences=tuple(spoken))
            test = audience.test()
            baseline = test.listen(network, progress, "listening to F16")
        n_others = 1 if n_threads > 1 else 2
        with opened(n_others) as network:
            again = audience.test(seed=1)
            repeat = again.listen(network, progress, "listening to F16 again")
        listening = Listening(
            baseline=baseline,
            repeat=repeat,
            repeat_how=f"seed 1, {plural(n_others, 'thread')}",
            recordings=test.recordings_alone() if self.recogniser else None,
            recogniser=self.recogniser.command if self.recogniser else None,
            references=self.recordings,
            codec=self.codec.description.name,
            names=tuple(one.text or one.name for one in test.sentences),
            sounds=tuple(test.recordings[:_N_CLIPS]),
            n_texts=len({tuple(map(int, one.condition.phonemes)) for one in test.sentences}),
        )
        return listening, test
