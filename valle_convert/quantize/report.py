"""What a run of `quantize` found, as plain values, JSON and Markdown (html.py draws it).

Frozen; nothing here computes but the verdict. data/report.schema.json is the schema of the
JSON form; forms.py writes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from valle_convert import __version__
from valle_convert.errors import EXIT_ENVIRONMENT, EXIT_FAILED_CHECK, EXIT_OK
from valle_convert.listening.listen import MEASURES, NLL, RETRIEVAL, WORDS, Listened, Measure
from valle_convert.quantize.limits import Limits
from valle_convert.quantize.listening import (
    Listening,
    listened_to_json,
    places_of,
    smallest_within,
    table_of,
)
from valle_convert.quantize.plan import Fallback, describe_fallbacks
from valle_convert.quantize.quality import ALL, Measured
from valle_convert.quantize.scan import Sensitivity
from valle_convert.verify.report import Report

SCHEMA_VERSION = 3


@dataclass(frozen=True)
class TensorReport:
    """A matrix of a file.

    Attributes:
        name: llama.cpp's.
        kind: its type.
        bits: a weight.
        snr_db: the input's weights over what the type changed of them; infinite where nothing
            changed, None where it could not be told.
    """

    name: str
    kind: str
    bits: float
    snr_db: float | None


@dataclass(frozen=True)
class FileReport:
    """One file.

    Attributes:
        name: of the file.
        kind: its type.
        status: "planned" (dry run), "made", "kept" (by --resume), or "input" for what it is
            compared with.
        n_bytes: its size; predicted where it is only planned, 0 where that failed.
        bits_per_weight: over all tensors; 0 likewise.
        weights: how many weights have which type.
        fallbacks: tensors that the type cannot hold, and what they became.
        sha256: of the file; None where it is only planned.
        imatrix: the name of the importance matrix; None where none was used.
        seconds: what making it took.
        measured: quality and speed; None where they were not measured.
        verified: whether it is right at all; None where that was not looked at.
        listened: what it says; None where nobody listened.
        tensors: its matrices; empty where they were not measured.
        beyond_noise: in what it says worse than F16, in words; None where nobody listened.
        limits: what the user allows; None where nothing is limited.
        failures: what is beyond the limits, in words.
        note: what the reader should know.
    """

    name: str
    kind: str
    status: str
    n_bytes: int
    bits_per_weight: float
    weights: Mapping[str, int]
    fallbacks: tuple[Fallback, ...] = ()
    sha256: str | None = None
    imatrix: str | None = None
    seconds: float = 0.0
    measured: Measured | None = None
    verified: Report | None = None
    listened: Listened | None = None
    beyond_noise: tuple[str, ...] | None = None
    tensors: tuple[TensorReport, ...] = ()
    limits: Limits | None = None
    failures: tuple[str, ...] = ()
    note: str = ""

    @property
    def faults(self) -> tuple[str, ...]:
        """Why it does not pass: it is wrong, or loses more than it may."""
        wrong = self.verified is not None and self.verified.outcome == "failed"
        return ((self.verified.verdict(),) if wrong and self.verified else ()) + self.failures

    @property
    def open_questions(self) -> tuple[str, ...]:
        """What was to be judged and could not be."""
        found: list[str] = []
        limits = self.limits
        if limits is not None and (
            (limits.on_predictions and self.measured is None)
            or (limits.on_speech and self.listened is None)
        ):
            found.append(f"limits were given ({limits.why})")
        if self.verified is not None and self.verified.outcome == "not verified":
            found.append(self.verified.verdict())
        return tuple(found)

    def to_json(self, base: Listened | None = None) -> dict[str, Any]:
        """The entry as plain values; what is said is held against that of another file, `base`."""
        return {
            "name": self.name,
            "type": self.kind,
            "status": self.status,
            "bytes": self.n_bytes or None,
            "bits_per_weight": round(self.bits_per_weight, 4) or None,
            "weights_by_type": dict(self.weights),
            "fallbacks": [asdict(one) for one in self.fallbacks],
            "sha256": self.sha256,
            "imatrix": self.imatrix,
            "seconds": round(self.seconds, 3),
            "quality": None
            if self.measured is None
            else {head: asdict(one) for head, one in self.measured.quality.items()},
            "greedy": None if self.measured is None else asdict(self.measured.greedy),
            "speed": None if self.measured is None else asdict(self.measured.speed),
            "tensors": [
                {"name": one.name, "type": one.kind, "bits": one.bits, "snr_db": one.snr_db}
                for one in self.tensors
            ],
            "verified": None
            if self.verified is None
            else {"outcome": self.verified.outcome, "verdict": self.verified.verdict()},
            "listened": None if self.listened is None else listened_to_json(self.listened, base),
            "beyond_noise": None if self.beyond_noise is None else list(self.beyond_noise),
            "limits": None
            if self.limits is None
            # JSON has no infinity: what is not limited is null.
            else {n: None if v == math.inf else v for n, v in asdict(self.limits).items()},
            "failures": list(self.faults),
            "note": self.note,
        }


@dataclass(frozen=True)
class QuantizeReport:
    """The result of a run.

    Attributes:
        source: the name of what was quantized.
        source_sha256: of it; None in a dry run.
        tool: name, version, digest of what quantized, and where it was found.
        tensor_types: pattern=type, the first that matches wins.
        reference: what quality is measured against, in words; empty where it is not measured.
        utterances: what quality is measured on, in words.
        baseline: the file in F16 that sizes and speeds stand beside; None where not measured.
        files: in the order asked for.
        notes: what the reader should know of the run.
        listening: what files were held against that spoke; None where nobody listened.
        command: that makes and measures the same again.
        scan: every matrix in every type; empty where it was not asked for.
        checkpoint: name and digest of what the source was converted from, where it is known.
        date: of the run, UTC.
        dry_run: whether all of it is only planned.
    """

    source: str
    source_sha256: str | None
    tool: Mapping[str, str]
    tensor_types: tuple[str, ...]
    reference: str
    utterances: str
    baseline: FileReport | None
    files: tuple[FileReport, ...]
    notes: tuple[str, ...] = ()
    listening: Listening | None = None
    command: str = ""
    scan: tuple[Sensitivity, ...] = ()
    checkpoint: Mapping[str, str] | None = None
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    dry_run: bool = False

    @property
    def faults(self) -> tuple[str, ...]:
        """Why files do not pass, in words."""
        return tuple(f"{file.name}: {fault}" for file in self.files for fault in file.faults)

    @property
    def open_questions(self) -> tuple[str, ...]:
        """What was to be judged and could not be, in words."""
        return tuple(f"{file.name}: {one}" for file in self.files for one in file.open_questions)

    @property
    def passed(self) -> bool:
        """Whether everything that was to be judged was, and passed."""
        return not self.faults and (self.dry_run or not self.open_questions)

    @property
    def exit_code(self) -> int:
        """What a program ends with: 0 passed, 1 failed, 3 not measured."""
        return EXIT_OK if self.passed else EXIT_FAILED_CHECK if self.faults else EXIT_ENVIRONMENT

    def recommendation(self) -> str:
        """Which file to take, by what was heard; empty where nobody listened."""
        if self.listening is None:
            return ""
        heard = [
            (file.kind, file.n_bytes, file.listened)
            for file in self.files
            if file.listened is not None and not file.faults
        ]
        n = len(self.listening.names)
        best = smallest_within(self.listening, heard)
        if best is None:
            return f"None of the files that pass is within the noise of F16, by {n} sentences."
        return (
            f"{best} is the smallest of these types within the noise of F16, by {n} sentences: its "
            "NLL is not worse by more than a standard error, and what it says is not worse by more "
            "than chance explains. More sentences tell finer differences."
        )

    def verdict(self) -> str:
        """One sentence."""
        n, kept = len(self.files), sum(file.status == "kept" for file in self.files)
        files = "1 file" if n == 1 else f"{n} files"
        again = f", {kept} of them kept from before" if kept else ""
        if self.dry_run:
            sizes = [file.n_bytes for file in self.files]
            total = f", {sum(sizes):,} bytes" if all(sizes) else ""
            return f"PLANNED: {files}{total}{again}; nothing was written."
        if self.faults:
            return f"FAILED: {'; '.join(self.faults)}."
        if self.open_questions:
            return f"NOT MEASURED: {'; '.join(self.open_questions)}."
        right = sum(file.verified is not None for file in self.files)
        limited = sum(file.limits is not None for file in self.files)
        done = f"{files}{again}; "
        if not any(file.measured for file in self.files):
            return f"DONE: {done}their quality was not measured."
        if not right and not limited:
            return f"DONE: {done}measured, and judged by nothing: no checkpoint and no limits."
        words = [f"{right} right by their checkpoint"] if right else []
        words.append(f"{limited} within the limits given" if limited else "no limits were given")
        return f"PASSED: {done}{', '.join(words)}."

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "passed": self.passed,
            "verdict": self.verdict(),
            "date": self.date,
            "converter_version": __version__,
            "checkpoint": None if self.checkpoint is None else dict(self.checkpoint),
            "source": self.source,
            "source_sha256": self.source_sha256,
            "tool": dict(self.tool),
            "tensor_types": list(self.tensor_types),
            "reference": self.reference,
            "sequences": self.utterances,
            "baseline": self.baseline.to_json() if self.baseline else None,
            "files": [
                file.to_json(self.listening.baseline if self.listening else None)
                for file in self.files
            ],
            "listening": None if self.listening is None else self.listening.to_json(),
            "recommendation": self.recommendation() or None,
            "command": self.command,
            "scan": [
                {"tensor": one.tensor, "type": one.kind, "bits": one.bits, "kl": one.kl}
                for one in self.scan
            ],
            "notes": list(self.notes),
        }

    def columns(self, width: int | None = None) -> list[Column]:
        """The columns of the summary table; where they are wider than `width`, the most important.

        The type, the size and the verdict always stay.
        """
        rows = self.rows()
        shown = [one for one in COLUMNS if any(one.cell(self, row) for row in rows)]
        while width is not None and self._width(shown) > width and len(shown) > _MIN_COLUMNS:
            shown.remove(max(shown, key=lambda one: one.rank))
        return shown

    def _width(self, columns: Sequence[Column]) -> int:
        rows = self.rows()
        cells = (max(len(one.name), *(len(one.cell(self, row)) for row in rows)) for one in columns)
        return sum(cells) + 2 * (len(columns) - 1)

    def rows(self) -> list[FileReport]:
        """The baseline, where there is one, and the files."""
        return [*([self.baseline] if self.baseline else []), *self.files]

    def summary(self, width: int | None = None) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the summary table; see `columns`."""
        shown = self.columns(width)
        return [one.name for one in shown], [
            [one.cell(self, row) for one in shown] for row in self.rows()
        ]

    def legend(self, width: int | None = None) -> list[str]:
        """What each column means, a line each."""
        return [f"{one.name}: {one.meaning}" for one in self.columns(width)]

    def to_markdown(self) -> str:
        """A page for a CI job's summary."""
        return "\n".join(self._markdown()) + "\n"

    def _markdown(self) -> Iterator[str]:
        yield f"# Quantized: {self.source}"
        yield ""
        yield f"**{_cell(self.verdict())}**"
        yield ""
        if self.recommendation():
            yield from (_cell(self.recommendation()), "")
        yield from _markdown_table(*self.summary())
        yield ""
        yield from (f"- {_cell(line)}" for line in self.facts() if line != f"again: {self.command}")
        if self.command:
            yield from ("", "## Again", "", "```sh", self.command, "```")
        yield from ("", "## What the columns mean", "")
        yield from (f"- {_cell(line)}" for line in self.legend())
        for file in self.files:
            if file.fallbacks:
                yield from (
                    "",
                    f"## Tensors that {file.kind} cannot hold",
                    "",
                    *_markdown_table(
                        ["tensor", "columns", "type", "became"],
                        [[f.tensor, str(f.n_columns), f.wanted, f.given] for f in file.fallbacks],
                    ),
                )
        if self.listening is not None:
            for title, table in self.heard():
                yield from ("", f"## {title}", "", *_markdown_table(*table))
            yield ""
            yield from (f"- {_cell(line)}" for line in self.heard_legend())
        if self.scan:
            yield from ("", f"## {SCAN_TITLE}", "")
            yield from _markdown_table(*self.sensitivities())
        measured = [file for file in self.files if file.measured]
        if measured:
            yield from ("", "## KL mean by head", "")
            yield from _markdown_table(*by_head(measured, "kl_mean"))
            yield from ("", "## Best code kept, by head", "")
            yield from _markdown_table(*by_head(measured, "best_code"))

    def sensitivities(self) -> tuple[list[str], list[list[str]]]:
        """The scan: a row a matrix, the most sensitive first, a column a type."""
        kinds = sorted({(one.bits, one.kind) for one in self.scan})
        by_tensor: dict[str, dict[str, float]] = {}
        for one in self.scan:
            by_tensor.setdefault(one.tensor, {})[one.kind] = one.kl
        order = sorted(by_tensor, key=lambda name: -max(by_tensor[name].values()))
        rows = []
        for name in order:
            found = [by_tensor[name].get(kind) for _, kind in kinds]
            rows.append([name, *("" if kl is None else f"{kl:.2e}" for kl in found)])
        return ["matrix", *(kind for _, kind in kinds)], rows

    def heard(self) -> Iterator[tuple[str, tuple[list[str], list[list[str]]]]]:
        """Tables of what was said, each with a title."""
        listening = self.listening
        if listening is None:
            return
        files = [
            ("F16", listening.baseline),
            (f"F16 again ({listening.repeat_how})", listening.repeat),
        ]
        files += [(file.kind, file.listened) for file in self.files if file.listened]
        if listening.recordings is not None:
            files.insert(0, ("recordings", listening.recordings))
        yield "What is said", table_of(files, listening.baseline)
        for measure in MEASURES.values():
            if len(listening.baseline.places(measure)) > 2:
                spoken = [one for one in files if one[0] != "recordings"]
                yield (
                    f"{measure.title} by {'head' if measure is NLL else 'way of speaking'}",
                    (places_of(measure, spoken)),
                )

    def heard_legend(self) -> Iterator[str]:
        """What the tables of `heard` mean, a line each."""
        listening = self.listening
        if listening is None:
            return
        for measure in MEASURES.values():
            if listening.baseline.total(measure):
                better = "high" if measure.is_better_high else "low"
                yield f"{measure.title}: {measure.meaning}; {better} is better"
        yield (
            "means, with 95 % intervals by bootstrap over the sentences; «difference»: to F16, "
            "the same sentences drawn together. «F16 again» is the noise floor: nothing but seed "
            "and threads differ"
        )
        yield f"recordings: {listening.references}; codec: {listening.codec}"
        if listening.recogniser:
            yield f"recogniser: {listening.recogniser}"

    def facts(self) -> list[str]:
        """How it was done, a sentence each."""
        tool = self.tool
        facts = [f"{self.date}, valle-convert {__version__}"]
        if self.checkpoint is not None:
            facts.append(
                f"checkpoint: {self.checkpoint['name']}, sha256 {self.checkpoint['sha256']}"
            )
        facts.append(f"tool: {tool['name']} {tool['version']} ({tool['found']})")
        if self.tensor_types:
            facts.append(f"tensor types: {', '.join(self.tensor_types)}")
        if self.reference:
            facts.append(f"measured against {self.reference}")
            facts.append(f"over {self.utterances}")
        facts += [
            f"{file.kind}: importance matrix {file.imatrix}" for file in self.files if file.imatrix
        ]
        facts += [
            f"{file.kind}: {describe_fallbacks(file.fallbacks)}"
            for file in self.files
            if file.fallbacks
        ]
        for file in self.files:
            if file.limits:
                facts.append(f"{file.kind} {file.limits}")
        facts += [f"{file.kind}: {file.note}" for file in self.files if file.note]
        facts += [
            f"{file.kind} is beyond the noise of F16: {'; '.join(file.beyond_noise)}"
            for file in self.files
            if file.beyond_noise
        ]
        if self.command:
            facts.append(f"again: {self.command}")
        return facts + list(self.notes)


