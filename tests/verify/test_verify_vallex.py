"""`verify` of VALL-E X: nothing right fails, nothing wrong passes."""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_vallex import VallexShape, vallex_state
from support import GOLDEN_VALLEX, Convert, golden_checkpoint

from valle_convert import plan_conversion, read_checkpoint, write_gguf
from valle_convert.families.bundle import open_bundle
from valle_convert.families.family import Choices
from valle_convert.families.vallex import facts
from valle_convert.families.vallex.composed import Rows, VallexText
from valle_convert.families.vallex.facts import Net
from valle_convert.families.vallex.reference import VallexReference
from valle_convert.network.arithmetic import Arithmetic
from valle_convert.verify.logits import Yardstick, check_logits
from valle_convert.verify.run import verify, verify_path

CHECKPOINT = golden_checkpoint(GOLDEN_VALLEX)


@pytest.mark.parametrize("largest", [20.0, 300.0, 700.0])
def test_a_large_weight_costs_no_more_than_its_smaller_factor(
    largest: float, tmp_path: Path
) -> None:
    state = vallex_state(VallexShape(levels=3))
    state["nar_decoder.layers.1.linear1.bias"][3] = largest
    state["ar_decoder.layers.0.linear1.weight"][3, 5] = -largest
    torch.save({"model": state, "nhead": 4}, tmp_path / "large.pt")
    checkpoint = read_checkpoint(tmp_path / "large.pt")
    for out_type in ("f32", "f16"):
        plan = plan_conversion(checkpoint, Choices(out_type))
        assert plan.model.activation_factor * largest < 65504
        write_gguf(plan, tmp_path / f"{out_type}.gguf")
        report = verify_path(checkpoint, tmp_path / f"{out_type}.gguf")
        assert report.passed, report.verdict()


def test_networks_of_two_widths_pass(tmp_path: Path) -> None:
    """The trainer's `scale_factor`: a NAR of another width, with heads of the same size."""
    wide, narrow = VallexShape(dim=96, heads=3, layers=1), VallexShape(dim=64, heads=2, layers=3)
    state = {
        **{name: x for name, x in vallex_state(wide).items() if name.startswith("ar_")},
        **{name: x for name, x in vallex_state(narrow).items() if name.startswith("nar_")},
    }
    container = {"model": state, "nhead": 3, "decoder_dim": 96}
    torch.save(container, tmp_path / "two.pt")
    checkpoint = read_checkpoint(tmp_path / "two.pt")
    write_gguf(plan_conversion(checkpoint), tmp_path / "two.gguf")
    model = open_bundle(tmp_path / "two.gguf").model
    assert (model.ar.n_head, model.nar.n_head, model.nar.n_layer) == (3, 2, 3)
    report = verify_path(checkpoint, tmp_path / "two.gguf")
    assert report.passed, report.verdict()


class CausalText(VallexReference):
    """An AR whose text sees only what is before it."""

    def _run(self, net: Net, rows: Rows, cache: Any, *, causal: bool, level: int) -> torch.Tensor:
        return super()._run(net, rows, cache, causal=causal or not level, level=level)


class BlindText(VallexReference):
    """An AR whose text comes without languages."""

    def look_up(self, net: str, table: str, ids: np.ndarray) -> Rows:
        found = super().look_up(net, table, ids)
        return found * 0 if (net, table) == ("ar", "language") else found


class FewPromptLevels(VallexReference):
    """A NAR whose prompt frames sum as few levels as the others."""

    def pass_nar(self, text: VallexText, prompt: np.ndarray, codes: np.ndarray) -> Rows:
        return super().pass_nar(text, prompt[:, : codes.shape[1]], codes)


class LevelsMoved(VallexReference):
    """A NAR with the stage of the level above."""

    def _run_nar(self, level: int, rows: Rows, n_outputs: int) -> Rows:
        hidden = self._run(self.model.nar, rows, [], causal=False, level=level % 7 + 1)
        return self._head("nar", f"nar_predict_layers.{level - 1}.weight", hidden[-n_outputs:])


class HeadOfItsOwnLevel(VallexReference):
    """A NAR that takes the table of the level for its head."""

    def _head(self, net: str, source: str, hidden: torch.Tensor) -> Rows:
        if net == "nar":
            source = f"nar_audio_embeddings.{int(source.split('.')[1]) + 1}.word_embeddings.weight"
        return super()._head(net, source, hidden)


class PlainGelu(VallexReference):
    """A feed-forward with GELU."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given, arithmetic=Arithmetic(activation=torch.nn.functional.gelu))


class BothCopiesAreOne(VallexReference):
    """Copies of a sequence that are one and the same."""

    def _fork(self, sequence: Hashable, copies: Sequence[Hashable]) -> None:
        self._caches |= dict.fromkeys(copies, self._caches[sequence])


MISTAKES: tuple[tuple[type[VallexReference], str], ...] = (
    (CausalText, "ar"),
    (BlindText, "ar without prompt"),
    (FewPromptLevels, "nar.3"),
    (LevelsMoved, "nar.1"),
    (HeadOfItsOwnLevel, "nar.2"),
    (PlainGelu, "nar.7"),
    (PlainGelu, "ar one code a step"),
    (BothCopiesAreOne, "ar one code a step"),
)


@pytest.mark.parametrize("out_type", ["f32", "q8_0"])
def test_a_network_that_computes_something_else_is_noticed(
    out_type: str, converted: Convert
) -> None:
    bundle = open_bundle(converted(GOLDEN_VALLEX, out_type))
    plan = plan_conversion(CHECKPOINT, Choices(out_type))
    yardstick = Yardstick(plan, bundle, seed=0)

    def failures(network: VallexReference) -> set[str]:
        checks = check_logits(yardstick, network)
        return {check.name.removeprefix("logits ") for check in checks if not check.passed}

    description = plan.description
    for mistake, case in MISTAKES:
        assert case in failures(mistake(description.tensors, description)), mistake.__name__


@pytest.mark.parametrize("out_type", ["f32", "f16"])
def test_norms_that_are_folded_wrongly_are_noticed(
    out_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are as planned, and only the checkpoint's own network shows it."""
    right = facts.fold_norm
    monkeypatch.setattr(facts, "fold_norm", lambda read, norm, _level: right(read, norm, 1))
    plan = plan_conversion(CHECKPOINT, Choices(out_type))
    write_gguf(plan, tmp_path / "x.gguf")
    report = verify(
        plan, open_bundle(tmp_path / "x.gguf"), levels=["structure", "tensors", "logits"]
    )
    failed = {check.name.removeprefix("logits ") for check in report.failures}
    assert failed >= {f"nar.{level}" for level in range(2, 8)}
    assert not failed & {"ar", "nar.1"}
