"""A random model of llama.cpp's `gemma` architecture, small enough to make on the spot.

It tests a machine's llama.cpp before that is trusted with a real file, and the tests and benchmarks
of the session use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class GemmaShape:
    """The sizes of a `gemma` model, named as llama.cpp names them."""

    n_embd: int = 256
    n_head: int = 4
    n_head_kv: int = 4
    n_layer: int = 1
    n_ff: int = 256
    n_vocab: int = 64
    rope_freq_base: float = 10000.0
    norm_eps: float = 1e-6

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head


def tensor_shapes(shape: GemmaShape) -> dict[str, tuple[int, ...]]:
    """Every tensor of the architecture by name; [out, in] for the linear layers, as in PyTorch."""
    kv = shape.n_head_kv * shape.head_size
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (shape.n_vocab, shape.n_embd),
        "output_norm.weight": (shape.n_embd,),
    }
    for layer in range(shape.n_layer):
        shapes |= {
            f"blk.{layer}.{name}.weight": size
            for name, size in {
                "attn_norm": (shape.n_embd,),
                "attn_q": (shape.n_embd, shape.n_embd),
                "attn_k": (kv, shape.n_embd),
                "attn_v": (kv, shape.n_embd),
                "attn_output": (shape.n_embd, shape.n_embd),
                "ffn_norm": (shape.n_embd,),
                "ffn_gate": (shape.n_ff, shape.n_embd),
                "ffn_up": (shape.n_ff, shape.n_embd),
                "ffn_down": (shape.n_embd, shape.n_ff),
            }.items()
        }
    return shapes


def random_weights(shape: GemmaShape, seed: int) -> dict[str, FloatArray]:
    """Weights that keep activations of order one, with attention sharp enough to matter."""
    generator = np.random.default_rng(seed)
    weights = {}
    for name, size in tensor_shapes(shape).items():
        noise = generator.standard_normal(size, dtype=np.float32)
        if len(size) == 1:
            weights[name] = np.float32(1) + np.float32(0.1) * noise
        else:
            # Queries and keys twice as large: attention weights far from uniform.
            gain = 2.0 if "attn_q" in name or "attn_k" in name else 1.0
            weights[name] = noise * np.float32(gain / np.sqrt(size[-1]))
    return weights


def write_gemma(
    path: Path, shape: GemmaShape, weights: dict[str, FloatArray], *, file_type: str = "f32"
) -> None:
    """Write a GGUF file that llama.cpp loads, without a tokenizer."""
    quantization = {
        "f32": gguf.GGMLQuantizationType.F32,
        "f16": gguf.GGMLQuantizationType.F16,
        "q8_0": gguf.GGMLQuantizationType.Q8_0,
    }[file_type]
    writer = gguf.GGUFWriter(path, "gemma")
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_freq_base(shape.rope_freq_base)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_tokenizer_model("none")
    for name in tensor_shapes(shape):
        tensor = weights[name]
        if tensor.ndim == 1 or file_type == "f32":
            writer.add_tensor(name, tensor)
        else:
            packed = gguf.quants.quantize(tensor, quantization)
            writer.add_tensor(name, packed, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
