"""Recordings and their transcripts."""

import codecs
import os
from dataclasses import dataclass
from pathlib import Path

from valle_convert.errors import InputError
from valle_convert.files import decoded, read_small_file

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
