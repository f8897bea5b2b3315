"""The metadata keys of a converted file, for the writer and the reader.

docs/gguf-keys.md describes them.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from valle_convert.errors import InputError
from valle_convert.gguf_file.header import Key
from valle_convert.model.spec import (
    BOS_PHONEME,
    EOS_PHONEME,
    UNKNOWN_PHONEME,
    Attention,
    Codec,
    CodeFormat,
    GemmaConfig,
    Head,
    Positions,
    Table,
)
from valle_convert.wording import listing

T = TypeVar("T")

FORMAT_VERSION = 1
ARCHITECTURE = "gemma"
CODEC_ARCHITECTURE = "encodec"
_POSITIONS: dict[str, Positions] = {"segment": "segment", "unified": "unified"}
_ATTENTIONS: dict[str, Attention] = {"bidirectional": "bidirectional", "causal": "causal"}
RMS_EPSILON = 1e-6
ROPE_BASE = 10_000.0

#: The family's name; versions 5 and 6 do not have this key.
FAMILY_KEY = "valle.family"
#: Ties the files of a set together, also after quantizing.
SET_ID_KEY = "valle.set.id"
#: A file's part in its set.
PART_KEY = "valle.part"
BIAS_KEY = "valle.head.bias"
#: Tokenizer keys whose values follow from the network's phoneme rows.
SPECIAL_IDS = {
    "tokenizer.ggml.unknown_token_id": UNKNOWN_PHONEME,
    "tokenizer.ggml.bos_token_id": BOS_PHONEME,
    "tokenizer.ggml.eos_token_id": EOS_PHONEME,
}
SOURCE_SHA256_KEY = "valle.source.sha256"
SOURCE_LORA_KEY = "valle.source.lora"
#: Assumed values, and parts of the checkpoint that its source had lost.
SOURCE_ASSUMED_KEY = "valle.source.assumed"
SOURCE_LOST_KEY = "valle.source.lost"
SOURCE_PREFIX = "valle.source."
#: The config and the phonemes with their ids as JSON, so that `export` restores them exactly.
SOURCE_CONFIG_KEY = "valle.source.config"
SOURCE_SYMMAP_KEY = "valle.source.symmap"
#: The container of the weights, unless it was the training project's own.
SOURCE_FORMAT_KEY = "valle.source.format"
SOURCE_REVISION_KEY = "valle.source.revision"
#: In a repaired file: the source's types of tables and heads.
OLD_TYPES_KEY = "valle.source.old_types"
#: SHA-256 of the tensor data with padding, and of everything before it with zeros in the place of
#: the two digests; and the file type at that time. They verify a file without its checkpoint.
DATA_DIGEST_KEY = "valle.digest.data"
HEADER_DIGEST_KEY = "valle.digest.header"
DIGEST_TYPE_KEY = "valle.digest.file_type"
DIGEST_KEYS = (DATA_DIGEST_KEY, HEADER_DIGEST_KEY, DIGEST_TYPE_KEY)
NO_DIGEST = "0" * 64
CONVERTER_KEY = "valle.converter.version"
FILE_TYPE_KEY = "general.file_type"


#: The names of the `architecture_keys`, without the architecture.
ARCHITECTURE_KEYS = frozenset(
    """
    context_length embedding_length block_count feed_forward_length attention.head_count
    attention.head_count_kv attention.key_length attention.value_length
    attention.layer_norm_rms_epsilon rope.dimension_count rope.freq_base
    """.split()
)


def architecture_keys(config: GemmaConfig) -> Iterator[Key]:
    """The keys that llama.cpp builds the graph from."""
    prefix = ARCHITECTURE
    yield Key(f"{prefix}.context_length", config.n_ctx_train, "u32")
    yield Key(f"{prefix}.embedding_length", config.n_embd, "u32")
    yield Key(f"{prefix}.block_count", config.n_layer, "u32")
    yield Key(f"{prefix}.feed_forward_length", config.n_ff, "u32")
    yield Key(f"{prefix}.attention.head_count", config.n_head, "u32")
    yield Key(f"{prefix}.attention.head_count_kv", config.n_head_kv, "u32")
    yield Key(f"{prefix}.attention.key_length", config.n_embd_head, "u32")
    yield Key(f"{prefix}.attention.value_length", config.n_embd_head, "u32")
    yield Key(f"{prefix}.attention.layer_norm_rms_epsilon", RMS_EPSILON, "f32")
    yield Key(f"{prefix}.rope.dimension_count", config.n_embd_head, "u32")
    yield Key(f"{prefix}.rope.freq_base", ROPE_BASE, "f32")


def config_keys(config: GemmaConfig) -> Iterator[Key]:
    """VALL-E's part of the config; `KeyReader.config` reads it."""
    yield Key("valle.checkpoint_version", config.version, "u32")
    yield Key("valle.capabilities", list(config.capabilities), "[string]")
    yield from codec_keys(config)
    yield Key("valle.positions", config.positions, "string")
    yield Key("valle.nar_attention", config.nar_attention, "string")


