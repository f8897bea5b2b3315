"""Measurements of a file, and the last verdict: NAME.measurements.json beside NAME.gguf.

Each measurement has a key, the digest of everything that it depends on except the file itself: the
reference, the data, the options. With the same file and key, nothing is measured again, and the
files of many runs make one report. A verdict is valid for the bytes that were judged.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import msgspec

from valle_convert.errors import InputError
from valle_convert.families.bundle import Bundle
from valle_convert.files import sha256_of
from valle_convert.listening.listen import Listened
from valle_convert.progress import Progress, silent
from valle_convert.quantize.limits import Limits, identity_of
from valle_convert.quantize.listening import Listening
from valle_convert.quantize.manifest import (
    MANIFEST,
    Finding,
    ManifestCheck,
    Sha256,
    check_manifest,
    read_struct,
    write_struct,
)
from valle_convert.quantize.quality import ALL, Measured

SUFFIX = ".measurements.json"
Outcome = Literal["passed", "failed", "not judged"]


class Verified(msgspec.Struct, frozen=True):
    outcome: Literal["passed", "failed"]
    verdict: str


class TensorReport(msgspec.Struct, frozen=True, rename={"kind": "type"}):
    """A matrix of a file, which `part` names in a set. `snr_db`: the signal-to-noise ratio of its
    weights; None if they are equal, or unknown.
    """

    name: str
    kind: str
    bits: float
    snr_db: float | None
    part: str = ""


@dataclass(frozen=True)
class Baseline:
    """The F16 file that sizes and speeds are compared with."""

    name: str
    kind: str
    n_bytes: int
    bits_per_weight: float
    weights: dict[str, int]
    measured: Measured


class Compared(msgspec.Struct, frozen=True):
    """What files are compared with, and on which data."""

    #: Everything that a measurement depends on except the file, each as a digest.
    inputs: dict[str, str]
    source: str  # the name of the reference
    checkpoint: dict[str, str] | None  # its name and digest; None without one
    reference: str  # in words
    utterances: str  # in words
    n_texts: int  # the number of different texts in the data
    baseline: Baseline

    @property
    def identity(self) -> str:
        """A checkpoint by its digest, else a file by its name."""
        return identity_of(self.source, self.checkpoint)


class Predictions(msgspec.Struct, frozen=True):
    """What was measured of the predictions, unless the file is damaged, and whether it is right."""

    compared: Compared
    measured: Measured | None
    verified: Verified | None
    tensors: tuple[TensorReport, ...]

    @property
    def is_finite(self) -> bool:
        found = self.measured
        return found is None or math.isfinite(found.quality[ALL].kl_mean + found.quality[ALL].nmse)


@dataclass(frozen=True, eq=False)
class SpeechMeasured:
    key: Sha256
    listened: Listened
    listening: Listening

    def without_sound(self) -> Self:
        """The stored part; the sound is in the report of the run that listened."""
        baseline = replace(self.listening.baseline, clips={})
        repeat = replace(self.listening.repeat, clips={})
        listening = replace(self.listening, baseline=baseline, repeat=repeat, sounds=())
        return replace(self, listened=replace(self.listened, clips={}), listening=listening)


@dataclass(frozen=True)
class Judgement:
    """A verdict: the limits that were used, and everything beyond them."""

    outcome: Outcome
    limits: Limits | None = None
    failures: tuple[str, ...] = ()


class Measurements(msgspec.Struct, frozen=True):
    """The contents of a file. `files`: the digests of the measured files, the main one first.
    `judgement` is None while a run that judges the file is in progress.
    """

    schema_version: Literal[1]
    files: dict[str, Sha256]
    predictions: Predictions | None = None
    speech: SpeechMeasured | None = None
    judgement: Judgement | None = None


def path_of(main: Path) -> Path:
    return main.with_name(main.name.removesuffix(".gguf") + SUFFIX)


def read_measurements(bundle: Bundle, *, force: bool = False) -> Measurements:
    """The stored measurements of files, if the files are unchanged."""
    digests = {one.name: sha256_of(one) for one in bundle.paths}
    path = path_of(bundle.path)
    if path.exists():
        try:
            found = _read(path)
        except InputError:
            if not force:
                raise
        else:
            if found.files == digests:
                return found
    return Measurements(1, digests)


def write_measurements(main: Path, found: Measurements) -> None:
    predictions, speech = found.predictions, found.speech
    if predictions is not None and not predictions.is_finite:
        predictions = None
    speech = None if speech is None else speech.without_sound()
    write_struct(path_of(main), Measurements(1, found.files, predictions, speech, found.judgement))


def measurements_in(folder: Path) -> Iterator[Measurements]:
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        yield _read(path)


def check_folder(
    path: Path, *, require_passed: bool = False, progress: Progress = silent
) -> ManifestCheck:
    """Compare a folder with its manifest, and see whether the last verdict on each model passed."""
    found = check_manifest(path, progress=progress)
    if not require_passed:
        return found
    folder = path if path.is_dir() else path.parent
    models = [file for file in found.files if file.is_model]
    verdicts = {
        (name, sha256): one.judgement
        for one in measurements_in(folder)
        for name, sha256 in one.files.items()
    }
    missing = [] if models else [Finding(MANIFEST, "it lists no model")]
    for file in models:
        judgement = verdicts.get((file.name, file.sha256)) or Judgement("not judged")
        if judgement.outcome != "passed":
            given = judgement.limits.given if judgement.limits else {}
            limits = ", ".join(f"{name} {value:g}" for name, value in given.items())
            missing.append(
                Finding(file.name, f"{judgement.outcome}{limits and f' (limits: {limits})'}")
            )
    return replace(found, findings=(*found.findings, *missing))


def _read(path: Path) -> Measurements:
    try:
        return read_struct(path, "file of measurements", Measurements)
    except InputError as error:
        raise InputError(f"{error} Measure again with `evaluate --force`.") from error


def key_of(*parts: object) -> str:
    """The digest of everything that a measurement depends on."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()
