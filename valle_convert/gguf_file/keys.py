"""The metadata of a converted file: one list, read by the writer and by the reader.

docs/gguf-keys.md lists their meaning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from valle_convert.errors import InputError
from valle_convert.gguf_file.header import Key
from valle_convert.model.spec import (
    BOS_PHONEME,
    EOS_PHONEME,
    UNKNOWN_PHONEME,
    Attention,
    Codec,
    Head,
    Model,
    ModelConfig,
    Positions,
    Table,
)

T = TypeVar("T")

FORMAT_VERSION = 1
ARCHITECTURE = "gemma"
RMS_EPSILON = 1e-6
ROPE_BASE = 10_000.0

_POSITIONS: dict[str, Positions] = {"segment": "segment", "unified": "unified"}
_ATTENTIONS: dict[str, Attention] = {"bidirectional": "bidirectional", "causal": "causal"}

#: Missing in files of versions 5 and 6.
FAMILY_KEY = "valle.family"
BIAS_KEY = "valle.head.bias"
TRUE_IDS_KEY = "valle.tokenizer.true_ids"
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


def model_keys(model: Model) -> Iterator[Key]:
    """What is VALL-E about the file; `read_model` is the inverse."""
    config = model.config
    yield Key("valle.format_version", FORMAT_VERSION, "u32")
    yield Key("valle.checkpoint_version", config.version, "u32")
    yield Key("valle.capabilities", list(config.capabilities), "[string]")
    yield Key("valle.codec.name", config.codec.name, "string")
    yield Key("valle.codec.sample_rate", config.codec.sample_rate, "u32")
    yield Key("valle.codec.levels", config.n_levels, "u32")
    yield Key("valle.codec.codebook_size", config.codebook_size, "u32")
    yield Key("valle.codec.frame_rate", config.codec.frame_rate, "f32")
    yield Key("valle.positions", config.positions, "string")
    yield Key("valle.nar_attention", config.nar_attention, "string")
    yield Key("valle.sums.prompt", config.sum_prompt, "bool")
    yield Key("valle.sums.response", config.sum_response, "bool")
    for name, words in (
        ("languages", model.languages),
        ("tasks", model.tasks),
        ("tones", model.tones),
    ):
        # GGUF has no empty arrays: a model without languages has no such key.
        if words:
            yield Key(f"valle.{name}", list(words), "[string]")
    yield from row_keys(model.tables, model.heads)


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


def read_model(keys: Mapping[str, Any], n_token_rows: int, path: Path) -> Model:
    """The model that the keys of a converted file describe.

    Args:
        keys: all keys of the file.
        n_token_rows: rows of its token embedding.
        path: of the file, for messages.

    Raises:
        InputError: the file is no converted VALL-E, is of a later format, or its keys are
            missing, of a wrong type, point outside of the token embedding, or give <unk>,
            <bos> or </eos> another id than `SPECIAL_IDS`; all faults in one message.
    """
    if not is_converted(keys):
        raise InputError(
            f"{path} is a GGUF file without the valle.* keys, so it is no converted VALL-E "
            "checkpoint; convert one with `valle-convert CHECKPOINT OUT.gguf`."
        )
    if FAMILY_KEY in keys:
        raise InputError(
            f"{path} is a part of a VALL-E X, which is a set of files and of no use to this "
            "command; convert, verify, inspect, quantize, tokenize and speak know such sets."
        )
    reader = KeyReader(keys)
    version = reader.number("valle.format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} is of format version {version}, and this program reads {FORMAT_VERSION}; "
            "use a newer valle-convert."
        )
    tables = tuple(Table(*row) for row in reader.ranges("table", n_token_rows))
    heads = _read_heads(reader, n_token_rows)
    n_embd = reader.number(f"{ARCHITECTURE}.embedding_length")
    config = ModelConfig(
        version=reader.number("valle.checkpoint_version"),
        capabilities=reader.words("valle.capabilities"),
        n_embd=n_embd,
        n_layer=reader.number(f"{ARCHITECTURE}.block_count"),
        n_head=reader.number(f"{ARCHITECTURE}.attention.head_count"),
        n_head_kv=reader.number(f"{ARCHITECTURE}.attention.head_count_kv"),
        n_ff=reader.number(f"{ARCHITECTURE}.feed_forward_length"),
        n_ctx_train=reader.number(f"{ARCHITECTURE}.context_length"),
        n_levels=reader.number("valle.codec.levels"),
        codebook_size=reader.number("valle.codec.codebook_size"),
        positions=reader.choice("valle.positions", _POSITIONS),
        nar_attention=reader.choice("valle.nar_attention", _ATTENTIONS),
        sum_prompt=reader.flag("valle.sums.prompt"),
        sum_response=reader.flag("valle.sums.response"),
        codec=Codec(
            reader.text("valle.codec.name"),
            reader.number("valle.codec.sample_rate"),
            reader.real("valle.codec.frame_rate"),
        ),
    )
    model = Model(
        config=config,
        tables=tables,
        heads=heads,
        n_rows=max(
            [table.first_row + table.n_rows for table in tables]
            + [head.first_row + head.n_rows for head in heads],
            default=0,
        ),
        languages=reader.words("valle.languages", optional=True),
        tasks=reader.words("valle.tasks", optional=True),
        tones=reader.words("valle.tones", optional=True),
    )
    _check_contents(reader, model)
    for name, id_ in SPECIAL_IDS.items():
        reader.expect(name, id_)
    if reader.faults:
        raise InputError(
            f"{path}: its keys are not consistent: {'; '.join(reader.faults)}. "
            "Convert the checkpoint again."
        )
    return model


def _read_heads(reader: KeyReader, n_token_rows: int) -> tuple[Head, ...]:
    ranges = reader.ranges("head", n_token_rows)
    bias = reader.keys.get(BIAS_KEY)
    total = sum(n_rows for _, _, n_rows in ranges)
    if bias is not None and (
        not isinstance(bias, list)
        or len(bias) != total
        or any(not isinstance(value, float) for value in bias)
    ):
        reader.faults.append(f"{BIAS_KEY} is not a list of {total} numbers")
        bias = None
    heads: list[Head] = []
    start = 0
    for name, first_row, n_rows in ranges:
        part = None if bias is None else tuple(bias[start : start + n_rows])
        heads.append(Head(name, first_row, n_rows, part))
        start += n_rows
    return tuple(heads)


def _check_contents(reader: KeyReader, model: Model) -> None:
    """What the decoders rely on: tables side by side, every table and head of every level."""
    config = model.config
    if not 0 < config.n_levels <= 64:
        reader.faults.append(f"valle.codec.levels is {config.n_levels}")
        return
    levels, codes = range(config.n_levels), config.codebook_size
    expected = {"phonemes": None, "level": config.n_levels, "task": None, "separator": 1}
    expected |= {f"prompt.{i}": codes for i in levels}
    expected |= {"response.ar": codes + 1, "response.mask": codes + 1}
    expected |= {f"response.{i}": codes for i in levels[1:]}
    _check_ranges(reader, "table", {t.name: t.n_rows for t in model.tables}, expected)
    heads: dict[str, int | None] = {"ar": codes + 1, "mask": codes, "stt": None}
    heads |= {f"nar.{i}": codes for i in levels[1:]}
    if "len" in config.capabilities:
        heads["len"] = None
    _check_ranges(reader, "head", {h.name: h.n_rows for h in model.heads}, heads)
    next_row = 0
    for table in model.tables:
        if table.first_row != next_row:
            reader.faults.append(
                f"the table {table.name} begins at row {table.first_row}, and {next_row} is next"
            )
        next_row = table.first_row + table.n_rows
    if model.tables and model.tables[0].name != "phonemes":
        reader.faults.append(f"the first table is {model.tables[0].name}, not phonemes")
    for words, table_name in (
        (model.languages, "language"),
        (model.tasks, "task"),
        (model.tones, "tone"),
    ):
        n_rows = model.table(table_name).n_rows if model.has_table(table_name) else 0
        if len(words) != n_rows:
            reader.faults.append(f"{len(words)} names for the {n_rows} rows of {table_name}")


def _check_ranges(
    reader: KeyReader, kind: str, found: Mapping[str, int], expected: Mapping[str, int | None]
) -> None:
    for name, n_rows in expected.items():
        if name not in found:
            reader.faults.append(f"the {kind} {name} is missing")
        elif n_rows is not None and found[name] != n_rows:
            reader.faults.append(f"the {kind} {name} has {found[name]} rows, not {n_rows}")


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
