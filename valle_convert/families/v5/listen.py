"""How versions 5 and 6 take a listening test; see `listening.listen.ListeningTest`."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from valle_convert.audio.codec import AudioCodec
from valle_convert.audio.utterances import Recorded
from valle_convert.audio.voice import PROMPT_SECONDS
from valle_convert.decode.ar import append_codes
from valle_convert.decode.batch import Batch
from valle_convert.decode.greedy import decode_transcript
from valle_convert.decode.options import DecodeOptions, Mode, SamplingOptions
from valle_convert.decode.speech import modes_of, speech_steps
from valle_convert.errors import InputError
from valle_convert.families.v5.likelihood import negative_log_likelihood, teacher_forced_passes
from valle_convert.families.v5.recordings import say_all
from valle_convert.files import decoded, read_small_file
from valle_convert.gguf_file.read import GgufFile
from valle_convert.listening.listen import LISTENING, NLL, PHONEMES, Counted, Sentence
from valle_convert.listening.measures import edit_distance
from valle_convert.model.inputs import Condition
from valle_convert.model.spec import Codes, Model
from valle_convert.network.protocol import Network
from valle_convert.progress import Progress
from valle_convert.speech.phonemes import phoneme_tokenizer
from valle_convert.speech.recordings import ModelCodec
from valle_convert.wording import plural

#: Heads without codes, which are not in the mean over all codes.
WITHOUT_CODES = ("len", "stt")
_MAX_SENTENCES_BYTES = 1 << 20
_AR_TEMPERATURE = 0.6
#: The limit of a way's speech: this many times the recording's length, and a second more.
_MOST = 2
#: The expected length of a sentence without a recording, seconds.
_EXPECTED_SECONDS = 5.0

#: A mode, and a temperature.
Way = tuple[Mode, float]


def ways_of(model: Model) -> dict[str, Way]:
    """How a model can speak, by name; demasking starts at temperature 1, which falls."""
    return {
        f"{mode} {'sampled' if temperature else 'greedy'}": (mode, temperature)
        for mode in sorted(modes_of(model))
        for temperature in (0.0, _AR_TEMPERATURE if mode == "ar" else 1.0)
    }


def measure_codes(network: Network, sentence: Sentence, n: int) -> Iterator[Counted]:
    """The likelihood of the n-th recording's codes by head, and the errors of its transcript."""
    condition, codes = sentence.condition, np.asarray(sentence.codes, np.int32)
    rng = np.random.default_rng(n)  # the masks are the same for every model and seed
    for one in teacher_forced_passes(network.model, condition, codes, rng):
        nats = negative_log_likelihood(network, one)
        yield NLL.name, one.head, float(nats.sum()), len(nats)
        if one.head == "stt":
            true = np.asarray(condition.phonemes)[1:-1].tolist()
            most = 2 * len(true) + 10
            heard = decode_transcript(network, codes, condition.language, most).codes.tolist()
            yield PHONEMES.name, one.head, edit_distance(heard, true), len(true)


def say(
    network: Network,
    sentences: Sequence[Sentence],
    way: Way,
    seed: tuple[int, ...],
    frame_rate: float,
) -> Iterator[Codes]:
    """The codes of all sentences, some side by side; each has its own random generator."""
    network.make_room(LISTENING.n_parallel)
    batch = Batch(partial(append_codes, network), LISTENING.n_parallel)
    mode, temperature = way
    decodings = []
    for n, one in enumerate(sentences):
        seconds = len(one.codes) / frame_rate or _EXPECTED_SECONDS
        options = DecodeOptions(mode, SamplingOptions(temperature), max_seconds=_MOST * seconds + 1)
        rng = np.random.default_rng((*seed, n))
        decodings.append(batch.add(speech_steps(network, one.condition, options, rng, frame_rate)))
    for decoding in decodings:
        while not decoding.is_done:
            batch.step()
        yield decoding.result().codes


def given_sentences(examples: Any) -> list[Sentence]:  # noqa: ANN401 - quantize.Examples
    """The utterances of a folder as sentences with recordings."""
    return [
        Sentence(path.stem, one.text, one.condition, one.response)
        for path, one in zip(examples.files, examples, strict=True)
    ]


def read_sentences(
    path: Path, model: Model, file: GgufFile, voice: Path | None, codec: AudioCodec
) -> list[Sentence]:
    """Texts, one a line, as sentences without recordings."""
    data = read_small_file(path, "list of sentences", _MAX_SENTENCES_BYTES, pipe=True)
    try:
        lines = decoded(data).splitlines()
    except ValueError:
        raise InputError(f"{path} is not UTF-8; save it as UTF-8, one sentence a line.") from None
    texts = {f"{path}, line {i}": line.strip() for i, line in enumerate(lines, 1) if line.strip()}
    if len(texts) < 2:
        raise InputError(f"{path} has {plural(len(texts), 'sentence')}, expected two or more.")
    recorded = [Recorded(Path(where), text) for where, text in texts.items()]
    with ExitStack() as opened:
        said = say_all(recorded, model, phoneme_tokenizer(file, opened)[0])
    prompt = None
    if voice is not None:
        prompt, _ = ModelCodec(model, codec).prompt(voice, PROMPT_SECONDS, str(voice))
    nothing = np.zeros((0, model.config.n_levels), np.int64)
    return [
        Sentence(
            text,
            text,
            Condition.of(model, one.rows, prompt, one.language_id or 0),
            nothing,
        )
        for text, one in zip(texts.values(), said, strict=True)
    ]


def speak_recordings(
    network: Network, sentences: Sequence[Sentence], frame_rate: float, progress: Progress
) -> list[Sentence]:
    """The sentences with a network's own speech as recordings."""
    *_, way = ways_of(network.model).values()
    found, seed = [], (0, len(sentences))
    with progress("speaking the recordings", len(sentences), "sentences") as advance:
        spoken = say(network, sentences, way, seed, frame_rate)
        for sentence, codes in zip(sentences, spoken, strict=True):
            if not len(codes):
                raise InputError(
                    f"The F16 file says nothing for {sentence.text!r}, so there is nothing to "
                    "compare other files with; leave the sentence out."
                )
            found.append(replace(sentence, codes=codes))
            advance(1)
    return found
