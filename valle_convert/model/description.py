"""A family's description of a checkpoint: the model, and where each of its tensors goes.

A family fills a `Description`; `gguf_file.plan.lay_out` turns each part's contents into the plan of
a GGUF file. Every source tensor is a row block, a backbone tensor or a bias, is recovered from
another tensor, or is listed as dropped with the reason; `Collector` reports all faults at once.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from valle_convert.checkpoint.source import WEIGHT_DTYPES, TensorSource, TensorSpec
from valle_convert.errors import InputError
from valle_convert.model.spec import Head, RowMap, Table
from valle_convert.wording import listing

M = TypeVar("M")


@dataclass(frozen=True)
class RowBlock:
    """Rows of one source tensor that become rows of the token embedding, or a whole tensor."""

    label: str  # the table, or `head.<name>`, that they belong to
    source: str
    first_row: int  # the first row in the token embedding
    n_rows: int
    gather: tuple[int, ...] | None = None  # the source rows, if not the first `n_rows` in order


class RowBlocks(list[RowBlock]):
    """The rows of one token embedding: tables, and heads with the prefix `head.`."""

    @property
    def n_rows(self) -> int:
        return self[-1].first_row + self[-1].n_rows if self else 0

    @property
    def tables(self) -> tuple[Table, ...]:
        blocks = [one for one in self if not one.label.startswith("head.")]
        return tuple(Table(one.label, one.first_row, one.n_rows) for one in blocks)

    @property
    def heads(self) -> tuple[Head, ...]:
        blocks = [one for one in self if one.label.startswith("head.")]
        return tuple(Head(one.label[5:], one.first_row, one.n_rows) for one in blocks)

    def add(self, label: str, source: str, n_rows: int) -> None:
        self.append(RowBlock(label, source, self.n_rows, n_rows))


@dataclass(frozen=True)
class BackboneTensor:
    """One tensor that is copied completely under another name."""

    source: str
    target: str
    shape: tuple[int, ...]
    source_shape: tuple[int, ...] | None = None  # the checkpoint's, if it differs


@dataclass(frozen=True)
class BiasBlock:
    """The first `n_rows` values of one source tensor, the bias of the head `head`."""

    head: str
    source: str
    n_rows: int


@dataclass(frozen=True)
class Dropped:
    """A source tensor, or a part of one, that no pass of the model reads."""

    source: str
    reason: str


@dataclass(frozen=True)
class Contents:
    rows: tuple[RowBlock, ...] = ()  # the blocks of the token embedding, in row order, without gaps
    backbone: tuple[BackboneTensor, ...] = ()
    biases: tuple[BiasBlock, ...] = ()  # the heads' biases, in head order; empty if there are none


def blocks_of(rows: RowMap, sources: Mapping[str, str]) -> tuple[RowBlock, ...]:
    """The blocks of tables and heads; the inverse of `RowBlocks.tables` and `RowBlocks.heads`."""
    labelled: dict[str, Table | Head] = {table.name: table for table in rows.tables}
    labelled |= {f"head.{head.name}": head for head in rows.heads}
    return tuple(
        RowBlock(label, sources[label], one.first_row, one.n_rows)
        for label, one in labelled.items()
    )


def source_shapes(contents: Contents, width: int) -> dict[str, tuple[int, ...]]:
    """The source tensors with their shapes; a single vector is not called a weight."""
    shapes: dict[str, tuple[int, ...]] = {
        row.source: (row.n_rows, width) if row.source.endswith(".weight") else (width,)
        for row in contents.rows
    }
    shapes |= {one.source: one.source_shape or one.shape for one in contents.backbone}
    for bias in contents.biases:  # heads may share one
        shapes[bias.source] = max((bias.n_rows,), shapes.get(bias.source, ()))
    return shapes


@dataclass(frozen=True)
class Recovered:
    """How to restore a source tensor that no file has under its own name."""

    source: str  # the tensor of the description that is written instead
    #: Computes the source tensor from it; None if the two are equal.
    undo: Callable[[NDArray[Any]], NDArray[Any]] | None = None


@dataclass(frozen=True)
class Description(Generic[M]):
    model: M
    tensors: TensorSource  # the checkpoint's, and those computed from them
    contents: Mapping[str, Contents]  # of each file by its part's name, the main part first
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()  # for the user, such as config switches without effect
    #: Values that the config lacks, with the training project's defaults.
    assumed: tuple[str, ...] = ()
    #: Source tensors that are written in another form, by name.
    recovered: Mapping[str, Recovered] = field(default_factory=lambda: MappingProxyType({}))
    salt: str = ""  # distinguishes sets of files that are made from one checkpoint

    def blocks(self) -> tuple[RowBlock, ...]:
        return tuple(block for one in self.contents.values() for block in one.rows)


class ComputedTensors:
    """A `TensorSource` with additional tensors, computed from its own."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._recipes: dict[str, Callable[[], NDArray[Any]]] = {}
        self._specs = dict(source.specs)

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        return MappingProxyType(self._specs)

    def add(self, spec: TensorSpec, recipe: Callable[[], NDArray[Any]]) -> str:
        self._specs[spec.name] = spec
        self._recipes[spec.name] = recipe
        return spec.name

    def read(self, name: str) -> NDArray[Any]:
        """One tensor; computed ones are float32."""
        recipe = self._recipes.get(name)
        return self._source.read(name) if recipe is None else recipe()


class Collector:
    """Marks tensors as understood, and collects faults."""

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        self.specs = specs
        self.faults: list[str] = []
        #: Wrong sizes, reported only if no tensor is missing: others are derived from its size.
        self.sizes: list[str] = []
        self._of_other_types: list[str] = []
        self._missing: list[str] = []
        self._taken: set[str] = set()

    def take(self, name: str, shape: tuple[int, ...]) -> None:
        spec = self.specs.get(name)
        if spec is None:
            self._missing.append(name)
            return
        if name in self._taken:
            return
        self._taken.add(name)
        if spec.shape != shape:
            self.sizes.append(f"{name} is {list(spec.shape)}, expected {list(shape)}")
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
        faults = self.faults if self._missing else [*self.faults, *self.sizes]
        parts = [listing(faults, separator="; ")] if faults else []
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
            if not (faults or self._missing or unexpected):
                advice = "Save these tensors in float32."
            raise InputError(f"{complaint}: {listing(parts, separator='; ')}. {advice}")
        return dropped


def count_numbered(specs: Mapping[str, TensorSpec], template: str) -> int:
    """One more than the highest number in a numbered name, so that a gap shows as missing."""
    pattern = re.compile(re.escape(template).replace(r"\{\}", r"(\d{1,9})"))
    numbers = {int(found[1]) for name in specs if (found := pattern.fullmatch(name))}
    # Layers are numbered without gaps, so every number is below the count of all tensors. Larger
    # ones are ignored, or one hostile name would cause a search for a billion layers.
    return max((number + 1 for number in numbers if number < len(specs)), default=0)
