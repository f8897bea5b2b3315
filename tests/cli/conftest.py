"""Files that several tests of the command line read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import GOLDEN_VALLEX, Convert

from valle_convert.quantize.options import MakeOptions
from valle_convert.quantize.run import quantize
from valle_convert.quantize.types import parse_types


@pytest.fixture(scope="session")
def vallex(converted: Convert) -> Path:
    """The golden VALL-E X as a set of files."""
    return converted(GOLDEN_VALLEX, "auto")


@pytest.fixture(scope="session")
def quantized(converted: Convert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `m-F16.gguf`, and `out` with what it was quantized to."""
    folder = tmp_path_factory.mktemp("quantized")
    shutil.copy(converted("ar-nar-len", "f16"), folder / "m-F16.gguf")
    quantize(folder / "m-F16.gguf", folder / "out", MakeOptions(parse_types("Q8_0"), threads=1))
    return folder


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA for one matrix."""
    path = tmp_path_factory.mktemp("lora") / "lora.sft"
    where = "model.layers.0.self_attn.q_proj"
    sides = {"A": np.ones((4, 64), np.float32), "B": np.ones((64, 4), np.float32)}
    pair = {f"{where}.lora_{side}": values for side, values in sides.items()}
    save_file(pair, path, {"config": json.dumps({"rank": 4, "alpha": 6.0})})
    return path
