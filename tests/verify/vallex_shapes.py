"""VALL-E X checkpoints that nobody chose by hand."""

from __future__ import annotations

import random

from make_vallex import DTYPES, VallexShape


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
