"""Files that several tests of the command line read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import GOLDEN_VALLEX, Convert


@pytest.fixture(scope="session")
def vallex(converted: Convert) -> Path:
    """The golden VALL-E X as a set of files."""
    return converted(GOLDEN_VALLEX, "auto")


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
