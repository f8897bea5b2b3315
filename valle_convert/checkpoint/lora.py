"""Low-rank adapters, merged into the weights as they are read, or kept apart.

An adapter has `X.lora_A` (r, in) and `X.lora_B` (out, r) for a linear `X`. The merged weight is
`W' = W + scale (alpha / rank) B A`, computed in float32 and rounded to the type of W; scale is the
user's, 1 by default. torch's parametrizations name the same three tensors
`X.parametrizations.weight.original` and `X.parametrizations.weight.0.lora_A/B`. For an embedding
table, the shapes are (rows, r) and (r, width).

`LoraPairs` is one adapter, checked against a model. `MergedTensors` is a `TensorSource`, so nothing
downstream knows of adapters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any

import ml_dtypes
import msgspec
import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint.config import plain_keys
from valle_convert.checkpoint.containers import Container, read_container
from valle_convert.checkpoint.folder import Tree, find_adapter, locate
from valle_convert.checkpoint.names import RenamedTensors
from valle_convert.checkpoint.source import LARGEST_WEIGHT, WEIGHT_DTYPES, TensorSource, TensorSpec
from valle_convert.errors import InputError, UnsupportedModelError
from valle_convert.files import path_and_number, read_json_object
from valle_convert.wording import listing, plural

_PARAMETRIZED = ".parametrizations.weight.original"
_PARAMETRIZED_LORA = ".parametrizations.weight.0.lora_"
_LORA = ".lora_"
#: PEFT's config, beside an adapter.
_PEFT_CONFIG = "adapter_config.json"
_MAX_JSON_BYTES = 1 << 20
_ROWS_AT_ONCE = 32
#: The part of `lora_words` that does not depend on the name of a file.
_LORA_NUMBERS = re.compile(r"\(([\d,]+ weights?, [^()]*)\)")
#: Values of PEFT's config for which an adapter is W + alpha / r B A.
_PEFT_USUAL: dict[str, tuple[object, ...]] = {
    "peft_type": (None, "LORA"),
    "bias": (None, "none"),
    "fan_in_fan_out": (None, False),
    "use_dora": (None, False),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "lora_bias": (None, False),
    "use_qalora": (None, False),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    # The others change the weights that the adapter is added to: pissa, olora, loftq, corda.
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}


class _Numbers(msgspec.Struct):
    """The numbers in an adapter's config; None if missing."""

    rank: Annotated[float, msgspec.Meta(ge=1)] | None
    alpha: float | None
    rvq_levels: tuple[int, ...]

    @classmethod
    def of(cls, config: Mapping[str, Any], where: str) -> _Numbers:
        """Read the names of the training project, or PEFT's `r` and `lora_alpha`."""
        changed = [key for key, usual in _PEFT_USUAL.items() if config.get(key) not in usual]
        if changed:
            raise UnsupportedModelError(
                f"{where}: {listing([f'{key} {config[key]!r:.40}' for key in changed], 2)} is not "
                "supported, only W + alpha / r B A; merge it with PEFT (merge_and_unload) and "
                "convert the result."
            )
        said = {
            "rank": config.get("rank", config.get("r")),
            "alpha": config.get("lora_alpha", config.get("alpha")),
            "rvq_levels": () if config.get("rvq_levels") is None else config["rvq_levels"],
        }
        try:
            return msgspec.convert(said, cls)
        except msgspec.ValidationError as error:
            raise InputError(f"{where}: the LoRA's config is rejected: {error}.") from error


@dataclass(frozen=True)
class LoraFile:
    """An adapter from the user, with a factor for its update."""

    path: Path
    factor: float = 1.0

    @classmethod
    def parse(cls, text: str) -> LoraFile:
        """`FILE` or `FILE@SCALE`."""
        path, scale = path_and_number(text, 1.0)
        if not math.isfinite(scale):
            raise InputError(f"--lora {text}: the scale is {scale}, expected a finite number.")
        return cls(path, scale)


def lora_files(given: str | Path | Sequence[str | Path] | None) -> tuple[LoraFile, ...]:
    """The user's adapters, each as `FILE` or `FILE@SCALE`."""
    texts = [given] if isinstance(given, str | Path) else given or ()
    return tuple(LoraFile.parse(str(text)) for text in texts)


