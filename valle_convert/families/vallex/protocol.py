"""What decoders and the verifier need of VALL-E X's two networks, whoever computes them.

The AR keeps a sequence whose text sees itself in both directions and whose codes see what is
before them; the NAR sees everything, and every pass stands alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class VallexText:
    """All text rows: what the prompt says, and then what is to be said; nothing around them.

    Attributes:
        symbols: ids of `model.vallex_symbols`, [n].
        languages: the network's id of each symbol's language (en 0, zh 1, ja 2), [n].
    """

    symbols: NDArray[np.int32]
    languages: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.symbols)

    def __add__(self, other: VallexText) -> VallexText:
        return VallexText(
            np.concatenate([self.symbols, other.symbols]),
            np.concatenate([self.languages, other.languages]),
        )


class VallexNetwork(Protocol):
    """Text and codes in, logits out. AR logits have one code more than NAR logits: stop."""

    @property
    def n_levels(self) -> int: ...

    @property
    def codebook_size(self) -> int:
        """Codes a level, without stop; also the id of stop in AR logits."""
        ...

    def begin_ar(
        self, text: VallexText, prompt: NDArray[np.int32], *, room: int, n_copies: int = 1
    ) -> NDArray[np.float32]:
        """Lay down text, begin and the prompt's codes; what was there before is forgotten.

        Args:
            prompt: level 0, [frames]; may be empty.

        Returns:
            Logits of the first code, the same for all copies, [1, codes + 1].
        """
        ...

    def step_ar(self, copies: Sequence[int], codes: NDArray[np.int32]) -> NDArray[np.float32]:
        """Add a code to some of the copies.

        Args:
            codes: one for each of them, [copies].

        Returns:
            Logits of the code after it, [copies, codes + 1].
        """
        ...

    def pass_nar(
        self, text: VallexText, prompt: NDArray[np.int32], codes: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """One level above those that are there; the AR's sequence is lost.

        Args:
            prompt: all levels, [frames, levels]; may have no frames.
            codes: the levels below the one wanted, [frames, q], q from 1.

        Returns:
            Logits of level q at every frame, [frames, codes].
        """
        ...
