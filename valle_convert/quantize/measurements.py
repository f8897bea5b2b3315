"""Measurements of a file, and the last verdict: NAME.measurements.json beside NAME.gguf.

Each measurement has a key, the digest of everything that it depends on except the file itself: the
reference, the data, the options. With the same file and key, nothing is measured again, and the
files of many runs make one report. A verdict is valid for the bytes that were judged.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import structs

from valle_convert.errors import InputError
from valle_convert.families.bundle import Bundle
from valle_convert.files import sha256_of, valid_utf8
from valle_convert.progress import Progress, silent
from valle_convert.quantize.limits import Limits
from valle_convert.quantize.listening import FileSpeech
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
from valle_convert.quantize.source import quantized_tensors
from valle_convert.quantize.types import FILE_TYPES, bits_and_weights
from valle_convert.verify.run import main_type

SUFFIX = ".measurements.json"


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


class Evaluated(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    eq=False,
    rename={"kind": "type", "n_bytes": "bytes", "weights": "weights_by_type"},
):
    """A model's files, what was measured of them, and the verdict."""

    schema_version: Literal[2] = 2
    name: str
    kind: Annotated[str, msgspec.Meta(pattern=r"\A\w+\Z")]
    n_bytes: Annotated[int, msgspec.Meta(gt=0, lt=1 << 62)]
    bits_per_weight: float
    weights: dict[str, int]
    sha256: dict[str, Sha256] = {}  # by the name of each file, the main one first
    tool: str = ""  # the program that quantized it; empty if its keys do not say
    imatrix: str | None = None  # the name of the importance matrix
    compared: "Compared | None" = None
    measured: Measured | None = None  # None if its structure is wrong, too
    verified: Verified | None = None  # the result of `verify`; None without a checkpoint
    tensors: tuple[TensorReport, ...] = ()
    speech: FileSpeech | None = None
    outcome: Literal["passed", "failed", "not judged"] = "not judged"
    limits: Limits | None = None
    failures: tuple[str, ...] = ()  # what is wrong, and which limits it exceeds

    @property
    def is_baseline(self) -> bool:
        return self.measured is not None and self.compared is None

    @property
    def is_wrong(self) -> bool:
        return self.verified is not None and self.verified.outcome == "failed"

    @property
    def kl(self) -> float | None:
        """Mean KL divergence over all predictions, in nats; None if it was not measured."""
        return None if self.measured is None else self.measured.quality[ALL].kl_mean

    @property
    def top_1(self) -> float | None:
        """Top-1 agreement with the reference over all predictions; None if not measured."""
        return None if self.measured is None else self.measured.quality[ALL].best_code

    @property
    def is_open(self) -> bool:
        """Whether a limit is on something that was not measured."""
        return self.limits is not None and self.outcome == "not judged"

    def to_json(self) -> dict[str, Any]:
        """An entry of a report, which says once what all files are compared with."""
        alone = structs.replace(self, compared=None, speech=None)
        plain: dict[str, Any] = msgspec.to_builtins(alone)
        del plain["schema_version"], plain["compared"], plain["speech"]
        measured = plain.pop("measured") or {}
        speech = self.speech.to_json() if self.speech else {"listened": None, "beyond_noise": None}
        return plain | measured | speech


class Compared(msgspec.Struct, frozen=True, eq=False):
    """What files are compared with, and on which data."""

    #: Everything that a measurement depends on except the file, each as a digest.
    inputs: dict[str, str]
    source: str  # the name of the reference
    checkpoint: dict[str, str] | None  # its name and digest; None without one
    reference: str  # in words
    sequences: str  # the utterances, in words
    different_texts: int
    baseline: Evaluated  # the F16 file, for sizes and speeds

    def __post_init__(self) -> None:
        if not self.baseline.is_baseline:
            raise ValueError("the baseline was not measured")


def type_of(bundle: Bundle) -> str:
    """The type that files were quantized to, else the one that most weights have."""
    made = bundle.main.keys.get("valle.quantize.type")
    return made if isinstance(made, str) and made in FILE_TYPES else main_type(bundle)


def unmeasured(bundle: Bundle) -> Evaluated:
    """What the files themselves say."""
    keys = bundle.main.keys
    made = [keys.get(f"valle.quantize.{name}") for name in ("tool", "tool_version")]
    imatrix = keys.get("quantize.imatrix.file")
    return Evaluated(
        name=valid_utf8(bundle.path.name),
        kind=type_of(bundle),
        n_bytes=bundle.n_bytes,
        **bits_and_weights(quantized_tensors(bundle)),
        tool=" ".join(map(str, filter(None, made))),
        imatrix=str(imatrix) if imatrix else None,
    )


def path_of(main: Path) -> Path:
    return main.with_name(main.name.removesuffix(".gguf") + SUFFIX)


def read_measurements(bundle: Bundle, *, force: bool = False) -> Evaluated:
    """The stored measurements of files, if the files are unchanged."""
    digests, path = {one.name: sha256_of(one) for one in bundle.paths}, path_of(bundle.path)
    if path.exists():
        try:
            found = _read(path)
        except InputError:
            if not force:
                raise
        else:
            if found.sha256 == digests:
                return found
    return structs.replace(unmeasured(bundle), sha256=digests)


def write_measurements(main: Path, found: Evaluated) -> None:
    """Store everything but sound and measurements that are no numbers, which are made again."""
    total = found.measured and found.measured.quality[ALL]
    if total and not math.isfinite(total.kl_mean + total.nmse):
        found = structs.replace(found, compared=None, measured=None)
    if found.speech is not None:
        found = structs.replace(found, speech=found.speech.without_sound())
    write_struct(path_of(main), found)


def measurements_in(folder: Path) -> Iterator[Evaluated]:
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
        (name, sha256): one
        for one in measurements_in(folder)
        for name, sha256 in one.sha256.items()
    }
    missing = [] if models else [Finding(MANIFEST, "it lists no model")]
    for file in models:
        one = verdicts.get((file.name, file.sha256))
        if one is None or one.outcome == "not judged":
            missing.append(Finding(file.name, "not judged"))
        elif one.outcome == "failed":
            missing.append(Finding(file.name, f"failed: {'; '.join(one.failures)}"))
    return replace(found, findings=(*found.findings, *missing))


def _read(path: Path) -> Evaluated:
    try:
        return read_struct(path, "file of measurements", Evaluated)
    except InputError as error:
        raise InputError(f"{error} Measure again with `evaluate --force`.") from error


def key_of(*parts: object) -> str:
    """The digest of everything that a measurement depends on."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()
