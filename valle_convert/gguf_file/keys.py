"""The metadata of a converted file: one list, read by the writer and by the reader.

docs/gguf-keys.md lists their meaning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from valle_convert.gguf_file.header import Key
from valle_convert.model.spec import (
    BOS_PHONEME,
    EOS_PHONEME,
    UNKNOWN_PHONEME,
    Codec,
    CodeFormat,
    Head,
    ModelConfig,
    Table,
)

T = TypeVar("T")

FORMAT_VERSION = 1
ARCHITECTURE = "gemma"
RMS_EPSILON = 1e-6
ROPE_BASE = 10_000.0

#: The family's name; files of the family without a name have no such key.
FAMILY_KEY = "valle.family"
#: Ties the files of a set together, whatever they are quantized to later.
SET_ID_KEY = "valle.set.id"
#: Which file of a set a file is.
PART_KEY = "valle.part"
BIAS_KEY = "valle.head.bias"
#: The tokenizer's keys whose values the network's phoneme rows fix.
SPECIAL_IDS = {
    "tokenizer.ggml.unknown_token_id": UNKNOWN_PHONEME,
    "tokenizer.ggml.bos_token_id": BOS_PHONEME,
    "tokenizer.ggml.eos_token_id": EOS_PHONEME,
}
SOURCE_SHA256_KEY = "valle.source.sha256"
SOURCE_LORA_KEY = "valle.source.lora"
#: What the source did not say and was assumed, and what its checkpoint had and it has no more.
SOURCE_ASSUMED_KEY = "valle.source.assumed"
SOURCE_LOST_KEY = "valle.source.lost"
SOURCE_PREFIX = "valle.source."
#: The config of the checkpoint and its phoneme strings with their ids, as JSON, so that `export`
#: gives both back as they were.
SOURCE_CONFIG_KEY = "valle.source.config"
SOURCE_SYMMAP_KEY = "valle.source.symmap"
#: What container the weights were in, where it was not the training project's own.
SOURCE_FORMAT_KEY = "valle.source.format"
SOURCE_REVISION_KEY = "valle.source.revision"
#: Of a repaired file: the types that its source had for tables and heads.
OLD_TYPES_KEY = "valle.source.old_types"
#: SHA-256 of the tensors' data with its padding, and of all before it, with zeros in the place of
#: the two digests; and the file type then. They let a file be checked without its checkpoint.
DATA_DIGEST_KEY = "valle.digest.data"
HEADER_DIGEST_KEY = "valle.digest.header"
DIGEST_TYPE_KEY = "valle.digest.file_type"
DIGEST_KEYS = (DATA_DIGEST_KEY, HEADER_DIGEST_KEY, DIGEST_TYPE_KEY)
NO_DIGEST = "0" * 64
CONVERTER_KEY = "valle.converter.version"
FILE_TYPE_KEY = "general.file_type"


#: The names of all that `architecture_keys` gives, without the architecture in front.
ARCHITECTURE_KEYS = frozenset(
    """
    context_length embedding_length block_count feed_forward_length attention.head_count
    attention.head_count_kv attention.key_length attention.value_length
    attention.layer_norm_rms_epsilon rope.dimension_count rope.freq_base
    """.split()
)


def architecture_keys(config: ModelConfig) -> Iterator[Key]:
    """What llama.cpp reads to build the graph."""
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


def codec_keys(format_: CodeFormat) -> Iterator[Key]:
    """What the codes are codes of; `KeyReader.codec` reads the codec."""
    yield Key("valle.codec.name", format_.codec.name, "string")
    yield Key("valle.codec.sample_rate", format_.codec.sample_rate, "u32")
    yield Key("valle.codec.levels", format_.n_levels, "u32")
    yield Key("valle.codec.codebook_size", format_.codebook_size, "u32")
    yield Key("valle.codec.frame_rate", format_.codec.frame_rate, "f32")


def row_keys(tables: tuple[Table, ...], heads: tuple[Head, ...]) -> Iterator[Key]:
    """Which rows of the token embedding are which table and head; `KeyReader.ranges` reads them."""
    ranges: tuple[tuple[str, tuple[Table, ...] | tuple[Head, ...]], ...] = (
        ("table", tables),
        ("head", heads),
    )
    for kind, entries in ranges:
        yield Key(f"valle.{kind}.names", [entry.name for entry in entries], "[string]")
        yield Key(f"valle.{kind}.first_rows", [entry.first_row for entry in entries], "[u32]")
        yield Key(f"valle.{kind}.row_counts", [entry.n_rows for entry in entries], "[u32]")


def is_converted(keys: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a file made by this project."""
    return "valle.format_version" in keys


class KeyReader:
    """Typed access to keys of an untrusted file; faults are gathered, not raised."""

    def __init__(self, keys: Mapping[str, Any]) -> None:
        self.keys = keys
        self.faults: list[str] = []

    def number(self, name: str) -> int:
        """A whole number, else 0."""
        value = self._get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        return self._fault(name, value, "a whole number", 0)

    def expect(self, name: str, expected: int) -> None:
        """That number, and no other."""
        value = self._get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value != expected:
            self._fault(name, value, str(expected), None)

    def real(self, name: str) -> float:
        """A number with a point, else 0."""
        value = self._get(name)
        return value if isinstance(value, float) else self._fault(name, value, "a number", 0.0)

    def flag(self, name: str) -> bool:
        """True or false, else false."""
        value = self._get(name)
        return (
            value if isinstance(value, bool) else self._fault(name, value, "a flag", default=False)
        )

    def text(self, name: str) -> str:
        """A string, else an empty one."""
        value = self._get(name)
        return value if isinstance(value, str) else self._fault(name, value, "a string", "")

    def choice(self, name: str, choices: Mapping[str, T]) -> T:
        """What a string stands for, else the first choice."""
        value = self._get(name)
        if isinstance(value, str) and value in choices:
            return choices[value]
        return self._fault(name, value, " or ".join(choices), next(iter(choices.values())))

    def words(self, name: str, *, optional: bool = False) -> tuple[str, ...]:
        """A list of strings, else none."""
        value = self._get(name)
        if value is None and optional:
            return ()
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        return self._fault(name, value, "a list of strings", ())

    def codec(self) -> Codec:
        """The codec that `codec_keys` wrote."""
        return Codec(
            self.text("valle.codec.name"),
            self.number("valle.codec.sample_rate"),
            self.real("valle.codec.frame_rate"),
        )

    def ranges(self, kind: str, n_token_rows: int) -> list[tuple[str, int, int]]:
        """The rows of tables or heads: name, first row, number of rows."""
        names = self.words(f"valle.{kind}.names")
        columns: list[list[int]] = []
        for column in ("first_rows", "row_counts"):
            key = f"valle.{kind}.{column}"
            value = self._get(key)
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

    def _get(self, name: str) -> Any:  # noqa: ANN401 - the value of an untrusted key is anything
        return self.keys.get(name)

    def _fault(self, name: str, value: object, expected: str, default: T) -> T:
        found = "missing" if value is None else f"{value!r:.60}"
        self.faults.append(f"{name} is {found}, where {expected} is expected")
        return default
