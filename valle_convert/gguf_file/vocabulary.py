"""The vocabulary of a model that reads phonemes, as keys of a GGUF file."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from valle_convert.errors import InputError
from valle_convert.gguf_file.header import Key
from valle_convert.gguf_file.keys import SPECIAL_IDS
from valle_convert.model.description import RowBlock
from valle_convert.tokenizer.choose import TokenizerChoice
from valle_convert.tokenizer.compiled import TOKENIZER_SHA256_KEY, CompiledTokenizer

_MAX_JSON = 1 << 20


def phoneme_vocabulary(
    tokenizer: TokenizerChoice, blocks: Iterable[RowBlock]
) -> tuple[list[Key], tuple[int, ...]]:
    """The keys, and the phonemes whose rows are copied after all others."""
    _, *others = blocks
    # A unique text for every row that is not a phoneme, such as `<prompt.3:17>`.
    names = [f"<{block.label}:{row}>" for block in others for row in range(block.n_rows)]
    compiled = tokenizer.file.compile(names)
    _check_special_ids(compiled, tokenizer)
    keys = [
        *(Key(name, value, kind) for name, value, kind in compiled.metadata()),
        Key("valle.tokenizer.source", tokenizer.source, "string"),
        Key("valle.tokenizer.reason", tokenizer.reason, "string"),
        Key(TOKENIZER_SHA256_KEY, tokenizer.file.sha256, "string"),
    ]
    return keys, compiled.extra_rows


def source_json_keys(given: Mapping[str, Mapping[str, Any] | None]) -> list[Key]:
    """The config and the like of the checkpoint as JSON, by key."""
    texts = {name: _json_of(value) for name, value in given.items()}
    return [Key(name, text, "string") for name, text in texts.items() if text is not None]


def _json_of(value: Mapping[str, Any] | None) -> str | None:
    """A mapping as JSON; None if there is none, or JSON cannot express it."""
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
            f"The tokenizer {tokenizer.file.path} has unk, bos and eos = {unknown}, {bos} and "
            f"{eos}, expected {expected}; give the one that the checkpoint was trained with."
        )
