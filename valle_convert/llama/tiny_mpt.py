"""A random model of llama.cpp's `mpt` architecture in one layer, small enough to make on the spot.

It proves that GELU can compute ReLU before a real file needs it. Tests use it with attention, too.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

MPT_WIDTH, MPT_FF, MPT_ROWS = 32, 64, 32


def random_mpt(*, attention: bool) -> dict[str, FloatArray]:
    """Weights by name, without the activation's factor; without attention, its matrices are zeros,
    so that the rows of a batch are independent.
    """
    draw = np.random.default_rng(0)

    def normal(*shape: int) -> FloatArray:
        return draw.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))

    sharp = np.float32(2.0 * attention)
    ones = np.ones(MPT_WIDTH, np.float32)
    return {
        "token_embd.weight": normal(MPT_ROWS, MPT_WIDTH),
        "output_norm.weight": ones,
        "blk.0.attn_norm.weight": ones,
        "blk.0.attn_qkv.weight": sharp * normal(3 * MPT_WIDTH, MPT_WIDTH),
        "blk.0.attn_output.weight": sharp * normal(MPT_WIDTH, MPT_WIDTH),
        "blk.0.ffn_norm.weight": ones,
        "blk.0.ffn_up.weight": normal(MPT_FF, MPT_WIDTH),
        "blk.0.ffn_up.bias": normal(MPT_FF),
        "blk.0.ffn_down.weight": normal(MPT_WIDTH, MPT_FF),
        "blk.0.ffn_down.bias": np.zeros(MPT_WIDTH, np.float32),
    }


def write_mpt(path: Path, weights: dict[str, FloatArray], factor: int) -> None:
    """Write a GGUF file that llama.cpp loads, without a vocabulary."""
    writer = gguf.GGUFWriter(path, "mpt")
    writer.add_context_length(64)
    writer.add_embedding_length(MPT_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(MPT_FF)
    writer.add_head_count(1)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(MPT_ROWS)
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in weights.items():
        writer.add_tensor(name, tensor * factor if "ffn_up" in name else tensor)
    writer.add_tensor("blk.0.ffn.act.scales", np.full(MPT_FF, factor, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
