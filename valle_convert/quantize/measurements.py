"""What was measured of a file, and the last verdict on it: NAME.measurements.json beside NAME.gguf.

Each measurement has a key, the digest of everything that it depends on but the file itself: the
reference, the data, the options. Where file and key are the same, nothing is measured again, and
the files of any number of runs make one report. A verdict counts for the bytes it was given on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import msgspec

from valle_convert.errors import InputError
from valle_convert.families.bundle import Bundle
from valle_convert.files import sha256_of
from valle_convert.listening.listen import Listened
from valle_convert.quantize.listening import Listening
from valle_convert.quantize.manifest import Sha256, read_struct, write_struct
from valle_convert.quantize.quality import ALL, Measured

SUFFIX = ".measurements.json"
Outcome = Literal["passed", "failed", "not judged"]


class Verified(msgspec.Struct, frozen=True):
    """Whether a file is right: what `verify` found."""

    outcome: Literal["passed", "failed", "not verified"]
    verdict: str


@dataclass(frozen=True)
class TensorReport:
    """A matrix of a file.

    Attributes:
        part: of which file of a set it is; empty for models of one file.
        snr_db: the reference's weights over what the type changed of them; None where nothing
            changed, or where it could not be told.
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


@dataclass(frozen=True)
class Predictions:
    """What was measured of predictions.

    Attributes:
        key: the digest of `inputs`.
        inputs: everything that a measurement depends on but the file, each as a digest.
        source: the name of what they are compared with.
        checkpoint: its name and digest; None without one.
        reference: what they are compared with, in words.
        utterances: what they were measured on, in words.
        n_texts: how many different texts are in them.
        measured: None where the file could not be measured; `note` says why.
        verified: None without a checkpoint.
    """

    key: Sha256
    inputs: dict[str, str]
    source: str
    checkpoint: dict[str, str] | None
    reference: str
    utterances: str
    n_texts: int
    baseline: Baseline
    measured: Measured | None
    verified: Verified | None
    tensors: tuple[TensorReport, ...]
    note: str

    @property
    def is_finite(self) -> bool:
        """Whether JSON can hold it."""
        found = self.measured
        return found is None or math.isfinite(found.quality[ALL].kl_mean + found.quality[ALL].nmse)


@dataclass(frozen=True, eq=False)
class SpeechMeasured:
    """What was measured by listening, and what it is compared with."""

    key: Sha256
    listened: Listened
    listening: Listening

    def without_sound(self) -> SpeechMeasured:
        """What is kept: the page of the run that listened has the sound."""
        one = self.listening
        repeat, baseline = (replace(heard, clips=()) for heard in (one.repeat, one.baseline))
        listening = replace(one, baseline=baseline, repeat=repeat, sounds=())
        return replace(self, listened=replace(self.listened, clips=()), listening=listening)


@dataclass(frozen=True)
class Judgement:
    """A verdict.

    Attributes:
        limits: that the file was judged by; by the names of `limits.Limits`.
        failures: what is beyond the limits, in words.
    """

    outcome: Outcome
    limits: dict[str, float] = field(default_factory=dict)
    failures: tuple[str, ...] = ()


class Measurements(msgspec.Struct, frozen=True):
    """The contents of a file.

    Attributes:
        files: the digests of the measured files, by name; the main one first.
        judgement: None while a run is at work that is to judge the file.
    """

    schema_version: Literal[1]
    files: dict[str, Sha256]
    predictions: Predictions | None = None
    speech: SpeechMeasured | None = None
    judgement: Judgement | None = None


def path_of(main: Path) -> Path:
    """Where the measurements of a model lie."""
    return main.with_name(main.name.removesuffix(".gguf") + SUFFIX)


def digests_of(bundle: Bundle) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in bundle.paths}


def read_measurements(bundle: Bundle, *, force: bool = False) -> Measurements:
    """What was measured of files, so long as they are the same; nothing where that is not there."""
    digests, path = digests_of(bundle), path_of(bundle.path)
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
    """All that lie in a folder."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        yield _read(path)


def _read(path: Path) -> Measurements:
    try:
        return read_struct(path, "file of measurements", Measurements)
    except InputError as error:
        raise InputError(f"{error} Measure again with `evaluate --force`.") from error


def key_of(*parts: object) -> str:
    """The digest of everything that a measurement depends on."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()
