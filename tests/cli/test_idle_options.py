"""No option that changes nothing is passed over in silence, and no set is judged by one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from make_checkpoint import Shape, make_checkpoint
from support import GOLDEN, Cli, Convert, error_of, golden_checkpoint
from vallex_golden import CHECKPOINT as VALLEX

from valle_convert import write_lora

CHECKPOINT = golden_checkpoint("ar-nar-len")
Lora = Callable[..., Path]
OLD = GOLDEN / "old-gguf" / "f16.gguf"


def test_a_lora_is_not_passed_over_by_the_verdict_on_a_set(
    vallex: Path, lora: Lora, tmp_path: Path, cli: Cli
) -> None:
    given = tmp_path / "lora.gguf"
    write_lora(CHECKPOINT, lora(), given)
    result = cli("verify", VALLEX, vallex, "--level", "structure", "--lora", given)
    assert result.code == 2, result
    assert "lora does not support VALL-E X yet" in result.err


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ("verify GGUF --level logits", "--level"),
        ("verify GGUF --trace", "--trace"),
        ("inspect GGUF --config x.yaml", "--config"),
        ("lora GGUF x.sft OUT --config x.yaml", "--config"),
        ("inspect SET --lora x.sft", "--lora"),
        ("inspect FOLDER --lora x.sft", "--lora"),
        ("verify GGUF --tokenizer x.json", "--tokenizer"),
        ("verify GGUF --lora x.sft", "--lora"),
        ("verify CHECKPOINT GGUF --biases CHECKPOINT", "--biases"),
        ("verify OLD GGUF --lora x.sft", "--lora"),
        ("verify VALLEX SET --tokenizer x.json", "--tokenizer"),
        ("evaluate GGUF --no-worse-than x.json@0.9", "--no-worse-than"),
        ("evaluate GGUF --no-worse-than x.json@nan", "--no-worse-than"),
        ("evaluate GGUF --max-wer 1", "--max-wer: it has no effect without --asr"),
        ("evaluate GGUF --checkpoint CHECKPOINT --prune", "give folders"),
        ("evaluate GGUF --types Q8_0", "--types selects files"),
        ("scan GGUF x.txt", "OUT.txt: it has no effect without --target-bits or --max-kl"),
        ("scan GGUF --target-bits 4 --max-kl 0", "--max-kl: it cannot be combined with --target"),
        ("quantize GGUF OUT Q8_0 --types Q4_0", "--types: it cannot be combined with TYPE"),
        ("utterances a.wav x --list l --model GGUF", "--list: it cannot be combined with AUDIO"),
        # A value is given even if it is the default.
        ("speak GGUF Hi --task tts --source a.wav", "--source: it has no effect without --task vc"),
        ("speak GGUF --codes a.npz -o o.wav --seed 0", "--seed: it has no effect without TEXT or"),
        ("evaluate GGUF --asr true", "--asr"),
        ("evaluate GGUF --listen --voice x.wav", "--voice"),
        ("evaluate GGUF --config x.yaml", "--config"),
        ("quantize GGUF OUT Q8_0 --threads 99999999", "--threads"),
    ],
)
def test_options_without_effect_are_refused(
    arguments: str,
    option: str,
    converted: Convert,
    vallex: Path,
    tmp_path: Path,
    cli: Cli,
) -> None:
    known = {"GGUF": converted("ar-nar-len", "f16"), "CHECKPOINT": CHECKPOINT, "VALLEX": VALLEX}
    known |= {"OLD": OLD, "SET": vallex, "FOLDER": vallex.parent, "OUT": tmp_path / "o.gguf"}
    result = cli(*(known.get(word, word) for word in arguments.split()))
    assert result.code == 2, result
    assert option in " ".join(result.err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_lora_of_another_model_is_refused_before_anything_is_measured(
    lora: Lora, tmp_path: Path, cli: Cli
) -> None:
    adapters = {
        base: tmp_path / f"{i}.gguf" for i, base in enumerate((CHECKPOINT, tmp_path / "other.sft"))
    }
    other, source = tmp_path / "other.sft", tmp_path / "other.gguf"
    make_checkpoint(other, Shape(heads=4, kv_heads=2))
    assert cli(other, source, "--outtype", "f16", "--verify", "none").code == 0
    for base, adapter in adapters.items():
        write_lora(base, lora(), adapter)
    run = ("evaluate", source, "--checkpoint", other, "--utterances", "1", "--lora")
    assert "is not an adapter for" in error_of(cli(*run, adapters[CHECKPOINT]), 2)
    assert not source.with_suffix(".measurements.json").exists()
    assert cli(*run, adapters[other]).code == 0


def test_a_tensor_type_for_nothing_is_told(converted: Convert, tmp_path: Path, cli: Cli) -> None:
    run = ("quantize", converted("ar-nar-len", "f16"), tmp_path / "o.gguf", "Q8_0")
    patterns = (
        "--tensor-type",
        "zzz=Q8_0",
        "--tensor-type",
        "ffn_up=Q5_0",
        "--tensor-type",
        "norm=Q8_0",
    )
    result = cli(*run, *patterns)
    assert result.code == 0, result
    assert "the tensor type zzz=q8_0 matches no tensor" in result.err
    assert "the tensor type norm=q8_0 changes no tensor" in result.err
    assert "ffn_up=q5_0 " not in result.err
