"""Every tensor of a checkpoint is expected, or dropped with a reason; all faults in one error."""

from __future__ import annotations

import re
from collections.abc import Mapping

from valle_convert.checkpoint import TensorSpec
from valle_convert.checkpoint.source import WEIGHT_DTYPES
from valle_convert.errors import InputError
from valle_convert.model.description import Dropped
from valle_convert.wording import listing


class Collector:
    """Marks tensors as understood, and collects faults."""

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        self.specs = specs
        self.faults: list[str] = []
        self._of_other_types: list[str] = []
        self._missing: list[str] = []
        self._taken: set[str] = set()

    def take(self, name: str, shape: tuple[int, ...]) -> None:
        spec = self.specs.get(name)
        if spec is None:
            self._missing.append(f"{name} {list(shape)}")
            return
        if name in self._taken:
            return
        self._taken.add(name)
        if spec.shape != shape:
            self.faults.append(f"{name} is {list(spec.shape)}, expected {list(shape)}")
        elif spec.dtype not in WEIGHT_DTYPES:
            self._of_other_types.append(f"{name} ({spec.dtype_name})")

    def rows_of(self, name: str) -> int:
        """The first dimension of a tensor; 0 if there is none."""
        spec = self.specs.get(name)
        return spec.shape[0] if spec and spec.shape else 0

    def compare(self, words: str, claimed: int, found: int) -> None:
        """Require that the config and the weights agree on a number."""
        if claimed != found:
            self.faults.append(f"{words}: {claimed} by the config, {found} by the weights")

    def agree(self, switch: str, said: bool | None, found: bool) -> None:
        """Require that the config, if it has a switch, and the weights agree on it."""
        if said not in (None, found):
            self.faults.append(f"{switch} is {said} in the config, but {found} by the weights")

    def finish(
        self, complaint: str, advice: str, known: tuple[tuple[re.Pattern[str], str], ...]
    ) -> list[Dropped]:
        """List what is dropped, or report all faults at once."""
        dropped: list[Dropped] = []
        unexpected: list[str] = []
        for name, spec in self.specs.items():
            if name in self._taken:
                continue
            reason = next((why for pattern, why in known if pattern.fullmatch(name)), None)
            if reason is None:
                unexpected.append(f"{name} {list(spec.shape)}")
            else:
                dropped.append(Dropped(name, reason))
        parts = [listing(self.faults, separator="; ")] if self.faults else []
        parts += [
            f"{words}: {listing(names)}"
            for words, names in (
                ("not float32, float16 or bfloat16", self._of_other_types),
                ("missing", self._missing),
                ("unexpected", unexpected),
            )
            if names
        ]
        if parts:
            raise InputError(f"{complaint}: {listing(parts, separator='; ')}. {advice}")
        return dropped


def count_numbered(specs: Mapping[str, TensorSpec], template: str) -> int:
    """One more than the highest number in a numbered name, so that a gap shows as missing."""
    pattern = re.compile(re.escape(template).replace(r"\{\}", r"(\d{1,9})"))
    numbers = {int(found[1]) for name in specs if (found := pattern.fullmatch(name))}
    # Layers are numbered without gaps, so every number is below the count of all tensors. Larger
    # ones are ignored, or one hostile name would cause a search for a billion layers.
    return max((number + 1 for number in numbers if number < len(specs)), default=0)
