"""Results that can be trusted without reading code: what was checked, found and allowed.

A `Report` is frozen, and shows itself as text, Markdown or JSON. Nothing here computes;
nothing here prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

REPORT_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Check:
    """One claim about a file, and whether it holds.

    Attributes:
        name: what was looked at, such as `logits nar.3`.
        passed: the verdict.
        summary: what was found, in words and numbers.
        values: the numbers themselves, for programs.
        limit: what was allowed, and where that comes from; empty for claims of equality.
        badness: how far from the limit, 1 being at it; the worst check is the one with most.
    """

    name: str
    passed: bool
    summary: str
    values: Mapping[str, Any]
    limit: str = ""
    badness: float = 0.0


@dataclass(frozen=True)
class Level:
    """One level of verification: its checks, or why it was skipped."""

    name: str
    checks: tuple[Check, ...]
    seconds: float
    skipped: str | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing failed. A skipped level has not failed, and has not passed either."""
        return all(check.passed for check in self.checks)

    @property
    def worst(self) -> Check | None:
        """The first check that failed, else the one closest to its limit."""
        if not self.checks:
            return None
        return max(self.checks, key=lambda check: (not check.passed, check.badness))


@dataclass(frozen=True)
class Report:
    """The verdict on a converted file.

    Attributes:
        checkpoint, file: their paths.
        file_type: the type most of the file's weights have, such as F16.
        levels: in the order they ran.
        notes: what the user should know of the run itself.
    """

    checkpoint: str
    file: str
    file_type: str
    levels: tuple[Level, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(level.passed for level in self.levels)

    @property
    def failures(self) -> tuple[Check, ...]:
        """Every check that failed."""
        return tuple(c for level in self.levels for c in level.checks if not c.passed)

    def verdict(self) -> str:
        """One sentence: the verdict, and the worst case by name where it is no."""
        skipped = [level.name for level in self.levels if level.skipped]
        left_out = f" ({', '.join(skipped)} skipped)" if skipped else ""
        n = sum(len(level.checks) for level in self.levels)
        if self.passed:
            return f"PASSED: {n} checks of {self.file} against {self.checkpoint}{left_out}."
        worst = max(self.failures, key=lambda check: check.badness)
        return (
            f"FAILED: {len(self.failures)} of {n} checks of {self.file} against {self.checkpoint}"
            f"{left_out}; the worst is {worst.name}: {worst.summary}"
            f"{f', allowed: {worst.limit}' if worst.limit else ''}."
        )

    def to_json(self) -> dict[str, Any]:
        """The report as plain values; docs/report-schema.md describes them."""
        return {
            "schema_version": REPORT_SCHEMA_VERSION,
            "passed": self.passed,
            "verdict": self.verdict(),
            "checkpoint": self.checkpoint,
            "file": self.file,
            "file_type": self.file_type,
            "notes": list(self.notes),
            "levels": [
                {
                    "name": level.name,
                    "passed": level.passed,
                    "skipped": level.skipped,
                    "seconds": round(level.seconds, 3),
                    "checks": [
                        {
                            "name": check.name,
                            "passed": check.passed,
                            "summary": check.summary,
                            "limit": check.limit,
                            "values": dict(check.values),
                        }
                        for check in level.checks
                    ],
                }
                for level in self.levels
            ],
        }

    def to_markdown(self) -> str:
        """A page for a CI job's summary."""
        lines = ["# Verification", "", f"**{self.verdict()}**", ""]
        lines += [f"File type: {self.file_type}.", ""]
        lines += [f"- {note}" for note in self.notes]
        for level in self.levels:
            lines += ["", f"## {level.name} ({level.seconds:.1f} s)", ""]
            if level.skipped:
                lines.append(f"Skipped: {level.skipped}")
                continue
            lines += ["| check | verdict | found | allowed |", "|---|---|---|---|"]
            lines += [
                f"| {_cell(check.name)} | {'pass' if check.passed else '**FAIL**'} "
                f"| {_cell(check.summary)} | {_cell(check.limit)} |"
                for check in level.checks
            ]
        return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
