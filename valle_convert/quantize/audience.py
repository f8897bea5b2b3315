"""A run's listening test: sentences, a codec, a recogniser.

The sentences are the given utterances (`--data`), or texts (`--sentences`). For texts, the F16 file
speaks the recordings that all files are compared with, with a seed used for nothing else.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from valle_convert.audio.codec import AudioCodec, open_codec
from valle_convert.decode.speech import choose_mode
from valle_convert.errors import InputError
from valle_convert.extras import require
from valle_convert.families.bundle import Bundle
from valle_convert.files import sha256_of, valid_utf8
from valle_convert.listening.listen import LISTENING, ListeningTest, Sentence
from valle_convert.listening.recogniser import Recogniser
from valle_convert.llama.cpu import usable_cores
from valle_convert.model.spec import Model
from valle_convert.progress import Progress
from valle_convert.quantize.examples import Examples
from valle_convert.quantize.listening import Listening
from valle_convert.quantize.options import ListenOptions, MeasureOptions
from valle_convert.quantize.source import SourceBundle
from valle_convert.speech.phonemes import phoneme_tokenizer
from valle_convert.wording import plural

#: The number of sentences with sound in the HTML report.
N_CLIPS = 4


@dataclass(frozen=True, eq=False)
class Audience:
    """The inputs of a listening test, all checked at once."""

    codec: AudioCodec
    recogniser: Recogniser | None
    sentences: tuple[Sentence, ...]
    references: str
    measuring: MeasureOptions
    listening: ListenOptions

    @classmethod
    def of(
        cls,
        source: SourceBundle,
        examples: Examples,
        measuring: MeasureOptions,
        listening: ListenOptions,
    ) -> Audience:
        require("soundfile", "Sound for recognizers and reports")
        model = source.model
        listen = source.family.ability("listen")
        choose_mode(model)  # raises if it cannot speak
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
            references = examples.description
        else:
            with ExitStack() as opened:
                tokenize, _ = phoneme_tokenizer(source.main.header, opened)
                sentences = listen.read_sentences(texts, model, tokenize, listening.voice, codec)
            sentences = sentences[: measuring.n_utterances]
            references = f"the F16 file's speech of {texts.name}"
        audience = cls(
            codec, recogniser, tuple(sentences), valid_utf8(references), measuring, listening
        )
        if texts is None:
            audience.test(model)  # raises now if it is impossible
        return audience

    @property
    def key(self) -> tuple[object, ...]:
        one = self.listening
        given = (one.sentences, one.voice, one.codec)
        digests = [
            sha256_of(Path(path)) if path and Path(path).is_file() else path for path in given
        ]
        return (*digests, one.asr, self.measuring.n_utterances)

    def test(self, model: Model, *, seed: int = 0) -> ListeningTest:
        """The sentences, ready to be spoken."""
        return ListeningTest(
            self.sentences,
            self.codec,
            model,
            seed=seed,
            n_clips=N_CLIPS,
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
                listen = bundle.family.ability("listen")
                rate = self.codec.description.frame_rate
                spoken = listen.speak_references(network, self.sentences, rate, progress)
                audience = replace(self, sentences=tuple(spoken))
            test = audience.test(network.model)
            baseline = test.listen(network, progress, "listening to F16")
        n_others = 1 if n_threads > 1 else 2
        with opened(n_others) as network:
            again = audience.test(network.model, seed=1)
            repeat = again.listen(network, progress, "listening to F16 again")
        listening = Listening(
            baseline=baseline,
            repeat=repeat,
            repeat_how=f"seed 1, {plural(n_others, 'thread')}",
            recordings=test.recordings_alone() if self.recogniser else None,
            recogniser=self.recogniser.command if self.recogniser else None,
            references=self.references,
            codec=self.codec.description.name,
            names=tuple(one.text or one.name for one in test.sentences),
            sounds=tuple(test.recordings[:N_CLIPS]),
            n_texts=len({tuple(map(int, one.condition.phonemes)) for one in test.sentences}),
        )
        return listening, test
