"""Train the miniature for some minutes, or continue the last run.

    python -m miniature.train build/miniature --minutes 60

The schedule goes by the share of the minutes that has been trained for, all runs together; to go
on, give the same folder and more minutes. In the folder are the corpus as codes (`corpus.npz`),
everything that resuming needs (`state.pt`), the losses (`log.jsonl`; those of the validation set
as `validation.<head>`) and `miniature.sft`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.nn import functional as F  # noqa: N812 - everybody's name for it
from tqdm import tqdm

from miniature import corpus
from miniature.network import LEVELS, Network, export
from miniature.world import WorldCodec
from valle_convert.audio.files import Audio
from valle_convert.families.v5.likelihood import TeacherForcedPass, teacher_forced_pass
from valle_convert.files import atomic_output
from valle_convert.model.inputs import Condition
from valle_convert.model.spec import BOS_PHONEME, EOS_PHONEME, Model
from valle_convert.tokenizer.choose import BUILT_IN

CODEC = Path(__file__).parent / "codec.safetensors"
ENGLISH = 0
_BATCH = 16
_TASKS = {"ar": 0.47, "nar": 0.20, "mask": 0.21, "len": 0.06, "stt": 0.06}
_NULL = 0.12
PROMPT_FRAMES = (18, 33)
#: At first only the shortest share of the utterances; all of them after a share of the time.
_SHORTEST_SHARE, _GROWING_SHARE = 0.3, 0.15
_PEAK_RATE, _FINAL_SHARE, _WARM_UP = 2e-3, 0.05, 100
_SAVE_SECONDS, _LOG_STEPS = 120.0, 50
_VALIDATION_STEPS, _N_VALIDATION = 500, 45


@dataclass(frozen=True)
class Spoken:
    """An utterance as ids and codes."""

    phonemes: NDArray[np.int64]  # with <bos> and </eos>
    codes: NDArray[np.int32]  # [frames, levels]
    voice: str


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--minutes", type=float, required=True)
    arguments.add_argument("--utterances", type=int, default=3000)
    arguments.add_argument("--seed", type=int, default=1)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    validation, _ = load_corpus(
        given.folder / "validation.npz", "validation", given.seed, _N_VALIDATION
    )
    spoken, digest = load_corpus(
        given.folder / "corpus.npz", "training", given.seed, given.utterances
    )
    print(f"{len(spoken)} utterances, SHA-256 {digest}", flush=True)
    Trainer(spoken, digest, given.folder, given.seed, given.minutes * 60, validation).run()


def tokenize(phonemes: str) -> NDArray[np.int64]:
    """Ids of the built-in vocabulary, with `<bos>` and `</eos>`."""
    ids = _vocabulary().encode(phonemes, add_special_tokens=False).ids
    return np.array([BOS_PHONEME, *ids, EOS_PHONEME], np.int64)


@cache
def _vocabulary() -> Tokenizer:
    return Tokenizer.from_file(str(BUILT_IN))


def encode(utterances: Sequence[corpus.Utterance], codec: WorldCodec) -> list[Spoken]:
    return [
        Spoken(
            tokenize(one.phonemes),
            codec.encode(Audio(one.samples, corpus.SAMPLE_RATE)),
            one.voice,
        )
        for one in utterances
    ]


def load_corpus(path: Path, part: str, seed: int, n: int) -> tuple[list[Spoken], str]:
    """The utterances of `corpus.to_be_said` and a digest; they are made if the file is missing.

    The digest is SHA-256 of every utterance's `corpus.digest`, one after the other.
    """
    if not path.exists():
        chunks = corpus.to_be_said(part, seed, n)
        spoken, digest = [], hashlib.sha256()
        with ProcessPoolExecutor(
            os.cpu_count(), multiprocessing.get_context("spawn"), max_tasks_per_child=1
        ) as pool:
            for said, digests in tqdm(
                pool.map(_say, chunks), f"speaking ({part})", len(chunks), unit="chunk"
            ):
                spoken += said
                digest.update(digests)
        with atomic_output(path, force=True) as file:
            np.savez_compressed(
                file,
                phonemes=np.concatenate([one.phonemes for one in spoken]),
                codes=np.concatenate([one.codes for one in spoken]),
                sizes=np.array([(len(one.phonemes), len(one.codes)) for one in spoken]),
                voices=np.array([one.voice for one in spoken]),
                digest=np.array(digest.hexdigest()),
                made_with=np.array((seed, n)),
            )
    with np.load(path) as file:
        if tuple(file["made_with"]) != (seed, n):
            raise SystemExit(
                f"{path} is of another seed or size; delete it, or name another folder"
            )
        ends = file["sizes"].cumsum(0)[:-1]
        phonemes, codes = (
            np.split(file["phonemes"], ends[:, 0]),
            np.split(file["codes"], ends[:, 1]),
        )
        voices, hexdigest = file["voices"].tolist(), str(file["digest"])
    return [Spoken(*one) for one in zip(phonemes, codes, voices, strict=True)], hexdigest


def _say(pairs: Sequence[tuple[str, str]]) -> tuple[list[Spoken], bytes]:
    """Speak one chunk in a worker process."""
    torch.set_num_threads(1)
    utterances = [corpus.speak(text, voice) for text, voice in pairs]
    digests = b"".join(corpus.digest(one) for one in utterances)
    return encode(utterances, WorldCodec(CODEC)), digests


def example(
    model: Model,
    head: str,
    said: Spoken,
    prompt: NDArray[np.int32] | None,
    rng: np.random.Generator,
) -> TeacherForcedPass:
    """A training example of a head; without a prompt, of the null condition."""
    condition = Condition(said.phonemes, ENGLISH, prompt)
    if prompt is None:
        condition = condition.null()
    return teacher_forced_pass(model, head, condition, said.codes, rng)


class Trainer:
    """A training that can be continued."""

    def __init__(
        self,
        spoken: Sequence[Spoken],
        digest: str,
        folder: Path,
        seed: int,
        budget: float,
        validation: Sequence[Spoken] = (),
    ) -> None:
        self._spoken, self._digest = spoken, digest
        self._folder, self._budget, self._seed = folder, budget, seed
        self._state = folder / "state.pt"
        self._network = Network(seed)
        self._optimizer = torch.optim.AdamW(
            self._network.parameters(), lr=_PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01
        )
        self._elapsed, self.step = 0.0, 0
        if self._state.exists():
            self._resume()
        self._rng = np.random.default_rng((seed, self.step))
        by_length = sorted(spoken, key=lambda one: len(one.codes))
        self._by_length = by_length
        self._of_voice: dict[str, list[Spoken]] = defaultdict(list)
        for one in spoken:
            self._of_voice[one.voice].append(one)
        self._validation = self._examples_to_validate(validation)

    def run(self) -> None:
        """Train, log and save until the time is up."""
        sums: dict[str, list[float]] = defaultdict(list)
        saved = began = time.monotonic()
        before = self._elapsed
        while self._elapsed < self._budget:
            for head, found in self._train_step():
                sums[head].append(found)
            self.step += 1
            self._elapsed = before + time.monotonic() - began
            if self.step % _LOG_STEPS == 0:
                self._log(sums)
                sums.clear()
            if self.step % _VALIDATION_STEPS == 0 and self._validation:
                self._log(self.validate(), "validation.")
            if time.monotonic() - saved > _SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        self.save()

    def _log(self, found: Mapping[str, Sequence[float]], prefix: str = "") -> None:
        """Mean loss by head."""
        means = {prefix + head: round(float(np.mean(found[head])), 4) for head in sorted(found)}
        line = json.dumps({"step": self.step, "seconds": round(self._elapsed), **means})
        print(line, flush=True)
        with (self._folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def _examples_to_validate(self, spoken: Sequence[Spoken]) -> list[TeacherForcedPass]:
        """Validation examples of every task and utterance, always the same, sorted by length."""
        rng = np.random.default_rng(self._seed)
        tasks = [task for task in _TASKS if task != "nar"]
        tasks += [f"nar.{level}" for level in range(1, LEVELS)]
        found = []
        for said in sorted(spoken, key=lambda one: len(one.codes)):
            prompt = self._of_voice[said.voice][0].codes[: PROMPT_FRAMES[1] - 1]
            found += [example(self._network.model, task, said, prompt, rng) for task in tasks]
        return found

    def validate(self) -> dict[str, list[float]]:
        """Losses by head on held-out sentences, in nats."""
        found: dict[str, list[float]] = defaultdict(list)
        self._network.eval()
        with torch.no_grad():
            for i in range(0, len(self._validation), _BATCH):
                batch = self._validation[i : i + _BATCH]
                for one, loss in zip(batch, _losses(self._network, batch), strict=True):
                    found[one.head].append(loss.item())
        self._network.train()
        return found

    def _train_step(self) -> list[tuple[str, float]]:
        done = self._elapsed / self._budget
        rate = _PEAK_RATE * min(1.0, (self.step + 1) / _WARM_UP)
        rate *= _FINAL_SHARE + (1 - _FINAL_SHARE) * (1 + math.cos(math.pi * done)) / 2
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        grown = min(1.0, done / _GROWING_SHARE)
        examples = self._batch(_SHORTEST_SHARE + (1 - _SHORTEST_SHARE) * grown)
        with torch.autocast("cpu", torch.bfloat16):  # 0.73 of the time of float32
            losses = _losses(self._network, examples)
        self._optimizer.zero_grad()
        torch.autograd.backward(torch.stack(losses).mean())
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
        self._optimizer.step()
        return [(one.head, loss.item()) for one, loss in zip(examples, losses, strict=True)]

    def _batch(self, share: float) -> list[TeacherForcedPass]:
        """Examples of all tasks with similar lengths, from the shortest share."""
        rng = self._rng
        n = round(share * len(self._by_length))
        around = min(n, 20 * _BATCH)
        start = int(rng.integers(0, n - around + 1))
        found = []
        for i in rng.integers(start, start + around, _BATCH):
            said = self._by_length[i]
            task = str(rng.choice(list(_TASKS), p=list(_TASKS.values())))
            if task == "nar":
                task = f"nar.{rng.integers(1, LEVELS)}"
            null = rng.random() < _NULL and task not in {"len", "stt"}
            prompt = None if null else self._prompt(said)
            found.append(example(self._network.model, task, said, prompt, rng))
        return found

    def _prompt(self, said: Spoken) -> NDArray[np.int32]:
        """Part of another utterance in the same voice."""
        others = self._of_voice[said.voice]
        other = said
        while other is said:
            other = others[int(self._rng.integers(len(others)))]
        n = min(int(self._rng.integers(*PROMPT_FRAMES)), len(other.codes))
        start = int(self._rng.integers(len(other.codes) - n + 1))
        return other.codes[start : start + n]

    def _resume(self) -> None:
        state = torch.load(self._state, weights_only=True)
        if state["digest"] != self._digest:
            raise SystemExit(f"{self._state} is of another corpus; name another folder")
        self._network.load(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._elapsed, self.step = state["elapsed"], state["step"]

    def save(self) -> None:
        state = {
            "digest": self._digest,
            "weights": self._network.named_weights(),
            "optimizer": self._optimizer.state_dict(),
            "elapsed": self._elapsed,
            "step": self.step,
        }
        with atomic_output(self._state, force=True) as file:
            torch.save(state, file)
        vocabulary = json.loads(BUILT_IN.read_text())["model"]["vocab"]
        stats = {
            "global_step": self.step,
            "micro_step": self.step,
            "global_samples": self.step * _BATCH,
            "tokens_processed": 0,
        }
        export(self._network, self._folder / "miniature.sft", vocabulary, stats)


def _losses(network: Network, examples: Sequence[TeacherForcedPass]) -> list[torch.Tensor]:
    return [
        F.cross_entropy(logits.float(), torch.from_numpy(one.targets))
        for logits, one in zip(network(examples), examples, strict=True)
    ]


if __name__ == "__main__":
    main()
