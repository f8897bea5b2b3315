"""Files that several tests of the command line read."""

import shutil
from pathlib import Path

import pytest
from checkpoint.containers import lora_file
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
    return lora_file(path, {"model.layers.0.self_attn.q_proj": (64, 64)})
