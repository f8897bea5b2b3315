"""The verdict: it passes what is right, in every layout, and fails what is wrong, by name."""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint.containers import lora_file
from each_family import EACH_GOLDEN, FAMILIES, NAMES, ONE_GOLDEN, OUT_TYPES, Row, copied, set_key
from make_checkpoint import PUBLISHED_SIZES, Shape, make_checkpoint
from make_vallex import VallexShape, make_vallex
from support import GOLDEN_VALLEX, Cli, Convert, golden_checkpoint

from valle_convert import plan_conversion, read_checkpoint, verify_gguf, write_gguf
from valle_convert.families.bundle import open_bundle, open_files
from valle_convert.families.family import Choices
from valle_convert.gguf_file.read import GgufFile
from valle_convert.verify.logits import References
from valle_convert.verify.report import Report
from valle_convert.verify.run import LEVELS, plan_like, verify, verify_path
from valle_convert.verify.tensors import check_tensors


def failed(report: Report) -> list[str]:
    return [check.name for check in report.failures]


@pytest.mark.parametrize("out_type", OUT_TYPES)
@pytest.mark.parametrize(("name", "row"), EACH_GOLDEN)
def test_a_conversion_passes_on_every_level(
    name: str, row: Row, out_type: str, converted: Convert
) -> None:
    bundle = open_files(converted(name, out_type))
    plan = plan_like(bundle, read_checkpoint(golden_checkpoint(name)), Choices())
    report = verify(plan, bundle, n_texts=100)
    assert report.passed, report.verdict()
    assert tuple(level.name for level in report.levels) == LEVELS
    logits = {check.name.removeprefix("logits ") for check in report.levels[-1].checks}
    assert row.cases <= logits
    if row is FAMILIES["VALL-E"]:
        assert ("len" in logits) == (name != "single-classifier")
        assert ("text" in logits) == (name == "v6-text-head")


