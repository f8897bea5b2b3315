"""What a run of `quantize` found, as plain values, JSON and Markdown (html.py draws it).

Frozen; nothing here computes but the verdict. data/report.schema.json is the schema of the
JSON form. A report's file tells its form by its extension; the tool's log is kept here too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from valle_convert.errors import InputError
from valle_convert.files import check_target, write_text_atomically
from valle_convert.quantize.limits import Verdict
from valle_convert.quantize.plan import Fallback, describe_fallbacks
from valle_convert.quantize.quality import ALL, Measured

SCHEMA_VERSION = 1


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
        verdict: None where nothing was measured.
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
    verdict: Verdict | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The entry as plain values."""
        limits = self.verdict.limits if self.verdict else None
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
            "limits": None
            if limits is None
            # JSON has no infinity: what is not limited is null.
            else {n: None if v == math.inf else v for n, v in asdict(limits).items()},
            "failures": None if self.verdict is None else list(self.verdict.failures),
            "note": self.note,
        }


@dataclass(frozen=True)
class QuantizeReport:
    """The result of a run.

    Attributes:
        source: the name of what was quantized.
        source_sha256: of it; None in a dry run.
        tool: name, version, digest of what quantized, and where it was found.
        recipe: name and reason.
        tensor_types: further ones.
        reference: what quality is measured against, in words; empty where it is not measured.
        utterances: what quality is measured on, in words.
        baseline: the file in F16 that sizes and speeds stand beside; None where not measured.
        files: in the order asked for.
        notes: what the reader should know of the run.
        dry_run: whether all of it is only planned.
    """

    source: str
    source_sha256: str | None
    tool: Mapping[str, str]
    recipe: Mapping[str, str]
    tensor_types: tuple[str, ...]
    reference: str
    utterances: str
    baseline: FileReport | None
    files: tuple[FileReport, ...]
    notes: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def failures(self) -> tuple[str, ...]:
        """What is beyond its limit, in words."""
        return tuple(
            f"{file.name}: {failure}"
            for file in self.files
            if file.verdict
            for failure in file.verdict.failures
        )

    @property
    def passed(self) -> bool:
        """Whether no file is beyond its limits."""
        return not self.failures

    def verdict(self) -> str:
        """One sentence."""
        n, kept = len(self.files), sum(file.status == "kept" for file in self.files)
        again = f", {kept} of them kept from before" if kept else ""
        if self.dry_run:
            sizes = [file.n_bytes for file in self.files]
            total = f", {sum(sizes):,} bytes" if all(sizes) else ""
            return f"PLANNED: {n} files{total}{again}; nothing was written."
        judged = [file for file in self.files if file.verdict]
        if not judged:
            return f"DONE: {n} files{again}; their quality was not measured."
        if self.passed:
            return f"PASSED: {len(judged)} of {n} files{again} keep their limits."
        return f"FAILED: {'; '.join(self.failures)}."

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "passed": self.passed,
            "verdict": self.verdict(),
            "source": self.source,
            "source_sha256": self.source_sha256,
            "tool": dict(self.tool),
            "recipe": dict(self.recipe),
            "tensor_types": list(self.tensor_types),
            "reference": self.reference,
            "sequences": self.utterances,
            "baseline": self.baseline.to_json() if self.baseline else None,
            "files": [file.to_json() for file in self.files],
            "notes": list(self.notes),
        }

    def summary(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the summary table; the baseline comes first."""
        rows = [*([self.baseline] if self.baseline else []), *self.files]
        base = self.baseline.n_bytes if self.baseline else 0
        header = ["type", "size, MiB", "bits/weight"]
        with_quality = any(row.measured for row in rows)
        if with_quality:
            header += ["of F16", "KL mean", "KL p99", "KL max", "NMSE", "best code"]
            header += ["AR equal", "NAR equal", "AR step, ms", "NAR pass, ms"]
        header.append("verdict")
        table: list[list[str]] = []
        for row in rows:
            line = [
                row.kind,
                f"{row.n_bytes / 2**20:.2f}" if row.n_bytes else "?",
                f"{row.bits_per_weight:.3f}" if row.bits_per_weight else "?",
            ]
            if with_quality:
                line.append(f"{row.n_bytes / base:.1%}" if base else "")
                line += _quality_cells(row)
            table.append([*line, _verdict_word(row)])
        return header, table

    def to_markdown(self) -> str:
        """A page for a CI job's summary."""
        return "\n".join(self._markdown()) + "\n"

    def _markdown(self) -> Iterator[str]:
        yield f"# Quantized: {self.source}"
        yield ""
        yield f"**{_cell(self.verdict())}**"
        yield ""
        yield from _markdown_table(*self.summary())
        yield ""
        yield from (f"- {_cell(line)}" for line in self.facts())
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
        measured = [file for file in self.files if file.measured]
        if measured:
            yield from ("", "## KL mean by head", "")
            yield from _markdown_table(*by_head(measured, "kl_mean"))
            yield from ("", "## Best code kept, by head", "")
            yield from _markdown_table(*by_head(measured, "best_code"))

    def facts(self) -> list[str]:
        """How it was done, a sentence each."""
        tool = self.tool
        facts = [f"tool: {tool['name']} {tool['version']} ({tool['found']})"]
        facts.append(f"recipe: {self.recipe['name']} ({self.recipe['reason']})")
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
            if file.verdict:
                limits = file.verdict.limits
                facts.append(
                    f"{file.kind} may have a mean KL of {limits.max_kl:.2e} and has to keep "
                    f"{limits.min_agreement:.1%} of the best codes ({limits.why})"
                )
        facts += [f"{file.kind}: {file.note}" for file in self.files if file.note]
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


def _quality_cells(row: FileReport) -> list[str]:
    if row.measured is None:
        return [""] * 9
    total, greedy, speed = row.measured.quality[ALL], row.measured.greedy, row.measured.speed
    return [
        *(f"{value:.2e}" for value in (total.kl_mean, total.kl_p99, total.kl_max, total.nmse)),
        f"{total.best_code:.2%}",
        f"{greedy.ar_equal:.1%}",
        f"{greedy.nar_equal:.1%}",
        f"{speed.ar_step:.2f}",
        f"{speed.nar_pass:.1f}",
    ]


def _verdict_word(row: FileReport) -> str:
    if row.verdict is None:
        return "" if row.status == "input" else row.status
    return "pass" if row.verdict.passed else "FAIL"


def _number(value: float, name: str) -> str:
    return f"{value:.2%}" if name == "best_code" else f"{value:.2e}"


def _markdown_table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|---" + "|---:" * (len(header) - 1) + "|"
    for row in rows:
        yield "| " + " | ".join(map(_cell, row)) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _to_html(report: QuantizeReport) -> str:
    from valle_convert.quantize.html import to_html

    return to_html(report)


FORMS: dict[str, Callable[[QuantizeReport], str]] = {
    ".json": lambda report: json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n",
    ".md": QuantizeReport.to_markdown,
    ".html": _to_html,
}


def check_reports(targets: Sequence[Path], *, sources: Sequence[Path], force: bool) -> None:
    """Refuse a report that cannot be written, before an hour of work.

    Raises:
        InputError: the extension is of no form, or the target must not be written.
        EnvironmentFault: matplotlib is missing, or the folder is not writable.
    """
    for target in targets:
        if target.suffix not in FORMS:
            raise InputError(
                f"The report {target} ends in {target.suffix or 'nothing'!r}, where one of "
                f"{', '.join(FORMS)} tells its form."
            )
        check_target(target, force=force, sources=sources)
        if target.suffix == ".html":
            from valle_convert.quantize.html import check_matplotlib

            check_matplotlib()


def write_reports(report: QuantizeReport, targets: Sequence[Path], *, force: bool) -> None:
    """Write the report in every form asked for."""
    for target in targets:
        write_text_atomically(target, FORMS[target.suffix](report), force=force)


class LogFile:
    """Keeps what llama-quantize said, run after run, and writes it at the end, whatever happens.

    Use it as a context manager; it gives the function that takes the lines of one run.
    """

    def __init__(self, target: Path | None, *, force: bool) -> None:
        self._target = target
        self._force = force
        self._lines: list[str] = []
        if target is not None:
            check_target(target, force=force)

    def __enter__(self) -> Callable[[list[str]], object]:
        return self._lines.extend

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._target is not None and self._lines:
            text = "\n".join(self._lines) + "\n"
            write_text_atomically(self._target, text, force=self._force)
