"""Measured files, the verdict on each, the file to take, and the report of all.

tables.py shows the report in columns, forms.py writes it as Markdown and HTML.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from valle_convert import __version__
from valle_convert.errors import EXIT_ENVIRONMENT, EXIT_FAILED_CHECK, EXIT_OK
from valle_convert.families.bundle import Bundle
from valle_convert.files import valid_utf8
from valle_convert.listening.listen import Listened
from valle_convert.quantize.limits import Gates, Limits
from valle_convert.quantize.listening import Listening, listened_to_json
from valle_convert.quantize.manifest import ManifestFile
from valle_convert.quantize.measurements import (
    Compared,
    Judgement,
    Measurements,
    Outcome,
    TensorReport,
    Verified,
)
from valle_convert.quantize.quality import ALL, Measured
from valle_convert.quantize.source import quantized_tensors
from valle_convert.quantize.types import bits_and_weights
from valle_convert.verify.run import main_type
from valle_convert.wording import plural

#: With fewer different texts nothing is recommended: chance decides between neighbouring types.
MIN_TEXTS = 8
#: The recommended file has at most this mean KL divergence from the reference, in nats.
NEAR_KL = 1e-2
#: By the mean KL divergence in nats: a word for it, and what such a file is good for. At the first
#: limit one in hundreds of best codes changes; at the last, a tenth.
_NEARNESS: tuple[tuple[float, str, str], ...] = (
    (1e-3, "very close", "as good as the original"),
    (NEAR_KL, "close", "everyday use"),
    (1e-1, "changed", "if memory is short; speech varies from the original's"),
    (math.inf, "far", "experiments only"),
)
_UNVERIFIED = "no checkpoint was given, so errors of the reference itself are not detected"


def nearness(kl: float) -> tuple[str, str]:
    """A word for a divergence, and what such a file is good for; not-a-number is far."""
    found = (one for one in _NEARNESS if kl <= one[0])
    return next(found, _NEARNESS[-1])[1:]


@dataclass(frozen=True)
class FileReport:
    name: str
    kind: str
    n_bytes: int
    bits_per_weight: float
    weights: Mapping[str, int]
    sha256: str | None = None  # of the main file
    tool: str = ""  # the program that quantized it; empty if its keys do not say
    imatrix: str | None = None  # the name of the importance matrix
    measured: Measured | None = None
    verified: Verified | None = None  # the result of `verify`; None without a checkpoint
    listened: Listened | None = None
    #: What it says worse than F16; None without --listen.
    beyond_noise: tuple[str, ...] | None = None
    tensors: tuple[TensorReport, ...] = ()
    limits: Limits | None = None
    failures: tuple[str, ...] = ()  # which limits it exceeds
    is_baseline: bool = False

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
    def faults(self) -> tuple[str, ...]:
        wrong = (self.verified.verdict.rstrip("."),) if self.verified and self.is_wrong else ()
        return wrong + self.failures

    @property
    def outcome(self) -> Outcome:
        if self.faults:
            return "failed"
        is_open = self.open_question or not (self.verified or self.limits)
        return "not judged" if is_open else "passed"

    @property
    def open_question(self) -> str:
        """A limit on what was not measured; empty if there is none."""
        is_open = self.limits and self.limits.is_open(self.measured, self.listened)
        return f"limits were given ({self.limits.why})" if self.limits and is_open else ""

    def to_json(self, base: Listened | None = None) -> dict[str, Any]:
        """The entry as plain values; its speech is compared with that of `base`."""
        plain = msgspec.to_builtins
        measured = plain(self.measured) or {}
        return {
            "name": self.name,
            "type": self.kind,
            "bytes": self.n_bytes,
            "bits_per_weight": self.bits_per_weight,
            "weights_by_type": dict(self.weights),
            "sha256": self.sha256,
            "tool": self.tool,
            "imatrix": self.imatrix,
            **{one: measured.get(one) for one in ("quality", "greedy", "speed")},
            "verified": plain(self.verified),
            "listened": None if self.listened is None else listened_to_json(self.listened, base),
            "beyond_noise": self.beyond_noise,
            "tensors": plain(self.tensors),
            "limits": self.limits and {"why": self.limits.why, **self.limits.given},
            "failures": self.faults,
        }


@dataclass(frozen=True)
class Advice:
    """The recommended file and the reason; `take` is None if nothing is recommended."""

    take: FileReport | None
    sentence: str


def advise(files: Sequence[FileReport], n_texts: int) -> Advice:
    """Recommend the smallest file that passes and is near the reference, or say why none is."""
    measured = [one for one in files if one.kl is not None and not math.isnan(one.kl)]
    passing = [one for one in measured if not one.faults]
    near = [one for one in passing if one.kl is not None and one.kl <= NEAR_KL]
    taken = [one for one in near if not one.beyond_noise]
    why = ""
    if not measured:
        why = "no file was measured"
    elif n_texts < MIN_TEXTS:
        why = (
            f"files were measured over {plural(n_texts, 'different text')}, and fewer than "
            f"{MIN_TEXTS} do not tell types apart"
        )
    elif not passing:
        why = "no file that was measured passed"
    elif not near:
        nearest = min(passing, key=lambda one: one.kl or 0.0)
        why = (
            f"no file that passed is within {NEAR_KL:g} nats of the reference; the nearest is "
            f"{nearest.kind}, with {nearest.kl:.2g}"
        )
    elif not taken:
        why = f"listening distinguishes every file within {NEAR_KL:g} nats from F16"
    if why:
        return Advice(None, f"No file is recommended: {why}.")
    best = min(taken, key=lambda one: one.n_bytes)
    heard = any(one.beyond_noise is not None for one in files)
    noise = " that listening does not distinguish from F16" if heard else ""
    return Advice(
        best,
        f"Take {best.kind} ({best.n_bytes / 2**20:,.1f} MiB): the smallest file within "
        f"{NEAR_KL:g} nats of the reference{noise} (KL {best.kl:.2g}, top-1 agreement "
        f"{best.top_1:.1%}, measured over {n_texts} different texts).",
    )


@dataclass(frozen=True)
class EvaluationReport:
    """The result of a run; `listening` is the baseline of the speech, `command` repeats the run."""

    compared: Compared
    files: tuple[FileReport, ...]
    notes: tuple[str, ...] = ()
    listening: Listening | None = None
    command: str = ""
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def n_texts(self) -> int:
        """The number of different texts that were measured and, with --listen, spoken."""
        n, heard = self.compared.n_texts, self.listening
        return n if heard is None else min(n, heard.n_texts)

    @cached_property
    def baseline(self) -> FileReport:
        return FileReport(**vars(self.compared.baseline), is_baseline=True)

    @property
    def rows(self) -> tuple[FileReport, ...]:
        return (self.baseline, *self.files)

    @property
    def measured(self) -> tuple[FileReport, ...]:
        return tuple(file for file in self.files if file.measured)

    @property
    def faults(self) -> tuple[str, ...]:
        return tuple(f"{file.name}: {fault}" for file in self.files for fault in file.faults)

    @property
    def open_questions(self) -> tuple[str, ...]:
        return tuple(f"{one.name}: {one.open_question}" for one in self.files if one.open_question)

    @property
    def passed(self) -> bool:
        return not self.faults and not self.open_questions

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed, 3 not measured."""
        return EXIT_OK if self.passed else EXIT_FAILED_CHECK if self.faults else EXIT_ENVIRONMENT

    def advice(self) -> Advice:
        return advise(self.files, self.n_texts)

    def recommendation(self) -> str:
        return self.advice().sentence if self.measured else ""

    def verdict(self) -> str:
        """Whether the files are right, and how near they are to the reference."""
        if self.faults:
            return f"FAILED: {'; '.join(self.faults)}."
        if self.open_questions:
            return f"NOT MEASURED: {'; '.join(self.open_questions)}."
        right = sum(file.verified is not None for file in self.files)
        limited = sum(file.limits is not None for file in self.files)
        near = ", ".join(
            f"{file.kind} {nearness(file.kl)[0]}" for file in self.files if file.kl is not None
        )
        near = f" Distance from the reference: {near}." if near else ""
        files = plural(len(self.files), "file")
        if not right and not limited:
            return f"DONE: {files}; not judged, without a checkpoint and limits.{near}"
        words = [f"{right} verified against the checkpoint"] if right else []
        words.append(f"{limited} within the limits given" if limited else "no limits were given")
        return f"PASSED: {files}; {', '.join(words)}.{near}"

    def facts(self) -> list[str]:
        facts, one = [*self.notes, f"{self.date}, valle-convert {__version__}"], self.compared
        if one.checkpoint is not None:
            facts.append(f"checkpoint: {one.checkpoint['name']}, sha256 {one.checkpoint['sha256']}")
        facts += [f"measured against {one.reference}", f"over {one.utterances}"]
        tools = dict.fromkeys(file.tool for file in self.files if file.tool)
        facts += [f"quantized by {tool}" for tool in tools]
        for file in self.files:
            if file.imatrix:
                facts.append(f"{file.kind}: importance matrix {file.imatrix}")
            if file.limits:
                facts.append(f"{file.kind}: limits {file.limits}")
            if file.beyond_noise:
                noise = "; ".join(file.beyond_noise)
                facts.append(f"{file.kind} is beyond the noise of F16: {noise}")
        return facts

    def to_json(self) -> dict[str, Any]:
        best, base = self.advice().take, self.listening.baseline if self.listening else None
        compared = self.compared
        return {
            "schema_version": 1,
            "passed": self.passed,
            "verdict": self.verdict(),
            "date": self.date,
            "converter_version": __version__,
            "checkpoint": compared.checkpoint,
            "source": compared.source,
            "reference": compared.reference,
            "sequences": compared.utterances,
            "baseline": self.baseline.to_json(),
            "files": [file.to_json(base) for file in self.files],
            "listening": None if self.listening is None else self.listening.to_json(),
            "different_texts": self.n_texts,
            "recommended": None if best is None else best.kind,
            "recommendation": self.recommendation() or None,
            "command": self.command,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Evaluated:
    """A model, and what was measured of it; `files` are its entries in a manifest, by part."""

    bundle: Bundle
    measurements: Measurements
    files: Mapping[str, ManifestFile] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.bundle.path

    @property
    def main(self) -> ManifestFile:
        return next(iter(self.files.values()))

    @cached_property
    def report(self) -> FileReport:
        found, keys = self.measurements, self.bundle.main.keys
        predictions, speech = found.predictions, found.speech
        made = [keys.get(f"valle.quantize.{name}") for name in ("tool", "tool_version")]
        imatrix = keys.get("quantize.imatrix.file")
        return FileReport(
            name=valid_utf8(self.path.name),
            kind=type_of(self.bundle),
            n_bytes=self.bundle.n_bytes,
            **bits_and_weights(quantized_tensors(self.bundle)),
            sha256=next(iter(found.files.values()), None),
            tool=" ".join(map(str, filter(None, made))),
            imatrix=str(imatrix) if imatrix else None,
            measured=predictions.measured if predictions else None,
            verified=predictions.verified if predictions else None,
            tensors=predictions.tensors if predictions else (),
            listened=speech.listened if speech else None,
            beyond_noise=speech.listening.beyond_noise(speech.listened) if speech else None,
            limits=found.judgement.limits if found.judgement else None,
            failures=found.judgement.failures if found.judgement else (),
        )


def judged(model: Evaluated, gates: Gates, faults: Mapping[Path, str]) -> Evaluated:
    """A model with a verdict by its limits; `faults` are what else is wrong with files."""
    report, found = model.report, model.measurements
    limits = gates.limits_of(report.kind)
    failures = tuple(faults[one] for one in model.bundle.paths if one in faults)
    if limits is not None:
        base = found.speech.listening.baseline if found.speech else None
        failures += limits.failures(report.measured, report.listened, base)
    outcome = replace(report, limits=limits, failures=failures).outcome
    judgement = Judgement(outcome, limits, failures)
    return replace(model, measurements=msgspec.structs.replace(found, judgement=judgement))


def report_of(models: Sequence[Evaluated]) -> EvaluationReport:
    found = [one.measurements for one in models]
    first = found[0].predictions
    if first is None:
        raise AssertionError("an evaluated file has been measured")
    heard = [one.speech.listening for one in found if one.speech]
    return EvaluationReport(
        first.compared,
        tuple(one.report for one in models),
        notes=() if first.compared.checkpoint else (_UNVERIFIED,),
        # Stored speech has no sound, so what was heard in this run is preferred.
        listening=max(heard, key=lambda one: len(one.sounds), default=None),
    )


def type_of(bundle: Bundle) -> str:
    """The type that files were quantized to, else the one that most weights have."""
    made = bundle.main.keys.get("valle.quantize.type")
    return made if isinstance(made, str) else main_type(bundle)
