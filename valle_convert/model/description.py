"""A family's description of a checkpoint: the model, and where each of its tensors goes.

A family fills a `Description`; `gguf_file.plan.lay_out` turns each part's contents into the plan of
a GGUF file. Every source tensor is a row block, a backbone tensor or a bias, is recovered from
another tensor, or is listed as dropped with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from valle_convert.checkpoint.source import TensorSource, TensorSpec
from valle_convert.model.spec import Head, RowMap, Table

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
        """Add rows behind the others."""
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
    """The tensors of one file."""

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
    """A checkpoint, understood."""

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
        """Every tensor, those of the file first."""
        return MappingProxyType(self._specs)

    def add(self, spec: TensorSpec, recipe: Callable[[], NDArray[Any]]) -> str:
        """Add a computed tensor; returns its name."""
        self._specs[spec.name] = spec
        self._recipes[spec.name] = recipe
        return spec.name

    def read(self, name: str) -> NDArray[Any]:
        """One tensor; computed ones are float32."""
        recipe = self._recipes.get(name)
        return self._source.read(name) if recipe is None else recipe()
