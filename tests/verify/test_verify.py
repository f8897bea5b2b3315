"""The verdict: it passes what is right, in every layout, and fails what is wrong, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_checkpoint import PRODUCTION, VOCABULARY, make_checkpoint
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support import GOLDEN_NAMES, Cli, golden_checkpoint
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from valle_convert import plan_conversion, read_checkpoint, verify_gguf, write_gguf
from valle_convert.families.family import Choices
from valle_convert.families.v5.on_llama import GgufNetwork
from valle_convert.families.v5.reference import ReferenceNetwork
from valle_convert.families.v5.trials import cases, utterances
from valle_convert.files import sha256_of
from valle_convert.gguf_file.plan import GgufPlan
from valle_convert.gguf_file.read import GgufFile
from valle_convert.network.arithmetic import input_rounding
from valle_convert.network.weights import ConvertedTensors
from valle_convert.verify.logits import Yardstick, check_logits
from valle_convert.verify.report import Report

Convert = Callable[[str, str], Path]


def failed(report: Report) -> list[str]:
    return [check.name for check in report.failures]


@pytest.mark.parametrize("out_type", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_a_conversion_passes_on_every_level(name: str, out_type: str, converted: Convert) -> None:
    report = verify_gguf(
        plan_conversion(golden_checkpoint(name)),
        converted(name, out_type),
        levels=["structure", "tensors", "logits"],
    )
    assert report.passed, report.verdict()
    assert not any(level.skipped for level in report.levels)
    logits = {check.name.removeprefix("logits ") for check in report.levels[-1].checks}
    expected = {"ar", "ar ns", "ar sr", "mask", "mask null", "stt", "ar one code a step"}
    expected |= {f"nar.{level}" for level in range(1, 8)}
    assert expected <= logits
    assert ("len" in logits) == (name != "single-classifier")
    assert ("text" in logits) == (name == "v6-text-head")


def test_the_tokenizer_level_compares_a_hundred_thousand_strings(converted: Convert) -> None:
    report = verify_gguf(
        plan_conversion(golden_checkpoint("ar-nar-len")),
        converted("ar-nar-len", "f32"),
        levels=["tokenizer"],
    )
    (check,) = report.levels[0].checks
    assert check.passed
    assert check.values["texts"] == 100_000
    assert check.values["differences"] == 0


@pytest.mark.parametrize(
    "shape",
    [
        {"levels": 9},
        {"levels": 4, "audio_tokens": 100},
        {"heads": 4, "kv_heads": 2},
        {"dim": 96, "heads": 3, "layers": 3, "ffn": 3},
        {"sums": False},
        {"sums": "prom", "unified": True},
        {"sums": "resp", "noncausal": False},
        {"capabilities": ("ar", "nar", "lang"), "split": False, "bias": False},
        {"version": 6, "bias": False, "langs": 4, "tasks": 9},
        {"capabilities": ("ar", "nar", "len", "lang", "tone"), "tones": 3, "langs": 8},
    ],
    ids=str,
)
def test_every_layout_converts_and_verifies(
    shape: dict[str, Any], tmp_path: Path, small_checkpoint: Callable[..., Path]
) -> None:
    plan = plan_conversion(small_checkpoint(**shape), Choices("f32"))
    write_gguf(plan, tmp_path / "out.gguf")
    report = verify_gguf(plan, tmp_path / "out.gguf", levels=["structure", "tensors", "logits"])
    assert report.passed, report.verdict()


def logits_fail(plan: GgufPlan, path: Path, **changed: ReferenceNetwork) -> list[str]:
    """The cases that fail where the yardstick is another one."""
    file = GgufFile(path)
    yardstick = Yardstick(plan, file, n_utterances=1, seed=0)
    for name, network in changed.items():
        setattr(yardstick, name, yardstick.run(network))
    with GgufNetwork(file, n_threads=1) as network:
        return [check.name for check in check_logits(yardstick, network) if not check.passed]


def all_cases(plan: GgufPlan) -> list[str]:
    (utterance,) = utterances(plan.model, 1)
    return [f"logits {case.name}" for case in cases(plan.model, utterance)]


def silu_from_table(x: Tensor) -> Tensor:
    """SiLU with the rounding that llama.cpp gives its activation."""
    return F.silu(x.half().float()).half().float()


@pytest.mark.parametrize("out_type", ["f32", "f16", "q8_0"])
def test_silu_instead_of_gelu_fails_in_every_case(converted: Convert, out_type: str) -> None:
    plan = plan_conversion(golden_checkpoint("ar-nar-len"))
    path = converted("ar-nar-len", out_type)
    file = GgufFile(path)
    kinds = {name: tensor.ggml_type.name for name, tensor in file.tensors.items()}
    tensors = ConvertedTensors(plan, file)
    exact = ReferenceNetwork(tensors, plan.description, activation=F.silu)
    emulated = ReferenceNetwork(
        tensors,
        plan.description,
        activation=silu_from_table,
        round_inputs=input_rounding(kinds),
    )
    assert logits_fail(plan, path) == []
    assert logits_fail(plan, path, exact=exact, emulated=emulated) == all_cases(plan)


def test_the_tanh_form_of_gelu_is_told_from_the_exact_one_by_no_limit(converted: Convert) -> None:
    # llama.cpp computes that form: what separates the two is inside of what f32 allows.
    plan = plan_conversion(golden_checkpoint("ar-nar-len"))
    tanh = ReferenceNetwork(
        plan.checkpoint.tensors,
        plan.description,
        activation=lambda x: F.gelu(x, approximate="tanh"),
    )
    assert logits_fail(plan, converted("ar-nar-len", "f32"), exact=tanh) == []


def changed_checkpoint(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None], config: dict[str, Any]
) -> Path:
    """The golden checkpoint `ar-nar-len` with other weights, or switches of `experimental`."""
    source = golden_checkpoint("ar-nar-len")
    tensors = load_file(source)
    change(tensors)
    with safe_open(source, framework="numpy") as file:
        metadata = file.metadata()
    changed = json.loads(metadata["config"])
    changed["experimental"] |= config
    path = tmp_path / "fp32.sft"
    save_file(tensors, path, metadata | {"config": json.dumps(changed)})
    return path


def permute_q_and_k(tensors: dict[str, np.ndarray]) -> None:
    """What converters of LLaMA models do, and must not be done here."""
    for name, weight in tensors.items():
        if ".q_proj." in name or ".k_proj." in name:
            halves = weight.reshape(2, 2, 16, 64)  # heads, halves, elements, inputs
            tensors[name] = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(64, 64)


def nothing(tensors: dict[str, np.ndarray]) -> None:
    del tensors


@pytest.mark.parametrize(
    ("change", "config", "level", "words"),
    [
        (permute_q_and_k, {}, "tensors", "blk.0.attn_q.weight"),
        (permute_q_and_k, {}, "logits", "logits ar"),
        (nothing, {"audio_embedding_sums": "prom"}, "logits", "logits nar.5"),
        (nothing, {"unified_position_ids": True}, "structure", "valle.positions"),
        (nothing, {"unified_position_ids": True}, "logits", "logits ar"),
        (nothing, {"noncausal_masks": False}, "logits", "logits nar.1"),
        (nothing, {"audio_embedding_sums": False}, "logits", "logits nar.7"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_file_that_computes_something_else_fails(
    change: Callable[[dict[str, np.ndarray]], None],
    config: dict[str, Any],
    level: Any,
    words: str,
    tmp_path: Path,
) -> None:
    wrong = plan_conversion(changed_checkpoint(tmp_path, change, config), Choices("f32"))
    path = tmp_path / "wrong.gguf"
    write_gguf(wrong, path)
    right = plan_conversion(golden_checkpoint("ar-nar-len"))
    # The file claims to be of the right checkpoint: else nothing more would be looked at.
    digests = (sha256_of(plan.checkpoint.path).encode() for plan in (wrong, right))
    path.write_bytes(path.read_bytes().replace(*digests))
    report = verify_gguf(right, path, levels=[level])
    assert not report.passed
    assert any(words in f"{check.name} {check.summary}" for check in report.failures)
    assert report.verdict().startswith("FAILED: ")


def test_one_wrong_bit_in_any_tensor_is_found(tmp_path: Path, converted: Convert) -> None:
    source = converted("ar-nar-len", "f16")
    plan = plan_conversion(golden_checkpoint("ar-nar-len"))
    for name, tensor in GgufFile(source).tensors.items():
        raw = bytearray(source.read_bytes())
        raw[tensor.start + tensor.n_bytes - 2] ^= 1
        path = tmp_path / "bit.gguf"
        path.write_bytes(raw)
        assert failed(verify_gguf(plan, path, levels=["tensors"])) == [f"tensor {name}"]


def test_noise_in_a_quantized_tensor_is_found(tmp_path: Path, converted: Convert) -> None:
    source = converted("ar-nar-len", "q8_0")
    plan = plan_conversion(golden_checkpoint("ar-nar-len"))
    assert failed(verify_gguf(plan, source, levels=["tensors"])) == []
    tensor = GgufFile(source).tensors["blk.1.ffn_up.weight"]
    raw = bytearray(source.read_bytes())
    # One block of 34 bytes in a thousand turned into noise.
    at = tensor.start + 34 * 100
    raw[at + 2 : at + 34] = np.random.default_rng(0).bytes(32)
    path = tmp_path / "noise.gguf"
    path.write_bytes(raw)
    assert failed(verify_gguf(plan, path, levels=["tensors"])) == ["tensor blk.1.ffn_up.weight"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("valle.source.sha256", "0" * 64),
        ("valle.head.bias", None),
        ("tokenizer.ggml.merges", None),
        ("gemma.rope.freq_base", 20_000.0),
    ],
)
def test_a_wrong_key_is_found(key: str, value: object, tmp_path: Path, converted: Convert) -> None:
    from valle_convert.gguf_file.header import pack_header

    plan = plan_conversion(golden_checkpoint("ar-nar-len"), Choices("f32"))
    source = converted("ar-nar-len", "f32")
    file = GgufFile(source)
    keys = []
    for planned in plan.keys:
        found = file.keys[planned.name]
        if planned.name == key:
            found = found[::-1] if value is None else value
        keys.append(replace(planned, value=found))
    path = tmp_path / "key.gguf"
    path.write_bytes(pack_header(keys, plan.tensors) + source.read_bytes()[-plan.data_bytes :])
    report = verify_gguf(plan, path, levels=["structure"])
    (failure,) = report.failures
    assert (failure.name, report.exit_code) == ("source" if "sha256" in key else "keys", 1)
    assert "another checkpoint" in failure.summary if "sha256" in key else key in failure.summary


def test_a_vocabulary_without_a_merge_is_found(tmp_path: Path, converted: Convert) -> None:
    from valle_convert.gguf_file.header import pack_header

    plan = plan_conversion(golden_checkpoint("ar-nar-len"), Choices("f32"))
    source = converted("ar-nar-len", "f32")
    file = GgufFile(source)
    keys = [replace(planned, value=file.keys[planned.name]) for planned in plan.keys]
    keys = [
        replace(key, value=key.value[:-1]) if key.name == "tokenizer.ggml.merges" else key
        for key in keys
    ]
    path = tmp_path / "merges.gguf"
    path.write_bytes(pack_header(keys, plan.tensors) + source.read_bytes()[-plan.data_bytes :])
    report = verify_gguf(plan, path, levels=["tokenizer"])
    assert failed(report) == ["tokenizer"]
    assert "gives" in report.failures[0].summary


def test_the_command_ends_with_1_and_names_the_worst_case(tmp_path: Path, cli: Cli) -> None:
    wrong = changed_checkpoint(tmp_path, permute_q_and_k, {})
    assert cli(wrong, tmp_path / "wrong.gguf", "--outtype", "f32").code == 0
    right = golden_checkpoint("ar-nar-len")
    report = tmp_path / "report.md"
    result = cli("verify", right, tmp_path / "wrong.gguf", "--report", report)
    assert result.code == 1
    assert result.out.splitlines()[-1].startswith("FAILED: ")
    assert "the worst is" in result.out
    assert "| **FAIL** |" in report.read_text()
    as_json = cli("verify", right, tmp_path / "wrong.gguf", "--level", "tensors", "--json")
    assert as_json.code == 1
    assert json.loads(as_json.out)["passed"] is False


def test_the_command_ends_with_0_for_a_right_file(converted: Convert, cli: Cli) -> None:
    path = converted("v6-text-head", "f16")
    result = cli("verify", golden_checkpoint("v6-text-head"), path)
    assert result.code == 0
    assert result.out.splitlines()[-1].startswith("PASSED: ")


def test_a_lora_is_verified_with_the_same_options(
    tmp_path: Path, small_checkpoint: Callable[..., Path], cli: Cli
) -> None:
    draw = np.random.default_rng(0)
    target = "model.layers.1.mlp.down_proj"
    lora = tmp_path / "lora.sft"
    save_file(
        {
            f"{target}.lora_A": draw.standard_normal((2, 256)).astype(np.float32),
            f"{target}.lora_B": draw.standard_normal((64, 2)).astype(np.float32),
        },
        lora,
        {"config": json.dumps({"rank": 2, "alpha": 2})},
    )
    path, out = small_checkpoint(), tmp_path / "out.gguf"
    assert cli(path, out, "--lora", lora).code == 0
    assert cli("verify", path, out, "--lora", lora).code == 0
    without = cli("verify", path, out, "--level", "tensors")
    assert without.code == 1
    assert "made with the LoRA lora.sft (1 weights, alpha 2) merged; give it with --lora" in (
        without.out
    )
    other = tmp_path / "elsewhere" / "other.sft"
    other.parent.mkdir()
    tensors = load_file(lora)
    tensors[f"{target}.lora_B"] *= 2
    save_file(tensors, other, {"config": json.dumps({"rank": 2, "alpha": 2})})
    wrong = cli("verify", path, out, "--lora", other, "--level", "tensors")
    assert wrong.code == 1
    assert "blk.1.ffn_down.weight" in wrong.out
    # The same LoRA under another name is the same.
    same = lora.rename(other.with_name("same.sft"))
    assert cli("verify", path, out, "--lora", same).code == 0


def test_another_checkpoint_is_told_at_once(
    tmp_path: Path, small_checkpoint: Callable[..., Path], cli: Cli
) -> None:
    path, out = small_checkpoint(seed=1), tmp_path / "out.gguf"
    assert cli(path, out).code == 0
    other = small_checkpoint("other.sft", seed=2)
    result = cli("verify", other, out, "--json")
    assert result.code == 1
    (level,) = json.loads(result.out)["levels"]
    (check,) = level["checks"]
    assert check["name"] == "source"
    assert "was made of another checkpoint (small.sft" in check["summary"]


def test_the_same_tokenizer_from_another_place_is_the_same(
    tmp_path: Path, small_checkpoint: Callable[..., Path], cli: Cli
) -> None:
    path, out = small_checkpoint(), tmp_path / "out.gguf"
    assert cli(path, out).code == 0
    copy = tmp_path / "elsewhere" / "mine.json"
    copy.parent.mkdir()
    copy.write_bytes(VOCABULARY.read_bytes())
    assert cli("verify", path, out, "--tokenizer", copy).code == 0


@pytest.mark.parametrize("level", ["all", "structure", "tokenizer", "logits"])
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


def test_epsilon_and_rotary_base_of_the_reference_are_its_own(
    converted: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong constant in the writer is noticed, since the reference has it from elsewhere."""
    plan = plan_conversion(golden_checkpoint("ar-nar-len"))
    path = converted("ar-nar-len", "f32")
    for name, value in (("RMS_EPSILON", 1e-3), ("ROPE_BASE", 500.0)):
        with monkeypatch.context() as changed:
            changed.setattr(f"valle_convert.families.v5.reference.{name}", value)
            assert logits_fail(plan, path) == all_cases(plan)
    assert logits_fail(plan, path) == []


@pytest.mark.slow
def test_the_production_size_converts_and_verifies(tmp_path: Path) -> None:
    path = tmp_path / "production.sft"
    make_checkpoint(path, PRODUCTION)
    plan = plan_conversion(read_checkpoint(path), Choices("f16"))
    write_gguf(plan, tmp_path / "out.gguf")
    report = verify_gguf(plan, tmp_path / "out.gguf")
    assert report.passed, report.verdict()
