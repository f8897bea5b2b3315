"""Where llama.cpp goes wrong first: right files pass, and each damage is found in its place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from damages import DAMAGES, SET_DAMAGES, files_of
from make_checkpoint import Shape, make_checkpoint
from support import GOLDEN_VALLEX, Cli, error_of, golden_checkpoint
from test_damage import Do, damaged

from valle_convert import plan_conversion, write_gguf
from valle_convert.families.bundle import Plan, open_files
from valle_convert.families.family import Choices
from valle_convert.llama.library import load_library
from valle_convert.llama.selftest import quantize_file
from valle_convert.verify.run import verify
from valle_convert.verify.trace import _GRAPHS

#: By damage to the layers of a `gemma`, the layer and the part of it that it lies in.
PLACES = {
    "q permuted as for LLaMA": (0, "attn_q"),
    "k permuted as for LLaMA": (1, "attn_k"),
    "rows of attn_output reversed": (1, "attn_output"),
    "gate and up swapped": (0, "ffn_gate"),
    "two layers swapped": (0, "ffn_down"),
    "norms of two layers swapped": (0, "attn_norm"),
    "a matrix 5 % too large": (1, "ffn_up"),
    "rotary base 500000": (0, "attention"),
    "positions": (0, "attention"),
    "NAR attention": (0, "attention"),
    "the separator zeroed": (-1, "inputs"),
}
#: The same of a VALL-E X, and the cases in which it shows.
SET_PLACES = {
    "query and key swapped": (1, "attn_qkv", {"ar", "ar without prompt"}),
    "norms of two levels swapped": (0, "attn_norm", {"nar.2", "nar.3"}),
    "a bias off by a half": (
        0,
        "activation",
        {*(f"nar.{i}" for i in range(1, 8)), *(f"nar.{i} without prompt" for i in (1, 7))},
    ),
    "epsilon of the AR": (0, "attn_norm", {"ar", "ar without prompt"}),
}
#: What drowns in what the number format costs, in the logits as well; the tensors tell.
UNSEEN = {
    (name, "Q4_K_M")
    for name in ("k permuted as for LLaMA", "norms of two layers swapped", "a matrix 5 % too large")
}
KINDS = ("F16", "Q4_K_M")
_SIZES = {"dim": 256, "heads": 4, "layers": 2, "ffn": 2, "levels": 2, "audio_tokens": 32}
SHAPES = {"VALL-E": Shape(**_SIZES), "VALL-E of version 7": Shape(version=7, **_SIZES)}
Make = Callable[[str, str], tuple[Plan, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`made(family, type)`: the plan of a checkpoint, and a right file of a type."""
    folder = tmp_path_factory.mktemp("trace")
    checkpoints = {"VALL-E X": golden_checkpoint(GOLDEN_VALLEX)}
    for title, shape in SHAPES.items():
        checkpoints[title] = folder / f"{title}.sft"
        make_checkpoint(checkpoints[title], shape)
    plans = {title: plan_conversion(path, Choices("f16")) for title, path in checkpoints.items()}
    for title, plan in plans.items():
        write_gguf(plan, folder / f"{title}-F16.gguf")

    def make(title: str, kind: str) -> tuple[Plan, Path]:
        path = folder / f"{title}-{kind}.gguf"
        if not path.exists():
            for part in files_of(folder / f"{title}-F16.gguf").values():
                shutil.copy(part, part.with_name(part.name.replace("F16", kind)))
            quantize_file(load_library(), folder / f"{title}-F16.gguf", path, kind)
        return plans[title], path

    return make


def places(plan: Plan, path: Path) -> dict[str, tuple[int, str]]:
    """By case that fails, the layer and the part that are named."""
    (level,) = verify(plan, open_files(path), levels=["trace"]).levels
    assert level.checks
    return {
        check.name.removeprefix("trace "): (check.values["layer"], check.values["part"])
        for check in level.checks
        if not check.passed
    }


@pytest.mark.parametrize(
    ("name", "title", "kind"),
    [
        (name, title, KINDS[(i + j) % 2])
        for i, name in enumerate(PLACES)
        for j, title in enumerate(SHAPES)
    ],
)
def test_a_damage_to_a_layer_is_named_by_its_layer_and_part(
    name: str, title: str, kind: str, made: Make, tmp_path: Path
) -> None:
    plan, path = made(title, kind)
    do: Do = lambda parts: DAMAGES[name](parts[""])  # noqa: E731
    found = places(plan, damaged(path, tmp_path, do))
    assert set(found.values()) == (set() if (name, kind) in UNSEEN else {PLACES[name]})


@pytest.mark.parametrize("name", SET_PLACES)
def test_a_damage_to_a_set_is_named_in_the_cases_that_it_is_in(
    name: str, made: Make, tmp_path: Path
) -> None:
    plan, path = made("VALL-E X", "F16")
    found = places(plan, damaged(path, tmp_path, SET_DAMAGES[name]))
    layer, part, cases = SET_PLACES[name]
    assert found == dict.fromkeys(cases, (layer, part))


@pytest.mark.parametrize(
    ("title", "name", "words"),
    [
        *((title, "k permuted as for LLaMA", "layer 1, attn_k") for title in SHAPES),
        ("VALL-E", "the last norm 1 % too large", "the layers are right"),
        ("VALL-E X", "query and key swapped", "layer 1, attn_qkv"),
    ],
)
def test_logits_that_are_off_name_the_place(
    title: str, name: str, words: str, made: Make, tmp_path: Path, cli: Cli
) -> None:
    plan, path = made(title, "F16")
    do: Do = SET_DAMAGES.get(name, lambda parts: DAMAGES[name](parts[""]))
    spoiled = damaged(path, tmp_path, do)
    result = cli("verify", plan.checkpoint.path, spoiled, "--level", "logits")
    assert result.code == 1, result
    assert words in result.out.splitlines()[-1]


def test_the_command_shows_it_and_says_what_is_not_known(
    made: Make, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, path = made("VALL-E", "F16")
    command = ("verify", plan.checkpoint.path, path, "--level", "structure", "--trace")
    result = cli(*command)
    assert result.code == 0, result
    assert "pass  trace ar: " in result.out
    monkeypatch.setitem(_GRAPHS["gemma"], "attn_q", "another name")
    monkeypatch.setitem(_GRAPHS["gemma"], "output", "another name")
    result = cli(*command)
    assert "llama.cpp computes no another name-0" in error_of(result, 3)
