"""A model without its weights. Its readers check it, so that its users need not.

All rows of the model's input tables and output heads lie one after the other in one matrix, the
token embedding of the converted file:

    row 0            n_rows of table 0 (phonemes)
    ...              the other input tables
    ...              the heads; several may share rows
    n_rows           (rows that the tokenizer adds follow here)
"""

from dataclasses import dataclass
from typing import Generic, Literal, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from valle_convert.errors import InputError
from valle_convert.wording import plural

Positions = Literal["segment", "unified"]
Attention = Literal["bidirectional", "causal"]
#: Codes of some speech: [frames, levels], or of one level, [frames].
Codes = NDArray[np.int32]

#: Names in id order, as the training project numbers them. A model may have only the first ones.
#: Row i of the tables `language`, `task` and `tone` belongs to name i.
LANGUAGES = ("en", "ja", "de", "fr", "zh", "ko")
TASKS = ("tts", "tts-c", "ns", "sr", "tse", "soe", "mask", "eoe", "stt")
TONES = ("neutral",)

#: Phoneme ids with a fixed meaning: the unknown phoneme, and the marks around a phoneme string. A
#: network is trained with these rows, so a tokenizer with others is rejected.
UNKNOWN_PHONEME = 0
BOS_PHONEME = 1
EOS_PHONEME = 2
#: Element of the length table that ends a duration; 0-9 are digits.
LENGTH_STOP = 10


@dataclass(frozen=True)
class Codec:
    name: str
    sample_rate: int  # in Hz; 0 if unknown
    frame_rate: float  # frames (one code per level) per second; 0 if unknown

    def is_like(self, other: Self) -> bool:
        """Whether its codes are the other's, according to name and rates."""
        rates = (self.name, self.sample_rate, round(self.frame_rate, 1))
        return rates == (other.name, other.sample_rate, round(other.frame_rate, 1))

    def __str__(self) -> str:
        return f"{self.name} with {self.sample_rate} Hz and {self.frame_rate:g} frames a second"


#: Codecs with the levels and codebook size that identify them.
CODECS: dict[tuple[int, int], Codec] = {
    (8, 1024): Codec("encodec-24khz", 24_000, 75.0),
    (9, 1024): Codec("dac-44khz", 44_100, 44_100 / 512),
    (8, 1000): Codec("nemo-44khz", 44_100, 44_100 / 512),
    (4, 256): Codec("world-rvq", 24_000, 40.0),
}
UNKNOWN_CODEC = Codec("unknown", 0, 0.0)


def codec_named(name: str) -> Codec:
    for codec in CODECS.values():
        if codec.name == name:
            return codec
    names = ", ".join(codec.name for codec in CODECS.values())
    raise InputError(f"There is no codec {name!r}; the supported ones are {names}.")


def choose_codec(name: str | None, n_levels: int, n_codes: int) -> tuple[Codec, list[str]]:
    """The codec by name, else by levels and codes; a note if there is none."""
    if name is not None:
        return codec_named(name), []
    if (found := CODECS.get((n_levels, n_codes))) is not None:
        return found, []
    note = f"no known codec has {plural(n_levels, 'level')} of {n_codes} codes"
    return UNKNOWN_CODEC, [f"{note}, so it is recorded as `unknown`; name it with --codec-name"]


class CodeFormat(Protocol):
    """The properties of a model, of any family, that matter for exchanging codes."""

    @property
    def n_levels(self) -> int: ...

    @property
    def codebook_size(self) -> int:
        """Codes of a level, without stop and mask codes."""
        ...

    @property
    def codec(self) -> Codec: ...


@dataclass(frozen=True)
class GemmaConfig:
    """Sizes, all taken from tensors, and switches, of a model whose backbone is a `gemma`."""

    version: int
    capabilities: tuple[str, ...]
    n_embd: int
    n_layer: int
    n_head: int
    n_head_kv: int  # key/value heads; equal to `n_head` unless attention is grouped
    n_ff: int
    n_ctx_train: int
    n_levels: int
    codebook_size: int  # codes in a codebook, without the stop and mask codes
    positions: Positions  # `segment` (every segment counts from 0) or `unified`
    nar_attention: Attention  # the attention of a pass that predicts in place
    codec: Codec

    @property
    def n_embd_head(self) -> int:
        return self.n_embd // self.n_head


@dataclass(frozen=True)
class ModelConfig(GemmaConfig):
    """The config of versions 5 and 6."""

    sum_prompt: bool  # whether a prompt frame is the sum of its levels' embeddings
    sum_response: bool

    @property
    def special_code(self) -> int:
        """The code after the last: stop in `response.ar` and head `ar`, mask in `response.mask`."""
        return self.codebook_size


@dataclass(frozen=True)
class Table:
    """One input table: `n_rows` rows of the token embedding from `first_row` on."""

    name: str
    first_row: int
    n_rows: int


@dataclass(frozen=True)
class Head:
    """One output head: its logits are columns `first_row .. first_row + n_rows` of all logits."""

    name: str
    first_row: int
    n_rows: int
    #: Added to the logits, one value per row; None if the model has none.
    bias: tuple[float, ...] | None = None

    @property
    def columns(self) -> slice:
        """The head's part of the logits over the whole vocabulary."""
        return slice(self.first_row, self.first_row + self.n_rows)


@dataclass(frozen=True)
class RowMap:
    """Input tables and output heads with rows in one token embedding."""

    tables: tuple[Table, ...]
    #: The output heads, in the checkpoint's order. Biases are only present if the model was read
    #: from a converted file; in a checkpoint they are weights.
    heads: tuple[Head, ...]

    @property
    def n_rows(self) -> int:
        """Rows of the token embedding that are the model's own."""
        ends = [table.first_row + table.n_rows for table in self.tables]
        return max(ends + [head.first_row + head.n_rows for head in self.heads], default=0)

    def table(self, name: str) -> Table:
        return {one.name: one for one in self.tables}[name]

    def head(self, name: str) -> Head:
        return {one.name: one for one in self.heads}[name]

    def has_table(self, name: str) -> bool:
        return any(table.name == name for table in self.tables)

    def has_head(self, name: str) -> bool:
        return any(head.name == name for head in self.heads)


C = TypeVar("C", bound=GemmaConfig)


@dataclass(frozen=True)
class GemmaModel(RowMap, Generic[C]):
    """A model whose backbone is a `gemma`, without its weights."""

    config: C
    languages: tuple[str, ...]
    tasks: tuple[str, ...]
    tones: tuple[str, ...]

    @property
    def n_levels(self) -> int:
        return self.config.n_levels

    @property
    def codebook_size(self) -> int:
        """The number of codes in a codebook, without the stop and mask codes."""
        return self.config.codebook_size

    @property
    def codec(self) -> Codec:
        return self.config.codec


class Model(GemmaModel[ModelConfig]):
    """A model of version 5 or 6 without its weights."""

    def is_causal(self, head: str) -> bool:
        """Whether a pass for that head attends only to earlier elements."""
        in_place = head == "mask" or head.startswith("nar.")
        return not in_place or self.config.nar_attention == "causal"


def level_of_head(head: str) -> int:
    """The codebook level of a head's passes: q for `nar.q`, 0 for all others."""
    return int(head.removeprefix("nar.")) if head.startswith("nar.") else 0


def names_in_order(known: tuple[str, ...], n: int) -> tuple[str, ...]:
    """The first `n` known names; further ids are called `unnamed-<id>`."""
    return tuple(known[i] if i < len(known) else f"unnamed-{i}" for i in range(n))