def name_keys(
    languages: Sequence[str], tasks: Sequence[str], tones: Sequence[str]
) -> Iterator[Key]:
    """The names of rows in id order; GGUF has no empty arrays, so no names means no key."""
    for name, words in (("languages", languages), ("tasks", tasks), ("tones", tones)):
        if words:
            yield Key(f"valle.{name}", list(words), "[string]")


def codec_keys(format_: CodeFormat) -> Iterator[Key]:
    """The codec and the form of its codes; `KeyReader.codec` reads the codec."""
    yield Key("valle.codec.name", format_.codec.name, "string")
    yield Key("valle.codec.sample_rate", format_.codec.sample_rate, "u32")
    yield Key("valle.codec.levels", format_.n_levels, "u32")
    yield Key("valle.codec.codebook_size", format_.codebook_size, "u32")
    yield Key("valle.codec.frame_rate", format_.codec.frame_rate, "f32")


def row_keys(tables: Sequence[Table], heads: Sequence[Head] = ()) -> Iterator[Key]:
    """The rows of each table and head in the token embedding; a `KeyReader` reads them."""
    for kind, rows in (("table", tables), ("head", heads)):
        if rows:
            yield Key(f"valle.{kind}.names", [one.name for one in rows], "[string]")
            yield Key(f"valle.{kind}.first_rows", [one.first_row for one in rows], "[u32]")
            yield Key(f"valle.{kind}.row_counts", [one.n_rows for one in rows], "[u32]")


def is_converted(keys: Mapping[str, Any]) -> bool:
    return "valle.format_version" in keys