@dataclass(frozen=True)
class LoraPair:
    """The two matrices that change one weight."""

    down: str  # the name of lora_A in the adapter
    up: str
    scale: float  # the factor on their product: alpha / rank times the user's factor
    is_table: bool  # whether the weight is an embedding table, whose update is A B


class LoraPairs:
    def __init__(
        self,
        adapters: TensorSource,
        config: Mapping[str, Any],
        specs: Mapping[str, TensorSpec],
        where: str,
        *,
        factor: float = 1.0,
        notes: tuple[str, ...] = (),  # what was left out or renamed in its file
        is_inside: bool = False,  # a checkpoint, whose config `--config` changes
    ) -> None:
        numbers = _Numbers.of(config, where)
        self.notes = notes
        self._adapters = adapters
        self.where = where
        self.is_inside = is_inside
        self.levels = numbers.rvq_levels  # of the codebooks; empty for all
        self.factor = factor
        found: dict[str, dict[str, str]] = {}
        prefix = _prefix(adapted_weights(adapters), specs)
        for name in adapters.specs:
            if _is_adapter(name):
                target, side = _adapter_target(name)
                found.setdefault(target.removeprefix(prefix), {})[side] = name
        if not found:
            raise InputError(
                f"{where} holds no *.lora_A and *.lora_B tensors; give a LoRA file, "
                "or leave out --lora."
            )
        self.alpha = self._alpha(numbers)
        if config.get("use_rslora"):  # PEFT divides by the root of the rank
            self.alpha *= math.sqrt(numbers.rank or 1)
        faults: list[str] = []
        self.by_target: dict[str, LoraPair] = {}
        for target, sides in found.items():
            pair = self._pair(target, sides, numbers.rank, specs, factor)
            if isinstance(pair, str):
                faults.append(f"{target}: {pair}")
            else:
                self.by_target[target] = pair
        if faults:
            raise InputError(
                f"{where}: the LoRA does not fit the model: "
                f"{listing(faults, separator='; ')}. Give one that was trained on this checkpoint."
            )

    def _alpha(self, numbers: _Numbers) -> float:
        if numbers.alpha is None:
            remedy = (
                'give a file with {"lora": {"alpha": NUMBER}} as --config'
                if self.is_inside
                else f'write {{"lora_alpha": NUMBER}} to {_PEFT_CONFIG} beside it'
            )
            raise InputError(f"{self.where} does not contain the LoRA's alpha; {remedy}.")
        if not math.isfinite(numbers.alpha):
            raise InputError(
                f"{self.where}: the LoRA's alpha is {numbers.alpha}, not a finite number."
            )
        return numbers.alpha

    def _pair(
        self,
        target: str,
        sides: Mapping[str, str],
        said_rank: float | None,
        specs: Mapping[str, TensorSpec],
        factor: float,
    ) -> LoraPair | str:
        if set(sides) != {"A", "B"}:
            return f"only lora_{next(iter(sides))} of the pair is there"
        down, up = self._adapters.specs[sides["A"]], self._adapters.specs[sides["B"]]
        weight = specs.get(target)
        if weight is None:
            return "the model has no such weight"
        if any(spec.dtype not in WEIGHT_DTYPES for spec in (down, up, weight)):
            return f"types {weight.dtype_name}, {down.dtype_name}, {up.dtype_name}"
        is_pair = len(down.shape) == len(up.shape) == 2
        if (
            is_pair
            and (up.shape[0], down.shape[1]) == weight.shape
            and down.shape[0] == up.shape[1]
        ):
            rank, is_table = down.shape[0], False
        elif (
            is_pair
            and not target.startswith("model.")
            and (down.shape[0], up.shape[1]) == weight.shape
            and down.shape[1] == up.shape[0]
        ):
            rank, is_table = up.shape[0], True
        else:
            return (
                f"lora_B {list(up.shape)} times lora_A {list(down.shape)} does not have "
                f"the weight's shape {list(weight.shape)}"
            )
        if not rank:
            return "its rank is 0"
        if said_rank not in (None, rank):
            return f"rank {rank}, but the config says {said_rank:g}"
        return LoraPair(sides["A"], sides["B"], factor * self.alpha / rank, is_table)

    def read(self, pair: LoraPair) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        down, up = (self._adapters.read(name).astype(np.float32) for name in (pair.down, pair.up))
        for name, values in ((pair.down, down), (pair.up, up)):
            if not np.isfinite(values).all():
                raise InputError(
                    f"{self.where}: the tensor {name} holds nan or inf; the LoRA is damaged or its "
                    "training diverged: take an earlier one."
                )
        return down, up

    def update(self, target: str) -> NDArray[np.float32] | None:
        """The update of a weight, in its shape, or None."""
        pair = self.by_target.get(target)
        if pair is None:
            return None
        down, up = self.read(pair)
        with np.errstate(over="ignore", invalid="ignore"):
            product = multiplied(down, up) if pair.is_table else multiplied(up, down)
            update: NDArray[np.float32] = np.float32(pair.scale) * product
        return update


