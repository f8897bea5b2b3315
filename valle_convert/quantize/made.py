"""What a run of `quantize` made, as plain values."""

from __future__ import annotations

from typing import Any

import msgspec

from valle_convert import __version__
from valle_convert.errors import EXIT_FAILED_CHECK, EXIT_OK
from valle_convert.files import valid_utf8
from valle_convert.quantize.plan import BundlePlan, Fallback, describe_fallbacks
from valle_convert.quantize.types import weights_of
from valle_convert.wording import plural

_NAMES = {"kind": "type", "n_bytes": "bytes", "weights": "weights_by_type"}


class MadeFile(msgspec.Struct, frozen=True, rename=_NAMES):
    """The files of one type.

    Attributes:
        status: "planned" (dry run), "made" or "kept" (by --resume).
        n_bytes: of all files; predicted if they are only planned, None if that failed.
        sha256: of the main file; None if it is only planned.
        imatrix: the name of the importance matrix, if one was used.
        faults: how the files differ from their source, in words.
    """

    name: str
    kind: str
    status: str
    n_bytes: int | None
    bits_per_weight: float | None
    weights: dict[str, int]
    fallbacks: tuple[Fallback, ...] = ()
    sha256: str | None = None
    imatrix: str | None = None
    seconds: float = 0.0
    faults: tuple[str, ...] = ()
    note: str = ""

    @classmethod
    def planned(cls, plan: BundlePlan) -> MadeFile:
        """What is known before the files are made."""
        n_files = len(plan.paths)
        return cls(
            name=valid_utf8(plan.path.name),
            kind=plan.kind.name,
            status="kept" if plan.kept else "planned",
            n_bytes=plan.n_bytes,
            **weights_of(plan.tensors),
            fallbacks=plan.fallbacks,
            imatrix=plan.imatrices[0].name if plan.imatrices else None,
            note=f"{n_files} files" if n_files > 1 else "",
        )


class MakeReport(msgspec.Struct, frozen=True):
    """The result of a run.

    Attributes:
        source_sha256: of the main file of the source; None in a dry run.
        tool: name, version, digest of what quantized, and where it was found.
    """

    source: str
    source_sha256: str | None
    tool: dict[str, str]
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
            sizes = [file.n_bytes for file in self.files if file.n_bytes is not None]
            is_known = len(sizes) == len(self.files)
            total = f", {plural(sum(sizes), 'byte')}" if is_known else ""
            return f"PLANNED: {files}{total}{again}; nothing was written."
        if self.faults:
            return f"FAILED: {'; '.join(self.faults)}."
        return f"DONE: {files}{again}; keys, tokenizer and tensors are those of {self.source}."

    def facts(self) -> list[str]:
        """Notes, and what became of tensors that a type cannot hold."""
        tool, facts = self.tool, list(self.notes)
        facts.append(f"tool: {tool['name']} {tool['version']} ({tool['found']})")
        for one in self.files:
            if one.imatrix:
                facts.append(f"{one.kind}: importance matrix {one.imatrix}")
            if one.fallbacks:
                facts.append(f"{one.kind}: {describe_fallbacks(one.fallbacks)}")
            if one.note:
                facts.append(f"{one.kind}: {one.note}")
        return facts

    def table(self) -> tuple[list[str], list[list[str]]]:
        return ["type", "size, MiB", "bits/weight", "", "file"], [
            [
                one.kind,
                "?" if one.n_bytes is None else f"{one.n_bytes / 2**20:.2f}",
                "?" if one.bits_per_weight is None else f"{one.bits_per_weight:.3f}",
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
            **msgspec.to_builtins(self),
        }
