"""Random models of the architectures `gemma` and `mpt`, small enough to make on the spot.

They test a machine's llama.cpp, and what it computes, before a real file relies on it. The tests of
the sessions use them too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

MPT_WIDTH, MPT_FF, MPT_ROWS = 32, 64, 32


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


def random_gemma(shape: GemmaShape, seed: int) -> dict[str, FloatArray]:
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
    path: Path, shape: GemmaShape, weights: Mapping[str, FloatArray], *, file_type: str = "f32"
) -> None:
    """Write a GGUF file that llama.cpp loads, without a tokenizer."""
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
    tensors = {name: weights[name] for name in tensor_shapes(shape)}
    _finish(writer, tensors, gguf.GGMLQuantizationType[file_type.upper()])


def random_mpt(*, attention: bool) -> dict[str, FloatArray]:
    """Weights of one layer by name, without the activation's factor; without attention, its
    matrices are zeros, so that the rows of a batch are independent.
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


def write_mpt(path: Path, weights: Mapping[str, FloatArray], factor: int) -> None:
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
    scaled = {name: one * factor if "ffn_up" in name else one for name, one in weights.items()}
    scaled["blk.0.ffn.act.scales"] = np.full(MPT_FF, factor, np.float32)
    _finish(writer, scaled, gguf.GGMLQuantizationType.F32)


def _finish(
    writer: gguf.GGUFWriter,
    weights: Mapping[str, FloatArray],
    kind: gguf.GGMLQuantizationType,
) -> None:
    for name, tensor in weights.items():
        of_matrices = gguf.GGMLQuantizationType.F32 if tensor.ndim == 1 else kind
        packed = gguf.quants.quantize(tensor, of_matrices)
        writer.add_tensor(name, packed, raw_dtype=of_matrices)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
