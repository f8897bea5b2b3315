"""`verify` for the codec: a file of encodec.cpp, or one in GGUF, against what it was made of.

* structure: header and table of tensors, with what encodec.cpp makes of each fault; its loader
  takes a file that is cut off, or lacks tensors, without a word.
* tensors: every value against the source's.
* sound: codes of a recording and the sound of those codes, computed from the file as its program
  does (encodec.cpp: float16 where it has float16) and in float32 from the source.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from valle_convert.encodec.cpp_file import (
    F32_WARNING,
    CppReader,
    is_cpp_codec,
    layout_problems,
    plan_cpp_file,
    read_cpp_layout,
)
from valle_convert.encodec.gguf_codec import is_gguf_codec, open_gguf_codec
from valle_convert.encodec.streaming import EncodecDecoder, EncodecEncoder, Rounding
from valle_convert.encodec.weights import EncodecWeights, TensorReader
from valle_convert.errors import InputError
from valle_convert.gguf_file.read import GgufFile, is_gguf
from valle_convert.gguf_file.types import F16
from valle_convert.progress import Advance, Progress, silent
from valle_convert.verify.report import Check, Level, Report

CodecLevelName = Literal["structure", "tensors", "sound"]
CODEC_LEVELS: tuple[CodecLevelName, ...] = get_args(CodecLevelName)

#: What VALL-E speaks, and what vall_e.cpp sets: 6 kbit/s.
_N_LEVELS = 8
#: encodec.cpp encodes 13.2 seconds at most, and nothing below 1921 samples.
_MAX_SECONDS, _MIN_SAMPLES = 10.0, 1921

#: A float16 next to the right one, as another order of sums in folding weight norm may give.
_FLOAT16_STEP, _FLOAT16_TINY = 2.0**-10, 2.0**-24
#: As much for float32.
_FLOAT32_STEP, _FLOAT32_TINY = 2.0**-21, 1e-12
#: Encoder and decoder of the golden model reach 55 and 59 dB, of the published architecture 67 and
#: 73; any one bias left out of the golden model leaves 42 at most, but for one with 53. How many
#: codes a rounding costs is told and not judged: it depends on how close the codebooks are.
_MIN_SNR_DB = 45.0


@dataclass(frozen=True)
class _Judged:
    """A file as far as it could be read.

    Attributes:
        file_type: of its matrices.
        structure: what was found of its form.
        is_f16: for each tensor that is there and of the right dims, whether it is float16.
        reader: of these.
        rounding: whose arithmetic computes with it.
        notes: of the file.
    """

    file_type: str
    structure: tuple[Check, ...]
    is_f16: Mapping[str, bool]
    reader: TensorReader
    rounding: Rounding
    notes: tuple[str, ...] = ()


def is_codec_file(path: Path) -> bool:
    """Whether a file is a codec's, of encodec.cpp or in GGUF."""
    if is_cpp_codec(path):
        return True
    if not is_gguf(path):
        return False
    try:
        return is_gguf_codec(GgufFile(path))
    except InputError:
        return False  # a damaged file is for the verdict on models


def verify_codec(
    source: EncodecWeights,
    path: Path,
    *,
    levels: Sequence[CodecLevelName] = CODEC_LEVELS,
    samples: NDArray[np.float32] | None = None,
    recording: str = "",
    progress: Progress = silent,
) -> Report:
    """Hold a file against the codec that it was made of.

    Args:
        source: that codec.
        path: of the file.
        levels: which levels to run.
        samples: a recording at 24 kHz, [n], of which ten seconds are taken; None for a
            synthesized sound.
        recording: what to call it.
        progress: shows the long levels.

    Raises:
        InputError: the file is no codec's, the source cannot be made one of its kind, or the
            recording is too short for encodec.cpp.
    """
    samples, heard = _ten_seconds(source, samples, recording)
    judged = _read_cpp(source, path) if is_cpp_codec(path) else _read_gguf(source, path)
    total = sum(entry.n_elements for entry in source.tensors)
    done: list[Level] = []
    for name in levels:
        start = time.perf_counter()
        checks: tuple[Check, ...] = ()
        skipped = None
        if name == "structure":
            checks = judged.structure
        elif name == "tensors":
            with progress("comparing tensors", total, "weights") as advance:
                checks = tuple(_compare(source, judged, advance))
        elif all(check.passed for check in judged.structure):
            checks = tuple(_sound(source, path, judged, samples, progress))
        else:
            skipped = "the file is not whole, and what is computed of it is anybody's guess"
        done.append(Level(name, checks, time.perf_counter() - start, skipped))
    notes = [f"sound: {heard}"] if "sound" in levels else []
    return Report(
        source.source,
        str(path),
        judged.file_type,
        tuple(done),
        (*source.notes, *judged.notes, *notes),
    )


