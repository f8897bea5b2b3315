"""Are the logits of a file those of its weights? Allowed deviations are measured, not tabulated.

Three sets of logits [rows, codes] of one head are compared: exact ones (PyTorch in float32), those
of an emulation that rounds as llama.cpp does, and llama.cpp's own. The emulation's error is the
cost of rounding on this very network, whether deep, narrow or random; llama.cpp's may be a small
multiple of it. Over 2,166 passes of 50 random shapes in four types, llama.cpp's error was 1.0
times the emulation's in the median and 3.2 times at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from valle_convert.metrics import Logits

#: The energy of the error, as a multiple of the emulation's.
NOISE_FACTOR = 8.0
#: One prediction's, and one code's, as a multiple of the emulation's mean. Correct files reach
#: nine times; a wrong row of a head is off by thousands of times.
OUTLIER_FACTOR = 100.0
#: Sums in float32, in any order: 1e-12 of the energy measured.
FLOOR = 1e-10


@dataclass(frozen=True)
class Deviation:
    """How far logits are from the exact ones, beside the cost of rounding."""

    n_rows: int
    nmse: float  # squared error over the energy of the exact logits
    noise: float  # the same of the emulation
    noise_outlier: float  # the emulation's largest error of one prediction or code, in this unit
    #: The largest mean square error of one prediction, over the exact logits' mean square.
    worst_row: float
    worst_code: float  # the largest one of one code over all predictions
    best_code: float  # the part of the predictions with the same most likely code (top-1 agreement)
    #: How many predictions have another best code although the exact logits of the two differ by
    #: more than any allowed error. The others are ties, not faults.
    decided: int

    @property
    def allowed(self) -> float:
        """The normalized mean square error that rounding explains."""
        return NOISE_FACTOR * max(self.noise, FLOOR)

    @property
    def allowed_outlier(self) -> float:
        """The same for one prediction or code, which is larger in narrow networks."""
        usual = OUTLIER_FACTOR * max(self.noise, FLOOR)
        return max(usual, NOISE_FACTOR * self.noise_outlier)

    @property
    def badness(self) -> float:
        """The error relative to the limits; 1 is at the limit."""
        shares = (
            self.nmse / self.allowed,
            max(self.worst_row, self.worst_code) / self.allowed_outlier,
            float(self.decided),
        )
        return max(shares) if np.isfinite(shares).all() else float("inf")

    @property
    def passed(self) -> bool:
        """Whether rounding explains all deviations; NaN and infinity fail."""
        return self.decided == 0 and self.badness <= 1.0


def deviation_of(exact: Logits, emulated: Logits, found: Logits) -> Deviation:
    if not exact.shape == emulated.shape == found.shape or not exact.size:
        raise ValueError(f"logits {found.shape}, {emulated.shape} against {exact.shape}")
    energy = float(np.square(exact, dtype=np.float64).mean())
    error = np.square(found.astype(np.float64) - exact)
    rounding = np.square(emulated.astype(np.float64) - exact)
    noise = float(rounding.mean())

    def relative(value: float) -> float:
        # Logits that are all zero allow no error.
        if energy > 0.0:
            return value / energy
        return 0.0 if value == 0.0 else float("inf")

    best, their_best = exact.argmax(-1), found.argmax(-1)
    rows = np.arange(len(exact))
    margins = exact[rows, best].astype(np.float64) - exact[rows, their_best]
    outlier = max(float(rounding.mean(0).max()), float(rounding.mean(-1).max()))
    allowed = max(OUTLIER_FACTOR * max(noise, FLOOR * energy), NOISE_FACTOR * outlier)
    tie = 2 * np.sqrt(allowed)  # two logits, each off by as much as one prediction may be
    return Deviation(
        n_rows=len(exact),
        nmse=relative(float(error.mean())),
        noise=relative(noise),
        noise_outlier=relative(outlier),
        worst_row=relative(float(error.mean(-1).max())),
        worst_code=relative(float(error.mean(0).max())),
        best_code=float((best == their_best).mean()),
        decided=int((margins > tie).sum()),
    )
