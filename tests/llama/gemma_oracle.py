"""llama.cpp's `gemma` graph written down a second time, in float64 numpy, from its definition.

It shares nothing with llama.cpp: positions are arbitrary numbers, one for each token, and the
mask is given as "later tokens of the batch are hidden" or nothing.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from valle_convert.llama.tiny import GemmaShape

Array = NDArray[np.float64]


def gemma_logits(
    shape: GemmaShape,
    weights: Mapping[str, NDArray[np.float32]],
    embeddings: ArrayLike,
    positions: ArrayLike,
    *,
    causal: bool,
) -> Array:
    """The logits [n, n_vocab] of embeddings [n, n_embd], given as the first layer sees them."""
    x = gemma_states(shape, weights, embeddings, positions, causal=causal)
    norm, rows = weights["output_norm.weight"], weights["token_embd.weight"]
    return rms_norm(x, norm.astype(np.float64), shape.norm_eps) @ rows.astype(np.float64).T


def gemma_states(
    shape: GemmaShape,
    weights: Mapping[str, NDArray[np.float32]],
    embeddings: ArrayLike,
    positions: ArrayLike,
    *,
    causal: bool,
) -> Array:
    """What the last layer gives, before the last norm, [n, n_embd]."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    x = np.asarray(embeddings, dtype=np.float64)
    n = len(x)
    hidden = np.triu(np.ones((n, n), dtype=bool), 1) if causal else np.zeros((n, n), dtype=bool)
    for layer in range(shape.n_layer):
        b = f"blk.{layer}."
        h = rms_norm(x, w[b + "attn_norm.weight"], shape.norm_eps)
        q, k, v = (
            (h @ w[f"{b}attn_{name}.weight"].T).reshape(n, -1, shape.head_size).swapaxes(0, 1)
            for name in "qkv"
        )
        q = rotate_halves(q, positions, shape.rope_freq_base)
        k = rotate_halves(k, positions, shape.rope_freq_base)
        group = shape.n_head // shape.n_head_kv
        k, v = k.repeat(group, axis=0), v.repeat(group, axis=0)
        scores = q @ k.swapaxes(1, 2) / np.sqrt(shape.head_size)
        scores = np.where(hidden, -np.inf, scores)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attended = (scores / scores.sum(axis=-1, keepdims=True)) @ v
        x = x + attended.swapaxes(0, 1).reshape(n, -1) @ w[b + "attn_output.weight"].T
        h = rms_norm(x, w[b + "ffn_norm.weight"], shape.norm_eps)
        gate = gelu_tanh(h @ w[b + "ffn_gate.weight"].T)
        x = x + (gate * (h @ w[b + "ffn_up.weight"].T)) @ w[b + "ffn_down.weight"].T
    return x


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight


def rotate_halves(x: Array, positions: ArrayLike, base: float) -> Array:
    """Rotary embedding in NEOX order of x [heads, n, size]: dimension i turns with i + size/2."""
    half = x.shape[-1] // 2
    angles = np.outer(np.asarray(positions, np.float64), base ** (-np.arange(half) / half))
    first, second = x[..., :half], x[..., half:]
    return np.concatenate(
        [
            first * np.cos(angles) - second * np.sin(angles),
            second * np.cos(angles) + first * np.sin(angles),
        ],
        axis=-1,
    )


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
