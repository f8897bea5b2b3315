"""VALL-E X files: what is read of their container, and which of their relatives are refused."""

import argparse
import datetime as dt
import pathlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_vallex import VallexShape, make_vallex, vallex_state
from support import describe

from valle_convert.checkpoint import read_checkpoint
from valle_convert.errors import InputError, UnsupportedModelError
from valle_convert.families.vallex import facts, relatives
from valle_convert.families.vallex.facts import VallexModel
from valle_convert.model.description import Description

State = dict[str, torch.Tensor]


def describe_file(path: Path, **options: Any) -> Description[VallexModel]:
    checkpoint = read_checkpoint(path, **options)
    assert relatives.is_icefall(checkpoint)
    return facts.describe(checkpoint)


def test_paths_numbers_and_namespaces_are_passed_over(tmp_path: Path) -> None:
    make_vallex(
        tmp_path / "x.pt",
        VallexShape(),
        manifest_dir=pathlib.PurePosixPath("data"),
        best_valid_loss=np.float64(2.5),
        best=np.arange(3),
        dtypes={"float": np.dtype(np.float32)},
        arguments=argparse.Namespace(lr=0.05, where=pathlib.PosixPath("x")),
        started=dt.datetime(2023, 8, 1, tzinfo=dt.UTC),
        model_avg={"ar_text_position.alpha": torch.full((1,), 7.0)},
        optimizer={"state": {0: {"delta": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
    )
    description = describe_file(tmp_path / "x.pt")
    assert description.model.ar.n_head == 4
    assert description.model.ar.text_scale != 7.0
    assert read_checkpoint(tmp_path / "x.pt").stats == {"global_step": 800_000}


def test_heads_come_from_the_container_or_the_width_or_the_user(tmp_path: Path) -> None:
    config = tmp_path / "heads.yaml"
    config.write_text("nhead: 2")
    shape = VallexShape(dim=128, heads=8)
    make_vallex(tmp_path / "said.pt", shape)
    make_vallex(tmp_path / "unsaid.pt", shape, nhead=None)
    assert describe_file(tmp_path / "said.pt").model.nar.n_head == 8
    assert describe_file(tmp_path / "unsaid.pt").model.nar.n_head == 2  # 64 wide
    assert describe_file(tmp_path / "said.pt", config=config).model.ar.n_head == 2
    torch.save(vallex_state(VallexShape(dim=96)), tmp_path / "bare.pt")
    assert describe_file(tmp_path / "bare.pt", config=config).model.ar.n_head == 2
    with pytest.raises(InputError, match=r"width 96 is not a multiple of 64; give .* --config"):
        describe_file(tmp_path / "bare.pt")
    config.write_text("nhead: 5")
    with pytest.raises(InputError, match="nhead is 5, which does not divide the width 96"):
        describe_file(tmp_path / "bare.pt", config=config)


def test_a_large_weight_makes_the_activation_factor_smaller(tmp_path: Path) -> None:
    state = vallex_state(VallexShape())
    for largest, factor in ((15.0, 4096), (16.0, 2048), (-300.0, 128)):
        state["nar_decoder.layers.1.linear1.bias"][3] = largest
        torch.save({"model": state, "nhead": 4}, tmp_path / "x.pt")
        description = facts.describe(read_checkpoint(tmp_path / "x.pt"), factor=4096)
        assert description.model.activation_factor == factor
        assert any("activation factor" in note for note in description.notes) == (factor < 4096)
    state["nar_decoder.layers.1.linear1.bias"][3] = 2000
    torch.save({"model": state, "nhead": 4}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="linear1 is 2000"):
        describe_file(tmp_path / "x.pt")


def without(*beginnings: str) -> Callable[[State], State]:
    return lambda state: {k: v for k, v in state.items() if not k.startswith(beginnings)}


def plus(**tensors: tuple[int, ...]) -> Callable[[State], State]:
    return lambda state: (
        state | {name.replace("__", "."): torch.zeros(shape) for name, shape in tensors.items()}
    )


RELATIVES: dict[str, tuple[Callable[[State], State], dict[str, object], str]] = {
    "no languages": (
        without("ar_language_embedding", "nar_language_embedding"),
        {},
        "VALL-E of lifeiteng/vall-e",
    ),
    "a prenet": (plus(ar_text_prenet__1__weight=(64, 64, 5)), {}, "has a prenet"),
    "VALL-F": (
        plus(ar_decoder__layers__0__multihead_attn__in_proj_weight=(192, 64)),
        {},
        "is a VALL-F",
    ),
    "post-norm": (without("ar_decoder.norm.", "nar_decoder.norm."), {}, "after each layer"),
    "post-norm by its word": (lambda state: state, {"norm_first": False}, "after each layer"),
    "another prefix mode": (lambda state: state, {"prefix_mode": 4}, "prefix_mode 4"),
}


@pytest.mark.parametrize("kind", RELATIVES)
def test_a_relative_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    change, container, words = RELATIVES[kind]
    state = change(vallex_state(VallexShape()))
    torch.save({"model": state, "nhead": 4, **container}, tmp_path / "x.pt")
    checkpoint = read_checkpoint(tmp_path / "x.pt")
    with pytest.raises(UnsupportedModelError, match=words):
        describe(checkpoint)


@pytest.mark.parametrize("name", ["valle_ar_mls_196000.bin", "valle_nar", "x.ckpt"])
def test_a_model_is_known_by_what_is_in_the_file_whatever_it_is_called(
    name: str, tmp_path: Path
) -> None:
    torch.save({"model.model.embed_tokens.weight": torch.zeros(8, 8)}, tmp_path / name)
    with pytest.raises(UnsupportedModelError, match=r"Amphion's VALL-E v2"):
        describe(read_checkpoint(tmp_path / name))
    make_vallex(tmp_path / name, VallexShape(heads=4))
    assert describe_file(tmp_path / name).model.ar.n_head == 4


def test_a_missing_tensor_is_the_only_fault(tmp_path: Path) -> None:
    state = vallex_state(VallexShape())
    for name in state:
        torch.save({"model": without(name)(state), "nhead": 4}, tmp_path / "x.pt")
        with pytest.raises(InputError, match=rf"VALL-E X: missing: {re.escape(name)}\. Give"):
            describe_file(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("nar_decoder.layers.1.linear2.bias"), r"missing: nar_decoder.layers.1.linear2"),
        (plus(ar_decoder__extra=(3,)), r"unexpected: ar_decoder.extra \[3\]"),
        (plus(ar_audio_embedding__word_embeddings__weight=(65, 64)), r"expected \[66, 64\]"),
        (without("nar_"), "it has no NAR"),
    ],
)
def test_what_is_not_laid_out_like_it_is_an_error_that_names_it(
    change: Callable[[State], State], words: str, tmp_path: Path
) -> None:
    torch.save({"model": change(vallex_state(VallexShape())), "nhead": 4}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=words):
        describe_file(tmp_path / "x.pt")
