"""Who listens to the files of a run: sentences, a codec, a recogniser.

The sentences are the given utterances (`--data`), or texts (`--sentences`), for which the F16 file
itself speaks the recordings that all files are held against, with a seed that nothing else has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from valle_convert.audio.codec import AudioCodec, open_codec
from valle_convert.decode import choose_mode, decode_speech
from valle_convert.errors import InputError
from valle_convert.extras import require
from valle_convert.files import read_small_file, valid_utf8
from valle_convert.listening.listen import ListeningTest, Sentence, ways_of
from valle_convert.listening.recogniser import Recogniser
from valle_convert.model.inputs import Condition
from valle_convert.model.spec import Model
from valle_convert.network.protocol import Network
from valle_convert.progress import Progress
from valle_convert.quantize.listening import Listening
from valle_convert.quantize.options import Options
from valle_convert.quantize.recordings import Recorded, say_all, voice_prompt
from valle_convert.quantize.source import Source, model_of
from valle_convert.quantize.utterances import Utterances

#: Of how many sentences the HTML report has the sound.
N_CLIPS = 4
_MAX_SENTENCES_BYTES = 1 << 20
#: About what a sentence takes before it is spoken, seconds; it may take twice as long and one more.
_EXPECTED_SECONDS = 5.0


@dataclass(frozen=True, eq=False)
class Audience:
    """Who listens to what the files say; everything that was given for it is checked now."""

    codec: AudioCodec
    recogniser: Recogniser | None
    sentences: tuple[Sentence, ...]
    references: str

    @classmethod
    def of(cls, source: Source, utterances: Utterances | None, options: Options) -> Audience:
        """Whoever the options ask for.

        Args:
            source: what is quantized, complete or not.
            utterances: that are measured; None where the model is none of ours.
            options: what the user wants.

        Raises:
            InputError: there is nothing to say, the codec is not the model's, or a text, voice or
                utterance cannot be used.
            EnvironmentFault: the recogniser or a package is missing.
        """
        if not options.measure:
            raise InputError("--listen measures files; leave out --no-measure.")
        require("soundfile", "Sound for recognisers and reports")
        model = model_of(source)
        choose_mode(model)  # whether it can speak at all
        recogniser = None if options.asr is None else Recogniser(options.asr)
        if options.sentences is None and options.data is None:
            raise InputError(
                "--listen needs something to say: --data with held-out utterances (made by "
                "`valle-convert utterances`), or --sentences with texts, one a line."
            )
        codec = open_codec(options.codec, model.config)
        if options.sentences is None:
            assert utterances is not None  # noqa: S101 - a model of ours has some
            sentences = given_sentences(utterances)
            references = utterances.description
        else:
            with _tokenizer(source) as tokenize:
                sentences = read_sentences(
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
        self, path: Path, options: Options, progress: Progress
    ) -> tuple[Listening, ListeningTest]:
        """What the F16 file says, and says again; where there are no recordings, it speaks them."""
        from valle_convert.network.converted import GgufNetwork

        n_threads = options.threads or os.cpu_count() or 1
        audience = self
        with GgufNetwork(path, n_threads=n_threads, adapters=options.adapters) as network:
            if options.sentences is not None:
                spoken = speak_references(
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
        with GgufNetwork(path, n_threads=n_others, adapters=options.adapters) as network:
            again = audience.test(network.model, others)
            repeat = again.listen(network, progress, "listening to F16 again")
        listening = Listening(
            baseline=baseline,
            repeat=repeat,
            repeat_how=f"seed {others.seed}, {n_others} thread{'s' * (n_others > 1)}",
            recordings=test.recordings_alone() if self.recogniser else None,
            recogniser=self.recogniser.command if self.recogniser else None,
            references=self.references,
            codec=self.codec.description.name,
            names=tuple(one.text or one.name for one in test.sentences),
            sounds=tuple(test.recordings[:N_CLIPS]),
        )
        return listening, test


@contextmanager
def _tokenizer(source: Source) -> Iterator[Callable[[str], list[int]]]:
    """Phonemes to the model's ids; of a source whose weights may not be there yet."""
    from valle_convert.tokenizer.compiled import TRUE_IDS_KEY
    from valle_convert.tokenizer.oracle import LlamaTokenizer

    true_ids = source.header.keys[TRUE_IDS_KEY]
    with LlamaTokenizer(source.path) as llama:
        yield lambda line: [
            true_ids[i] for i in llama.encode(line, add_special=True, parse_special=False)
        ]


def given_sentences(utterances: Utterances) -> list[Sentence]:
    """The utterances of a folder as sentences with recordings."""
    return [
        Sentence(path.stem, one.text, one.condition, one.response)
        for path, one in zip(utterances.files, utterances, strict=True)
    ]


def read_sentences(
    path: Path,
    model: Model,
    tokenize: Callable[[str], list[int]],
    voice: Path | None,
    codec: AudioCodec,
    prompt_seconds: float,
) -> list[Sentence]:
    """Texts, one a line, as sentences that nobody has spoken yet.

    Raises:
        InputError: the file cannot be read, or a text or the voice cannot be used.
        EnvironmentFault: a package is missing.
    """
    data = read_small_file(path, "list of sentences", _MAX_SENTENCES_BYTES, pipe=True)
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8; save it as UTF-8, one sentence a line.") from None
    texts = {f"{path}, line {i}": line.strip() for i, line in enumerate(lines, 1) if line.strip()}
    if len(texts) < 2:
        raise InputError(f"{path} has {len(texts)} sentences, where two or more are expected.")
    said = say_all([Recorded(Path(where), text) for where, text in texts.items()], model, tokenize)
    prompt = None if voice is None else voice_prompt(voice, model, codec, prompt_seconds)[0]
    nothing = np.zeros((0, model.config.n_levels), np.int64)
    return [
        Sentence(
            text,
            text,
            Condition(
                np.array(one.ids),
                model.languages.index(one.language) if model.has_table("language") else None,
                prompt,
                tone=0 if "tone" in model.config.capabilities else None,
            ),
            nothing,
        )
        for text, one in zip(texts.values(), said, strict=True)
    ]


def speak_references(
    network: Network,
    sentences: Sequence[Sentence],
    frame_rate: float,
    seed: int,
    ar_temperature: float,
    progress: Progress,
) -> list[Sentence]:
    """The sentences with what a network says as recordings, in the way it speaks by itself.

    Raises:
        InputError: it says nothing for one of them.
    """
    way = ways_of(network.model, ar_temperature)[-1]
    found = []
    with progress("speaking the references", len(sentences), "sentences") as advance:
        for n, sentence in enumerate(sentences):
            network.reset()
            codes = decode_speech(
                network,
                sentence.condition,
                way.options(round(_EXPECTED_SECONDS * frame_rate), frame_rate),
                np.random.default_rng((seed, len(sentences), n)),
            ).codes
            if not len(codes):
                raise InputError(
                    f"The F16 file says nothing for {sentence.text!r}, so that there is nothing to "
                    "hold other files against; give another --seed or leave the sentence out."
                )
            found.append(replace(sentence, codes=codes))
            advance(1)
    return found