class MergedTensors:
    """The tensors of `base` with the updates of adapters added."""

    def __init__(self, base: TensorSource, adapters: Sequence[LoraPairs]) -> None:
        self._base = base
        self._adapters = tuple(adapters)
        self.specs = base.specs
        for one in adapters:
            if one.levels:
                raise UnsupportedModelError(
                    f"{one.where}: the LoRA is for codebook levels {list(one.levels)}, but merged "
                    "weights serve all levels; make it a GGUF adapter "
                    "(`valle-convert lora BASE LORA OUT.gguf`) for `speak --lora`."
                )

    def read(self, name: str) -> NDArray[Any]:
        weight = self._base.read(name)
        updates = [(one, one.update(name)) for one in self._adapters]
        given = [(one, update) for one, update in updates if update is not None]
        if not given:
            return weight
        with np.errstate(over="ignore", invalid="ignore"):
            merged = weight.astype(np.float32)
            for _, update in given:
                merged = merged + update
        largest = min(LARGEST_WEIGHT, float(ml_dtypes.finfo(weight.dtype).max))
        if not (np.abs(merged) <= largest).all():
            worst = np.nan_to_num(np.abs(merged), nan=np.inf).max()
            one = given[-1][0]
            smaller = "lora.alpha in --config" if one.is_inside else "@SCALE"
            raise InputError(
                f"{one.where}: merging the LoRA makes {worst:g} of a weight of {name}, expected at "
                f"most {largest:g}; its alpha is {one.alpha:g}, so give a smaller {smaller}."
            )
        return merged.astype(weight.dtype)


def merge_loras(
    path: Path,
    tensors: TensorSource,
    beside: TensorSource | None,
    config: Mapping[str, Any],
    given: Sequence[LoraFile],
) -> tuple[TensorSource, str | None, tuple[str, ...]]:
    """Add the checkpoint's own adapter, if it has one, and the given ones.

    Returns the tensors, what was merged in words, and notes on the given ones.
    """
    inside = beside if beside is not None and beside.specs else None
    if inside is None and has_adapters(tensors.specs):
        inside = tensors
    if inside is None and not given:
        return tensors, None, ()
    base = _without_adapters(tensors)
    adapters: list[LoraPairs] = []
    words, notes = [], []
    if inside is not None:
        own = _numbers(config)
        adapters.append(LoraPairs(inside, own, base.specs, str(path), is_inside=True))
        words.append(lora_words("inside the checkpoint", adapters[-1], 1.0))
    for one in given:
        adapters.append(open_lora(one, base.specs))
        words.append(lora_words(one.path.name, adapters[-1], one.factor))
        notes += [f"{one.path.name}: {note}" for note in adapters[-1].notes]
    return MergedTensors(base, adapters), ", ".join(words), tuple(notes)


def _without_adapters(base: TensorSource) -> TensorSource:
    """The weights of a model alone, parametrized ones under their plain names."""
    names = [name for name in base.specs if not _is_adapter(name)]
    return RenamedTensors(base, {name.replace(_PARAMETRIZED, ".weight"): name for name in names})


