"""Fit the miniature's codec: codebooks by k-means on frames of the training corpus.

python -m miniature.fit_codec miniature/codec.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from miniature import corpus
from miniature.world import WorldSettings, analyse, nearest_codes, write_world_codec

Floats = NDArray[np.float32]

#: How much of the distance between two frames is voicing, pitch, aperiodicity and envelope, as the
#: variance of each part after scaling.
WEIGHTS = {"voicing": 0.15, "pitch": 0.3, "bands": 0.1, "envelope": 1.0}
#: Of the envelope's first coefficient, the loudness: alone it has two thirds of the variance.
LOUDNESS = 0.4


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--utterances", type=int, default=900)
    arguments.add_argument("--levels", type=int, default=4)
    arguments.add_argument("--size", type=int, default=256)
    given = arguments.parse_args()
    settings = WorldSettings()
    said = corpus.training_set(given.seed, given.utterances)
    frames = np.concatenate([analyse(one.samples, settings) for one in said])
    codebooks, mean, scale = fit(frames, given.levels, given.size, given.seed, settings)
    write_world_codec(given.out, codebooks, mean, scale, settings)


def fit(
    frames: Floats, n_levels: int, size: int, seed: int, settings: WorldSettings
) -> tuple[Floats, Floats, Floats]:
    """Codebooks [levels, size, d], mean [d] and scale [d] of frames [n, d] of `analyse`."""
    voiced = frames[:, 0] > 0
    mean = frames.mean(0)
    mean[1] = frames[voiced, 1].mean()
    values = frames - mean
    values[~voiced, 1] = 0
    scale = np.empty_like(mean)
    parts = {
        "voicing": slice(0, 1),
        "pitch": slice(1, 2),
        "bands": slice(2, -settings.n_envelope),
        "envelope": slice(-settings.n_envelope, None),
    }
    for name, part in parts.items():
        scale[part] = np.sqrt(WEIGHTS[name] / values[:, part].var(0).sum())
    scale[-settings.n_envelope] *= LOUDNESS
    values *= scale
    rng = np.random.default_rng(seed)
    books = np.zeros((0, size, values.shape[1]), np.float32)
    left, total = values, float((values**2).sum())
    for level in range(n_levels):
        book = k_means(left, size, rng)
        left = left - book[nearest_codes(left, book[None])[:, 0]]
        books = np.concatenate([books, book[None]])
        print(f"level {level}: {float((left**2).sum()) / total:.4f} of the energy is left")
    return books, mean, scale


def k_means(values: Floats, size: int, rng: np.random.Generator, *, rounds: int = 25) -> Floats:
    """K-means centres [size, d] of values [n, d]; empty clusters restart elsewhere."""
    centres = values[rng.choice(len(values), size, replace=False)].copy()
    for _ in range(rounds):
        nearest = nearest_codes(values, centres[None])[:, 0]
        counts = np.bincount(nearest, minlength=size)
        order = np.argsort(nearest, kind="stable")
        starts = np.concatenate([[0], counts.cumsum()[:-1]])
        filled = counts > 0
        sums = np.add.reduceat(values[order], starts[filled], axis=0)
        centres[filled] = sums / counts[filled, None]
        centres[~filled] = values[rng.choice(len(values), int((~filled).sum()), replace=False)]
    return centres


if __name__ == "__main__":
    main()
