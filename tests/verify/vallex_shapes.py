"""VALL-E X checkpoints that nobody chose by hand."""

from __future__ import annotations

import random

import numpy as np
from make_vallex import DTYPES, VallexShape

from valle_convert.families.vallex.composed import VallexText
from valle_convert.families.vallex.facts import VallexModel


def random_vallex(seed: int) -> tuple[VallexShape, str]:
    """Sizes and the type of the weights, from a seed."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    heads = draw.choice([1, 2, 3, 4])
    shape = VallexShape(
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
    return shape, draw.choice(list(DTYPES))


def random_inputs(
    model: VallexModel, seed: int
) -> tuple[VallexText, np.ndarray[tuple[int, int], np.dtype[np.int32]], np.ndarray]:
    """A text with a language a symbol, a prompt and a speech; now and then no prompt."""
    draw = np.random.default_rng(seed)
    n_text, n_prompt, n = draw.integers(1, 40), draw.choice([0, 1, 20]), draw.integers(1, 40)
    text = VallexText(
        draw.integers(0, 70, n_text, dtype=np.int32),
        draw.integers(0, len(model.languages), n_text, dtype=np.int32),
    )
    codes = draw.integers(0, model.codebook_size, (n_prompt + n, model.n_levels), dtype=np.int32)
    return text, codes[:n_prompt], codes[n_prompt:]
