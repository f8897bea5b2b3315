"""Sentences for listening tests: with recordings, or texts that the model speaks first."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from valle_convert.audio.codec import AudioCodec
from valle_convert.audio.utterances import Recorded
from valle_convert.audio.voice import PROMPT_SECONDS
from valle_convert.decode.speech import decode_speech
from valle_convert.errors import InputError
from valle_convert.families.v5.recordings import say_all
from valle_convert.files import decoded, read_small_file
from valle_convert.listening.listen import Sentence, ways_of
from valle_convert.model.inputs import Condition
from valle_convert.model.spec import Model
from valle_convert.network.protocol import Network
from valle_convert.progress import Progress
from valle_convert.speech.phonemes import Tokenize
from valle_convert.speech.recordings import Recordings
from valle_convert.wording import plural

_MAX_SENTENCES_BYTES = 1 << 20
#: The expected length of a sentence before it is spoken, seconds; the limit is twice that plus one.
_EXPECTED_SECONDS = 5.0


def given_sentences(examples: Any) -> list[Sentence]:  # noqa: ANN401 - quantize.Examples
    """The utterances of a folder as sentences with recordings."""
    return [
        Sentence(path.stem, one.text, one.condition, one.response)
        for path, one in zip(examples.files, examples, strict=True)
    ]


def read_sentences(
    path: Path,
    model: Model,
    tokenize: Tokenize,
    voice: Path | None,
    codec: AudioCodec,
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
    said = say_all([Recorded(Path(where), text) for where, text in texts.items()], model, tokenize)
    prompt = None
    if voice is not None:
        prompt, _ = Recordings(model, codec).prompt(voice, PROMPT_SECONDS, str(voice))
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


def speak_references(
    network: Network,
    sentences: Sequence[Sentence],
    frame_rate: float,
    progress: Progress,
) -> list[Sentence]:
    """The sentences with a network's own speech as recordings."""
    way = ways_of(network.model)[-1]
    found = []
    with progress("speaking the references", len(sentences), "sentences") as advance:
        for n, sentence in enumerate(sentences):
            codes = decode_speech(
                network,
                sentence.condition,
                way.options(_EXPECTED_SECONDS),
                np.random.default_rng((0, len(sentences), n)),
                frame_rate,
            ).codes
            if not len(codes):
                raise InputError(
                    f"The F16 file says nothing for {sentence.text!r}, so there is nothing to "
                    "compare other files with; leave the sentence out."
                )
            found.append(replace(sentence, codes=codes))
            advance(1)
    return found
