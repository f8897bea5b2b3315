"""The examples that importance and quality are measured on: given ones, or seeded ones.

Each family defines the contents of a given file (`Family.example_arrays`, docs/quantize.md).
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from valle_convert.errors import InputError
from valle_convert.families.family import AnyFamily
from valle_convert.files import os_faults
from valle_convert.wording import plural

N_SEEDED = 2
# Seeded examples grow a little from one to the next; after so many they begin short again.
_PER_SEED = 8


@dataclass(frozen=True)
class Examples:
    """Examples that can be iterated again and again; seeded ones have no `files`."""

    family: AnyFamily
    model: Any
    count: int
    description: str
    digest: str
    files: tuple[Path, ...] = ()
    seed: int = 0

    @classmethod
    def seeded(cls, family: AnyFamily, model: Any, count: int, *, seed: int) -> Self:  # noqa: ANN401
        """Random symbols and codes; the same for the same seed."""
        utterances = plural(count, "utterance")
        text = f"{utterances} of random phonemes and codes, seed {seed} (no real speech)"
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        return cls(family, model, count, text, sha256, seed=seed)

    @classmethod
    def choose(cls, family: AnyFamily, model: Any, data: Path | None, count: int | None) -> Self:  # noqa: ANN401
        """The first `.npz` files of a folder, all checked now; seeded ones without a folder."""
        if data is None:
            return cls.seeded(family, model, N_SEEDED if count is None else count, seed=0)
        with os_faults(f"{data} cannot be read"):
            files = tuple(sorted(data.glob("*.npz"))[:count])
        if not files:
            raise InputError(
                f"{data} has no .npz files. Each holds one utterance: the arrays "
                f"{family.example_arrays} (docs/quantize.md)."
            )
        digest = hashlib.sha256()
        for path in files:
            digest.update(os.fsencode(f"{path.name} ") + hashlib.sha256(path.read_bytes()).digest())
            family.trials.read_utterance(path, model, seed=(0, 0))
        sha256 = digest.hexdigest()
        text = f"{plural(len(files), 'given utterance')}, sha256 {sha256[:16]}"
        return cls(family, model, len(files), text, sha256, files)

    @property
    def n_texts(self) -> int:
        return len({tuple(map(int, one.said)) for one in self})

    def __iter__(self) -> Iterator[Any]:
        trials = self.family.trials
        if self.files:
            for i, path in enumerate(self.files):
                yield trials.read_utterance(path, self.model, seed=(0, i))
            return
        for block, start in enumerate(range(0, self.count, _PER_SEED)):
            # Far apart, so that no two blocks of different seeds are the same.
            seed = self.seed * 1_000_003 + block
            n = min(_PER_SEED, self.count - start)
            yield from trials.utterances(self.model, n, seed=seed)
