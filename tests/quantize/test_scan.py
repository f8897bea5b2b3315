"""Types are chosen by what each matrix minds, and llama.cpp makes of them what was chosen."""

from __future__ import annotations

import itertools
import json
import re
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Cli, error_of

from valle_convert.errors import InputError
from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.scan import Mixture, Sensitivity, choose_mixture
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
    mixture = choose_mixture(sensitivities(losses, weights), weights, target_bits=target)
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
    mixture = choose_mixture(sensitivities(losses, weights), weights, max_kl=limit)
    assert mixture.predicted_kl <= limit
    for kinds in itertools.product([*KINDS, "F16"], repeat=len(losses)):
        other = dict(zip(losses, kinds, strict=True))
        if bits(other, weights) <= mixture.bits:
            assert loss(other, losses) >= mixture.predicted_kl - 1e-9


def loss(kinds: dict[str, str], losses: dict[str, list[float]]) -> float:
    names = list(KINDS)
    return sum(
        0.0 if kind == "F16" else losses[name][names.index(kind)] for name, kind in kinds.items()
    )


def bits(kinds: dict[str, str], weights: dict[str, int]) -> float:
    sizes = {**KINDS, "F16": 16.0}
    total = sum(round(sizes[kind] * weights[name] / 8) for name, kind in kinds.items())
    return 8 * total / sum(weights.values())


def test_the_smallest_mixture_of_a_divergence_is_no_larger_than_it_has_to_be() -> None:
    weights = {"a": 1000, "b": 1000}
    losses = {"a": [0.5, 0.1, 0.01], "b": [0.02, 0.01, 0.001]}
    found = sensitivities(losses, weights)
    assert choose_mixture(found, weights, max_kl=0.53).kinds == {"a": "Q2_K", "b": "Q2_K"}
    assert choose_mixture(found, weights, max_kl=0.2).kinds == {"a": "Q4_K", "b": "Q2_K"}
    assert choose_mixture(found, weights, max_kl=0.0).kinds == {"a": "F16", "b": "F16"}


def test_too_few_bits_are_refused() -> None:
    weights = {"a": 1000}
    found = sensitivities({"a": [0.5, 0.1, 0.01]}, weights)
    with pytest.raises(InputError, match=r"take 2\.60 bits a weight"):
        choose_mixture(found, weights, target_bits=2.0)


def test_patterns_name_the_chosen_matrices_and_no_others() -> None:
    kinds = {f"blk.{i}.ffn_up.weight": "Q4_K" if i % 2 else "Q2_K" for i in range(12)}
    kinds |= {"blk.1.attn_q.weight": "Q6_K", "token_embd.weight": "Q8_0"}
    patterns = [check_tensor_type(one) for one in Mixture(kinds, 4.0, 0.1).tensor_types]
    assert len(patterns) == 4
    for name, kind in kinds.items():
        (found,) = [one.rpartition("=")[2] for one in patterns if matches(one, name)]
        assert found.upper() == kind
    assert not any(matches(one, "blk.13.ffn_up.weight") for one in patterns)


