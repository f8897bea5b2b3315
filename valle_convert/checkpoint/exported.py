"""The Hugging Face export of a checkpoint: two matrices that hold all tables and all heads.

    model.embed_tokens.weight   the input tables, one after the other
    lm_head.weight              each head at the rows of "its" table
    model.layers.*, model.norm  as in the checkpoint

GGUF files made by llama.cpp's LLaMA converter hold the same two matrices. The token names, such as
`<|RVQ:0|>`, show which rows are which; without them, the order of the tables and the sizes in the
config do. `ExportedTensors` restores the checkpoint's tensors; `assumed_config` fills the gaps.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint.source import BlockSource, TensorSource, TensorSpec
from valle_convert.errors import InputError
from valle_convert.wording import listing

EMBEDDINGS = "model.embed_tokens.weight"
HEADS = "lm_head.weight"
_BACKBONE = ("model.layers.", "model.norm.")

_TEXT, _LENGTH = "text_emb.weight", "len_emb.weight"
_PROMPT, _RESPONSE = "proms_emb.embeddings.{}.weight", "resps_emb.embeddings.{}.weight"
#: Names of tokens: the last group is the row's own, one before it the number of the table. The
#: large tables come first, since each name is tried in turn.
_NAMES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"<\|P\|(\d+)\|(\d+)\|>"), _PROMPT),
    (re.compile(r"<\|R\|NAR\|\d+:([1-9]\d*)\|(\d+)\|>"), _RESPONSE),
    (re.compile(r"<\|R\|AR\|(0):0\|(\d+)\|>"), _RESPONSE),
    (re.compile(r"<\|R\|NAR\|0:(0)\|(\d+)\|>"), _RESPONSE.format("last")),
    (re.compile(r"<\|RVQ:(\d+)\|>"), "rvq_l_emb.weight"),
    (re.compile(r"<\|lang:([^|]+)\|>"), "langs_emb.weight"),
    (re.compile(r"<\|task:([^|]+)\|>"), "tasks_emb.weight"),
    (re.compile(r"<\|len:(\d+)\|>"), _LENGTH),
    (re.compile(r"<\|tone:([^|]+)\|>"), "tones_emb.weight"),
    (re.compile(r"<\|sep\|>"), "sep"),
)
#: Sizes of the published models; the config may override them.
_PUBLISHED = {"langs": 6, "tasks": 9, "tones": 1}
_PUBLISHED_SIZES = {"phoneme_tokens": 256, "resp_levels": 8, "audio_tokens": 1024}
_LENGTH_ROWS = 11
#: The config's name for the number of a table's words.
COUNTED = {"langs": "langs_emb.weight", "tasks": "tasks_emb.weight", "tones": "tones_emb.weight"}


@dataclass(frozen=True)
class ExportRows:
    """Rows of one of the two matrices that were one tensor of the checkpoint."""

    matrix: str
    first_row: int
    n_rows: int
    row_names: tuple[str, ...] = ()  # such as `en`; empty if the rows have no names


class ExportedTensors:
    """The checkpoint's tensors from its export; a `TensorSource` and a `BlockSource`.

    `decode` turns rows of a quantized type, named by llama.cpp, into numbers.
    """

    def __init__(
        self,
        export: TensorSource,
        rows: Mapping[str, ExportRows],
        where: str,
        decode: Callable[[NDArray[np.uint8], str], NDArray[Any]] | None = None,
    ) -> None:
        self._export = export
        self._rows = rows
        self._decode = decode
        missing = [name for name in (EMBEDDINGS, HEADS) if name not in export.specs]
        others = [
            name
            for name in export.specs
            if name not in (EMBEDDINGS, HEADS, "lm_head.bias") and not name.startswith(_BACKBONE)
        ]
        if missing or others:
            faults = [f"missing: {listing(missing)}"] if missing else []
            faults += [f"unexpected: {listing(others)}"] if others else []
            raise InputError(
                f"{where} is not a complete export of a VALL-E checkpoint: {'; '.join(faults)}; "
                "export the checkpoint again."
            )
        specs: dict[str, TensorSpec] = {}
        for name, part in rows.items():
            matrix = export.specs[part.matrix]
            shape = (part.n_rows, *matrix.shape[1:])
            specs[name] = TensorSpec(
                name, matrix.dtype, matrix.dtype_name, shape[1:] if name == "sep" else shape
            )
        specs |= {n: spec for n, spec in export.specs.items() if n.startswith(_BACKBONE)}
        self.specs: Mapping[str, TensorSpec] = specs

    def read(self, name: str) -> NDArray[Any]:
        spec, blocks = self.specs[name], self.read_blocks(name)
        if blocks is not None and self._decode is not None:
            return self._decode(blocks, spec.dtype_name).reshape(spec.shape)
        source, rows = self._place(name)
        return self._export.read(source)[rows].reshape(spec.shape)

    def read_blocks(self, name: str) -> NDArray[np.uint8] | None:
        source, rows = self._place(name)
        blocks = self._export.read_blocks(source) if isinstance(self._export, BlockSource) else None
        return None if blocks is None else blocks[rows]

    def _place(self, name: str) -> tuple[str, slice]:
        part = self._rows.get(name)
        if part is None:
            return name, slice(None)
        return part.matrix, slice(part.first_row, part.first_row + part.n_rows)


# --------------------------------------------------------------------------------- rows


def rows_of_export(
    names: Sequence[str], n_rows: int, config: Mapping[str, Any], where: str
) -> dict[str, ExportRows]:
    """Which rows of the two matrices were which tensor of the checkpoint."""
    if is_named(names):
        if len(names) != n_rows:
            raise InputError(
                f"{where}: {len(names)} tokens have names, but the matrices have {n_rows} rows; "
                "export the checkpoint again."
            )
        tables = _tables_by_name(names, where)
    else:
        tables = _tables_by_size(n_rows, config, where)
    return tables | _heads(tables, "len" in _capabilities(tables, config))


def is_named(names: Sequence[str]) -> bool:
    """Whether the tokens have the names that exports give to rows after the phonemes."""
    return "<|RVQ:0|>" in names and "<|sep|>" in names


def is_row_name(name: str) -> bool:
    """Whether an export gives a name like this to a row after the phonemes."""
    return _table_of(name)[0] is not None


def _tables_by_name(names: Sequence[str], where: str) -> dict[str, ExportRows]:
    firsts: dict[str, int] = {}
    words: dict[str, list[str]] = {}
    start = names.index("<|RVQ:0|>")
    previous = ""
    for row, name in enumerate(names[start:], start):
        table, word = _table_of(name)
        # A row out of order, or one row too many, would belong to another table.
        if table is None or (table != previous and table in firsts):
            raise InputError(
                f"{where}: row {row} is named {name!r:.60}, which is out of the order of VALL-E's "
                "tables; export the checkpoint again."
            )
        firsts.setdefault(table, row)
        known = words.setdefault(table, [])
        if word.isdecimal() and int(word) != len(known):
            raise InputError(
                f"{where}: row {row} is named {name!r:.60}, expected number {len(known)}; "
                "export the checkpoint again."
            )
        known.append(word)
        previous = table
    n_levels = sum(name.startswith("proms_emb.") for name in firsts)
    tables = {_TEXT: ExportRows(EMBEDDINGS, 0, start)}
    for table, first in firsts.items():
        source = table.replace("last", str(n_levels))
        own = tuple(word for word in words[table] if not word.isdecimal())
        tables[source] = ExportRows(EMBEDDINGS, first, len(words[table]), own)
    return tables


# Every name is looked up twice: for its row, and to exclude it from the vocabulary.
@lru_cache(1 << 15)
def _table_of(name: str) -> tuple[str | None, str]:
    """The table that a token's name belongs to, and the row's own word in it."""
    for pattern, table in _NAMES:
        found = pattern.fullmatch(name)
        if found is not None:
            groups = found.groups()
            return table.format(*groups[:-1]), groups[-1] if groups else "0"
    return None, ""


def _tables_by_size(n_rows: int, config: Mapping[str, Any], where: str) -> dict[str, ExportRows]:
    sizes = config.get("size")
    details = sizes if isinstance(sizes, Mapping) else {}
    n = {key: config.get(key, default) for key, default in _PUBLISHED.items()}
    n |= {key: details.get(key, default) for key, default in _PUBLISHED_SIZES.items()}
    wrong = [f"{key} {value!r}" for key, value in n.items() if not is_count(value)]
    if wrong:
        raise InputError(f"{where}: {', '.join(wrong)}, expected a whole number.")
    levels, codes = n["resp_levels"], n["audio_tokens"]
    counts = [
        (_TEXT, n["phoneme_tokens"]),
        ("rvq_l_emb.weight", levels),
        ("langs_emb.weight", n["langs"]),
        ("tasks_emb.weight", n["tasks"]),
        (_LENGTH, _LENGTH_ROWS),
        ("tones_emb.weight", n["tones"]),
        ("sep", 1),
        *((_PROMPT.format(i), codes) for i in range(levels)),
        *((_RESPONSE.format(i), codes + (i in (0, levels))) for i in range(levels + 1)),
    ]
    total = sum(count for _, count in counts)
    if total != n_rows:
        said = ", ".join(f"{key} {value}" for key, value in n.items())
        raise InputError(
            f"{where}: the rows have no names, and with {said} there would be {total} of them, "
            f"not {n_rows}; give the sizes with --config."
        )
    tables: dict[str, ExportRows] = {}
    first = 0
    for name, count in counts:
        if count:
            tables[name] = ExportRows(EMBEDDINGS, first, count)
        first += count
    return tables


def is_count(value: object) -> TypeGuard[int]:
    """Whether a value of a config may be a number of rows, heads ..."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 24


