"""Checkpoints that nobody chose by hand: random sizes, switches and number types, from a seed."""

import random
from typing import Any

import make_vallex
from make_checkpoint import DTYPES


def random_shape(seed: int, *, width: int | None = None) -> dict[str, Any]:
    """Arguments of `make_checkpoint.Shape`.

    Args:
        seed: of all choices, and of the weights.
        width: of the model; None for one that hardly any block size divides.
    """
    draw = random.Random(seed)  # noqa: S311 - no secret
    heads = draw.choice([1, 2, 3, 4])
    dim = heads * draw.choice([16, 32, 48, 64]) if width is None else width
    if width is not None:
        heads = draw.choice([1, 2, 4])
    return {
        "dim": dim,
        "heads": heads,
        "layers": draw.randint(1, 4),
        "kv_heads": draw.choice([n for n in range(1, heads + 1) if heads % n == 0]),
        "ffn": draw.choice([1, 2, 3, 4]),
        "levels": draw.randint(1, 9),
        "audio_tokens": draw.choice([2, 10, 64, 100, 257]),
        "text_tokens": draw.choice([1, 5, 32]),
        "langs": draw.randint(1, 8),
        "tasks": 9,
        "version": draw.choice([5, 6]),
        "split": draw.random() < 0.8,
        "bias": draw.random() < 0.5,
        "sums": draw.choice([True, False, "prom", "resp"]),
        "unified": draw.random() < 0.4,
        "noncausal": draw.random() < 0.6,
        "capabilities": draw.choice(
            [("ar", "nar", "len", "lang"), ("ar", "nar", "lang"), ("ar", "nar", "len")]
        ),
        "seed": seed,
    }


def random_version_7(seed: int, *, width: int | None = None) -> dict[str, Any]:
    """The same for version 7."""
    draw = random.Random(f"version 7, {seed}")  # noqa: S311 - no secret
    shape = random_shape(seed, width=width)
    for key in ("kv_heads", "split", "bias", "sums"):
        del shape[key]
    return shape | {
        "version": 7,
        "capabilities": draw.choice([("nar", "len"), ("nar", "len", "tone"), ("nar",)]),
        "encoder_norm": draw.random() < 0.7,
        "encoder_ffn": draw.choice([0, 1, 2, 3]),
        "level_weights": draw.random() < 0.7,
        "level_norm": draw.random() < 0.6,
        "decoder_ffn": draw.choice([1, 2, 3]),
        "length_digits": draw.random() < 0.4,
    }


def random_dtype(seed: int) -> str:
    """The number type of the checkpoint; all three come up equally often."""
    return list(DTYPES)[seed % len(DTYPES)]


def random_vallex(seed: int) -> tuple[make_vallex.VallexShape, str]:
    """Sizes and the type of the weights, from a seed."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    heads = draw.choice([1, 2, 3, 4])
    shape = make_vallex.VallexShape(
        dim=heads * draw.choice([16, 24, 32, 64, 80]),
        heads=heads,
        layers=draw.randint(1, 4),
        ffn=draw.choice([1, 2, 4]),
        levels=draw.randint(2, 9),
        codes=draw.choice([2, 10, 64, 100, 257]),
        text_rows=draw.choice([70, 71, 128]),
        languages=draw.randint(1, 4),
        tied=draw.random() < 0.7,
        seed=seed,
    )
    return shape, draw.choice(list(make_vallex.DTYPES))