def open_lora(
    given: LoraFile, specs: Mapping[str, TensorSpec], *, kept_apart: bool = False
) -> LoraPairs:
    """Open the file of an adapter and check it against the weights of a model."""
    tree, place = locate(given.path)
    if tree.is_folder(place):
        inner = find_adapter(tree, place)
        if inner is None:
            raise InputError(f"{given.path} is a directory without a LoRA; give the file itself.")
        place = inner
    adapter = read_container(tree.get(place), tree, place)
    # An adapter's own file has it under `lora` (torch) or as its only tensors.
    tensors = adapter.lora or adapter.tensors
    strange = [name for name in tensors.specs if "lora_" in name and not has_adapters([name])]
    if strange:
        raise UnsupportedModelError(
            f"{given.path} holds {listing(strange, 2)}, expected pairs of lora_A and lora_B of "
            "linear layers only; merge it with PEFT, and convert the result."
        )
    # The prefix before the names of the model.
    others = [one for one in adapted_weights(tensors) if ".model.layers." not in f".{one}"]
    if kept_apart and others:
        raise UnsupportedModelError(
            f"{given.path} changes {listing(others, 2)}: tables and heads are rows of one matrix "
            "in a converted file, and stock llama.cpp applies no adapter to it; merge it when you "
            "convert (--lora)."
        )
    config = _adapter_config(adapter, tree, place)
    return LoraPairs(
        tensors, config, specs, str(given.path), factor=given.factor, notes=adapter.notes
    )


def _adapter_config(adapter: Container, tree: Tree, place: PurePath) -> Mapping[str, Any]:
    """The numbers of an adapter, inside its file or beside it."""
    try:
        said = _numbers(plain_keys(adapter.extras.get("config") or {})[0])
        if not {"alpha", "lora_alpha"} & said.keys() and _PEFT_CONFIG in tree.files(place.parent):
            place = place.parent / _PEFT_CONFIG
            beside = read_json_object(tree.get(place), "file", _MAX_JSON_BYTES)
            said = plain_keys(beside)[0] | {**said}
    except ValueError as error:
        raise InputError(f"{tree.name(place)}: its config is rejected: {error}.") from error
    return said


def _numbers(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The adapter's numbers: keys of the config itself, or of a dict `lora` in it."""
    nested = config.get("lora")
    return nested if isinstance(nested, Mapping) else config


def multiplied(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Left @ right, summed in a fixed order.

    A library's matrix product sums in an order of the CPU, which changes the weights' last bits.
    0.6 s for rank 64 and 4096 x 1024, some rows at a time, so that they stay in the cache.
    """
    product = np.empty((len(left), right.shape[1]), np.float32)
    wide = right.astype(np.float64)
    for start in range(0, len(left), _ROWS_AT_ONCE):
        rows = left[start : start + _ROWS_AT_ONCE].astype(np.float64)
        total = np.zeros((len(rows), right.shape[1]))
        for column, row in zip(rows.T, wide, strict=True):
            total += column[:, None] * row
        product[start : start + _ROWS_AT_ONCE] = total
    return product


def lora_words(name: str, adapter: LoraPairs, factor: float) -> str:
    """A converted file's description of a LoRA that was merged into it."""
    scaled = "" if factor == 1.0 else f", scale {factor:g}"
    return f"{name} ({plural(len(adapter.by_target), 'weight')}, alpha {adapter.alpha:g}{scaled})"


def are_same_loras(one: str | None, other: str | None) -> bool:
    """Whether two texts of `lora_words` name the same LoRAs; file names may differ."""
    return _LORA_NUMBERS.findall(one or "") == _LORA_NUMBERS.findall(other or "")


def has_adapters(names: Iterable[str]) -> bool:
    """Whether any of the names belongs to an adapter or a parametrized weight."""
    return any(_is_adapter(name) or name.endswith(_PARAMETRIZED) for name in names)


def adapted_weights(tensors: TensorSource) -> list[str]:
    """The weights that adapters among these tensors change."""
    return sorted({_adapter_target(name)[0] for name in tensors.specs if _is_adapter(name)})


def _prefix(targets: Sequence[str], specs: Mapping[str, TensorSpec]) -> str:
    """The prefix of every target of an adapter, if all are weights without it."""
    parts = targets[0].split(".") if targets else []
    for n in range(len(parts)):
        prefix = "".join(f"{part}." for part in parts[:n])
        if all(one.startswith(prefix) and one.removeprefix(prefix) in specs for one in targets):
            return prefix
    return ""


def _is_adapter(name: str) -> bool:
    return name.endswith((".lora_A", ".lora_B"))


def _adapter_target(name: str) -> tuple[str, str]:
    """The weight that an adapter tensor changes, and its side ("A" or "B")."""
    marker = _PARAMETRIZED_LORA if _PARAMETRIZED_LORA in name else _LORA
    module, side = name.rsplit(marker, 1)
    return f"{module}.weight", side