def by_head(files: list[FileReport], value: str) -> tuple[list[str], list[list[str]]]:
    """One value of the quality of each file, a row a head."""
    qualities = [file.measured.quality for file in files if file.measured]
    heads = [head for head in qualities[0] if head != ALL]
    rows = [
        [head, *(_number(getattr(quality[head], value), value) for quality in qualities)]
        for head in [*heads, ALL]
    ]
    return ["head", *(file.kind for file in files)], rows


@dataclass(frozen=True)
class Column:
    """A column of the summary table.

    Attributes:
        name: its header.
        rank: the highest goes first where a terminal is narrow.
        meaning: in one line.
        cell: what stands in the row of a file.
    """

    name: str
    rank: int
    meaning: str
    cell: Callable[[QuantizeReport, FileReport], str]


def _total(name: str, form: str) -> Callable[[QuantizeReport, FileReport], str]:
    return lambda _report, row: (
        format(getattr(row.measured.quality[ALL], name), form) if row.measured else ""
    )


def _greedy(name: str) -> Callable[[QuantizeReport, FileReport], str]:
    return lambda _report, row: (
        format(getattr(row.measured.greedy, name), ".1%") if row.measured else ""
    )


def _speed(name: str, form: str) -> Callable[[QuantizeReport, FileReport], str]:
    return lambda _report, row: (
        format(getattr(row.measured.speed, name), form) if row.measured else ""
    )


