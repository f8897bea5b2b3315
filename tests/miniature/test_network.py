"""What is trained is what the converter reads: the same logits, and losses that can fall."""

import json
from collections import defaultdict
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import PROJECT, open_reference

from miniature import corpus
from miniature.network import Network, export
from miniature.train import ENGLISH, Spoken, Trainer, encode, example
from miniature.world import WorldCodec
from valle_convert.checkpoint import read_checkpoint
from valle_convert.families.v5.likelihood import negative_log_likelihood, teacher_forced_passes
from valle_convert.model.inputs import Condition, assemble
from valle_convert.tokenizer.choose import BUILT_IN

TASKS = ("ar", "nar.1", "nar.3", "mask", "len", "stt")
VOCABULARY = json.loads(BUILT_IN.read_text(encoding="utf-8"))["model"]["vocab"]


@pytest.fixture(scope="module")
def spoken() -> list[Spoken]:
    codec = WorldCodec(PROJECT / "miniature" / "codec.safetensors")
    return encode(list(corpus.training_set(2, 8)), codec)


def test_its_logits_are_the_converters(spoken: list[Spoken], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    network = Network(5).eval()
    with torch.no_grad():  # as the file has them
        for name, value in network.named_weights().items():
            network.weight(name).copy_(value.half().float() + 0.25 * name.endswith("bias"))
    export(network, tmp_path / "net.sft", VOCABULARY, {"global_step": 1})
    reference = open_reference(tmp_path / "net.sft")
    assert reference.model == network.model
    rng = np.random.default_rng(0)
    examples = [
        example(network.model, task, spoken[i], spoken[i - 2].codes[:20] if i % 4 else None, rng)
        for i, task in enumerate(TASKS)
    ]
    with torch.inference_mode():
        batch = network(examples)
    for one, logits in zip(examples, batch, strict=True):
        reference.forget(0)
        inputs = assemble(reference.model, one.segments, reference.look_up)
        outputs = slice(-one.n_outputs, None)
        expected = reference.step(
            inputs.embeddings, inputs.positions, head=one.head, outputs=outputs
        )[one.among]
        np.testing.assert_allclose(logits.numpy(), expected, rtol=0, atol=1e-5, err_msg=one.head)


def test_it_learns_and_goes_on_where_it_was(
    spoken: list[Spoken], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    # A clock of its own, by which a step takes two seconds.
    monkeypatch.setattr("miniature.train.time", SimpleNamespace(monotonic=count().__next__))
    first = Trainer(spoken, "digest", tmp_path, 1, 12.0)
    first.save()
    before = losses_of(tmp_path / "miniature.sft", spoken)
    first.run()
    second = Trainer(spoken, "digest", tmp_path, 1, 24.0)
    assert second.step == first.step > 0
    second.run()
    assert second.step > first.step
    checkpoint = read_checkpoint(tmp_path / "miniature.sft")
    assert checkpoint.stats["global_step"] == second.step
    after = losses_of(tmp_path / "miniature.sft", spoken)
    assert after["ar"] < before["ar"]
    assert after["stt"] < before["stt"]
    with pytest.raises(SystemExit, match="another corpus"):
        Trainer(spoken, "other", tmp_path, 1, 24.0)


def losses_of(path: Path, spoken: list[Spoken]) -> dict[str, float]:
    network = open_reference(path)
    found = defaultdict(list)
    for i, one in enumerate(spoken):
        condition = Condition(one.phonemes, ENGLISH, spoken[i - 2].codes[:20])
        for one_pass in teacher_forced_passes(
            network.model, condition, one.codes, np.random.default_rng(i)
        ):
            found[one_pass.head].append(negative_log_likelihood(network, one_pass).mean())
    return {head: float(np.mean(values)) for head, values in found.items()}
