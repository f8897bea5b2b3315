"""The verdict on measured files, and the report of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from valle_convert.families.bundle import Bundle
from valle_convert.files import valid_utf8
from valle_convert.quantize.limits import Gates, Limits
from valle_convert.quantize.measurements import Judgement, Measurements
from valle_convert.quantize.report import EvaluationReport, FileReport
from valle_convert.quantize.types import bits_per_weight, describe_types
from valle_convert.verify.run import main_type

_UNVERIFIED = "no checkpoint was given, so errors of the reference itself are not detected"


@dataclass(frozen=True)
class Judge:
    """Judges by limits, or keeps the verdicts that are there.

    Attributes:
        gates: None to keep the verdicts.
        hears: whether to judge the speech, if it was measured.
        faults: what else is wrong with files, by their names.
    """

    gates: Gates | None
    hears: bool
    faults: Mapping[str, str] = field(default_factory=dict)

    def judged(self, bundle: Bundle, found: Measurements) -> Measurements:
        """The same measurements with a verdict."""
        if self.gates is None:
            return found
        report = self._file(bundle, found)
        limits = report.limits.given if report.limits else {}
        judgement = Judgement(report.outcome, limits, report.failures)
        return msgspec.structs.replace(found, judgement=judgement)

    def report(
        self, bundles: Mapping[Path, Bundle], found: Mapping[Path, Measurements], command: str
    ) -> EvaluationReport:
        """The report of all files, which were measured before."""
        first = next(iter(found.values())).predictions
        if first is None:
            raise AssertionError("whatever was evaluated has been measured")
        heard = [one.speech for one in found.values() if one.speech] if self.hears else []
        return EvaluationReport(
            source=first.source,
            reference=first.reference,
            utterances=first.utterances,
            n_measured=first.n_texts,
            baseline=FileReport(**vars(first.baseline), is_baseline=True),
            files=tuple(self._file(one, found[path]) for path, one in bundles.items()),
            notes=() if first.checkpoint else (_UNVERIFIED,),
            listening=heard[0].listening if heard else None,
            command=command,
            checkpoint=first.checkpoint,
        )

    def _file(self, bundle: Bundle, found: Measurements) -> FileReport:
        report = file_report(bundle, found)
        if not self.hears:
            report = replace(report, listened=None, beyond_noise=None)
        if self.gates is None:
            given = found.judgement.limits if found.judgement else {}
            return replace(report, limits=Limits("given to evaluate", **given) if given else None)
        limits = self.gates.limits_of(report.kind)
        faults = tuple(self.faults[one] for one in found.files if one in self.faults)
        if limits is None:
            return replace(report, limits=None, failures=faults)
        base = found.speech.listening.baseline if found.speech else None
        failures = limits.failures(report.measured, report.listened, base)
        return replace(report, limits=limits, failures=faults + failures)


def file_report(bundle: Bundle, found: Measurements) -> FileReport:
    """A file's keys and measurements, before any limits."""
    predictions, speech, keys = found.predictions, found.speech, bundle.main.keys
    tensors = [
        tensor
        for unit in bundle.family.units([*bundle.files])
        for tensor in bundle.files[unit.part].tensors.values()
    ]
    made = [keys.get(f"valle.quantize.{name}") for name in ("tool", "tool_version")]
    imatrix = keys.get("quantize.imatrix.file")
    return FileReport(
        name=valid_utf8(bundle.path.name),
        kind=type_of(bundle),
        n_bytes=bundle.n_bytes,
        bits_per_weight=bits_per_weight(tensors),
        weights=describe_types(tensors),
        sha256=next(iter(found.files.values()), None),
        tool=" ".join(map(str, filter(None, made))),
        imatrix=str(imatrix) if imatrix else None,
        measured=predictions.measured if predictions else None,
        verified=predictions.verified if predictions else None,
        tensors=predictions.tensors if predictions else (),
        note=predictions.note if predictions else "",
        listened=speech.listened if speech else None,
        beyond_noise=speech.listening.beyond_noise(speech.listened) if speech else None,
        failures=found.judgement.failures if found.judgement else (),
    )


def type_of(bundle: Bundle) -> str:
    """The type that files were quantized to, else the one that most weights have."""
    made = bundle.main.keys.get("valle.quantize.type")
    return made if isinstance(made, str) else main_type(bundle)
