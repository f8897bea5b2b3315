"""A whole speaker of small parts: a golden checkpoint converted and quantized, and an EnCodec."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import golden_checkpoint
from transformers import EncodecConfig, EncodecModel

from valle_convert.api import plan_conversion, write_gguf
from valle_convert.audio import EncodecCodec
from valle_convert.families.v5.speech import Speaker

CODES = 64  # a codebook, in the golden checkpoints


@pytest.fixture(scope="session")
def codec(tmp_path_factory: pytest.TempPathFactory) -> EncodecCodec:
    """EnCodec of the real architecture with random weights, whose codes are the golden models'."""
    folder = tmp_path_factory.mktemp("encodec")
    config = EncodecConfig(
        num_filters=4,
        hidden_size=16,
        codebook_dim=16,
        codebook_size=CODES,
        target_bandwidths=[3.6],  # 8 levels of 6 bits, 75 times a second
        num_lstm_layers=1,
    )
    torch.manual_seed(0)
    model = EncodecModel(config)
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_(std=0.1)
    model.save_pretrained(folder)
    return EncodecCodec(folder)


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint that is like the published reference model, in Q8_0."""
    path = tmp_path_factory.mktemp("gguf") / "model-q8_0.gguf"
    write_gguf(plan_conversion(golden_checkpoint("ar-nar-len"), out_type="q8_0"), path)
    return path


@pytest.fixture(scope="session")
def speaker(gguf: Path, codec: EncodecCodec) -> Iterator[Speaker]:
    with Speaker.open(gguf, codec=codec, n_threads=1) as opened:
        yield opened


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models are slower on several threads, and very slow where workers share the cores."""
    torch.set_num_threads(1)
