"""Files that several tests of the command line read."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import GOLDEN_VALLEX, Convert


@pytest.fixture(scope="session")
def vallex(converted: Convert) -> Path:
    """The golden VALL-E X as a set of files."""
    return converted(GOLDEN_VALLEX, "auto")


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA for one matrix."""
    path = tmp_path_factory.mktemp("lora") / "lora.sft"
    where = "model.layers.0.self_attn.q_proj"
    sides = {"A": np.ones((4, 64), np.float32), "B": np.ones((64, 4), np.float32)}
    pair = {f"{where}.lora_{side}": values for side, values in sides.items()}
    save_file(pair, path, {"config": json.dumps({"rank": 4, "alpha": 6.0})})
    return path
