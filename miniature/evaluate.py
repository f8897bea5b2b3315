"""Whether a model says what it was asked to, in sentences that it was never trained on.

    python -m miniature.evaluate miniature/miniature.sft build/demo/*.gguf --json quality.json

Three measures: the negative log likelihood of the true codes (teacher forced, by head); retrieval:
of N different sentences, is the one that was asked for the nearest to what was said, by dynamic
time warping over the spectral envelopes; and the phonemes that `transcribe` gets wrong.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniature import corpus
from miniature.train import CODEC, ENGLISH, PROMPT_FRAMES, Spoken, encode, example, tokenize
from valle_convert.audio import SavedCodes
from valle_convert.audio.files import Audio
from valle_convert.audio.world import WorldCodec, analyse
from valle_convert.checkpoint import read_checkpoint
from valle_convert.decode import SamplingOptions
from valle_convert.decode.transcribe import TranscribeOptions, decode_transcript
from valle_convert.gguf_file.read import GgufFile
from valle_convert.model.families import describe
from valle_convert.model.inputs import assemble
from valle_convert.network.converted import GgufNetwork
from valle_convert.network.protocol import Network
from valle_convert.network.reference import ReferenceNetwork
from valle_convert.speech.results import SpeakOptions
from valle_convert.speech.speaker import Speaker

Floats = NDArray[np.float32]

#: Coefficients of the envelope that tell sounds apart: without the loudness, and the finest.
_SHAPE = slice(1, 21)
_N_ENVELOPE = 32
TEMPERATURE = 0.6
PROMPT_TEXT = "Good morning everybody."


def main() -> None:
    """Measure every file, and print a table."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    arguments.add_argument("models", type=Path, nargs="+", help="checkpoints or converted files")
    arguments.add_argument("--sentences", type=int, default=20)
    arguments.add_argument("--seed", type=int, default=99)
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--markdown", type=Path)
    given = arguments.parse_args()
    test = Test(given.seed, given.sentences)
    found: dict[str, dict[str, object]] = {"codec alone": {"retrieval": test.codec_alone()}}
    print("codec alone", json.dumps(found["codec alone"]), flush=True)
    for path in given.models:
        with opened(path) as network:
            found[path.name] = test.measure(network)
        print(path.name, json.dumps(found[path.name]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.markdown:
        given.markdown.write_text(as_markdown(found, test.texts), encoding="utf-8")


def as_markdown(found: dict[str, Any], texts: Sequence[str]) -> str:
    """A page with what `Test.measure` found of each file."""
    codec = found["codec alone"]["retrieval"]
    models = {name: one for name, one in found.items() if name != "codec alone"}
    heads = list(next(iter(models.values()))["nll"])
    lines = [
        "# Quality of the miniature, by what is said",
        "",
        f"Written by `python -m miniature.evaluate --markdown`, on {len(texts)} sentences that no",
        "training has seen, a fifth of them with words that it has not seen either. The checkpoint",
        "is computed by PyTorch, the .gguf files by stock llama.cpp.",
        "",
        "* Retrieval: how often the recording of the asked sentence, among all of them, is the",
        "  nearest to what was said (dynamic time warping over spectral envelopes), with the 95 %",
        f"  interval of so few sentences. AR at temperature {TEMPERATURE}, NAR-len at defaults.",
        f"  The recordings through the codec alone: {codec:.2f}.",
        "* NLL: nats a true code, everything before it given. 5.55 is chance for a codebook.",
        "* PER: edits a phoneme id of what `transcribe` hears in the recordings.",
        "",
        "| file | AR said right | NAR-len said right | PER | " + " | ".join(heads) + " |",
        "|---|---|---|---:|" + "---:|" * len(heads),
    ]
    for name, one in models.items():
        said = [_with_interval(one[f"retrieval {mode}"], len(texts)) for mode in ("ar", "nar-len")]
        nll = [f"{one['nll'][head]:.3f}" for head in heads]
        cells = [name, *said, f"{one['phoneme error rate']:.2f}", *nll]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _with_interval(share: float, n: int) -> str:
    """With Wilson's interval at 95 %."""
    z = 1.96
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    return f"{share:.2f} ({max(0.0, centre - half):.2f} to {min(1.0, centre + half):.2f})"


@contextmanager
def opened(path: Path) -> Iterator[Network]:
    """A checkpoint on PyTorch, or a converted file on stock llama.cpp; one thread."""
    if path.suffix == ".gguf":
        with GgufNetwork(GgufFile(path), n_threads=1) as network:
            yield network
    else:
        checkpoint = read_checkpoint(path)
        yield ReferenceNetwork(checkpoint.tensors, describe(checkpoint))


class Test:
    """Held-out sentences with their recordings; a fifth of them has words never trained on.

    Args:
        seed: which sentences.
        n: how many.
        voice: one of the corpus.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, seed: int, n: int, voice: str = "plain") -> None:
        n_unseen = n // 5
        self.texts = corpus.held_out_texts(seed, n - n_unseen)
        self.texts += corpus.held_out_texts(seed, n_unseen, unseen=True)
        self._codec = WorldCodec(CODEC)
        utterances = [corpus.speak(text, voice) for text in self.texts]
        self.spoken = encode(utterances, self._codec)
        settings = self._codec.settings
        self.originals = [analyse(one.samples, settings) for one in utterances]
        codes = encode([corpus.speak(PROMPT_TEXT, voice)], self._codec)[0].codes
        self.prompt = codes[: PROMPT_FRAMES[1] - 1]

    def measure(self, network: Network) -> dict[str, object]:
        """All measures of one model."""
        found: dict[str, object] = {
            "nll": {k: round(v, 4) for k, v in losses(network, self.spoken).items()}
        }
        found["retrieval ar"] = self.said_right(network, "ar")
        found["retrieval nar-len"] = self.said_right(network, "nar-len")
        found["phoneme error rate"] = round(self.phoneme_errors(network), 4)
        return found

    def codec_alone(self) -> float:
        """Retrieval of the recordings themselves, encoded and decoded."""
        codec = self._codec
        again = [analyse(codec.decode(one.codes).samples, codec.settings) for one in self.spoken]
        return share_right(again, self.originals)

    def said_right(self, network: Network, mode: str) -> float:
        """Retrieval of what the model says."""
        speaker = Speaker(network, tokenize=lambda one: tokenize(one).tolist(), codec=self._codec)
        voice = SavedCodes(self.prompt, self._codec.description, self._codec.codebook_size)
        said = []
        for i, text in enumerate(self.texts):
            options = SpeakOptions(
                mode="ar" if mode == "ar" else "nar-len",
                language="en",
                sampling=SamplingOptions(temperature=TEMPERATURE if mode == "ar" else 1.0),
                prompt_seconds=len(self.prompt) / self._codec.description.frame_rate,
                max_seconds=3.0,
                seed=i,
            )
            sound = speaker.speak(text, voice, options).audio
            assert isinstance(sound, Audio)  # noqa: S101 - there is a codec
            said.append(analyse(sound.samples, self._codec.settings))
        return share_right(said, self.originals)

    def phoneme_errors(self, network: Network) -> float:
        """Edits for each phoneme of the texts, in what is transcribed of the recordings."""
        edits = total = 0
        for one in self.spoken:
            network.reset()
            heard = decode_transcript(network, one.codes, ENGLISH, TranscribeOptions(80)).phonemes
            true = one.phonemes[1:-1].tolist()
            edits += edit_distance(list(heard), true)
            total += len(true)
        return edits / total


def losses(network: Network, spoken: Sequence[Spoken], seed: int = 0) -> dict[str, float]:
    """Mean negative log likelihood (nats) of a true code by head, the codes before it given.

    Each utterance has the one before it of the same voice as prompt.
    """
    rng = np.random.default_rng(seed)
    levels = range(1, network.model.config.n_levels)
    tasks = ["ar", *(f"nar.{level}" for level in levels), "mask", "len", "stt"]
    found: dict[str, list[float]] = defaultdict(list)
    last = {one.voice: one for one in spoken}
    for said in spoken:
        prompt = last[said.voice].codes[: PROMPT_FRAMES[1] - 1]
        last[said.voice] = said
        for task in tasks:
            one = example(network.model, task, said, prompt, rng)
            network.reset()
            inputs = assemble(network.model, one.segments, network.look_up)
            rows = np.flatnonzero(one.targets >= 0)
            logits = network.step(
                inputs.embeddings, inputs.positions, head=task, outputs=one.first + rows
            ).astype(np.float64)
            high = logits.max(1)
            total = high + np.log(np.exp(logits - high[:, None]).sum(1))
            found[task] += (total - logits[np.arange(len(rows)), one.targets[rows]]).tolist()
    return {head: float(np.mean(values)) for head, values in found.items()}


def nearest(said: Floats, originals: Sequence[Floats]) -> int:
    """Which recording is the nearest to what was said, both as frames of `analyse`."""
    return int(np.argmin([warped_distance(_shape(said), _shape(one)) for one in originals]))


def share_right(said: Sequence[Floats], originals: Sequence[Floats]) -> float:
    """Of so many sentences, the share whose own recording is the nearest."""
    return float(np.mean([nearest(one, originals) == i for i, one in enumerate(said)]))


def warped_distance(a: Floats, b: Floats) -> float:
    """Dynamic time warping of rows [n, d] and [m, d]: the mean distance along the best path."""
    distance = np.sqrt(((a[:, None] - b[None]) ** 2).sum(2)).tolist()
    above = [0.0] + [float("inf")] * len(b)
    for row in distance:
        current = [float("inf")]
        for j, here in enumerate(row):
            current.append(here + min(above[j], above[j + 1], current[j]))
        above = current
    return above[-1] / (len(a) + len(b))


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Levenshtein's."""
    above = list(range(len(b) + 1))
    for i, one in enumerate(a, start=1):
        current = [i]
        for j, other in enumerate(b):
            current.append(min(above[j] + (one != other), above[j + 1] + 1, current[j] + 1))
        above = current
    return above[-1]


def _shape(frames: Floats) -> Floats:
    return frames[:, -_N_ENVELOPE:][:, _SHAPE]


if __name__ == "__main__":
    main()
