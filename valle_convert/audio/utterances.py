"""Utterances in `.npz` files: text, codes, and optionally a voice prompt. Lists of recordings."""

import codecs
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.audio.codes import check_array, read_codes
from valle_convert.errors import InputError
from valle_convert.files import decoded, read_small_file
from valle_convert.model.inputs import Condition, IntArray
from valle_convert.model.spec import GemmaModel
from valle_convert.npz_file import read_npz


@dataclass(frozen=True)
class SpokenUtterance:
    """Text, voice and speech."""

    condition: Condition  # phonemes with `<bos>` and `</eos>`, language, prompt
    response: NDArray[np.int64]  # [frames, levels]
    text: str = ""  # the words, if known

    @property
    def said(self) -> IntArray:
        """The ids of its phonemes."""
        return self.condition.phonemes


def read_spoken(path: Path, model: GemmaModel[Any]) -> SpokenUtterance:
    """Read an utterance; its phonemes and language must be in the model's tables.

    Raises:
        InputError: the file has another format, or does not fit the model.
    """
    arrays = read_npz(
        path,
        (),
        # As many 64-bit integers as a context of frames has codes, and the headers.
        max_bytes=8 * (model.config.n_ctx_train + 1024) * max(model.n_levels, 1),
        what=".npz file of an utterance",
        hint="docs/quantize.md has the format",
        optional=("phonemes", "response", "prompt", "language", "codes", "text"),
    )
    codes = arrays.pop("codes", None)
    text = arrays.pop("text", np.array(""))
    if text.dtype.kind != "U" or text.shape:
        raise InputError(f"{path}: text is {text.dtype} {list(text.shape)}, expected one string.")
    if codes is not None and "response" not in arrays:
        # A file of codes, which checks itself against the model.
        arrays["response"] = read_codes(path, model).codes
        if "phonemes" not in arrays:
            raise InputError(
                f"{path} has codes but no phonemes, which speak saves with a single sentence. Run "
                f"valle-convert utterances {path} --text TEXT --model GGUF DIR."
            )
    if missing := [name for name in ("phonemes", "response") if name not in arrays]:
        raise InputError(
            f"{path} is not an utterance: it has no {', '.join(map(repr, missing))}. "
            "docs/quantize.md has the format."
        )
    check_utterance(path, arrays, model)
    prompt = arrays.get("prompt")
    return SpokenUtterance(
        condition=Condition.of(
            model,
            arrays["phonemes"].astype(np.int64),
            None if prompt is None else prompt.astype(np.int64),
            int(arrays.get("language", 0)),
        ),
        response=arrays["response"].astype(np.int64),
        text=str(text),
    )


def check_utterance(path: Path, arrays: Mapping[str, NDArray[Any]], model: GemmaModel[Any]) -> None:
    """Raise an `InputError` if the arrays of an utterance do not fit a model."""
    config = model.config
    phonemes, response = arrays["phonemes"], arrays["response"]
    prompt, language = arrays.get("prompt"), arrays.get("language")
    check_array(path, "phonemes", phonemes, ("phonemes",), model.table("phonemes").n_rows)
    check_array(path, "response", response, ("frames", config.n_levels), config.codebook_size)
    if prompt is not None:
        check_array(path, "prompt", prompt, ("frames", config.n_levels), config.codebook_size)
    n_languages = model.table("language").n_rows if model.has_table("language") else 0
    if language is not None:
        check_array(path, "language", language, (), max(n_languages, 1))
    n_elements = len(phonemes) + len(response) + (0 if prompt is None else len(prompt))
    if n_elements + 16 > config.n_ctx_train:
        raise InputError(
            f"{path} has {n_elements:,} phonemes and frames, more than the model's context of "
            f"{config.n_ctx_train:,}; cut it."
        )


_MAX_LIST_BYTES = 64 << 20


@dataclass(frozen=True)
class Recorded:
    """A recording and its transcript."""

    path: Path  # wav, flac, ogg or mp3, or saved codes (.npz)
    text: str  # words, or IPA


def read_list(path: Path) -> list[Recorded]:
    """Read a list: one path, tab and transcript per line, with paths relative to the list.

    Raises:
        InputError: it cannot be read, is empty, or has another form.
    """
    found = []
    data = read_small_file(path, "list", _MAX_LIST_BYTES, pipe=True)
    if data.startswith(
        (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
    ):
        try:
            data = decoded(data).encode()
        except ValueError as error:
            raise InputError(f"{path} cannot be decoded: {error}; save it as UTF-8.") from error
    for number, line in enumerate(data.split(b"\n"), 1):
        fields = line.removesuffix(b"\r").split(b"\t")
        if fields == [b""]:
            continue
        where = f"{path}, line {number}"
        if len(fields) != 2 or not fields[0] or b"\0" in fields[0]:
            raise InputError(
                f"{where} has {len(fields)} tab-separated fields, expected two: the path of a "
                "recording and its transcript."
            )
        try:
            text = fields[1].decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{where}: the text is not UTF-8; save it as UTF-8.") from None
        found.append(Recorded(path.parent / os.fsdecode(fields[0]), text))
    if not found:
        raise InputError(f"{path} is empty, expected a recording and its transcript per line.")
    return found
