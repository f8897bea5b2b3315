"""Who listens to the files of a run: sentences, a codec, a recogniser.

The sentences are the given utterances (`--data`), or texts (`--sentences`), for which the F16 file
itself speaks the recordings that all files are held against, with a seed that nothing else has.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from valle_convert.audio.codec import AudioCodec, open_codec
from valle_convert.decode import choose_mode
from valle_convert.errors import InputError
from valle_convert.extras import require
from valle_convert.families.bundle import Bundle
from valle_convert.files import valid_utf8
from valle_convert.listening.listen import ListeningTest, Sentence
from valle_convert.listening.recogniser import Recogniser
from valle_convert.model.spec import Model
from valle_convert.progress import Progress
from valle_convert.quantize.examples import Examples
from valle_convert.quantize.listening import Listening
from valle_convert.quantize.options import Options
from valle_convert.quantize.source import SourceBundle
from valle_convert.speech.phonemes import phoneme_tokenizer
from valle_convert.wording import plural

#: Of how many sentences the HTML report has the sound.
N_CLIPS = 4


@dataclass(frozen=True, eq=False)
class Audience:
    """Who listens to what the files say; everything that was given for it is checked now."""

    codec: AudioCodec
    recogniser: Recogniser | None
    sentences: tuple[Sentence, ...]
    references: str

    @classmethod
    def of(cls, source: SourceBundle, examples: Examples[Any] | None, options: Options) -> Audience:
        """Whoever the options ask for."""
        if not options.measure:
            raise InputError("--listen measures files; leave out --no-measure.")
        require("soundfile", "Sound for recognisers and reports")
        model = source.model
        listen = source.family.ability("listen")
        choose_mode(model)  # whether it can speak at all
        recogniser = None if options.asr is None else Recogniser(options.asr)
        if options.sentences is None and options.data is None:
            raise InputError(
                "--listen needs something to say: --data with held-out utterances (made by "
                "`valle-convert utterances`), or --sentences with texts, one a line."
            )
        codec = open_codec(options.codec, model)
        if options.sentences is None:
            assert examples is not None  # noqa: S101 - a model of ours has some
            sentences = listen.given_sentences(examples)
            references = examples.description
        else:
            with ExitStack() as opened:
                tokenize, _ = phoneme_tokenizer(source.main.header, opened)
                sentences = listen.read_sentences(
                    options.sentences, model, tokenize, options.voice, codec, options.prompt_seconds
                )[: options.n_utterances]
            references = f"what the F16 file itself says for the texts of {options.sentences.name}"
        audience = cls(codec, recogniser, tuple(sentences), valid_utf8(references))
        if options.sentences is None:
            audience.test(model, options)  # is refused now where it cannot be done
        return audience

    def test(self, model: Model, options: Options) -> ListeningTest:
        """The sentences, ready to be spoken."""
        return ListeningTest(
            self.sentences,
            self.codec,
            model,
            ar_temperature=options.listen_temperature,
            seed=options.seed,
            n_clips=N_CLIPS,
            recogniser=self.recogniser,
        )

    def listen_to_baseline(
        self, bundle: Bundle, options: Options, progress: Progress
    ) -> tuple[Listening, ListeningTest]:
        """What the F16 file says, and says again; where there are no recordings, it speaks them."""
        n_threads = options.threads or os.cpu_count() or 1
        audience = self
        with bundle.family.open(bundle, n_threads=n_threads, adapters=options.adapters) as network:
            if options.sentences is not None:
                listen = bundle.family.ability("listen")
                spoken = listen.speak_references(
                    network,
                    self.sentences,
                    self.codec.description.frame_rate,
                    options.seed,
                    options.listen_temperature,
                    progress,
                )
                audience = replace(self, sentences=tuple(spoken))
            test = audience.test(network.model, options)
            baseline = test.listen(network, progress, "listening to F16")
        others = replace(options, seed=options.seed + 1)
        n_others = 1 if n_threads > 1 else 2
        with bundle.family.open(bundle, n_threads=n_others, adapters=options.adapters) as network:
            again = audience.test(network.model, others)
            repeat = again.listen(network, progress, "listening to F16 again")
        listening = Listening(
            baseline=baseline,
            repeat=repeat,
            repeat_how=f"seed {others.seed}, {plural(n_others, 'thread')}",
            recordings=test.recordings_alone() if self.recogniser else None,
            recogniser=self.recogniser.command if self.recogniser else None,
            references=self.references,
            codec=self.codec.description.name,
            names=tuple(one.text or one.name for one in test.sentences),
            sounds=tuple(test.recordings[:N_CLIPS]),
            n_texts=len({tuple(map(int, one.condition.phonemes)) for one in test.sentences}),
        )
        return listening, test
