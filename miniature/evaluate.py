"""Measure how well a model speaks held-out sentences.

    python -m miniature.evaluate miniature/miniature.sft build/demo/*.gguf --csv quality.csv
    python -m miniature.evaluate --write-data build/held-out    # for `evaluate --listen --data`

Measured as `evaluate --listen` does, with the recordings themselves (and not what the codec makes
of them) to compare speech with.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import valle_convert
from miniature import corpus
from miniature.train import CODEC, ENGLISH, PROMPT_FRAMES, encode
from miniature.world import WorldCodec
from valle_convert.audio.files import Audio
from valle_convert.families.v5 import listen
from valle_convert.listening.listen import (
    EVERYWHERE,
    MEASURES,
    Listened,
    ListeningTest,
    Recogniser,
    Sentence,
)
from valle_convert.listening.measures import Estimate
from valle_convert.model.inputs import Condition
from valle_convert.quantize.tables import means_of

PROMPT_TEXT = "Good morning everybody."


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    arguments.add_argument("models", type=Path, nargs="*", help="checkpoints or converted files")
    arguments.add_argument("--sentences", type=int, default=20)
    arguments.add_argument("--seed", type=int, default=99)
    arguments.add_argument("--voice", choices=corpus.VOICES, default="plain")
    arguments.add_argument("--asr", help="a recogniser's command")
    arguments.add_argument("--csv", type=Path)
    arguments.add_argument("--write-data", type=Path, help="the sentences, for --data")
    given = arguments.parse_args()
    sentences = held_out(given.seed, given.sentences, given.voice)
    if given.write_data:
        write_data(sentences, given.write_data)
    recogniser = Recogniser(given.asr) if given.asr else None
    found: list[tuple[str, Listened]] = []
    for path in given.models:
        with opened(path) as network:
            test = ListeningTest(sentences, WorldCodec(CODEC), listen, recogniser=recogniser)
            if not found:
                found.append(("codec alone", test.recordings_alone()))
            found.append((path.name, test.listen(network)))
        header, rows = means_of(found[-1:])
        print(dict(zip(header, rows[0], strict=True)), flush=True)
    if given.csv:
        with given.csv.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows_of(found))


def held_out(seed: int, n: int, voice: str = "plain") -> list[Sentence]:
    """Sentences with recordings; a fifth of them has words that are not in the training set."""
    codec = WorldCodec(CODEC)
    n_unseen = n // 5
    texts = corpus.held_out_texts(seed, n - n_unseen)
    texts += corpus.held_out_texts(seed, n_unseen, unseen=True) if n_unseen else []
    utterances = [corpus.speak(text, voice) for text in texts]
    prompt = encode([corpus.speak(PROMPT_TEXT, voice)], codec)[0].codes[: PROMPT_FRAMES[1] - 1]
    return [
        Sentence(
            said.text,
            said.text,
            Condition(spoken.phonemes, ENGLISH, prompt),
            spoken.codes,
            Audio(said.samples, corpus.SAMPLE_RATE),
        )
        for said, spoken in zip(utterances, encode(utterances, codec), strict=True)
    ]


def write_data(sentences: Sequence[Sentence], folder: Path) -> None:
    """Write one file per sentence, for `evaluate --data`."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, one in enumerate(sentences):
        prompt = one.condition.prompt
        assert prompt is not None  # noqa: S101 - `held_out` gives one
        np.savez(
            folder / f"{i:04}.npz",
            phonemes=one.condition.phonemes,
            response=one.codes,
            prompt=prompt,
            language=np.array(one.condition.language),
            text=np.array(one.text),
        )


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a checkpoint in PyTorch or a converted file in llama.cpp, with one thread."""
    if path.suffix == ".gguf":
        with valle_convert.open_network(path, n_threads=1) as network:
            yield network
    else:
        plan = valle_convert.plan_conversion(path)
        yield plan.family.reference(plan.description.tensors, plan.description)


def rows_of(found: Sequence[tuple[str, Listened]]) -> Iterator[list[str]]:
    """Mean and 95 % interval of each measure by place; for totals also the difference."""
    yield "file measure place mean low high difference difference_low difference_high".split()
    base = found[1][1]
    for name, file in found:
        tallies = [
            (measure, place, tally)
            for measure, places in file.tallies.items()
            for place, tally in places.items()
        ]
        for measure, place, tally in tallies:
            row = [name, MEASURES[measure].title, place, *_numbers(tally.estimate())]
            other = base.total(MEASURES[measure])
            if place == EVERYWHERE and other and other is not tally:
                row += _numbers(tally.minus(other))
            yield row


def _numbers(estimate: Estimate) -> list[str]:
    return [f"{number:.3f}" for number in (estimate.mean, estimate.low, estimate.high)]


if __name__ == "__main__":
    main()
