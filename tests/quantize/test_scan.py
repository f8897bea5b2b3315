"""Types are chosen by what each matrix minds, and llama.cpp makes of them what was chosen."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quantize.making import WIDE
from support import GOLDEN_VALLEX, Cli, error_of, golden_checkpoint

from valle_convert.checkpoint import Checkpoint, read_checkpoint
from valle_convert.errors import InputError
from valle_convert.families.bundle import open_bundle, plan_bundle, write_bundle
from valle_convert.families.family import Choices
from valle_convert.quantize.options import MakeOptions, MeasureOptions
from valle_convert.quantize.scan import Aim, Mixture, Sensitivity, choose_mixture, scan
from valle_convert.quantize.types import check_tensor_type, matches

KINDS = {"Q2_K": 2.6, "Q4_K": 4.5, "Q8_0": 8.5}


def sensitivities(losses: dict[str, list[float]], weights: dict[str, int]) -> list[Sensitivity]:
    return [
        Sensitivity(name, kind, bits, round(bits * weights[name] / 8), kl)
        for name, found in losses.items()
        for (kind, bits), kl in zip(KINDS.items(), found, strict=True)
    ]


networks = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.tuples(
        st.integers(1, 50), st.lists(st.floats(1e-6, 1.0), min_size=3, max_size=3, unique=True)
    ),
    min_size=1,
)


@given(networks, st.floats(2.7, 16.0))
def test_a_mixture_has_its_size_and_is_no_worse_than_one_type_for_all(
    network: dict[str, tuple[int, list[float]]], target: float
) -> None:
    weights = {name: 800 * n for name, (n, _) in network.items()}
    losses = {name: sorted(found, reverse=True) for name, (_, found) in network.items()}
    mixture = choose_mixture(sensitivities(losses, weights), target_bits=target)
    assert mixture.bits <= target
    assert mixture.predicted_kl == pytest.approx(loss(mixture.kinds, losses), abs=1e-9)
    smallest = dict.fromkeys(losses, "Q2_K")
    assert mixture.predicted_kl <= loss(smallest, losses) + 1e-9


@given(networks, st.floats(1e-6, 1.0))
def test_no_mixture_of_the_size_of_a_chosen_one_loses_less(
    network: dict[str, tuple[int, list[float]]], limit: float
) -> None:
    weights = {name: 800 * n for name, (n, _) in network.items()}
    losses = {name: sorted(found, reverse=True) for name, (_, found) in network.items()}
    mixture = choose_mixture(sensitivities(losses, weights), max_kl=limit)
    assert mixture.predicted_kl <= limit
    for kinds in itertools.product([*KINDS, "F16"], repeat=len(losses)):
        other = dict(zip(losses, kinds, strict=True))
        if bits(other, weights) <= mixture.bits:
            assert loss(other, losses) >= mixture.predicted_kl - 1e-9


def test_the_smallest_mixture_of_a_divergence_is_no_larger_than_it_has_to_be() -> None:
    losses = {"a": [0.5, 0.1, 0.01], "b": [0.02, 0.01, 0.001]}
    found = sensitivities(losses, dict.fromkeys(losses, 1000))
    for limit, kinds in ((0.53, ["Q2_K", "Q2_K"]), (0.2, ["Q4_K", "Q2_K"]), (0, ["F16", "F16"])):
        assert [*choose_mixture(found, max_kl=limit).kinds.values()] == kinds


def loss(kinds: dict[str, str], losses: dict[str, list[float]]) -> float:
    names = list(KINDS)
    return sum(
        0.0 if kind == "F16" else losses[name][names.index(kind)] for name, kind in kinds.items()
    )


def bits(kinds: dict[str, str], weights: dict[str, int]) -> float:
    sizes = {**KINDS, "F16": 16.0}
    total = sum(round(sizes[kind] * weights[name] / 8) for name, kind in kinds.items())
    return 8 * total / sum(weights.values())


def test_too_few_bits_are_refused() -> None:
    weights = {"a": 1000}
    found = sensitivities({"a": [0.5, 0.1, 0.01]}, weights)
    with pytest.raises(InputError, match=r"take 2\.60 bits per weight"):
        choose_mixture(found, target_bits=2.0)


def test_patterns_name_the_chosen_matrices_and_no_others() -> None:
    kinds = {f"blk.{i}.ffn_up.weight": "Q4_K" if i % 2 else "Q2_K" for i in range(12)}
    kinds |= {"blk.1.attn_q.weight": "Q6_K", "token_embd.weight": "Q8_0"}
    patterns = [check_tensor_type(one) for one in Mixture(kinds, 4.0, 0.1).tensor_types]
    assert len(patterns) == 4
    for name, kind in kinds.items():
        (found,) = [one.rpartition("=")[2] for one in patterns if matches(one, name)]
        assert found.upper() == kind
    assert not any(matches(one, "blk.13.ffn_up.weight") for one in patterns)


@pytest.mark.parametrize("family", ["VALL-E", "VALL-E of version 7"])
def test_a_scan_chooses_a_mixture_of_the_size_and_llama_cpp_makes_it(
    family: str, cli: Cli, tmp_path: Path
) -> None:
    checkpoint, listing, out = (tmp_path / name for name in ("wide.pt", "chosen.txt", "m.gguf"))
    WIDE[family](checkpoint)
    run = ("scan", checkpoint, listing, "--types", "Q2_K,Q8_0", "--utterances", 1)
    result = cli(*run, "--target-bits", 5, "--threads", 1, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    kl = {(one["tensor"], one["type"]): one["kl"] for one in report["scan"]}
    names = {name for name, _ in kl}
    assert all(kl[name, "Q8_0"] < kl[name, "Q2_K"] for name in names)
    chosen = report["chosen"]
    assert 4.5 < chosen["bits_per_weight"] <= 5
    assert listing.read_text().split() == chosen["tensor_types"]
    made = cli(*("quantize", checkpoint, out, chosen["type"], "--tensor-types", listing, "--json"))
    assert made.code == 0, made.err
    types = {
        one.name: one.ggml_type.name
        for file in open_bundle(out).files.values()
        for one in file.tensors.values()
    }
    assert names == {name for name, kind in types.items() if kind != "F32"}
    assert {types[name] for name in names} == {"Q2_K", "Q8_0"}
    # What was predicted comes true, but for what llama.cpp rounds besides.
    judged = cli("evaluate", out, "--checkpoint", checkpoint, "--utterances", 1, "--json")
    (file,) = json.loads(judged.out)["files"]
    assert file["verified"]["outcome"] == "passed"
    assert 0.5 < file["quality"]["all"]["kl_mean"] / chosen["predicted_kl"] < 2
    # The table has the chosen type of each matrix; nothing is overwritten.
    assert "is not overwritten" in error_of(cli(*run, "--target-bits", 5), 2)
    shown = cli(*run, "--types", "Q8_0", "--max-kl", 1, "--force")
    assert shown.code == 0, shown.err
    header, _, *rows = shown.out.splitlines()
    assert header.split()[-1] == "chosen"
    assert {row.split()[0] for row in rows[:-1]} == names
    assert "CHOSEN: " in rows[-1]


def test_a_set_is_scanned_with_the_factor_that_its_files_show(tmp_path: Path) -> None:
    """Files of another activation factor than the default have other weights, to be compared."""
    checkpoint = read_checkpoint(golden_checkpoint(GOLDEN_VALLEX))
    for out_type in ("bf16", "f32"):
        path = tmp_path / f"{out_type}.gguf"
        write_bundle(plan_bundle(checkpoint, Choices(out_type)), path)
        scanned = scan_all(path, checkpoint, ("Q8_0",))
        assert max(one.kl for one in scanned) < 0.05
        assert all(one.kl > 0 for one in scanned)


def scan_all(path: Path, checkpoint: Checkpoint, types: tuple[str, ...]) -> list[Sensitivity]:
    making, measuring = MakeOptions(threads=1), MeasureOptions(n_utterances=1)
    return list(scan(path, checkpoint, Aim(types), making, measuring).sensitivities)