# ----------------------------------------------------------------------------- structure


def _check_header(found: Mapping[str, Any], planned: Mapping[str, Any]) -> Check:
    wrong = {name: value for name, value in found.items() if value != planned[name]}
    differences = [f"{name} is {value}, expected {planned[name]}" for name, value in wrong.items()]
    return Check(
        "header",
        passed=not wrong,
        summary="; ".join(differences) or f"all {len(found)} numbers are the source's",
        values={"found": dict(found), "expected": dict(planned)},
        badness=float(len(wrong)),
    )


def _check_layout(problems: Sequence[str], n_tensors: int) -> Iterator[Check]:
    if not problems:
        summary = f"all {n_tensors} tensors are there, of their dims and types, and nothing else"
        yield Check("table of tensors", passed=True, summary=summary, values={"n": n_tensors})
    for n, problem in enumerate(problems, 1):
        silently = problem.startswith("it is cut off") or " missing" in problem
        words = " (encodec.cpp loads it without a word)" if silently else ""
        yield Check(
            f"table of tensors {n}",
            passed=False,
            summary=problem + words,
            values={"problem": problem},
            badness=1000.0 if silently else 1.0,
        )


def _read_cpp(source: EncodecWeights, path: Path) -> _Judged:
    header, found, form = read_cpp_layout(path)
    is_f32 = header.ftype == 0
    planned, expected = plan_cpp_file(source, "f32" if is_f32 else "f16")
    problems = [*form, *layout_problems(header, found, source.spec)]
    sizes = {entry.name: entry.n_elements for entry in source.tensors}
    return _Judged(
        "F32" if is_f32 else "F16",
        (
            _check_header(vars(header), vars(planned)),
            *_check_layout(problems, len(expected)),
        ),
        {one.name: one.ftype == 1 for one in found if math.prod(one.dims) == sizes.get(one.name)},
        CppReader(path, found),
        "encodec.cpp",
        (F32_WARNING,) if is_f32 else (),
    )


def _read_gguf(source: EncodecWeights, path: Path) -> _Judged:
    file = GgufFile(path)
    opened = open_gguf_codec(path)
    planned, found = asdict(source.spec), asdict(opened.spec)
    shapes = {entry.name: entry.shape for entry in source.tensors}
    is_f16 = {
        name: tensor.ggml_type == F16
        for name, tensor in file.tensors.items()
        if tensor.shape == shapes.get(name)
    }
    return _Judged(
        "F16" if any(is_f16.values()) else "F32",
        (
            _check_header(found, planned),
            *_check_layout((), len(source.tensors)),
        ),
        is_f16,
        opened.reader,
        "none",
    )


# ------------------------------------------------------------------------------- tensors


def _compare(source: EncodecWeights, judged: _Judged, advance: Advance) -> Iterator[Check]:
    for entry in source.tensors:
        is_f16 = judged.is_f16.get(entry.name)
        if is_f16 is None:
            summary = "it is missing, or of other dims"
            yield Check(entry.name, passed=False, summary=summary, values={}, badness=math.inf)
            continue
        wanted, got = source.read(entry.name), judged.reader(entry)
        yield _compare_one(entry.name, wanted, got, is_f16=is_f16)
        advance(entry.n_elements)


def _compare_one(
    name: str, wanted: NDArray[np.float32], got: NDArray[np.float32], *, is_f16: bool
) -> Check:
    rounded = wanted.astype(np.float16).astype(np.float32) if is_f16 else wanted
    different = int(np.count_nonzero(rounded != got))
    step, tiny = (_FLOAT16_STEP, _FLOAT16_TINY) if is_f16 else (_FLOAT32_STEP, _FLOAT32_TINY)
    allowed = np.abs(wanted) * step + tiny
    with np.errstate(invalid="ignore"):
        excess = np.abs(wanted.astype(np.float64) - got) / allowed
    worst = float(np.max(np.nan_to_num(excess, nan=np.inf), initial=0.0))
    kind = "F16" if is_f16 else "F32"
    return Check(
        name,
        passed=worst <= 1.0,
        summary=f"{different:,} of {wanted.size:,} values are not the source's, rounded to {kind}",
        values={"type": kind, "weights": wanted.size, "different": different},
        limit="the number next to it, where weight norm was folded in another order",
        badness=worst if different else 0.0,
    )


