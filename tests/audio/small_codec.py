"""EnCodec at 24 kHz with eight codebooks, small enough to be made and saved in a test."""

import math
from pathlib import Path

import torch
from transformers import EncodecConfig, EncodecModel


def save_codec(folder: Path, *, codebook_size: int = 1024, seed: int = 0) -> Path:
    """Write config.json and model.safetensors of a codec with random weights."""
    # A level costs log2(codes) bits, 75 times a second: 8 levels are 6 kbit/s for 1024 codes.
    level = 0.075 * math.log2(codebook_size)
    config = EncodecConfig(
        num_filters=4,
        hidden_size=16,
        codebook_dim=16,
        codebook_size=codebook_size,
        target_bandwidths=[round(n * level, 3) for n in (2, 4, 8)],
        num_lstm_layers=1,
    )
    torch.manual_seed(seed)
    return save_with_codebooks(EncodecModel(config), folder)


def save_with_codebooks(model: EncodecModel, folder: Path) -> Path:
    """A new model's codebooks are zero, and training fills them with what the encoder gives.

    Here they get random vectors of the same mean and spread, level by level.
    """
    with torch.inference_mode():
        left = model.eval().encoder(0.1 * torch.randn(1, 1, 24_000 * 2))[0].T  # [frames, width]
        for layer in model.quantizer.layers:
            embed = layer.codebook.embed
            embed.copy_(left.mean(0) + torch.randn(embed.shape) * left.std(0))
            left = left - layer.codebook.decode(layer.codebook.encode(left[None]))[0]
    model.save_pretrained(folder)
    return folder