class KeyReader:
    """Typed access to keys of an untrusted file, which collects faults."""

    def __init__(self, keys: Mapping[str, Any]) -> None:
        self.keys = keys
        self.faults: list[str] = []

    @classmethod
    def of_converted(cls, keys: Mapping[str, Any], path: Path) -> Self:
        if not is_converted(keys):
            raise InputError(
                f"{path} is a GGUF file without valle.* keys, not a converted VALL-E "
                "checkpoint; convert one with `valle-convert CHECKPOINT OUT.gguf`."
            )
        reader = cls(keys)
        version = reader.number("valle.format_version")
        if version != FORMAT_VERSION:
            raise InputError(
                f"{path} has format version {version}, expected {FORMAT_VERSION}; "
                "use a newer valle-convert."
            )
        return reader

    def finish(self, path: Path) -> None:
        if self.faults:
            raise InputError(
                f"{path} is inconsistent: {listing(self.faults, separator='; ')}. "
                "Convert the checkpoint again."
            )

    def number(self, name: str) -> int:
        return self._typed(name, "a whole number", 0)

    def real(self, name: str) -> float:
        return self._typed(name, "a number", 0.0)

    def flag(self, name: str) -> bool:
        return self._typed(name, "a flag", default=False)

    def text(self, name: str) -> str:
        return self._typed(name, "a string", "")

    def expect(self, name: str, expected: int) -> None:
        value = self.keys.get(name)
        if type(value) is not int or value != expected:
            self._fault(name, value, str(expected), None)

    def choice(self, name: str, choices: Mapping[str, T]) -> T:
        """The meaning of a string, else the first choice."""
        value = self.keys.get(name)
        if isinstance(value, str) and value in choices:
            return choices[value]
        return self._fault(name, value, " or ".join(choices), next(iter(choices.values())))

    def words(self, name: str, *, optional: bool = False) -> tuple[str, ...]:
        value = self.keys.get(name)
        if value is None and optional:
            return ()
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        return self._fault(name, value, "a list of strings", ())

    def config(self) -> GemmaConfig:
        return GemmaConfig(
            version=self.number("valle.checkpoint_version"),
            capabilities=self.words("valle.capabilities"),
            n_embd=self.number(f"{ARCHITECTURE}.embedding_length"),
            n_layer=self.number(f"{ARCHITECTURE}.block_count"),
            n_head=self.number(f"{ARCHITECTURE}.attention.head_count"),
            n_head_kv=self.number(f"{ARCHITECTURE}.attention.head_count_kv"),
            n_ff=self.number(f"{ARCHITECTURE}.feed_forward_length"),
            n_ctx_train=self.number(f"{ARCHITECTURE}.context_length"),
            n_levels=self.number("valle.codec.levels"),
            codebook_size=self.number("valle.codec.codebook_size"),
            positions=self.choice("valle.positions", _POSITIONS),
            nar_attention=self.choice("valle.nar_attention", _ATTENTIONS),
            codec=self.codec(),
        )

    def codec(self) -> Codec:
        rate = self.real("valle.codec.frame_rate")
        if rate and not 1 <= rate <= 1000:  # numbers of frames follow from it
            rate = self._fault("valle.codec.frame_rate", rate, "0, or 1 to 1000", 0.0)
        name = self.text("valle.codec.name")
        return Codec(name, self.number("valle.codec.sample_rate"), rate)

    def ranges(self, kind: str, n_token_rows: int) -> list[tuple[str, int, int]]:
        names = self.words(f"valle.{kind}.names")
        columns: list[list[int]] = []
        for column in ("first_rows", "row_counts"):
            key = f"valle.{kind}.{column}"
            value = self.keys.get(key)
            if (
                not isinstance(value, list)
                or len(value) != len(names)
                or any(not isinstance(item, int) for item in value)
            ):
                self._fault(key, value, f"a list of {len(names)} whole numbers", None)
                return []
            columns.append(value)
        found = list(zip(names, *columns, strict=True))
        if len(set(names)) != len(names):
            self.faults.append(f"valle.{kind}.names has a name twice")
        for name, first_row, n_rows in found:
            if n_rows < 1 or first_row < 0 or first_row + n_rows > n_token_rows:
                self.faults.append(
                    f"the {kind} {name} has rows {first_row} to {first_row + n_rows - 1} "
                    f"of a token embedding of {n_token_rows}"
                )
        return found

    def tables(self, n_token_rows: int) -> tuple[Table, ...]:
        return tuple(Table(*row) for row in self.ranges("table", n_token_rows))

    def names(self, kind: str, table: str, tables: Sequence[Table]) -> tuple[str, ...]:
        """Names in id order, one for each row of an optional table."""
        words = self.words(f"valle.{kind}", optional=True)
        n_rows = sum(one.n_rows for one in tables if one.name == table)
        if len(words) != n_rows:
            self.faults.append(f"{len(words)} names for the {n_rows} rows of {table}")
        return words

    def heads(self, n_token_rows: int) -> tuple[Head, ...]:
        """The heads that `row_keys` wrote, with their biases."""
        ranges = self.ranges("head", n_token_rows)
        bias = self.keys.get(BIAS_KEY)
        total = sum(n_rows for _, _, n_rows in ranges)
        if bias is not None and (
            not isinstance(bias, list)
            or len(bias) != total
            or any(not isinstance(value, float) for value in bias)
        ):
            self.faults.append(f"{BIAS_KEY} is not a list of {total} numbers")
            bias = None
        heads: list[Head] = []
        start = 0
        for name, first_row, n_rows in ranges:
            part = None if bias is None else tuple(bias[start : start + n_rows])
            heads.append(Head(name, first_row, n_rows, part))
            start += n_rows
        return tuple(heads)

    def compare_rows(
        self, kind: str, rows: Sequence[Table | Head], expected: Mapping[str, int | None]
    ) -> None:
        """Require tables or heads with these numbers of rows; None for any number."""
        found = {one.name: one.n_rows for one in rows}
        for name, n_rows in expected.items():
            if name not in found:
                self.faults.append(f"the {kind} {name} is missing")
            elif n_rows is not None and found[name] != n_rows:
                self.faults.append(f"the {kind} {name} has {found[name]} rows, not {n_rows}")

    def compare_order(self, tables: Sequence[Table], first: str) -> None:
        """Require adjacent tables, beginning with one."""
        next_row = 0
        for table in tables:
            if table.first_row != next_row:
                self.faults.append(
                    f"the table {table.name} begins at row {table.first_row}, expected {next_row}"
                )
            next_row = table.first_row + table.n_rows
        if tables and tables[0].name != first:
            self.faults.append(f"the first table is {tables[0].name}, not {first}")

    def _typed(self, name: str, expected: str, default: T) -> T:
        """A value of the default's type; True is no number."""
        value = self.keys.get(name)
        if type(value) is not type(default):
            return self._fault(name, value, expected, default)
        typed: T = value
        return typed

    def _fault(self, name: str, value: object, expected: str, default: T) -> T:
        found = "missing" if value is None else f"{value!r:.60}"
        self.faults.append(f"{name} is {found}, expected {expected}")
        return default