# --------------------------------------------------------------------------------- sound


def _ten_seconds(
    source: EncodecWeights, samples: NDArray[np.float32] | None, recording: str
) -> tuple[NDArray[np.float32], str]:
    if samples is None:
        return synthesized_speech(), "a synthesized voice of 4 seconds (none was given)"
    rate = source.spec.sampling_rate
    if len(samples) < _MIN_SAMPLES:
        raise InputError(
            f"The recording {recording} has {len(samples)} samples at {rate} Hz, and encodec.cpp "
            f"aborts on fewer than {_MIN_SAMPLES}; give a longer one."
        )
    taken = samples[: round(_MAX_SECONDS * rate)]
    return taken, f"{len(taken) / rate:.1f} seconds of {recording}"


def synthesized_speech(seconds: float = 4.0, sample_rate: int = 24_000) -> NDArray[np.float32]:
    """Syllables of a gliding pitch with formants, and hisses between them; always the same."""
    t = np.arange(round(seconds * sample_rate)) / sample_rate
    pitch = 130 + 40 * np.sin(2 * np.pi * 0.6 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    voiced = np.zeros_like(t)
    for n in range(1, 30):
        hertz = n * pitch
        formants = np.array([500, 1500, 2500])[:, None] * (1 + 0.3 * np.sin(2 * np.pi * 1.1 * t))
        gain = np.exp(-(((hertz - formants) / 250) ** 2)).sum(0) + 0.02
        voiced += gain * np.sin(n * phase) / math.sqrt(n)
    syllables = np.clip(np.sin(2 * np.pi * 2.5 * t), 0, 1)
    hiss = np.random.default_rng(0).standard_normal(len(t)) * np.clip(-syllables + 0.2, 0, 1)
    mixed = voiced / np.abs(voiced).max() * syllables * 0.5 + 0.05 * hiss
    return np.asarray(mixed, np.float32)


def _sound(
    source: EncodecWeights,
    path: Path,
    judged: _Judged,
    samples: NDArray[np.float32],
    progress: Progress,
) -> list[Check]:
    n_levels = min(_N_LEVELS, source.spec.n_codebooks)
    file = EncodecWeights(source.spec, str(path), "", judged.reader, (path,))
    with progress("encoding and decoding", n_levels + 1, "passes") as advance:
        encoders = (
            EncodecEncoder(source, n_levels),
            EncodecEncoder(file, n_levels, rounding=judged.rounding),
        )
        wanted, theirs = (encoder.encode(samples) for encoder in encoders)
        checks = [_encoder_check(_snr_db(*(encoder.frames(samples) for encoder in encoders)))]
        advance(1)
        plain = EncodecDecoder(source, n_levels)
        rounded = EncodecDecoder(file, n_levels, rounding=judged.rounding)
        for level in range(1, n_levels + 1):
            same = float((wanted[:, level - 1] == theirs[:, level - 1]).mean())
            # The same codes through both decoders: what differs is rounding alone.
            codes = wanted[:, :level]
            checks.append(
                _level_check(level, same, _snr_db(plain.decode(codes), rounded.decode(codes)))
            )
            advance(1)
    return checks


def _encoder_check(snr_db: float) -> Check:
    return Check(
        "encoder",
        passed=snr_db >= _MIN_SNR_DB,
        summary=f"what is quantized is {snr_db:.1f} dB above its difference to float32",
        values={"snr_db": snr_db},
        limit=f"at least {_MIN_SNR_DB:.0f} dB",
        badness=_MIN_SNR_DB / max(snr_db, 1e-3),
    )


def _level_check(level: int, same: float, snr_db: float) -> Check:
    return Check(
        f"level {level}",
        passed=snr_db >= _MIN_SNR_DB,
        summary=f"{same:.1%} of the codes are those of float32; the sound of levels 1 to {level} "
        f"is {snr_db:.1f} dB above the difference",
        values={"codes_equal": same, "snr_db": snr_db},
        limit=f"at least {_MIN_SNR_DB:.0f} dB",
        badness=_MIN_SNR_DB / max(snr_db, 1e-3),
    )


def _snr_db(wanted: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """Power of a sound over that of its difference to another, in dB; 200 where there is none."""
    signal = float(np.square(wanted, dtype=np.float64).sum())
    noise = float(np.square(wanted.astype(np.float64) - got).sum())
    if noise == 0:
        return 200.0
    return 10 * math.log10(max(signal, 1e-30) / noise) if math.isfinite(noise) else -200.0
