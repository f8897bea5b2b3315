"""`verify` for codecs: a file of encodec.cpp or in GGUF, compared with its source.

* structure: its numbers and its table of tensors; encodec.cpp silently loads truncated files and
  files that lack tensors.
* tensors: every value compared with the source's.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from valle_convert.encodec.architecture import EncodecSpec
from valle_convert.encodec.cpp_file import F32_WARNING, plan_cpp_file, spec_of_header
from valle_convert.encodec.sources import open_encodec
from valle_convert.encodec.weights import EncodecWeights
from valle_convert.errors import InputError
from valle_convert.progress import Advance, Progress, silent
from valle_convert.verify.report import Check, Level, Report

CodecLevelName = Literal["structure", "tensors"]
CODEC_LEVELS: tuple[CodecLevelName, ...] = get_args(CodecLevelName)

#: One float16 step, as a different order of sums in folding weight norm may cause.
_FLOAT16_STEP, _FLOAT16_TINY = 2.0**-10, 2.0**-24
#: The same for float32.
_FLOAT32_STEP, _FLOAT32_TINY = 2.0**-21, 1e-12


def verify_codec(
    source: EncodecWeights,
    path: Path,
    *,
    levels: Sequence[CodecLevelName] = CODEC_LEVELS,
    progress: Progress = silent,
) -> Report:
    try:
        file = open_encodec(path)
    except InputError as error:
        broken = Check.failure("whole file", str(error))
        unread = [Level(name, (), 0.0, "the file is incomplete") for name in levels[1:]]
        return Report(
            source.source, str(path), "unknown", (Level(levels[0], (broken,), 0.0), *unread)
        )
    done = []
    for name in levels:
        start = time.perf_counter()
        if name == "structure":
            checks: tuple[Check, ...] = (_check_spec(source, file),)
        else:
            total = sum(entry.n_elements for entry in source.tensors)
            with progress("comparing tensors", total, "weights") as advance:
                checks = tuple(_compare(source, file, advance))
        done.append(Level(name, checks, time.perf_counter() - start))
    file_type = "F16" if file.halves else "F32"
    notes = (F32_WARNING,) if file.is_cpp and not file.halves else ()
    return Report(source.source, str(path), file_type, tuple(done), (*source.notes, *notes))


def _check_spec(source: EncodecWeights, file: EncodecWeights) -> Check:
    """The sizes and switches in the file, and its table of tensors."""
    planned: EncodecSpec = source.spec
    if file.is_cpp:
        header, tensors = plan_cpp_file(source, "f16" if file.halves else "f32")
        planned = spec_of_header(header, [tensor.name for tensor in tensors], file.files[0])
    found, expected = asdict(file.spec), asdict(planned)
    wrong = [f"{k} is {v}, expected {expected[k]}" for k, v in found.items() if v != expected[k]]
    return Check(
        "header and table of tensors",
        passed=not wrong,
        summary="; ".join(wrong)
        or f"all sizes are the source's, and all {len(file.tensors)} tensors are there",
        values={"found": found, "expected": expected},
        badness=float(len(wrong)),
    )


def _compare(source: EncodecWeights, file: EncodecWeights, advance: Advance) -> Iterator[Check]:
    shapes = {entry.name: entry.shape for entry in file.tensors}
    for entry in source.tensors:
        if shapes.get(entry.name) != entry.shape:
            summary = f"it is {shapes.get(entry.name, 'missing')}, expected {entry.shape}"
            yield Check.failure(entry.name, summary)
            continue
        is_half = entry.name in file.halves
        yield _compare_one(entry.name, source.read(entry.name), file.reader(entry), is_half=is_half)
        advance(entry.n_elements)


def _compare_one(
    name: str, wanted: NDArray[np.float32], got: NDArray[np.float32], *, is_half: bool
) -> Check:
    rounded = wanted.astype(np.float16).astype(np.float32) if is_half else wanted
    different = int(np.count_nonzero(rounded != got))
    step, tiny = (_FLOAT16_STEP, _FLOAT16_TINY) if is_half else (_FLOAT32_STEP, _FLOAT32_TINY)
    allowed = np.abs(wanted) * step + tiny
    with np.errstate(invalid="ignore"):
        excess = np.abs(wanted.astype(np.float64) - got) / allowed
    worst = float(np.max(np.nan_to_num(excess, nan=np.inf), initial=0.0))
    kind = "F16" if is_half else "F32"
    return Check(
        name,
        passed=worst <= 1.0,
        summary=f"{different:,} of {wanted.size:,} values are not the source's, rounded to {kind}",
        values={"type": kind, "weights": wanted.size, "different": different},
        limit="one step, if weight norm was folded in another order",
        badness=worst if different else 0.0,
    )
