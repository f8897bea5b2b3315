"""What a run of `quantize` made, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from valle_convert import __version__
from valle_convert.errors import EXIT_FAILED_CHECK, EXIT_OK
from valle_convert.quantize.plan import Fallback, describe_fallbacks
from valle_convert.wording import plural


@dataclass(frozen=True)
class MadeFile:
    """The files of one type.

    Attributes:
        status: "planned" (dry run), "made" or "kept" (by --resume).
        n_bytes: of all files; predicted where they are only planned, 0 where that failed.
        sha256: of the main file; None where it is only planned.
        imatrix: the name of the importance matrix; None where none was used.
        faults: in what the files are not what their source is, in words.
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
    faults: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class MakeReport:
    """The result of a run.

    Attributes:
        source_sha256: of the main file of the source; None in a dry run.
        tool: name, version, digest of what quantized, and where it was found.
    """

    source: str
    source_sha256: str | None
    tool: Mapping[str, str]
    files: tuple[MadeFile, ...]
    notes: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def faults(self) -> tuple[str, ...]:
        return tuple(f"{file.name}: {fault}" for file in self.files for fault in file.faults)

    @property
    def exit_code(self) -> int:
        return EXIT_FAILED_CHECK if self.faults else EXIT_OK

    def verdict(self) -> str:
        kept = sum(file.status == "kept" for file in self.files)
        files = plural(len(self.files), "file")
        again = f", {kept} kept from an earlier run" if kept else ""
        if self.dry_run:
            sizes = [file.n_bytes for file in self.files]
            total = f", {plural(sum(sizes), 'byte')}" if all(sizes) else ""
            return f"PLANNED: {files}{total}{again}; nothing was written."
        if self.faults:
            return f"FAILED: {'; '.join(self.faults)}."
        return f"DONE: {files}{again}; keys, tokenizer and tensors are those of {self.source}."

    def facts(self) -> list[str]:
        """Notes, and what became of tensors that a type cannot hold."""
        tool = self.tool
        return [
            *self.notes,
            f"tool: {tool['name']} {tool['version']} ({tool['found']})",
            *(f"{one.kind}: importance matrix {one.imatrix}" for one in self.files if one.imatrix),
            *(
                f"{one.kind}: {describe_fallbacks(one.fallbacks)}"
                for one in self.files
                if one.fallbacks
            ),
            *(f"{one.kind}: {one.note}" for one in self.files if one.note),
        ]

    def table(self) -> tuple[list[str], list[list[str]]]:
        return ["type", "size, MiB", "bits/weight", "", "file"], [
            [
                one.kind,
                f"{one.n_bytes / 2**20:.2f}" if one.n_bytes else "?",
                f"{one.bits_per_weight:.3f}" if one.bits_per_weight else "?",
                "WRONG" if one.faults else one.status,
                one.name,
            ]
            for one in self.files
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "passed": not self.faults,
            "verdict": self.verdict(),
            "converter_version": __version__,
            "source": self.source,
            "source_sha256": self.source_sha256,
            "tool": dict(self.tool),
            "notes": list(self.notes),
            "files": [
                {
                    "name": one.name,
                    "type": one.kind,
                    "status": one.status,
                    "bytes": one.n_bytes or None,
                    "bits_per_weight": round(one.bits_per_weight, 4) or None,
                    "weights_by_type": dict(one.weights),
                    "fallbacks": [asdict(fallback) for fallback in one.fallbacks],
                    "sha256": one.sha256,
                    "imatrix": one.imatrix,
                    "seconds": round(one.seconds, 3),
                    "faults": list(one.faults),
                    "note": one.note,
                }
                for one in self.files
            ],
        }
