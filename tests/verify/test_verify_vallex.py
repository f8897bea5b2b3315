"""`verify` of VALL-E X: nothing right fails, nothing wrong passes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_vallex import PUBLISHED, VallexShape, make_vallex, vallex_state
from support import Cli, error_of
from vallex_golden import CHECKPOINT
from vallex_shapes import OUT_TYPES, random_vallex

from valle_convert.checkpoint import read_checkpoint
from valle_convert.errors import InputError
from valle_convert.families.vallex.composed import ComposedNetwork, Rows
from valle_convert.families.vallex.decode import VallexOptions, decode_vallex
from valle_convert.families.vallex.facts import Net
from valle_convert.families.vallex.files import SetPlan, open_set, plan_vallex, set_paths
from valle_convert.families.vallex.on_llama import VallexGguf
from valle_convert.families.vallex.protocol import VallexText
from valle_convert.families.vallex.reference import Arithmetic, VallexReference
from valle_convert.families.vallex.trials import (
    VallexYardstick,
    check_vallex_logits,
    n_vallex_cases,
    run_vallex_cases,
    vallex_utterances,
    verify_set,
    verify_vallex_path,
)
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.write import write_set
from valle_convert.verify.report import Report

Make = Callable[[str], tuple[SetPlan, Path]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The golden set in a type: its plan, and the path of its AR. Not to be written to."""
    folder = tmp_path_factory.mktemp("sets")
    made: dict[str, tuple[SetPlan, Path]] = {}

    def of(out_type: str) -> tuple[SetPlan, Path]:
        if out_type not in made:
            plan = plan_vallex(read_checkpoint(CHECKPOINT), out_type=out_type)
            write_set(plan, folder / f"{out_type}.gguf")
            made[out_type] = plan, folder / f"{out_type}.gguf"
        return made[out_type]

    return of


@pytest.mark.parametrize("out_type", OUT_TYPES)
def test_a_right_set_passes_at_all_levels(out_type: str, make: Make) -> None:
    report = verify_vallex_path(read_checkpoint(CHECKPOINT), make(out_type)[1])
    assert report.passed, report.verdict()
    assert {level.name for level in report.levels} == {
        "structure",
        "tensors",
        "tokenizer",
        "logits",
    }


def test_there_are_as_many_cases_as_the_progress_says(make: Make) -> None:
    model = make("f32")[0].description.model
    network = VallexReference(read_checkpoint(CHECKPOINT).tensors, model)
    (utterance,) = vallex_utterances(model, 1)
    names = [name for name, _ in run_vallex_cases(network, utterance)]
    assert len(names) == len(set(names)) == n_vallex_cases(model)


def check(seed: int, folder: Path) -> None:
    shape, dtype = random_vallex(seed)
    make_vallex(folder / "random.pt", shape, dtype=dtype)
    checkpoint = read_checkpoint(folder / "random.pt")
    for out_type in OUT_TYPES:
        if out_type == "q8_0" and (shape.dim % 32 or shape.dim * shape.ffn % 32):
            with pytest.raises(InputError, match="rows of"):
                plan_vallex(checkpoint, out_type=out_type)
            continue
        write_set(plan_vallex(checkpoint, out_type=out_type), folder / f"{out_type}.gguf")
        report = verify_vallex_path(
            checkpoint, folder / f"{out_type}.gguf", levels=["structure", "tensors", "logits"]
        )
        assert report.passed, (shape, dtype, out_type, report.verdict())