def _heads(tables: Mapping[str, ExportRows], with_length: bool) -> dict[str, ExportRows]:
    n_levels = sum(name.startswith("proms_emb.") for name in tables)
    of_tables = [_RESPONSE.format(level) for level in range(n_levels + 1)]
    of_tables += [_TEXT, *([_LENGTH] if with_length else [])]
    heads: dict[str, ExportRows] = {}
    for k, table in enumerate(of_tables):
        rows = tables.get(table)
        if rows is not None:
            # The mask code is never predicted.
            n_rows = rows.n_rows - (k == n_levels)
            heads[f"classifiers.proj.{k}.weight"] = ExportRows(HEADS, rows.first_row, n_rows)
    return heads


# ------------------------------------------------------------------------------- config

#: Values that an export lacks, from the published `ar+nar-len` models.
_ASSUMED: tuple[tuple[str, object, str], ...] = (
    ("unified_position_ids", False, "positions begin anew in every segment"),
    ("noncausal_masks", True, "NAR passes attend in both directions"),
    ("audio_embedding_sums", True, "the levels of a frame are summed"),
)


def assumed_config(
    rows: Mapping[str, ExportRows],
    given: Mapping[str, Any],
    *,
    name: str,
    dim: int,
    heads: int,
    kv_heads: int,
    layers: int,
    context: int,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The config of an exported checkpoint without `given`, and the assumptions in words."""
    experimental = given.get("experimental")
    said: Mapping[str, Any] = experimental if isinstance(experimental, Mapping) else {}
    capabilities = _capabilities(rows, given)
    assumed = [words for key, _, words in _ASSUMED if key not in said]
    if "version" not in given:
        assumed.append("version 5")
    if "capabilities" not in given:
        assumed.append(f"capabilities {', '.join(capabilities)}")
    config = {
        "name": name,
        "version": 5,
        "size": {
            "dim": dim,
            "heads": heads,
            "layers": layers,
            "resp_levels": sum(source.startswith("proms_emb.") for source in rows),
            "audio_tokens": rows[_PROMPT.format(0)].n_rows if _PROMPT.format(0) in rows else 0,
            "phoneme_tokens": rows[_TEXT].n_rows,
        },
        **{key: rows[table].n_rows if table in rows else 0 for key, table in COUNTED.items()},
        "arch_type": "llama",
        "capabilities": capabilities,
        "experimental": {
            "split_classifiers": True,
            "classifiers_bias": False,
            "kv_heads": kv_heads,
            "max_position_embeddings": context,
            **{key: value for key, value, _ in _ASSUMED},
        },
    }
    return config, tuple(assumed)


def _capabilities(tables: Mapping[str, ExportRows], given: Mapping[str, Any]) -> list[str]:
    """Those that the user names, else those of the published models that the tables allow."""
    named = given.get("capabilities")
    if isinstance(named, list):
        return named
    found = ["ar", "nar"]
    found += ["len"] if _LENGTH in tables else []
    return [*found, "lang"] if "langs_emb.weight" in tables else found
