"""A low-rank adapter, merged into the weights as they are read.

For a linear `X` the adapter holds `X.lora_A` (r, in) and `X.lora_B` (out, r), and the
merged weight is `W' = W + (alpha / rank) * B A`, computed in float32 and rounded to the
type of W. Adapters trained by torch's parametrizations name the same three tensors
`X.parametrizations.weight.original` and `X.parametrizations.weight.0.lora_A/B`.

`MergedTensors` is itself a `TensorSource`: nothing downstream knows that there was an
adapter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint.source import LARGEST_WEIGHT, WEIGHT_DTYPES, TensorSource, TensorSpec
from valle_convert.errors import InputError, UnsupportedModelError

_PARAMETRIZED = ".parametrizations.weight.original"
_PARAMETRIZED_LORA = ".parametrizations.weight.0.lora_"
_LORA = ".lora_"


@dataclass(frozen=True)
class LoraScale:
    """What an adapter's config says. `rank` and `alpha` are None where it does not say."""

    rank: int | None
    alpha: float | None
    levels: tuple[int, ...]
    where: str

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> LoraScale:
        """Read `rank`, `alpha` and `rvq_levels`.

        Raises:
            InputError: one of them is not a number, or no list of numbers.
        """
        rank, alpha, levels = config.get("rank"), config.get("alpha"), config.get("rvq_levels")
        if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
            raise InputError(f"{where}: the LoRA's rank is {rank!r}, and must be a whole number.")
        if alpha is not None and (not isinstance(alpha, int | float) or isinstance(alpha, bool)):
            raise InputError(f"{where}: the LoRA's alpha is {alpha!r}, and must be a number.")
        if levels is not None and (
            not isinstance(levels, list) or any(not isinstance(level, int) for level in levels)
        ):
            raise InputError(
                f"{where}: the LoRA's rvq_levels is {levels!r}, and must be a list of numbers."
            )
        return cls(
            rank=rank,
            alpha=None if alpha is None else float(alpha),
            levels=tuple(levels or ()),
            where=where,
        )


@dataclass(frozen=True)
class _Adapter:
    down: str  # lora_A
    up: str  # lora_B
    scale: float  # alpha / rank


