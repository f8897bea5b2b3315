"""A LoRA is merged exactly, whichever way it is stored, or refused with the reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint.containers import torch_state
from safetensors.numpy import load_file, save_file
from support import Cli, describe, error_of

from valle_convert import read_checkpoint
from valle_convert.errors import InputError

TARGET = "model.layers.0.self_attn.v_proj"
DRAW = np.random.default_rng(3)
DOWN = DRAW.standard_normal((4, 64)).astype(np.float32)  # lora_A: r, in
UP = DRAW.standard_normal((64, 4)).astype(np.float32)  # lora_B: out, r
ALPHA = 6.0
#: Summed in float64, rank after rank.
UPDATE = ALPHA / 4 * sum(UP[:, [i]].astype(float) * DOWN[i] for i in range(4)).astype(np.float32)


def adapter_file(path: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    save_file(tensors, path, {"config": json.dumps(config)})
    return path


def plain_pair() -> dict[str, np.ndarray]:
    return {f"{TARGET}.lora_A": DOWN, f"{TARGET}.lora_B": UP}


def merged(path: Path, **options: Any) -> np.ndarray:
    checkpoint = read_checkpoint(path, **options)
    describe(checkpoint)  # the adapter's tensors are not among the model's
    return checkpoint.tensors.read(f"{TARGET}.weight").astype(np.float32)


@pytest.fixture
def source(small_checkpoint: Callable[..., Path]) -> Path:
    return small_checkpoint()


@pytest.fixture
def expected(source: Path) -> np.ndarray:
    return load_file(source)[f"{TARGET}.weight"] + UPDATE


def test_from_a_torch_file(source: Path, expected: np.ndarray, tmp_path: Path) -> None:
    lora = tmp_path / "lora.pth"
    state = torch_state(plain_pair())
    torch.save({"lora": state, "config": {"rank": 4, "alpha": ALPHA}}, lora)
    np.testing.assert_allclose(merged(source, lora=lora), expected, atol=1e-6)


def test_from_parametrizations_among_the_weights(
    small_checkpoint: Callable[..., Path], expected: np.ndarray
) -> None:
    path = small_checkpoint("parametrized.pth")
    loaded = torch.load(path, weights_only=True)
    module = loaded["module"]
    parametrized = f"{TARGET}.parametrizations.weight"
    module[f"{parametrized}.original"] = module.pop(f"{TARGET}.weight")
    module[f"{parametrized}.0.lora_A"] = torch.from_numpy(DOWN)
    module[f"{parametrized}.0.lora_B"] = torch.from_numpy(UP)
    torch.save(loaded, path)
    with pytest.raises(InputError, match=r'"alpha": NUMBER}} as --config\.'):
        read_checkpoint(path)
    config = path.with_name("alpha.yaml")
    config.write_text(f"lora: {{alpha: {ALPHA}}}")
    np.testing.assert_allclose(merged(path, config=config), expected, atol=1e-6)
    config.write_text("lora: {alpha: 1e38}")
    with pytest.raises(InputError, match=r"smaller lora\.alpha in --config"):
        merged(path, config=config)


@pytest.mark.parametrize("config", [[[1]], 5, "rank"])
def test_a_config_that_is_no_dict_is_refused(source: Path, tmp_path: Path, config: object) -> None:
    lora = tmp_path / "lora.sft"
    save_file(plain_pair(), lora, {"config": json.dumps(config)})
    with pytest.raises(InputError, match="config"):
        read_checkpoint(source, lora=lora)


@pytest.mark.parametrize("config", [{"rank": 4}, {"lora": {"rank": 4}}])
def test_a_missing_alpha_is_read_from_beside(
    source: Path, expected: np.ndarray, tmp_path: Path, config: dict[str, Any]
) -> None:
    lora = adapter_file(tmp_path / "lora.sft", plain_pair(), **config)
    with pytest.raises(InputError, match=r"to adapter_config\.json beside it\.$"):
        read_checkpoint(source, lora=lora)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": ALPHA}))
    np.testing.assert_allclose(merged(source, lora=lora), expected, atol=1e-6)


def test_the_merge_is_rounded_to_the_type_of_the_weight(
    small_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = small_checkpoint("half.sft", "f16")
    lora = adapter_file(tmp_path / "lora.sft", plain_pair(), alpha=ALPHA)
    exact = load_file(path)[f"{TARGET}.weight"].astype(np.float32) + UPDATE
    np.testing.assert_array_equal(
        merged(path, lora=lora), exact.astype(np.float16).astype(np.float32)
    )


@pytest.mark.parametrize(
    ("tensors", "config", "words"),
    [
        ({"x": DOWN}, {}, "holds no *.lora_A and *.lora_B tensors"),
        ({f"{TARGET}.lora_A": DOWN}, {"alpha": 1}, "only lora_A of the pair"),
        (plain_pair(), {"alpha": 1, "rank": 8}, "rank 4, but the config says 8"),
        ({f"{TARGET}.lora_A": DOWN[:0], f"{TARGET}.lora_B": UP[:, :0]}, {"alpha": 1}, "rank is 0"),
        (plain_pair(), {"alpha": "one"}, "got `str` - at `$.alpha`"),
        *(
            (plain_pair(), {"alpha": n}, "not a finite number")
            for n in (float("nan"), float("inf"))
        ),
        (plain_pair(), {"alpha": 1, "rvq_levels": "all"}, "got `str` - at `$.rvq_levels`"),
        (plain_pair(), {"alpha": 1, "rvq_levels": [0, 1]}, "codebook levels [0, 1]"),
        (
            {"model.layers.9.mlp.up_proj.lora_A": DOWN, "model.layers.9.mlp.up_proj.lora_B": UP},
            {"alpha": 1},
            "model.layers.9.mlp.up_proj.weight: the model has no such weight",
        ),
        (
            {f"{TARGET}.lora_A": DOWN[:, :32], f"{TARGET}.lora_B": UP},
            {"alpha": 1},
            "lora_B [64, 4] times lora_A [4, 32]",
        ),
        (
            {f"{TARGET}.lora_A": DOWN, f"{TARGET}.lora_B": UP.astype(np.int32)},
            {"alpha": 1},
            "types F32, F32, I32",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    source: Path, tmp_path: Path, tensors: dict[str, np.ndarray], config: dict[str, Any], words: str
) -> None:
    lora = adapter_file(tmp_path / "lora.sft", tensors, **config)
    with pytest.raises(InputError) as refused:
        read_checkpoint(source, lora=lora)
    assert words in str(refused.value)


@pytest.mark.parametrize("alpha", [1e38, -1e38, 1e12])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_a_merge_that_leaves_the_numbers_is_the_loras_fault(
    alpha: float, dtype: str, small_checkpoint: Callable[..., Path], tmp_path: Path, cli: Cli
) -> None:
    source, out = small_checkpoint(dtype=dtype), tmp_path / "o.gguf"
    lora = adapter_file(tmp_path / "lora.sft", plain_pair(), rank=4, alpha=alpha)
    message = error_of(cli(source, out, "--lora", lora), 2)
    assert "merging the LoRA makes" in message
    assert f"a weight of {TARGET}.weight" in message
    damaged = adapter_file(
        tmp_path / "nan.sft", {**plain_pair(), f"{TARGET}.lora_A": DOWN * np.nan}, alpha=1
    )
    assert f"{TARGET}.lora_A holds nan" in error_of(cli(source, out, "--lora", damaged), 2)
    assert not out.exists()


def test_what_a_lora_is_taken_without_is_noted_merged_or_apart(
    source: Path, tmp_path: Path, cli: Cli
) -> None:
    """Its names are wrapped, and have something before the model's."""
    wrapped = {f"_orig_mod.net.{name}": values for name, values in plain_pair().items()}
    lora = adapter_file(tmp_path / "lora.sft", wrapped, alpha=ALPHA)
    words = "lora.sft: 2 names of tensors taken without what wraps them"
    assert words in " ".join(read_checkpoint(source, lora=lora).notes)
    apart = cli("lora", source, lora, tmp_path / "apart.gguf")
    assert apart.code == 0, apart.err
    assert words.partition(": ")[2] in apart.err
