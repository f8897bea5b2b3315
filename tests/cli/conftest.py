"""Files that several tests of the command line read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from audio.small_codec import save_codec
from safetensors.numpy import save_file
from vallex_golden import CHECKPOINT

from valle_convert import plan_conversion, write_gguf


@pytest.fixture(scope="session")
def vallex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden VALL-E X as a set of files."""
    path = tmp_path_factory.mktemp("vallex") / "x.gguf"
    write_gguf(plan_conversion(CHECKPOINT), path)
    return path


@pytest.fixture(scope="session")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EnCodec of the golden checkpoints' codebook size."""
    return save_codec(tmp_path_factory.mktemp("encodec"), codebook_size=64)


@pytest.fixture
def lora(tmp_path: Path) -> Callable[..., Path]:
    """`lora(width)`: a LoRA for one matrix."""

    def make(width: int = 64) -> Path:
        where = "model.layers.0.self_attn.q_proj"
        sides = {"A": np.ones((4, width), np.float32), "B": np.ones((width, 4), np.float32)}
        pair = {f"{where}.lora_{side}": values for side, values in sides.items()}
        save_file(pair, tmp_path / "lora.sft", {"config": json.dumps({"rank": 4, "alpha": 6.0})})
        return tmp_path / "lora.sft"

    return make