class MergedTensors:
    """The tensors of `base` with the adapter's update added; the adapter's own names are gone.

    Args:
        base: the model's tensors, which may hold adapter tensors themselves.
        adapters: a source with `*.lora_A` / `*.lora_B` tensors; it may be `base`.
        scale: the adapter's config.

    Raises:
        InputError: a pair is incomplete, its base weight is missing, or shapes do not fit; all
            faults in one message.
        UnsupportedModelError: the adapter is for some codebook levels only.
    """

    def __init__(self, base: TensorSource, adapters: TensorSource, scale: LoraScale) -> None:
        self._base = base
        self._adapters = adapters
        self._source_names: dict[str, str] = {}
        specs: dict[str, TensorSpec] = {}
        for source_name, spec in base.specs.items():
            if _is_adapter(source_name):
                continue
            name = _plain_name(source_name)
            self._source_names[name] = source_name
            specs[name] = TensorSpec(name, spec.dtype, spec.dtype_name, spec.shape)
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)
        self._scale = scale
        self._pairs = self._resolve(scale)

    @property
    def n_merged(self) -> int:
        """How many weights the adapter changes."""
        return len(self._pairs)

    def read(self, name: str) -> NDArray[Any]:
        """One tensor, merged where the adapter has a pair for it."""
        weight = self._base.read(self._source_names[name])
        adapter = self._pairs.get(name)
        if adapter is None:
            return weight
        up = self._adapters.read(adapter.up).astype(np.float32)
        down = self._adapters.read(adapter.down).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            merged = weight.astype(np.float32) + np.float32(adapter.scale) * (up @ down)
        largest = min(LARGEST_WEIGHT, float(ml_dtypes.finfo(weight.dtype).max))
        if not (np.abs(merged) <= largest).all():
            worst = np.nan_to_num(np.abs(merged), nan=np.inf).max()
            raise InputError(
                f"{self._scale.where}: merging the LoRA makes {worst:g} of a weight of {name}, "
                f"where at most {largest:g} is expected; its alpha is {self._scale.alpha:g}: "
                "check it (--lora-alpha), or give the LoRA that was trained on this checkpoint."
            )
        return merged.astype(weight.dtype)

    def _resolve(self, scale: LoraScale) -> dict[str, _Adapter]:
        found: dict[str, dict[str, str]] = {}
        for name in self._adapters.specs:
            if _is_adapter(name):
                target, side = _adapter_target(name)
                found.setdefault(target, {})[side] = name
        if not found:
            raise InputError(
                f"{scale.where} holds no *.lora_A and *.lora_B tensors; give a LoRA file, "
                "or leave out --lora."
            )
        if scale.levels:
            raise UnsupportedModelError(
                f"{scale.where}: the LoRA is for the codebook levels {list(scale.levels)} only, "
                "and one set of merged weights cannot serve the others unchanged; supported are "
                "LoRAs for all levels (rvq_levels empty)."
            )
        alpha = _checked_alpha(scale)
        faults: list[str] = []
        pairs: dict[str, _Adapter] = {}
        for target, sides in found.items():
            if set(sides) != {"A", "B"}:
                faults.append(f"{target}: only lora_{next(iter(sides))} of the pair is there")
                continue
            down = self._adapters.specs[sides["A"]]
            up = self._adapters.specs[sides["B"]]
            weight = self.specs.get(target)
            if weight is None:
                faults.append(f"{target}: the model has no such weight")
                continue
            if any(spec.dtype not in WEIGHT_DTYPES for spec in (down, up, weight)):
                faults.append(
                    f"{target}: types {weight.dtype_name}, {down.dtype_name}, {up.dtype_name}"
                )
                continue
            if (
                len(down.shape) != 2
                or len(up.shape) != 2
                or up.shape[1] != down.shape[0]
                or weight.shape != (up.shape[0], down.shape[1])
            ):
                faults.append(
                    f"{target}: lora_B {list(up.shape)} times lora_A {list(down.shape)} is not "
                    f"of the weight's shape {list(weight.shape)}"
                )
                continue
            rank = down.shape[0]
            if scale.rank is not None and scale.rank != rank:
                faults.append(f"{target}: rank {rank}, and the config says {scale.rank}")
                continue
            pairs[target] = _Adapter(sides["A"], sides["B"], alpha / rank)
        if faults:
            raise InputError(
                f"{scale.where}: the LoRA does not fit the model: {'; '.join(faults)}. "
                "Give the LoRA that was trained on this checkpoint."
            )
        return pairs


def _checked_alpha(scale: LoraScale) -> float:
    if scale.alpha is None:
        raise InputError(
            f"{scale.where} does not say the LoRA's alpha, and nothing else tells it; "
            "give it with --lora-alpha."
        )
    if not math.isfinite(scale.alpha):
        raise InputError(f"{scale.where}: the LoRA's alpha is {scale.alpha}, and must be finite.")
    return scale.alpha


def has_adapters(names: Iterable[str]) -> bool:
    """Whether any of the names is one of an adapter, or of a parametrized weight."""
    return any(_is_adapter(name) or name.endswith(_PARAMETRIZED) for name in names)


def _is_adapter(name: str) -> bool:
    return name.endswith((".lora_A", ".lora_B"))


def _plain_name(name: str) -> str:
    if name.endswith(_PARAMETRIZED):
        return name.removesuffix(_PARAMETRIZED) + ".weight"
    return name


def _adapter_target(name: str) -> tuple[str, str]:
    """The weight that an adapter tensor changes, and which side ("A" or "B") it is."""
    marker = _PARAMETRIZED_LORA if _PARAMETRIZED_LORA in name else _LORA
    module, side = name.rsplit(marker, 1)
    return f"{module}.weight", side