def test_a_scan_chooses_a_mixture_of_the_size_and_llama_cpp_makes_it(
    cli: Cli, checkpoint_256: Path, tmp_path: Path
) -> None:
    out = tmp_path / "chosen.gguf"
    result = cli(
        *("quantize", checkpoint_256, out, "--scan", "--scan-types", "Q2_K,Q8_0", "--json"),
        *("--target-bits", 5, "--utterances", 1, "--imatrix", "none", "--threads", 1),
    )
    assert result.code == 0, result.err
    report = json.loads(result.out)
    path = resources.files("valle_convert.quantize") / "data" / "report.schema.json"
    jsonschema.validate(report, json.loads(path.read_text(encoding="utf-8")))
    (file,) = report["files"]
    assert 4.5 < file["bits_per_weight"] < 5.1  # the norms are not quantized
    kl = {(one["tensor"], one["type"]): one["kl"] for one in report["scan"]}
    matrices = {one["name"] for one in file["tensors"]}
    assert {name for name, _ in kl} == matrices
    assert all(kl[name, "Q8_0"] < kl[name, "Q2_K"] for name in matrices)
    # What was predicted comes true, but for what llama.cpp rounds besides.
    predicted = float(re.findall(r"predicted KL (\S+)", " ".join(report["notes"]))[0])
    assert 0.5 < file["quality"]["all"]["kl_mean"] / predicted < 2
    types = {one["name"]: one["type"] for one in file["tensors"]}
    assert set(types.values()) == {"Q2_K", "Q8_0"}
    assert {name: one.ggml_type.name for name, one in GgufFile(out).tensors.items()}.items() >= (
        types.items()
    )
    # The same file comes of the list that the scan wrote.
    again, listing = tmp_path / "again.gguf", tmp_path / "chosen.tensor-types.txt"
    result = cli(
        *("quantize", checkpoint_256, again, file["type"], "--tensor-types", listing),
        *("--threads", 1),
    )
    assert result.code == 0, result
    assert again.read_bytes() == out.read_bytes()


def test_a_mixture_has_a_name_of_its_own_and_its_list_is_in_the_manifest(
    cli: Cli, checkpoint_256: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = (
        *("quantize", checkpoint_256, out, "--scan", "--scan-types", "Q4_0,Q8_0"),
        *("--utterances", 1, "--threads", 1, "--target-bits"),
    )
    first = cli(*run, 6)
    assert first.code == 0
    gguf, listing = out / "wide-mixture.gguf", out / "wide-mixture.tensor-types.txt"
    assert gguf.exists()
    table = first.out.partition("Sensitivity")[2].splitlines()
    assert table[1].split()[-2:] == ["in", gguf.name]
    shown = {row.split()[0]: row.split()[-1] for row in table[3:-1]}
    for one in GgufFile(gguf).tensors.values():
        assert shown.get(one.name, "F32") == one.ggml_type.name
    assert cli("check-manifest", out).code == 0
    before = listing.read_bytes()
    assert "is not overwritten" in error_of(cli(*run, 6), 2)
    kept = cli(*run, 6, "--resume", "--json")
    types = {one["name"]: one["type"] for one in json.loads(kept.out)["files"][0]["tensors"]}
    matrices = GgufFile(gguf).tensors.values()
    assert types == {one.name: one.ggml_type.name for one in matrices if len(one.shape) == 2}
    assert [one["status"] for one in json.loads(kept.out)["files"]] == ["kept"]
    assert "--resume does not keep it" in error_of(cli(*run, 5, "--resume"), 2)
    assert listing.read_bytes() == before
    given = ("--types", "Q8_0", "--tensor-types", listing, "--resume", "--prune")
    other = cli("quantize", checkpoint_256, out, *given, "--threads", 1)
    assert not gguf.exists()
    assert f"not removed: {listing.name}, since this run reads it" in other.err
    listing.write_bytes(before + b"x")
    assert f"{listing.name}: " in cli("check-manifest", out).out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scan"], "--target-bits or --max-kl"),
        (["--scan", "--max-kl", "Q8_0=0.1"], "without the name of a type"),
        (["--scan", "--target-bits", "5", "--dry-run"], "leave out --dry-run"),
        (["--scan", "--target-bits", "5", "--scan-types", "Q9"], "no tensor type 'Q9'"),
        (["--scan", "--target-bits", "5"], "--checkpoint"),
    ],
)
def test_a_scan_that_cannot_be_done_is_refused(
    cli: Cli, gguf_256: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    result = cli("quantize", gguf_256, tmp_path / "o.gguf", *arguments)
    assert words in error_of(result, 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--types", "Q8_0", "--target-bits", "5"], "means nothing without --scan"),
        (["--types", "Q8_0", "--scan", "--target-bits", "5"], "leave out --types"),
    ],
)
def test_options_of_a_scan_that_contradict_are_refused(
    cli: Cli, gguf_256: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    result = cli("quantize", gguf_256, tmp_path / "out", *arguments)
    assert result.code == 2
    assert words in " ".join(result.err.split())