def _heard(measure: Measure) -> Callable[[QuantizeReport, FileReport], str]:
    def cell(report: QuantizeReport, row: FileReport) -> str:
        listened = row.listened
        if row.status == "input" and report.listening is not None:
            listened = report.listening.baseline
        tally = listened.total(measure) if listened else None
        if tally is None:
            return ""
        return f"{tally.mean:.3f}" if measure.unit else f"{tally.mean:.1%}"

    return cell


def _of_input(report: QuantizeReport, row: FileReport) -> str:
    base = report.baseline
    return f"{row.n_bytes / base.n_bytes:.1%}" if base else ""


def _verdict_word(row: FileReport) -> str:
    if row.status in ("input", "planned"):
        return row.status
    if row.faults:
        return "FAIL"
    if row.open_questions:
        return "not measured"
    return "pass" if row.verified or row.limits else row.status


SCAN_TITLE = "Sensitivity: KL with one matrix of the type, all others as they were"
_MIN_COLUMNS = 3
COLUMNS = (
    Column("type", 0, "of the file, as llama-quantize spells it", lambda _report, row: row.kind),
    Column(
        "verdict",
        0,
        "pass: right by its checkpoint, and within the limits given",
        lambda _report, row: _verdict_word(row),
    ),
    Column(
        "size, MiB",
        1,
        "of the file",
        lambda _report, row: f"{row.n_bytes / 2**20:.2f}" if row.n_bytes else "?",
    ),
    Column(
        "bits/weight",
        4,
        "size of the weights over their number",
        lambda _report, row: f"{row.bits_per_weight:.3f}" if row.bits_per_weight else "?",
    ),
    *(Column(one.title, 2, one.meaning, _heard(one)) for one in (NLL, RETRIEVAL, WORDS)),
    Column("of F16", 9, "size over that of the first row", _of_input),
    Column(
        "KL mean",
        2,
        "how far the predicted distributions are from the reference's: Kullback-Leibler "
        "divergence, mean over all predictions, in nats; 0 is the same",
        _total("kl_mean", ".2e"),
    ),
    Column("KL p99", 11, "the same, 99 % of the predictions are below", _total("kl_p99", ".2e")),
    Column("KL max", 12, "the same, the worst prediction", _total("kl_max", ".2e")),
    Column(
        "NMSE",
        10,
        "squared error of the logits over the squared logits of the reference; 0 is the same",
        _total("nmse", ".2e"),
    ),
    Column(
        "best code",
        3,
        "predictions whose most likely code is the reference's",
        _total("best_code", ".2%"),
    ),
    Column(
        "AR equal",
        7,
        "codes of level 0 that stay the same when speaking without randomness",
        _greedy("ar_equal"),
    ),
    Column(
        "NAR equal",
        8,
        "codes of the levels above that stay the same, over the reference's level 0",
        _greedy("nar_equal"),
    ),
    Column(
        "AR step, ms",
        5,
        "median time of one code of level 0, on this machine",
        _speed("ar_step", ".2f"),
    ),
    Column(
        "NAR pass, ms", 6, "median time of one pass over a level above", _speed("nar_pass", ".1f")
    ),
)


def _number(value: float, name: str) -> str:
    return f"{value:.2%}" if name == "best_code" else f"{value:.2e}"


def _markdown_table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|---" + "|---:" * (len(header) - 1) + "|"
    for row in rows:
        yield "| " + " | ".join(map(_cell, row)) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
