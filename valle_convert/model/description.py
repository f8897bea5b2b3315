"""What a family says of a checkpoint: the model, and where each of its tensors goes.

A family (`v5.py`) fills a `Description`; `gguf_file.plan.lay_out` turns it into the plan of a
GGUF file. Nothing is passed over: every tensor of the source is a row block, a backbone tensor
or a bias, or is listed as dropped with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from valle_convert.model.spec import Model


@dataclass(frozen=True)
class RowBlock:
    """Rows of one source tensor that become rows of the token embedding.

    Attributes:
        label: the table, or `head.<name>`, whose rows they are.
        source: the tensor in the checkpoint.
        first_row: where they begin in the token embedding.
        n_rows: how many there are, from row 0 of the source on.
    """

    label: str
    source: str
    first_row: int
    n_rows: int


@dataclass(frozen=True)
class BackboneTensor:
    """One tensor that is taken over whole under another name.

    Attributes:
        source: the name in the checkpoint.
        target: the name in the GGUF file.
        shape: as in the checkpoint, rows first.
    """

    source: str
    target: str
    shape: tuple[int, ...]


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
class Description:
    """A checkpoint, understood.

    Attributes:
        model: sizes, tables, heads.
        rows: what the token embedding is made of, in row order, without gaps.
        backbone: the other tensors.
        biases: the heads' biases, in head order; empty where there are none.
        dropped: what is left out, with reasons.
        notes: things worth telling the user, such as config switches without effect.
        assumed: what the config does not say, and is taken as the training project takes it.
    """

    model: Model
    rows: tuple[RowBlock, ...]
    backbone: tuple[BackboneTensor, ...]
    biases: tuple[BiasBlock, ...]
    dropped: tuple[Dropped, ...]
    notes: tuple[str, ...]
    assumed: tuple[str, ...] = ()
