"""Is a converted file unchanged, and which checkpoint is it from? Needs no checkpoint.

`convert` stores the digests of what it writes. `quantize` omits them: its folders are checked
against their manifest.
"""

import hashlib
import math
import time
from pathlib import Path

from valle_convert.errors import InputError
from valle_convert.families.bundle import open_files
from valle_convert.gguf_file.keys import (
    DATA_DIGEST_KEY,
    DIGEST_TYPE_KEY,
    FILE_TYPE_KEY,
    HEADER_DIGEST_KEY,
    SOURCE_LORA_KEY,
    SOURCE_SHA256_KEY,
)
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.write import header_digest
from valle_convert.progress import Progress, silent
from valle_convert.verify.report import Check, Level, Report
from valle_convert.verify.run import main_type

_PIECE = 8 << 20
_DIGESTS = "its own digests"
_NO_DIGESTS = (
    "the file has no digests of its own; quantized files never do: give its checkpoint, or use "
    "check-manifest for their folder"
)
_QUANTIZED_SINCE = (
    "the file was quantized after its digests were stored, by a program that kept them: give its "
    "checkpoint"
)


def verify_whole(file: Path | GgufFile, *, progress: Progress = silent) -> Report:
    """Compare a converted file with the digests stored in it."""
    path = file.path if isinstance(file, GgufFile) else file
    try:
        bundle = open_files(file)
    except InputError as error:
        return Report.of_one(_DIGESTS, path, Check.failure("file", str(error)), "whole")
    refusal = bundle.family.refusal(bundle.main)
    if refusal:
        raise InputError(refusal)
    levels = []
    for one in bundle.files.values():
        start = time.perf_counter()
        checks, skipped = _check_digests(one, progress)
        name = "whole" if len(bundle.files) == 1 else one.path.name
        levels.append(Level(name, checks, time.perf_counter() - start, skipped))
    origin = origin_of(bundle.main)
    return Report(_DIGESTS, str(path), main_type(bundle), tuple(levels), (origin,))


def _check_digests(file: GgufFile, progress: Progress) -> tuple[tuple[Check, ...], str | None]:
    """Data and header, or why they cannot be checked."""
    stored = [file.keys.get(key) for key in (DATA_DIGEST_KEY, HEADER_DIGEST_KEY)]
    if None in stored:
        return (), _NO_DIGESTS
    if file.keys.get(DIGEST_TYPE_KEY) != file.keys.get(FILE_TYPE_KEY):
        return (), _QUANTIZED_SINCE
    data = hashlib.sha256()
    with file.path.open("rb") as opened, progress("reading", file.data_bytes, "B") as advance:
        header = opened.read(file.data_start)
        while piece := opened.read(_PIECE):
            data.update(piece)
            advance(len(piece))
    found = data.hexdigest(), header_digest(header, file.keys)
    names = ("data", "header")
    return tuple(map(_compared, names, map(str, stored), found)), None


def origin_of(file: GgufFile) -> str:
    """One sentence on the checkpoint that a file names as its source."""
    said = file.keys.get(SOURCE_SHA256_KEY)
    if said is None:
        return "it does not name its checkpoint"
    lora = file.keys.get(SOURCE_LORA_KEY)
    merged = f", with the LoRA {lora} merged" if lora else ""
    return f"made from {file.keys.get('valle.source.name')} with sha256 {said}{merged}"


def _compared(name: str, stored: str, found: str) -> Check:
    same = stored == found
    return Check(
        name,
        passed=same,
        summary=f"sha256 {found[:16]}... as it was written"
        if same
        else f"sha256 {found[:16]}..., expected {stored[:16]}...: it was changed",
        values={"sha256": found, "stored": stored},
        badness=0.0 if same else math.inf,
    )
