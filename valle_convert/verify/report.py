"""The report of a verification: what was checked, found and allowed, as Markdown and JSON."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from valle_convert.errors import EXIT_ENVIRONMENT, EXIT_FAILED_CHECK, EXIT_OK
from valle_convert.wording import markdown_table, plural

REPORT_SCHEMA_VERSION = 1
Outcome = Literal["passed", "failed", "not verified"]


@dataclass(frozen=True)
class Check:
    """One claim about a file, and whether it holds."""

    name: str  # such as `logits nar.3`
    passed: bool
    summary: str  # what was found
    values: Mapping[str, Any]
    limit: str = ""  # the limit and its reason; empty for claims of equality
    badness: float = 0.0  # distance to the limit, which is at 1; the worst check has the most

    @classmethod
    def failure(cls, name: str, summary: str) -> Self:
        return cls(name, passed=False, summary=summary, values={}, badness=math.inf)


@dataclass(frozen=True)
class Level:
    name: str
    checks: tuple[Check, ...]
    seconds: float
    skipped: str | None = None  # why it, or a part of it, could not run

    @property
    def passed(self) -> bool:
        return self.skipped is None and not self.failed

    @property
    def failed(self) -> bool:
        """Whether a check failed. A level that could not run has neither failed nor passed."""
        return any(not check.passed for check in self.checks)

    @property
    def worst(self) -> Check | None:
        """The first check that failed, else the one closest to its limit."""
        if not self.checks:
            return None
        return max(self.checks, key=lambda check: (not check.passed, check.badness))


@dataclass(frozen=True)
class Report:
    checkpoint: str
    file: str
    file_type: str  # the type most of the file's weights have, such as F16
    levels: tuple[Level, ...]
    notes: tuple[str, ...] = ()  # remarks on the run

    @classmethod
    def of_one(
        cls, checkpoint: object, file: object, check: Check, level: str, file_type: str = "none"
    ) -> Self:
        """A report of one failed check that makes all others pointless."""
        return cls(str(checkpoint), str(file), file_type, (Level(level, (check,), 0.0),))

    @property
    def outcome(self) -> Outcome:
        """`passed` only if every requested check ran."""
        if self.failures:
            return "failed"
        complete = all(level.skipped is None for level in self.levels)
        return (
            "passed" if complete and any(level.checks for level in self.levels) else "not verified"
        )

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed, 3 not verified."""
        return {"passed": EXIT_OK, "failed": EXIT_FAILED_CHECK}.get(self.outcome, EXIT_ENVIRONMENT)

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(c for level in self.levels for c in level.checks if not c.passed)

    def verdict(self) -> str:
        """One sentence: the verdict, and the worst case if a check failed."""
        reasons: dict[str, list[str]] = {}
        for level in self.levels:
            if level.skipped:
                part = f"{level.name} in part" if level.checks else level.name
                reasons.setdefault(level.skipped, []).append(part)
        missing = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
        left_out = f" (not run: {missing})" if missing else ""
        n = sum(len(level.checks) for level in self.levels)
        ran = ", ".join(level.name for level in self.levels if level.checks)
        if self.outcome == "passed":
            return f"PASSED: {plural(n, 'check')} ({ran}) of {self.file} against {self.checkpoint}."
        if self.outcome == "not verified":
            passed = f"; {plural(n, 'other check')} passed ({ran})" if ran else ""
            return (
                f"NOT VERIFIED: {self.file} against {self.checkpoint}: {missing or 'nothing ran'}"
                f"{passed}."
            )
        worst = max(self.failures, key=lambda check: check.badness)
        said = worst.summary + (f", allowed: {worst.limit}" if worst.limit else "")
        end = "" if said.endswith((".", "?")) else "."  # of a sentence that a reader said
        return (
            f"FAILED: {len(self.failures)} of {plural(n, 'check')} of {self.file} against "
            f"{self.checkpoint}{left_out}; the worst is {worst.name}: {said}{end}"
        )

    def to_json(self) -> dict[str, Any]:
        """The report as plain values; docs/verdict.md describes them."""
        return {
            "schema_version": REPORT_SCHEMA_VERSION,
            "passed": self.passed,
            "outcome": self.outcome,
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
                        {key: value for key, value in vars(check).items() if key != "badness"}
                        for check in level.checks
                    ],
                }
                for level in self.levels
            ],
        }

    def to_markdown(self) -> str:
        lines = ["# Verification", "", f"**{self.verdict()}**", ""]
        lines += [f"File type: {self.file_type}.", ""]
        lines += [f"- {note}" for note in self.notes]
        for level in self.levels:
            lines += ["", f"## {level.name} ({level.seconds:.1f} s)", ""]
            if level.skipped:
                lines += [f"**Not run: {level.skipped}**", ""]
            rows = [
                (check.name, "pass" if check.passed else "**FAIL**", check.summary, check.limit)
                for check in level.checks
            ]
            lines.append(markdown_table(("check", "verdict", "found", "allowed"), rows))
        return "\n".join(lines) + "\n"