@pytest.mark.parametrize("name", NAMES)
def test_there_are_as_many_steps_as_the_progress_says(name: str, converted: Convert) -> None:
    done: dict[str, list[int]] = {}

    @contextmanager
    def progress(title: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        del unit
        counted = done.setdefault(title, [total, 0])

        def advance(n: int) -> None:
            counted[1] += n

        yield advance

    plan = plan_conversion(golden_checkpoint(name), Choices("f32"))
    assert verify_gguf(plan, converted(name, "f32"), progress=progress).passed
    titles = {"comparing tensors", "comparing tokenizers", "comparing logits"}
    assert done.keys() == titles
    assert {title for title, (total, n) in done.items() if total != n} == set()


@pytest.mark.parametrize("name", NAMES)
def test_one_wrong_bit_in_any_tensor_is_found(
    name: str, tmp_path: Path, converted: Convert
) -> None:
    bundle = copied(converted(name, "f16"), tmp_path)
    plan = plan_conversion(golden_checkpoint(name), Choices("f16"))
    for part, file in bundle.files.items():
        right = file.path.read_bytes()
        for tensor in file.tensors.values():
            raw = bytearray(right)
            raw[tensor.start + tensor.n_bytes - 2] ^= 1
            file.path.write_bytes(raw)
            found = list(check_tensors(plan.files[part], GgufFile(file.path, allow_part=True)))
            assert [one.name for one in found if not one.passed] == [f"tensor {tensor.name}"]
        report = verify_gguf(plan, bundle.path, levels=["tensors"])
        assert len(report.failures) == 1
        assert failed(report)[0].removeprefix(f"{part}: ") == f"tensor {tensor.name}"
        file.path.write_bytes(right)


@pytest.mark.parametrize(
    ("start", "damage"),
    [
        pytest.param(2, np.random.default_rng(0).bytes(32), id="noise"),
        pytest.param(0, np.float16(np.inf).tobytes(), id="infinite scale"),
        pytest.param(0, np.float16(np.nan).tobytes(), id="NaN"),
    ],
)
@pytest.mark.parametrize(("name", "row"), ONE_GOLDEN)
def test_damage_in_a_quantized_tensor_is_found(
    name: str, row: Row, start: int, damage: bytes, tmp_path: Path, converted: Convert
) -> None:
    bundle = copied(converted(name, "q8_0"), tmp_path)
    plan = plan_conversion(golden_checkpoint(name), Choices("f16"))
    assert failed(verify_gguf(plan, bundle.path, levels=["tensors"])) == []
    tensor = bundle.main.tensors["blk.1.ffn_up.weight"]
    raw = bytearray(bundle.path.read_bytes())
    # In one block of 34 bytes in a thousand.
    at = tensor.start + 34 * 100 + start
    raw[at : at + len(damage)] = damage
    bundle.path.write_bytes(raw)
    report = verify_gguf(plan, bundle.path, levels=["tensors"])
    assert failed(report) == [f"{row.main}tensor blk.1.ffn_up.weight"]


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_that_differs_is_shown_by_an_example(
    name: str, tmp_path: Path, converted: Convert
) -> None:
    bundle = copied(converted(name, "f32"), tmp_path)
    tokens = list(bundle.main.keys["tokenizer.ggml.tokens"])
    tokens[20], tokens[30] = tokens[30], tokens[20]
    set_key(bundle.main, "tokenizer.ggml.tokens", tokens)
    plan = plan_conversion(golden_checkpoint(name), Choices("f32"))
    report = verify_gguf(plan, bundle.path, levels=["tokenizer"])
    assert failed(report) == ["tokenizer"]
    assert re.search(r"such as '.+ gives \[.+\], not \[", report.failures[0].summary)


def test_a_set_without_its_source_and_with_other_levels_is_a_failed_check(
    tmp_path: Path, converted: Convert
) -> None:
    """What cannot be told from provenance is told by the parts; an exception is no verdict."""
    source = tmp_path / "other.pt"
    make_vallex(source, VallexShape(levels=3))
    checkpoint = read_checkpoint(source)
    bundle = copied(converted(GOLDEN_VALLEX, "f16"), tmp_path)
    for file in bundle.files.values():
        set_key(file, "valle.source.sha256", None)
    report = verify_path(checkpoint, bundle.path)
    assert report.exit_code == 1
    found = {one.name: one.summary for one in report.failures}
    assert found["files"] == "9 files, expected 4"
    assert "tensors" in {level.name for level in report.levels if level.failed}


def test_a_vocabulary_that_llama_cpp_does_not_load_is_a_failed_check(
    tmp_path: Path, converted: Convert
) -> None:
    bundle = copied(converted("ar-nar-len", "f16"), tmp_path)
    set_key(bundle.main, "tokenizer.ggml.pre", "no such rules")
    checkpoint = read_checkpoint(golden_checkpoint("ar-nar-len"))
    report = verify_path(checkpoint, bundle.path, run=partial(verify, levels=["tokenizer"]))
    assert failed(report) == ["tokenizer"]
    assert "does not load" in report.verdict()


def test_the_command_ends_with_1_and_names_the_worst_case(
    tmp_path: Path, converted: Convert, cli: Cli
) -> None:
    right = golden_checkpoint("ar-nar-len")
    wrong = copied(converted("ar-nar-len", "f32"), tmp_path)
    set_key(wrong.main, "valle.positions", "unified")
    report = tmp_path / "report.md"
    result = cli("verify", right, wrong.path, "--report", report)
    assert result.code == 1
    assert result.out.splitlines()[-1].startswith("FAILED: ")
    assert "the worst is" in result.out
    assert "| **FAIL** |" in report.read_text()
    copy = tmp_path / "report.json"
    as_json = cli("verify", right, wrong.path, "--level", "structure", "--json", "--report", copy)
    assert as_json.code == 1
    assert json.loads(as_json.out)["passed"] is False
    assert copy.read_text() == as_json.out


def test_a_lora_is_verified_with_the_same_options(
    tmp_path: Path, small_checkpoint: Callable[..., Path], cli: Cli
) -> None:
    sizes = {"model.layers.1.mlp.down_proj": (64, 256)}
    lora = lora_file(tmp_path / "lora.sft", sizes, alpha=2)
    path, out = small_checkpoint(), tmp_path / "out.gguf"
    assert cli(path, out, "--lora", lora).code == 0
    assert cli("verify", path, out, "--lora", lora).code == 0
    without = cli("verify", path, out, "--level", "tensors")
    assert without.code == 1
    assert "made with lora.sft (1 weight, alpha 2) merged, but the checkpoint has none; give" in (
        without.out
    )
    other = tmp_path / "elsewhere" / "other.sft"
    other.parent.mkdir()
    lora_file(other, sizes, alpha=2, seed=2)
    wrong = cli("verify", path, out, "--lora", other, "--level", "tensors")
    assert wrong.code == 1
    assert "blk.1.ffn_down.weight" in wrong.out
    # The same LoRA under another name is the same.
    same = lora.rename(other.with_name("same.sft"))
    assert cli("verify", path, out, "--lora", same).code == 0


@pytest.mark.parametrize(("name", "row"), ONE_GOLDEN)
def test_another_checkpoint_is_told_at_once(
    name: str, row: Row, tmp_path: Path, converted: Convert, cli: Cli
) -> None:
    other = row.random(1, tmp_path).path
    result = cli("verify", other, converted(name, "f16"), "--json")
    assert result.code == 1
    (level,) = json.loads(result.out)["levels"]
    (check,) = level["checks"]
    assert check["name"] == "source"
    source = golden_checkpoint(name).name
    assert f"was made from another checkpoint ({source}" in check["summary"]


@pytest.mark.parametrize("level", ["all", "structure"])
def test_what_cannot_run_is_not_verified(
    level: str, converted: Convert, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A machine without llama.cpp's library: it is looked for in an empty folder."""
    path = converted("ar-nar-len", "f16")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    result = cli("verify", golden_checkpoint("ar-nar-len"), path, "--level", level)
    assert result.code == 3
    assert result.out.splitlines()[-1].startswith("NOT VERIFIED: ")
    assert "llama-cpp-python is not installed" in result.out.splitlines()[-1]


#: 24 layers of 1024, 0.5 billion weights.
LARGEST = partial(make_checkpoint, shape=PUBLISHED_SIZES["nemo-larger"], dtype="bf16")


@pytest.mark.slow
@pytest.mark.parametrize("make", [*(row.published for row in FAMILIES.values()), LARGEST])
def test_the_published_size_converts_verifies_and_speaks(
    make: Callable[[Path], object], tmp_path: Path
) -> None:
    source, out = tmp_path / "published.pt", tmp_path / "out.gguf"
    make(source)
    plan = plan_conversion(source, Choices("f16"))
    assert plan.n_weights > 200e6
    write_gguf(plan, out)
    report = verify_gguf(plan, out)
    assert report.passed, report.verdict()
    (example,) = plan.family.trials.utterances(plan.model, 1)
    with plan.family.open(open_bundle(out)) as network:
        codes = plan.family.trials.speak_levels(
            network, example, plan.family.trials.speak_level_0(network, example)
        )
    assert codes.ndim == 2
    assert codes.shape[1] == plan.model.n_levels


# The judge of logits

RNG = np.random.default_rng(0)


def references(n_rows: int, n_codes: int, noise: float) -> References:
    exact = RNG.standard_normal((n_rows, n_codes)).astype(np.float32)
    error = RNG.standard_normal(exact.shape).astype(np.float32)
    return References(exact, exact + np.float32(1e-3) * error, exact + noise * error, exact)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [one.name for one in fields(References)])
def test_what_is_not_finite_fails_wherever_it_is(name: str, value: float) -> None:
    right = references(20, 30, 1e-2)
    assert right.judge(right.exact).passed
    damaged = getattr(right, name).copy()
    damaged[3, 4] = value
    assert not replace(right, **{name: damaged}).judge(right.exact).passed
    assert not right.judge(np.where(np.arange(30) == 4, np.float32(value), right.exact)).passed


@pytest.mark.parametrize(("n_rows", "is_few"), [(3, True), (20, False)])
def test_only_few_logits_are_allowed_the_usual_cost(n_rows: int, *, is_few: bool) -> None:
    """The types cost ten times what was expected of this head, as they do of the others."""
    head = references(n_rows, 11, 0.2)
    head = replace(head, degraded=head.meant + np.float32(0.02))
    assert not head.judge(head.exact).passed
    assert head.judge(head.exact, usual_cost=0.1).passed == is_few


# A path is looked at once

IO = Path("/proc/self/io")
#: How often files were mapped, as every parsed GGUF file is.
MAPPED = Counter[Path]()


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "mmap.__new__" and arguments[0] >= 0:
        MAPPED[Path(f"/proc/self/fd/{arguments[0]}").readlink()] += 1


if IO.exists():
    sys.addaudithook(_hook)


def n_read() -> int:
    """Bytes that this process has read, except through mappings."""
    return int(IO.read_text(encoding="ascii").split()[1])  # rchar


def large(path: Path) -> None:
    make_checkpoint(path, Shape(dim=256, heads=4, layers=1, levels=2))


def large_set(path: Path) -> None:
    make_vallex(path, VallexShape(dim=256, heads=4, layers=1, levels=2))


@pytest.mark.skipif(not IO.exists(), reason="only Linux counts what a process reads")
@pytest.mark.parametrize(
    ("make", "name", "n_times"),
    # Once for the hash; zip archives of torch once more for their checksums.
    [(large, "large.sft", 1), (large_set, "large.pt", 2)],
)
def test_files_are_looked_at_once(
    make: Callable[[Path], None], name: str, n_times: int, tmp_path: Path, cli: Cli
) -> None:
    for folder in (tmp_path / "first", tmp_path / "counted"):
        folder.mkdir()
        checkpoint, out = folder / name, folder / "out.gguf"
        make(checkpoint)
        os.utime(checkpoint, (0, 1))  # a file that has just been written may change again
        made, given = folder / "made", ("--checkpoint", checkpoint, "--utterances", 1)
        for command in (
            [checkpoint, out, "--verify", "quick"],
            ["verify", checkpoint, out],
            ["verify", out],
            ["inspect", out],
            ["quantize", out, made, "--types", "Q8_0,Q5_0,Q4_0"],
            ["evaluate", made, *given],
            ["merge", made, folder / "merged"],
            ["publish", made],
            ["compare", made / "out-Q8_0.gguf", made / "out-Q4_0.gguf"],
        ):
            MAPPED.clear()
            before = n_read()
            assert cli(*command).code == 0
            parsed = {path: n for path, n in MAPPED.items() if path.suffix == ".gguf"}
            assert set(parsed.values()) == {1}, (command, parsed)
            # At first, whatever is imported is read as well.
            if folder.name == "counted" and checkpoint in command[:2]:
                assert n_read() - before < (n_times + 0.5) * checkpoint.stat().st_size
