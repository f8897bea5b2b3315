"""Measured files, the verdict on each, the file to take, and the report of all.

tables.py shows the report in columns, forms.py writes it as Markdown and HTML.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from msgspec import structs

from valle_convert import __version__
from valle_convert.errors import EXIT_ENVIRONMENT, EXIT_FAILED_CHECK, EXIT_OK
from valle_convert.quantize.limits import Gates
from valle_convert.quantize.listening import Listening
from valle_convert.quantize.measurements import Compared, Evaluated
from valle_convert.wording import plural

_UNVERIFIED = "no checkpoint was given, so errors of the reference are not detected"
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


def nearness(kl: float) -> tuple[str, str]:
    """A word for a divergence, and what such a file is good for; not-a-number is far."""
    found = (one for one in _NEARNESS if kl <= one[0])
    return next(found, _NEARNESS[-1])[1:]


@dataclass(frozen=True)
class Advice:
    """The recommended file and the reason; `take` is None if nothing is recommended."""

    take: Evaluated | None
    sentence: str


def advise(files: Sequence[Evaluated]) -> Advice:
    """Recommend the smallest file that passes and is near the reference, or say why none is."""
    texts = [one.compared.different_texts for one in files if one.compared]
    texts += [one.speech.listening.n_texts for one in files if one.speech]
    n_texts = min(texts, default=0)
    measured = [one for one in files if one.kl is not None and not math.isnan(one.kl)]
    passing = [one for one in measured if not one.failures]
    near = [one for one in passing if one.kl is not None and one.kl <= NEAR_KL]
    taken = [one for one in near if not (one.speech and one.speech.beyond_noise)]
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
    heard = any(one.speech for one in files)
    noise = " that listening does not distinguish from F16" if heard else ""
    return Advice(
        best,
        f"Take {best.kind} ({best.n_bytes / 2**20:,.1f} MiB): the smallest file within "
        f"{NEAR_KL:g} nats of the reference{noise} (KL {best.kl:.2g}, top-1 agreement "
        f"{best.top_1:.1%}, measured over {n_texts} different texts).",
    )


@dataclass(frozen=True)
class EvaluationReport:
    """The files of a run, all measured; `command` repeats the run."""

    files: tuple[Evaluated, ...]
    notes: tuple[str, ...] = ()
    command: str = ""
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def compared(self) -> Compared:
        found = self.files[0].compared
        if found is None:
            raise AssertionError("an evaluated file has been measured")
        return found

    @property
    def listening(self) -> Listening | None:
        """The baseline of the speech; stored speech has no sound, so this run's is preferred."""
        heard = [one.speech.listening for one in self.files if one.speech]
        return max(heard, key=lambda one: len(one.sounds), default=None)

    @property
    def rows(self) -> tuple[Evaluated, ...]:
        return (self.compared.baseline, *self.files)

    @property
    def measured(self) -> tuple[Evaluated, ...]:
        return tuple(file for file in self.files if file.measured)

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed, 3 not measured."""
        if any(file.failures for file in self.files):
            return EXIT_FAILED_CHECK
        return EXIT_ENVIRONMENT if any(file.is_open for file in self.files) else EXIT_OK

    @property
    def passed(self) -> bool:
        return self.exit_code == EXIT_OK

    def advice(self) -> Advice:
        return advise(self.files)

    def verdict(self) -> str:
        """Whether the files are right, and how near they are to the reference."""
        failures = [f"{file.name}: {one}" for file in self.files for one in file.failures]
        if failures:
            return f"FAILED: {'; '.join(failures)}."
        unknown = [
            f"{one.name}: limits were given ({one.limits.why})"
            for one in self.files
            if one.limits and one.is_open
        ]
        if unknown:
            return f"NOT MEASURED: {'; '.join(unknown)}."
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

    @property
    def remarks(self) -> tuple[str, ...]:
        return self.notes if self.compared.checkpoint else (_UNVERIFIED, *self.notes)

    def facts(self) -> list[str]:
        one, facts = self.compared, [*self.remarks, f"{self.date}, valle-convert {__version__}"]
        if one.checkpoint is not None:
            facts.append(f"checkpoint: {one.checkpoint['name']}, sha256 {one.checkpoint['sha256']}")
        facts += [f"measured against {one.reference}", f"over {one.sequences}"]
        tools = dict.fromkeys(file.tool for file in self.files if file.tool)
        facts += [f"quantized by {tool}" for tool in tools]
        for file in self.files:
            if file.imatrix:
                facts.append(f"{file.kind}: importance matrix {file.imatrix}")
            if file.limits:
                facts.append(f"{file.kind}: limits {file.limits}")
            if file.speech and file.speech.beyond_noise:
                noise = "; ".join(file.speech.beyond_noise)
                facts.append(f"{file.kind} is beyond the noise of F16: {noise}")
        return facts

    def to_json(self) -> dict[str, Any]:
        advice, listening = self.advice(), self.listening
        return {
            "schema_version": 2,
            "passed": self.passed,
            "verdict": self.verdict(),
            "date": self.date,
            "converter_version": __version__,
            **structs.asdict(self.compared),
            "baseline": self.compared.baseline.to_json(),
            "files": [file.to_json() for file in self.files],
            "listening": listening and listening.to_json(),
            "recommended": advice.take and advice.take.kind,
            "recommendation": advice.sentence,
            "command": self.command,
            "notes": self.remarks,
        }


def judged(file: Evaluated, gates: Gates, faults: Sequence[str] = ()) -> Evaluated:
    """A file with a verdict by its limits; `faults` are what else is wrong with it."""
    verified, limits = file.verified, gates.limits_of(file.kind)
    failures = [verified.verdict.rstrip(".")] if verified and file.is_wrong else []
    failures += faults
    is_open = not verified
    if limits is not None:
        failures += limits.failures(file.measured, file.speech)
        is_open = limits.is_open(file.measured, file.speech)
    outcome = "failed" if failures else "not judged" if is_open else "passed"
    return structs.replace(file, limits=limits, failures=tuple(failures), outcome=outcome)
