"""What a run of `evaluate` found, as plain values, JSON and Markdown (html.py draws it).

Frozen; nothing here computes but the verdict. forms.py writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from valle_convert import __version__
from valle_convert.errors import EXIT_ENVIRONMENT, EXIT_FAILED_CHECK, EXIT_OK
from valle_convert.listening.listen import MEASURES, NLL, RETRIEVAL, WORDS, Listened, Measure
from valle_convert.quantize.advice import Advice, Choice, advise, nearness
from valle_convert.quantize.limits import Limits
from valle_convert.quantize.listening import (
    Listening,
    differences_of,
    listened_to_json,
    means_of,
    places_of,
)
from valle_convert.quantize.measurements import Outcome, TensorReport, Verified
from valle_convert.quantize.quality import ALL, Measured
from valle_convert.wording import plural


@dataclass(frozen=True)
class FileReport:
    """One file.

    Attributes:
        sha256: of the main file; None where it is not known.
        tool: what quantized it, by its keys; empty where they do not say.
        imatrix: the name of the importance matrix; None where none was used.
        measured: quality and speed; None where they were not measured.
        verified: whether it is right at all; None where that was not looked at.
        listened: what it says; None where nobody listened.
        tensors: its matrices; empty where they were not measured.
        beyond_noise: in what it says worse than F16, in words; None where nobody listened.
        limits: what the user allows; None where nothing is limited.
        failures: what is beyond the limits, in words.
        is_baseline: whether it is what the others are compared with.
    """

    name: str
    kind: str
    n_bytes: int
    bits_per_weight: float
    weights: Mapping[str, int]
    sha256: str | None = None
    tool: str = ""
    imatrix: str | None = None
    measured: Measured | None = None
    verified: Verified | None = None
    listened: Listened | None = None
    beyond_noise: tuple[str, ...] | None = None
    tensors: tuple[TensorReport, ...] = ()
    limits: Limits | None = None
    failures: tuple[str, ...] = ()
    note: str = ""
    is_baseline: bool = False

    @property
    def is_wrong(self) -> bool:
        """Whether it was found not to hold what it says."""
        return self.verified is not None and self.verified.outcome == "failed"

    @property
    def kl(self) -> float | None:
        """Mean divergence over all predictions, in nats; None where it was not measured."""
        return None if self.measured is None else self.measured.quality[ALL].kl_mean

    @property
    def top_1(self) -> float | None:
        """Part of all predictions whose most likely code is the reference's; likewise."""
        return None if self.measured is None else self.measured.quality[ALL].best_code

    @property
    def faults(self) -> tuple[str, ...]:
        """Why it does not pass: it is wrong, or loses more than it may."""
        wrong = (_clause(self.verified.verdict),) if self.verified and self.is_wrong else ()
        return wrong + self.failures

    @property
    def outcome(self) -> Outcome:
        if self.faults:
            return "failed"
        is_open = self.open_questions or not (self.verified or self.limits)
        return "not judged" if is_open else "passed"

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
            found.append(_clause(self.verified.verdict))
        return tuple(found)

    def to_json(self, base: Listened | None = None) -> dict[str, Any]:
        """The entry as plain values; what is said is compared with that of another file, `base`."""
        plain: dict[str, Any] = asdict(replace(self, listened=None, verified=None))
        for name in ("kind", "n_bytes", "weights", "is_baseline", "measured", "tensors"):
            del plain[name]
        measured = {} if self.measured is None else asdict(self.measured)
        return plain | {
            "type": self.kind,
            "bytes": self.n_bytes,
            "weights_by_type": dict(self.weights),
            "quality": measured.get("quality"),
            "greedy": measured.get("greedy"),
            "speed": measured.get("speed"),
            "verified": None if self.verified is None else msgspec.structs.asdict(self.verified),
            "tensors": [
                {
                    "part": one.part,
                    "name": one.name,
                    "type": one.kind,
                    "bits": one.bits,
                    "snr_db": one.snr_db,
                }
                for one in self.tensors
            ],
            "listened": None if self.listened is None else listened_to_json(self.listened, base),
            "failures": list(self.faults),
        }


