"""The tokenizer that a converted file was compiled from, found by its recorded digest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from valle_convert.errors import InputError
from valle_convert.tokenizer.choose import BUILT_IN, FILE_NAME, TokenizerFile, open_tokenizer
from valle_convert.tokenizer.compiled import TOKENIZER_SHA256_KEY


def recorded_tokenizer(
    keys: Mapping[str, Any], gguf: Path, explicit: Path | None = None
) -> TokenizerFile:
    """Open the file that the vocabulary of a converted file was compiled from."""
    recorded = keys.get(TOKENIZER_SHA256_KEY)
    if not isinstance(recorded, str):
        raise InputError(
            f"{gguf} does not record its tokenizer, so it is not a "
            "converted checkpoint; convert one with `valle-convert CHECKPOINT OUT.gguf`."
        )
    beside = gguf.with_name(FILE_NAME)
    candidates = [explicit] if explicit else [BUILT_IN, *([beside] if beside.is_file() else [])]
    for path in candidates:
        found = open_tokenizer(path)
        if found.sha256 == recorded:
            return found
    tried = str(explicit) if explicit else "the built-in one"
    raise InputError(
        f"{gguf} was converted with the tokenizer {keys.get('valle.tokenizer.source')!r} "
        f"(SHA-256 {recorded[:16]}...), not {tried}; give that file with --tokenizer."
    )
