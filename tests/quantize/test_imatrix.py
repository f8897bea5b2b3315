"""Importance matrices: what is in them, and that stock llama-quantize takes them."""

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from make_checkpoint import Shape, make_checkpoint
from make_vallex import VallexShape, make_vallex, vallex_state
from numpy.typing import NDArray
from quantize.conftest import Family
from quantize.making import WIDE, voice_file
from support import Cli, error_of, with_keys
from torch import nn
from vallex_golden import CHECKPOINT as VALLEX

from valle_convert.checkpoint import read_checkpoint
from valle_convert.errors import InputError
from valle_convert.families.bundle import Plan, open_bundle, plan
from valle_convert.families.v5 import FAMILY
from valle_convert.families.v5.reference import ReferenceNetwork
from valle_convert.families.vallex import FAMILY as VALLEX_FAMILY
from valle_convert.families.vallex.facts import VallexModel, describe, fold_norm
from valle_convert.families.vallex.reference import VallexReference
from valle_convert.families.vallex.trials import cases, read_utterance
from valle_convert.quantize.examples import Examples
from valle_convert.quantize.imatrix import (
    SOURCE_KEY,
    Entry,
    ImatrixFile,
    Sums,
    encode_imatrix,
    make_imatrices,
    observe,
    read_imatrix,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    path = tmp_path_factory.mktemp("tiny") / "tiny.sft"
    make_checkpoint(path, Shape(dim=32, heads=2, layers=1, levels=2, audio_tokens=16))
    checkpoint = read_checkpoint(path)
    return plan(checkpoint)


@pytest.mark.parametrize("kind", ["IQ4_XS", "IQ2_XXS"])
@pytest.mark.parametrize(
    ("family", "further"),
    [*zip(WIDE, ([], ["m-nar.gguf"], ["m-audio.gguf"]), strict=True)],
)
def test_stock_llama_quantize_takes_it_and_finds_every_matrix(
    family: str, further: list[str], kind: str, cli: Cli, tmp_path: Path
) -> None:
    """Also for a type that cannot be made without."""
    checkpoint, matrix, log = (tmp_path / name for name in ("wide.pt", "m.gguf", "log"))
    WIDE[family](checkpoint)
    imatrix = ("imatrix", checkpoint, "-o", matrix, "--utterances", 1, "--json")
    told = json.loads(cli(*imatrix).out)
    files = [matrix, *(tmp_path / name for name in further)]
    assert told["files"] == [*map(str, files)]
    run = ("quantize", checkpoint, tmp_path / "out", "--types", kind, "--imatrix", matrix)
    result = cli(*run, "--log", log)
    assert result.code == 0, result
    said = log.read_text()
    entries = [len(read_imatrix(path).entries) for path in files]
    found = set(map(int, re.findall(r"have (\d+) importance matrix entries", said)))
    assert (found, told["matrices"]) == ({*entries}, sum(entries))
    # The table of version 7 is looked up, and multiplied with nothing; its heads lie beside it.
    missed = {"token_embd.weight"} if family == "VALL-E of version 7" else set()
    assert set(re.findall(r"did not find weights for (\S+)", said)) == missed
    for path in files:
        assert f"{path.name} exists" in error_of(cli(*imatrix), 2)
        path.unlink()


def test_a_run_that_was_stopped_leaves_nothing(tiny: Plan, tmp_path: Path) -> None:
    def stopped(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    examples = Examples.seeded(FAMILY, tiny.model, 1, seed=0)
    with pytest.raises(KeyboardInterrupt):
        make_imatrices(tiny, examples, tmp_path / "m.gguf", progress=stopped)
    assert not list(tmp_path.iterdir())


def test_the_values_are_the_mean_squares_of_what_goes_into_each_matrix(tiny: Plan) -> None:
    checkpoint, description = tiny.checkpoint, tiny.description
    network = ReferenceNetwork(checkpoint.tensors, description)
    (utterance,) = Examples.seeded(FAMILY, description.model, 1, seed=0)
    sums = Sums()
    observe(FAMILY, network, utterance, sums)
    # What goes into ffn_down can be computed from what goes into gate and up: listen again.
    inputs: dict[str, list[np.ndarray]] = {}
    network.watch = lambda _part, name, x, _y: inputs.setdefault(name, []).append(x.numpy().copy())
    for case in FAMILY.trials.cases(description.model, utterance):
        if not case.repeats:
            case.run(network)
    gate = np.array(checkpoint.tensors.read("model.layers.0.mlp.gate_proj.weight"), np.float64)
    up = np.array(checkpoint.tensors.read("model.layers.0.mlp.up_proj.weight"), np.float64)
    x = np.concatenate(inputs["blk.0.ffn_gate.weight"]).astype(np.float64)
    from math import erf, sqrt

    z = x @ gate.T
    hidden = 0.5 * z * (1 + np.vectorize(erf)(z / sqrt(2))) * (x @ up.T)
    expected = np.square(hidden).sum(0)
    np.testing.assert_allclose(sums.squares["model", "blk.0.ffn_down.weight"], expected, rtol=1e-4)
    assert sums.counts["model", "blk.0.ffn_down.weight"] == len(x)


def test_the_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    entries = {"a.weight": Entry(np.array([1, 4], np.float32), 2)}
    path = tmp_path / "m.gguf"
    path.write_bytes(encode_imatrix(ImatrixFile(entries, ("speech",), 3, 7)))
    found = read_imatrix(path)
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("speech",), 3, 7)
    assert found.entries["a.weight"].mean().tolist() == [0.5, 2.0]
    assert Entry(np.zeros(2, np.float32), 0).mean().tolist() == [1.0, 1.0]
    assert [key.name for key in found.keys("m.gguf")] == [
        "quantize.imatrix.file",
        "quantize.imatrix.dataset",
        "quantize.imatrix.entries_count",
        "quantize.imatrix.chunks_count",
    ]
    # A text that is too long for llama.cpp is cut between letters.
    assert len(found.keys("ä" * 100)[0].value.encode()) == 126


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_values_that_are_no_sums_of_squares_are_refused(tmp_path: Path, value: float) -> None:
    path = tmp_path / "m.gguf"
    entries = {"a.weight": Entry(np.array([1, value], np.float32), 2)}
    path.write_bytes(encode_imatrix(ImatrixFile(entries, (), 1, 1)))
    with pytest.raises(InputError, match="not a list of sums of squares"):
        read_imatrix(path)


# Of a VALL-E X, one for the AR and one for the NAR

WIDE_VALLEX: VallexShape = WIDE["VALL-E X"].keywords["shape"]
#: Of sums of squares in float32, whoever computes them.
SAME = 1e-4


def model_of(path: Path) -> VallexModel:
    return describe(read_checkpoint(path)).model


class Recorded(VallexReference):
    """Keeps the rows of every pass: the net, the level, how many rows are text, all rows."""

    passes: list[tuple[str, int, int, torch.Tensor, int]]

    def _read_text(self, sequence: Hashable, rows: NDArray[np.float32], room: int) -> None:
        self.text = rows
        super()._read_text(sequence, rows, room)

    def _extend(
        self, sequence: Hashable, rows: NDArray[np.float32], n_outputs: int
    ) -> NDArray[np.float32]:
        whole = torch.from_numpy(np.concatenate([self.text, rows]))
        self.passes.append(("ar", 0, len(self.text), whole, n_outputs))
        return super()._extend(sequence, rows, n_outputs)

    def _run_nar(
        self, level: int, rows: NDArray[np.float32], n_outputs: int
    ) -> NDArray[np.float32]:
        whole = torch.from_numpy(np.array(rows))
        self.passes.append(("nar", level, len(rows), whole, n_outputs))
        return super()._run_nar(level, rows, n_outputs)


def torch_layer(
    state: dict[str, torch.Tensor], net: str, i: int, level: int, heads: int
) -> nn.Module:
    """PyTorch's own layer with the weights of one of the checkpoint's."""
    prefix = f"{net}_decoder.layers.{i}."
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix) and ".norm" not in name
    }
    for norm in ("norm1", "norm2"):
        if net == "ar":
            values = [state[f"{prefix}{norm}.{kind}"] for kind in ("weight", "bias")]
        else:
            folded = fold_norm(lambda name: state[name].numpy(), prefix + norm, level)
            values = list(torch.from_numpy(folded))
        own |= {f"{norm}.weight": values[0], f"{norm}.bias": values[1]}
    width, n_ff = own["linear1.weight"].shape[1], own["linear1.weight"].shape[0]
    layer = nn.TransformerEncoderLayer(
        width, heads, n_ff, dropout=0.0, batch_first=True, norm_first=True
    )
    layer.load_state_dict(own)
    return layer