@dataclass(frozen=True)
class EvaluationReport:
    """The result of a run.

    Attributes:
        source: the name of what files are compared with.
        reference: the same, and how it was computed, in words.
        utterances: what quality is measured on, in words.
        n_measured: how many different texts are in them.
        baseline: the file in F16 that sizes and speeds stand beside.
        notes: what the reader should know of the run.
        listening: what files that spoke are compared with; None where nobody listened.
        command: that measures the same again.
        checkpoint: name and digest; None where none was given.
    """

    source: str
    reference: str
    utterances: str
    baseline: FileReport | None
    files: tuple[FileReport, ...]
    notes: tuple[str, ...] = ()
    listening: Listening | None = None
    command: str = ""
    checkpoint: Mapping[str, str] | None = None
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    n_measured: int = 0

    @property
    def n_texts(self) -> int:
        """How many different texts files were measured over, and spoke where they did."""
        heard = self.listening
        return self.n_measured if heard is None else min(self.n_measured, heard.n_texts)

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
        return not self.faults and not self.open_questions

    @property
    def exit_code(self) -> int:
        """What a program ends with: 0 passed, 1 failed, 3 not measured."""
        return EXIT_OK if self.passed else EXIT_FAILED_CHECK if self.faults else EXIT_ENVIRONMENT

    def advice(self) -> Advice:
        """Which file to take, by what was measured."""
        return advice_on(self.files, self.n_texts)

    def recommendation(self) -> str:
        """The same in a sentence; empty where nothing was measured."""
        return self.advice().sentence if any(file.measured for file in self.files) else ""

    def verdict(self) -> str:
        """Whether the files are right, in a sentence, and how near they are, in another."""
        if self.faults:
            return f"FAILED: {'; '.join(self.faults)}."
        if self.open_questions:
            return f"NOT MEASURED: {'; '.join(self.open_questions)}."
        right = sum(file.verified is not None for file in self.files)
        limited = sum(file.limits is not None for file in self.files)
        near = ", ".join(
            f"{file.kind} {nearness(file.kl)}" for file in self.files if file.kl is not None
        )
        near = f" Distance from the reference: {near}." if near else ""
        files = plural(len(self.files), "file")
        if not right and not limited:
            return f"DONE: {files}; judged by nothing: no checkpoint and no limits.{near}"
        words = [f"{right} right by their checkpoint"] if right else []
        words.append(f"{limited} within the limits given" if limited else "no limits were given")
        return f"PASSED: {files}; {', '.join(words)}.{near}"

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "passed": self.passed,
            "verdict": self.verdict(),
            "date": self.date,
            "converter_version": __version__,
            "checkpoint": None if self.checkpoint is None else dict(self.checkpoint),
            "source": self.source,
            "reference": self.reference,
            "sequences": self.utterances,
            "baseline": self.baseline.to_json() if self.baseline else None,
            "files": [
                file.to_json(self.listening.baseline if self.listening else None)
                for file in self.files
            ],
            "listening": None if self.listening is None else self.listening.to_json(),
            "different_texts": self.n_texts,
            "recommended": None if (best := self.advice().take) is None else best.name,
            "recommendation": self.recommendation() or None,
            "command": self.command,
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

    def summary(self, width: int | None = None) -> Table:
        """The summary table; see `columns`."""
        return self._table(self.columns(width))

    def answer(self) -> Table:
        """What decides which file to take."""
        return self._table([one for one in self.columns() if one.is_answer])

    def details(self) -> Table:
        shown = self.columns()
        return self._table([shown[0], *(one for one in shown if not one.is_answer)])

    def _table(self, shown: Sequence[Column]) -> Table:
        return [one.name for one in shown], [
            [one.cell(self, row) for one in shown] for row in self.rows()
        ]

    def legend(self) -> list[str]:
        """What each column means, a line each."""
        return [f"{one.name}: {one.meaning}" for one in self.columns()]

    def to_markdown(self) -> str:
        return "\n".join(self._markdown()) + "\n"

    def _markdown(self) -> Iterator[str]:
        yield f"# {TITLE}: {self.source}"
        yield ""
        yield f"**{_cell(self.verdict())}**"
        yield ""
        if self.recommendation():
            yield from (_cell(self.recommendation()), "")
        yield from markdown_table(*self.answer())
        yield ""
        yield from (f"- {_cell(line)}" for line in self.facts() if line != f"again: {self.command}")
        if self.command:
            yield from ("", "## Command", "", "```sh", self.command, "```")
        yield from ("", f"## {DETAILS_TITLE}", "")
        yield from markdown_table(*self.details())
        yield from ("", "## What the columns mean", "")
        yield from (f"- {_cell(line)}" for line in self.legend())
        if self.listening is not None:
            for title, table in self.heard():
                yield from ("", f"## {title}", "", *markdown_table(*table))
            yield ""
            yield from (f"- {_cell(line)}" for line in self.heard_legend())
        measured = [file for file in self.files if file.measured]
        if measured:
            for title, value in BY_HEAD.items():
                yield from ("", f"## {title}", "", *markdown_table(*by_head(measured, value)))

    def heard(self) -> Iterator[tuple[str, Table]]:
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
        yield "What is said", means_of(files)
        yield "What is said: difference to F16", differences_of(files, listening.baseline)
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
            "means, with 95 % intervals by bootstrap over the sentences; for the difference to F16 "
            "the same sentences are drawn together. «F16 again» is the noise floor: nothing but "
            "seed and threads differ"
        )
        yield f"recordings: {listening.references}; codec: {listening.codec}"
        if listening.recogniser:
            yield f"recogniser: {listening.recogniser}"

    def facts(self) -> list[str]:
        """What the reader has to know, and how it was done, a sentence each."""
        facts = [*self.notes, f"{self.date}, valle-convert {__version__}"]
        if self.checkpoint is not None:
            facts.append(
                f"checkpoint: {self.checkpoint['name']}, sha256 {self.checkpoint['sha256']}"
            )
        facts += [f"measured against {self.reference}", f"over {self.utterances}"]
        for tool in dict.fromkeys(file.tool for file in self.files if file.tool):
            facts.append(f"quantized by {tool}")
        facts += [
            f"{file.kind}: importance matrix {file.imatrix}" for file in self.files if file.imatrix
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
        return facts


def advice_on(files: Sequence[FileReport], n_texts: int) -> Advice:
    """Which of some files to take; see `advise`."""
    choices = [
        Choice(
            file.kind,
            file.n_bytes,
            file.kl,
            file.top_1,
            passes=not file.faults,
            is_heard_apart=bool(file.beyond_noise),
        )
        for file in files
    ]
    heard = any(file.beyond_noise is not None for file in files)
    return advise(choices, n_texts, heard=heard)


def _clause(sentence: str) -> str:
    """Words that others follow."""
    return sentence.rstrip(".")


def by_head(files: Sequence[FileReport], value: str) -> Table:
    """One value of the quality of each measured file, a column a head."""
    qualities = [(file.kind, file.measured.quality) for file in files if file.measured]
    heads = [*(head for head in qualities[0][1] if head != ALL), ALL]
    rows = [
        [
            kind,
            *(
                _number(getattr(quality[head], value), value) if head in quality else ""
                for head in heads
            ),
        ]
        for kind, quality in qualities
    ]
    return ["type", *heads], rows


@dataclass(frozen=True)
class Column:
    """A column of the summary table.

    Attributes:
        rank: the highest goes first where a terminal is narrow.
        cell: what stands in the row of a file.
        is_answer: whether it decides which file to take.
    """

    name: str
    rank: int
    meaning: str
    cell: Callable[[EvaluationReport, FileReport], str]
    is_answer: bool = False


def _total(name: str, form: str) -> Callable[[EvaluationReport, FileReport], str]:
    return lambda _report, row: (
        format(getattr(row.measured.quality[ALL], name), form) if row.measured else ""
    )


def _greedy(name: str) -> Callable[[EvaluationReport, FileReport], str]:
    return lambda _report, row: (
        format(getattr(row.measured.greedy, name), ".1%") if row.measured else ""
    )


def _speed(name: str, form: str) -> Callable[[EvaluationReport, FileReport], str]:
    return lambda _report, row: (
        format(getattr(row.measured.speed, name), form) if row.measured else ""
    )


def _heard(measure: Measure) -> Callable[[EvaluationReport, FileReport], str]:
    def cell(report: EvaluationReport, row: FileReport) -> str:
        listened = row.listened
        if row.is_baseline and report.listening is not None:
            listened = report.listening.baseline
        tally = listened.total(measure) if listened else None
        if tally is None:
            return ""
        return f"{tally.mean:.3f}" if measure.unit else f"{tally.mean:.1%}"

    return cell


def _of_input(report: EvaluationReport, row: FileReport) -> str:
    base = report.baseline
    return f"{row.n_bytes / base.n_bytes:.1%}" if base else ""


def _verdict_word(row: FileReport) -> str:
    if row.is_baseline:
        return "baseline"
    if row.is_wrong:
        return WRONG
    if row.failures:
        return BEYOND
    if row.open_questions:
        return "not measured"
    words = ["right"] if row.verified else []
    words += ["within limits"] if row.limits else []
    return ", ".join(words) or "not judged"


def _nearness_word(_report: EvaluationReport, row: FileReport) -> str:
    return "" if row.kl is None or row.is_baseline else nearness(row.kl)


#: A header, and rows of cells.
Table = tuple[list[str], list[list[str]]]

WRONG, BEYOND = "WRONG", "BEYOND LIMITS"
#: What a report begins with.
TITLE = "Evaluated"
DETAILS_TITLE = "All other measurements"
#: What is shown by head, by title.
BY_HEAD = {"KL mean by head": "kl_mean", "Top-1 agreement by head": "best_code"}
_MIN_COLUMNS = 3
COLUMNS = (
    Column(
        "type",
        0,
        "of the file, as llama-quantize spells it",
        lambda _report, row: row.kind,
        is_answer=True,
    ),
    Column(
        "verdict",
        0,
        "right: the file holds its checkpoint's weights, and llama.cpp computes what they mean; "
        "within limits: it loses no more than the user allows. Neither says how much that is",
        lambda _report, row: _verdict_word(row),
        is_answer=True,
    ),
    Column(
        "distance",
        2,
        "from the reference, by the mean KL: very close up to 0.001, close up to 0.01, changed up "
        "to 0.1, far above",
        _nearness_word,
        is_answer=True,
    ),
    Column(
        "size, MiB",
        1,
        "of the file",
        lambda _report, row: f"{row.n_bytes / 2**20:.2f}",
        is_answer=True,
    ),
    Column(
        "bits/weight",
        4,
        "size of the weights over their number",
        lambda _report, row: f"{row.bits_per_weight:.3f}",
    ),
    *(Column(one.title, 2, one.meaning, _heard(one)) for one in (NLL, RETRIEVAL, WORDS)),
    Column("of F16", 9, "size over that of the first row", _of_input),
    Column(
        "KL mean",
        2,
        "how far the predicted distributions are from the reference's: Kullback-Leibler "
        "divergence, mean over all predictions, in nats; 0 is the same",
        _total("kl_mean", ".2e"),
        is_answer=True,
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
        "top-1",
        3,
        "agreement: predictions whose most likely code is the reference's",
        _total("best_code", ".2%"),
        is_answer=True,
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


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|---" + "|---:" * (len(header) - 1) + "|"
    for row in rows:
        yield "| " + " | ".join(map(_cell, row)) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
