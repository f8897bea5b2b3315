"""How far one set of logits is from another: the numbers of the field, row by row.

All functions take logits [rows, classes] of the same shape; `reference` is the truth.
"""

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.floating]


def nmse(reference: Logits, found: Logits) -> float:
    """Normalized mean square error: sum of squared errors over sum of squares."""
    difference = found.astype(np.float64) - reference
    energy = float(np.square(reference, dtype=np.float64).sum())
    error = float(np.square(difference).sum())
    if energy == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / energy


def kl_divergence(reference: Logits, found: Logits) -> NDArray[np.float64]:
    """KL(reference || found) of the softmax distributions, one value a row, in nats."""
    p, q = log_softmax(reference), log_softmax(found)
    divergence: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(-1)
    # Rounding can leave -1e-17 where the two are equal.
    return np.maximum(divergence, 0.0)


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
