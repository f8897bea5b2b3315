"""The one GGUF file of a checkpoint of versions 5 and 6: its keys, written and read back.

docs/gguf-keys.md lists their meaning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import InputError
from valle_convert.families.v5.old import is_old, why_wrong
from valle_convert.gguf_file.header import Key
from valle_convert.gguf_file.keys import (
    ARCHITECTURE,
    BIAS_KEY,
    FORMAT_VERSION,
    SOURCE_CONFIG_KEY,
    SOURCE_SYMMAP_KEY,
    SPECIAL_IDS,
    KeyReader,
    architecture_keys,
    codec_keys,
    is_converted,
    row_keys,
)
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING, FileKeys
from valle_convert.gguf_file.read import GgufFile
from valle_convert.model.description import Description
from valle_convert.model.spec import Attention, Head, Model, ModelConfig, Positions, Table
from valle_convert.tokenizer.choose import TokenizerChoice
from valle_convert.tokenizer.compiled import TOKENIZER_SHA256_KEY, CompiledTokenizer

_MAX_JSON = 1 << 20
_POSITIONS: dict[str, Positions] = {"segment": "segment", "unified": "unified"}
_ATTENTIONS: dict[str, Attention] = {"bidirectional": "bidirectional", "causal": "causal"}


def file_keys(
    checkpoint: Checkpoint,
    description: Description[Model],
    tokenizer: TokenizerChoice,
) -> FileKeys:
    """What is written into the file.

    Raises:
        InputError: the tokenizer has other ids for <unk>, <bos> or </eos> than the network.
    """
    model = description.model
    compiled = tokenizer.compile(placeholder_names(description))
    _check_special_ids(compiled, tokenizer)
    said = (
        (SOURCE_CONFIG_KEY, _json_of(checkpoint.config)),
        (SOURCE_SYMMAP_KEY, _json_of(checkpoint.symmap)),
    )
    return FileKeys(
        ARCHITECTURE,
        graph=architecture_keys(model.config),
        vocabulary=[
            *(Key(name, value, kind) for name, value, kind in compiled.metadata()),
            Key("valle.tokenizer.source", tokenizer.source, "string"),
            Key("valle.tokenizer.reason", tokenizer.reason, "string"),
            Key(TOKENIZER_SHA256_KEY, tokenizer.sha256, "string"),
        ],
        model=model_keys(model),
        tail=[Key(name, text, "string") for name, text in said if text is not None],
        extra_rows=compiled.extra_rows,
        languages=model.languages,
    )


def placeholder_names(description: Description[Model]) -> list[str]:
    """A token text for every row after the phonemes, such as `<prompt.3:17>`; all different."""
    return [
        f"<{block.label}:{row}>"
        for block in description.blocks()[1:]
        for row in range(block.n_rows)
    ]


def _json_of(value: Mapping[str, Any] | None) -> str | None:
    """A mapping as JSON; None where there is none, or JSON has no words for it."""
    if value is None:
        return None
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
    return text if len(text) <= _MAX_JSON else None


def _check_special_ids(compiled: CompiledTokenizer, tokenizer: TokenizerChoice) -> None:
    found = {name: value for name, value, _ in compiled.metadata() if name in SPECIAL_IDS}
    if found != SPECIAL_IDS:
        unknown, bos, eos = (found[name] for name in SPECIAL_IDS)
        expected = "{}, {} and {}".format(*SPECIAL_IDS.values())
        raise InputError(
            f"The tokenizer {tokenizer.file.path} gives the unknown token and the tokens that "
            f"begin and end a text the ids {unknown}, {bos} and {eos}, where {expected} are "
            "expected: the network reads the marks around phonemes, the null condition of guidance "
            "and the end of a transcript at these rows. Give the tokenizer that the checkpoint was "
            "trained with; one with other ids cannot be converted."
        )


def model_keys(model: Model) -> Iterator[Key]:
    """What is VALL-E about the file; `read_model` is the inverse."""
    config = model.config
    yield Key("valle.format_version", FORMAT_VERSION, "u32")
    yield Key("valle.checkpoint_version", config.version, "u32")
    yield Key("valle.capabilities", list(config.capabilities), "[string]")
    yield from codec_keys(model)
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


def open_model(file: GgufFile) -> Model:
    """The model that a converted file describes.

    Raises:
        InputError: the file is no converted checkpoint, or its keys are not consistent.
    """
    embedding = file.tensors.get(TOKEN_EMBEDDING)
    if is_old(file):
        raise InputError(why_wrong(file.path))
    if embedding is None or len(embedding.shape) != 2:
        raise InputError(
            f"{file.path} has no matrix {TOKEN_EMBEDDING}, so it is no converted checkpoint; "
            "convert one with `valle-convert CHECKPOINT OUT.gguf`."
        )
    return read_model(file.keys, embedding.shape[0], file.path)


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
        codec=reader.codec(),
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