def test_sums_are_those_of_what_goes_into_pytorchs_own_layers(tmp_path: Path) -> None:
    """Hooks on `nn.TransformerEncoderLayer`, of the same rows: AR with its mask, and all levels."""
    checkpoint = read_checkpoint(VALLEX)
    source = checkpoint.tensors
    state = {name: torch.from_numpy(np.array(source.read(name))) for name in source.specs}
    model = model_of(VALLEX)
    utterances = Examples.seeded(VALLEX_FAMILY, model, 1, seed=3)
    made = make_imatrices(plan(checkpoint), utterances, tmp_path / "m.gguf")
    network = Recorded(checkpoint.tensors, describe(checkpoint))
    network.passes = []
    (utterance,) = utterances
    given = [case for case in cases(model, utterance) if not case.repeats]
    for case in given:
        case.run(network)
    sums: dict[tuple[str, str], NDArray[np.float64]] = {}
    counts: dict[tuple[str, str], int] = {}

    def add(net: str, name: str, x: torch.Tensor) -> None:
        values = x.detach().double().reshape(-1, x.shape[-1])
        sums[net, name] = sums.get((net, name), 0) + values.square().sum(0).numpy()
        counts[net, name] = counts.get((net, name), 0) + len(values)

    assert len(network.passes) == len(given) == 11
    for net, level, n_text, rows, n_outputs in network.passes:
        n = len(rows)
        hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
        hidden[:, :n_text] = False
        hidden[:n_text, n_text:] = True
        x = rows[None]
        for i in range(2):
            layer = torch_layer(state, net, i, level, heads=4)
            layer.linear1.register_forward_pre_hook(
                lambda _m, given, net=net, i=i: add(net, f"blk.{i}.ffn_up.weight", given[0])
            )
            layer.linear2.register_forward_pre_hook(
                lambda _m, given, net=net, i=i: add(net, f"blk.{i}.ffn_down.weight", given[0])
            )
            normed = layer.norm1(x)
            add(net, f"blk.{i}.attn_qkv.weight", normed)
            # Its attention with nothing behind it gives what goes into the last matrix.
            mixing = nn.MultiheadAttention(64, 4, batch_first=True)
            mixing.in_proj_weight, mixing.in_proj_bias = (
                layer.self_attn.in_proj_weight,
                layer.self_attn.in_proj_bias,
            )
            nn.init.eye_(mixing.out_proj.weight)
            mixed = mixing(normed, normed, normed, attn_mask=hidden, need_weights=False)[0]
            add(net, f"blk.{i}.attn_output.weight", mixed)
            x = layer(x, src_mask=hidden)
        if net == "ar":
            values = [state[f"ar_decoder.norm.{kind}"] for kind in ("weight", "bias")]
        else:
            folded = fold_norm(lambda name: state[name].numpy(), "nar_decoder.norm", level)
            values = list(torch.from_numpy(folded))
        last = nn.functional.layer_norm(x, (64,), *values)
        add(net, "token_embd.weight", last[:, n - n_outputs :])
    for net, one in zip(("ar", "nar"), made.values(), strict=True):
        assert set(one.entries) == {name for kind, name in sums if kind == net}
        for name, entry in one.entries.items():
            assert entry.count == counts[net, name], name
            np.testing.assert_allclose(entry.sums, sums[net, name], rtol=SAME, err_msg=name)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose inputs differ in size by column, as those of trained networks do."""
    path = tmp_path_factory.mktemp("uneven") / "uneven.pt"
    state = vallex_state(WIDE_VALLEX)
    draw = torch.Generator().manual_seed(1)
    for name, tensor in state.items():
        if ".norm" in name and name.endswith("weight") and "project_layer" not in name:
            tensor.copy_(torch.exp(torch.randn(tensor.shape, generator=draw)))
    torch.save({"model": state, "nhead": WIDE_VALLEX.heads}, path)
    return path


@pytest.mark.parametrize("kind", ["Q2_K", "IQ4_XS"])
def test_a_type_is_better_with_the_matrix_than_without(
    kind: str, uneven: Path, cli: Cli, tmp_path: Path
) -> None:
    assert cli("imatrix", uneven, "-o", tmp_path / "m.gguf", "--utterances", 4).code == 0
    found = {}
    for name, imatrix in (("with", tmp_path / "m.gguf"), ("without", "none")):
        made = cli(
            "quantize", uneven, tmp_path / f"{name}.gguf", kind, "--imatrix", imatrix, "--json"
        )
        assert made.code == 0, made
        (found[name],) = json.loads(made.out)["files"]
    assert found["with"]["imatrix"] == "m.gguf"
    assert found["without"]["imatrix"] is None
    files = [tmp_path / f"{name}.gguf" for name in ("with", "without")]
    measured = cli("evaluate", *files, "--checkpoint", uneven, "--json")
    quality = [one["quality"] for one in json.loads(measured.out)["files"]]
    for head in ("ar", "nar.1", "nar.2"):
        better, worse = (one[head]["kl_mean"] for one in quality)
        assert better < 0.9 * worse, head
    files = open_bundle(tmp_path / "with.gguf").files
    for file, name in ((files["ar"], "m.gguf"), (files["nar"], "m-nar.gguf")):
        assert file.keys["quantize.imatrix.file"] == name
        assert file.keys["quantize.imatrix.entries_count"] == 5


def test_a_matrix_of_the_other_network_or_of_none_is_refused(
    uneven: Path, cli: Cli, tmp_path: Path
) -> None:
    assert cli("imatrix", uneven, "-o", tmp_path / "m.gguf", "--utterances", 1).code == 0
    run = ("quantize", uneven, tmp_path / "o.gguf", "Q2_K", "--imatrix")
    assert "of nar, expected that of ar" in error_of(cli(*run, tmp_path / "m-nar.gguf"), 2)
    (tmp_path / "m-nar.gguf").rename(tmp_path / "n.gguf")
    assert "importance matrix of nar" in error_of(cli(*run, tmp_path / "m.gguf"), 2)
    make_vallex(tmp_path / "other.pt", VallexShape(layers=1))
    assert (
        cli("imatrix", tmp_path / "other.pt", "-o", tmp_path / "x.gguf", "--utterances", 1).code
        == 0
    )
    assert "belongs to another model" in error_of(cli(*run, tmp_path / "x.gguf"), 2)
    assert not (tmp_path / "o.gguf").exists()


def test_a_matrix_of_another_checkpoint_is_named(family: Family, cli: Cli, tmp_path: Path) -> None:
    matrix, out = tmp_path / "m.gguf", tmp_path / "o.gguf"
    assert cli("imatrix", family.checkpoint, "-o", matrix, "--utterances", 1).code == 0
    bf16 = tmp_path / "bf16.gguf"
    assert cli(family.checkpoint, bf16, "--outtype", "bf16", "--verify", "none").code == 0
    words = "was made from another checkpoint"
    for source, is_other in (
        (family.checkpoint, False),
        (family.source, False),
        (bf16, False),
        (family.another(tmp_path / "other"), True),
        (tmp_path / "other" / family.checkpoint.name, True),
    ):
        result = cli("quantize", source, out, "Q4_0", "--imatrix", matrix, "--dry-run")
        assert (result.code, words in result.err) == (0, is_other), source
        scanned = ("scan", source, "--types", "Q4_0", "--imatrix", matrix, "--utterances", 1)
        if source.suffix != ".gguf":
            assert (words in cli(*scanned).err) == is_other
    # One of llama-imatrix does not say from which model it was made.
    for path in tmp_path.glob("m*.gguf"):
        with_keys(path, path, drop=[SOURCE_KEY])
    result = cli("quantize", source, out, "Q4_0", "--imatrix", matrix, "--dry-run")
    assert (result.code, words in result.err) == (0, False)


def test_a_voice_file_is_an_utterance_whose_beginning_is_the_prompt(tmp_path: Path) -> None:
    model = model_of(VALLEX)
    for n_frames, n_prompt in ((2, 1), (301, 150), (600, 225)):
        given = read_utterance(voice_file(tmp_path / "v.npz", n_frames), model, seed=(0,))
        assert (len(given.prompt), len(given.codes)) == (n_prompt, n_frames - n_prompt)
        assert (given.text.languages == 1).all()  # 0 in such a file, Chinese, is 1 of the network
        assert len(given.text) == 12


@pytest.mark.parametrize(
    ("n_frames", "levels", "words"),
    [(1, 8, "1 frame,"), (4000, 8, "4,000 frames"), (9, 4, "4 levels")],
)
def test_a_voice_that_cannot_be_measured_on_is_refused_before_anything_is_made(
    n_frames: int, levels: int, words: str, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    voice_file(tmp_path / "data" / "v.npz", n_frames, levels=levels)
    run = ("imatrix", VALLEX, "-o", tmp_path / "m.gguf", "--data", tmp_path / "data")
    assert words in error_of(cli(*run), 2)
    assert not list(tmp_path.glob("*.gguf"))