@pytest.mark.parametrize("seed", range(3000, 3004))
def test_a_few_random_shapes_pass_in_every_type(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


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
        plan = plan_vallex(checkpoint, out_type=out_type)
        assert plan.description.model.activation_factor * largest < 65504
        write_set(plan, tmp_path / f"{out_type}.gguf")
        report = verify_vallex_path(checkpoint, tmp_path / f"{out_type}.gguf")
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
    write_set(plan_vallex(checkpoint), tmp_path / "two.gguf")
    model = open_set(tmp_path / "two.gguf").model
    assert (model.ar.n_head, model.nar.n_head, model.nar.n_layer) == (3, 2, 3)
    report = verify_vallex_path(checkpoint, tmp_path / "two.gguf")
    assert report.passed, report.verdict()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_random_shapes_pass_in_every_type(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


# ---------------------------------------------------------------- damage to the files


def change(path: Path, name: str, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the bytes of a tensor, [rows, bytes of a row]."""
    tensor = GgufFile(path, allow_part=True).tensors[name]
    data = tensor.data.reshape(-1, tensor.ggml_type.row_bytes(tensor.shape[-1])).copy()
    edited = edit(data.copy()).tobytes()
    assert len(edited) == tensor.n_bytes
    assert edited != data.tobytes()
    contents = bytearray(path.read_bytes())
    contents[tensor.start : tensor.start + tensor.n_bytes] = edited
    path.write_bytes(contents)


def swap(*rows: int) -> Callable[[np.ndarray], np.ndarray]:
    def edit(data: np.ndarray) -> np.ndarray:
        data[list(rows)] = data[list(rows[::-1])]
        return data

    return edit


def change_key(path: Path, old: bytes, new: bytes) -> None:
    contents = path.read_bytes()
    assert contents.count(old) == 1
    path.write_bytes(contents.replace(old, new))


def wrong_head_row(paths: list[Path], plan: SetPlan) -> None:
    first = plan.description.model.ar.head("ar").first_row
    change(paths[0], "token_embd.weight", swap(first + 3, first + 7))


def wrong_table_row(paths: list[Path], plan: SetPlan) -> None:
    first = plan.description.model.nar.table("language").first_row
    change(paths[1], "token_embd.weight", swap(first, first + 2))


def swapped_stages(paths: list[Path], plan: SetPlan) -> None:
    """The norms of two levels, in the files of the other."""
    del plan
    ours = GgufFile(paths[3], allow_part=True)
    both = [path.read_bytes()[ours.data_start :] for path in paths[3:5]]
    for path, data in zip(paths[3:5], both[::-1], strict=True):
        path.write_bytes(path.read_bytes()[: ours.data_start] + data)


def query_and_key_swapped(paths: list[Path], plan: SetPlan) -> None:
    width = plan.description.model.ar.n_embd
    change(paths[0], "blk.1.attn_qkv.weight", lambda data: np.roll(data, width, axis=0))


def bias_off(paths: list[Path], plan: SetPlan) -> None:
    factor = plan.description.model.activation_factor

    def add(data: np.ndarray) -> np.ndarray:
        return data.view(np.float32) + np.float32(factor / 2)

    change(paths[1], "blk.0.ffn_up.bias", add)


FILE_DAMAGES = (
    wrong_head_row,
    wrong_table_row,
    swapped_stages,
    query_and_key_swapped,
    bias_off,
)


@pytest.mark.parametrize("out_type", ["f16", "q8_0"])
@pytest.mark.parametrize("damage", FILE_DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_noticed_by_its_tensors_and_by_its_logits(
    damage: Callable[[list[Path], SetPlan], None], out_type: str, make: Make, tmp_path: Path
) -> None:
    plan, original = make(out_type)
    paths = [Path(shutil.copy(path, tmp_path / path.name)) for path in set_paths(original, 7)]
    damage(paths, plan)
    report = verify_set(plan, paths[0])
    failed = {level.name for level in report.levels if level.failed}
    assert failed == {"tensors", "logits"}, report.verdict()


def test_a_divisor_that_is_not_the_factor_is_refused(make: Make, tmp_path: Path) -> None:
    plan, original = make("f16")
    paths = [Path(shutil.copy(path, tmp_path / path.name)) for path in set_paths(original, 7)]
    change(paths[1], "blk.1.ffn.act.scales", lambda _data: np.ones(256, np.float32))
    report = verify_set(plan, paths[0])
    assert not report.passed
    assert "blk.1.ffn.act.scales of f16-nar.gguf is not 256 throughout" in report.verdict()


@pytest.mark.parametrize(
    ("which", "key"),
    [
        (0, "valle.position_scale.text"),
        (2, "valle.position_scale.audio"),
        (0, "mpt.attention.layer_norm_epsilon"),
        (4, "mpt.attention.layer_norm_epsilon"),
    ],
)
def test_a_key_that_says_something_else_is_noticed(
    which: int, key: str, make: Make, tmp_path: Path
) -> None:
    plan, original = make("f16")
    paths = [Path(shutil.copy(path, tmp_path / path.name)) for path in set_paths(original, 7)]
    contents = bytearray(paths[which].read_bytes())
    at = contents.index(key.encode()) + len(key) + 4
    contents[at : at + 4] = np.float32(1.125).tobytes()
    paths[which].write_bytes(contents)
    report = verify_set(plan, paths[0])
    assert not report.passed
    if which == 0:
        assert any(level.failed for level in report.levels if level.name == "logits")


def test_the_set_of_another_checkpoint_is_told(make: Make, tmp_path: Path) -> None:
    shape, _ = random_vallex(1)
    make_vallex(tmp_path / "other.pt", shape)
    report = verify_vallex_path(read_checkpoint(tmp_path / "other.pt"), make("f32")[1])
    assert not report.passed
    assert "made of another checkpoint" in report.verdict()


# ------------------------------------------------------- mistakes of whoever computes


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
        hidden = self._run(self._model.nar, rows, [], causal=False, level=level % 7 + 1)
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

    def _fork(self, n: int) -> None:
        self._caches = [self._caches[0]] * n


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
def test_a_network_that_computes_something_else_is_noticed(out_type: str, make: Make) -> None:
    plan, path = make(out_type)
    yardstick = VallexYardstick(plan, open_set(path), n_utterances=1)
    tensors, model = plan.description.checkpoint.tensors, plan.description.model

    def failures(network: ComposedNetwork) -> set[str]:
        checks = check_vallex_logits(yardstick, network)
        return {check.name.removeprefix("logits ") for check in checks if not check.passed}

    for mistake, case in MISTAKES:
        assert case in failures(mistake(tensors, model)), mistake.__name__


# ------------------------------------------------------------------- the command line


def test_a_set_is_converted_shown_and_verified(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    dry = cli(CHECKPOINT, out, "--dry-run")
    assert dry.code == 0
    assert list(tmp_path.iterdir()) == []
    for path in set_paths(out, 7):
        assert f"file {path.name}\n" in dry.out
    assert "nar_predict_layers.0.weight" in dry.out.partition("left out")[2]
    made = cli(CHECKPOINT, out, "--outtype", "f16", "--json")
    assert made.code == 0, made
    assert sorted(tmp_path.iterdir()) == sorted(set_paths(out, 7))
    assert cli("verify", CHECKPOINT, out).code == 0
    assert cli("verify", out).code == 0
    shown = cli("inspect", out)
    assert "VALL-E X, 9 files" in shown.out
    assert "ReLU, as GELU with the factor 256" in shown.out
    assert "nar.level 3" in cli("inspect", set_paths(out, 7)[4]).out
    assert "VALL-E X checkpoint" in cli("inspect", CHECKPOINT).out


def test_a_set_is_written_whole_or_not_at_all(cli: Cli, tmp_path: Path) -> None:
    paths = set_paths(tmp_path / "x.gguf", 7)
    paths[5].write_bytes(b"mine")
    assert f"{paths[5]} exists" in error_of(cli(CHECKPOINT, paths[0]), 2)
    assert list(tmp_path.iterdir()) == [paths[5]]
    assert cli(CHECKPOINT, paths[0], "--force").code == 0
    before = {path: path.read_bytes() for path in paths}
    state = torch.load(CHECKPOINT, weights_only=False)  # made here; it holds a path
    state["model"]["nar_decoder.layers.1.linear2.weight"][0, 0] = torch.nan
    torch.save(state, tmp_path / "bad.pt")
    words = error_of(cli(tmp_path / "bad.pt", paths[0], "--force"), 2)
    assert "nar_decoder.layers.1.linear2.weight holds nan" in words
    assert {path: path.read_bytes() for path in paths} == before


def test_what_a_set_has_no_use_for_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    refused = cli(CHECKPOINT, tmp_path / "x.gguf", "--tokenizer", tmp_path / "t.json")
    assert refused.code == 2
    assert "its symbols are fixed" in refused.err
    assert cli(CHECKPOINT, tmp_path / "x.gguf", "--outtype", "f16").code == 0
    shown = cli("tokenize", tmp_path / "x.gguf", "ðɛɹ_c")
    assert shown.code == 0
    assert "[44, 49, 55, 16, 0]" in shown.out


def test_a_report_is_a_report(make: Make) -> None:
    report: Report = verify_set(make("f16")[0], make("f16")[1], levels=["structure"])
    assert report.to_json()["passed"]


@pytest.mark.slow
def test_the_published_size_converts_verifies_and_speaks(tmp_path: Path) -> None:
    """12 x 1024, both networks, 1.5 GB in float32, of random weights."""
    make_vallex(tmp_path / "published.pt", PUBLISHED)
    checkpoint = read_checkpoint(tmp_path / "published.pt")
    plan = plan_vallex(checkpoint, out_type="f16")
    assert plan.ar.n_weights + plan.body.n_weights > 300e6
    write_set(plan, tmp_path / "published.gguf")
    report = verify_set(
        plan, tmp_path / "published.gguf", n_utterances=1, levels=["structure", "logits"]
    )
    assert report.passed, report.verdict()
    (utterance,) = vallex_utterances(plan.description.model, 1)
    with VallexGguf(tmp_path / "published.gguf") as network:
        speech = decode_vallex(
            network,
            utterance.text,
            utterance.prompt,
            VallexOptions(max_frames=8),
            np.random.default_rng(0),
        )
    assert speech.codes.shape == (8, 8)
