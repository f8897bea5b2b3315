"""`quantize`: plan everything, make every file, compare each with its source.

source    the GGUF files to quantize; a checkpoint is converted first
plan      a TypePlan for each type, from llama.cpp's own dry run; fallbacks and disk are checked
folder    which files of earlier runs are kept
make      one type after the other; the manifest is correct after each
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import msgspec

from valle_convert import __version__
from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import EXIT_FAILED_CHECK, EXIT_OK, InputError
from valle_convert.families.bundle import paths_of
from valle_convert.files import (
    check_free_space,
    locked_folder,
    made_folder,
    protected,
    valid_utf8,
)
from valle_convert.gguf_file.read import GgufFile, TensorInfo
from valle_convert.quantize.folder import check_targets, known_files, others_in, with_kept
from valle_convert.quantize.make import Made, faults_of, imatrix_entry, make_files
from valle_convert.quantize.manifest import ManifestFile, write_manifest
from valle_convert.quantize.matrices import Matrices, notes_on
from valle_convert.quantize.options import FolderOptions, MakeOptions, RunLog
from valle_convert.quantize.plan import (
    Fallback,
    TypePlan,
    describe_fallbacks,
    file_name,
    plan_types,
)
from valle_convert.quantize.source import Scratch, SourceBundle, open_source
from valle_convert.quantize.tool import find_quantizer
from valle_convert.quantize.types import bits_and_weights, matches
from valle_convert.wording import plural

_NAMES = {"kind": "type", "n_bytes": "bytes", "n_files": "files", "weights": "weights_by_type"}


class MadeFile(msgspec.Struct, frozen=True, rename=_NAMES):
    name: str
    kind: str
    n_files: int
    status: str  # "planned" (dry run), "made" or "kept" (by --resume)
    n_bytes: int | None  # of all files; None if a planned size could not be predicted
    bits_per_weight: float | None
    weights: dict[str, int]
    fallbacks: tuple[Fallback, ...] = ()
    sha256: str | None = None  # of the main file; None if it is only planned
    imatrix: str | None = None  # the name of the importance matrix, if one was used
    seconds: float = 0.0
    faults: tuple[str, ...] = ()  # how the files differ from their source, in words

    @classmethod
    def planned(cls, plan: TypePlan) -> Self:
        return cls(
            name=valid_utf8(plan.path.name),
            kind=plan.kind.name,
            n_files=len(plan.paths),
            status="kept" if plan.kept else "planned",
            n_bytes=plan.n_bytes,
            **bits_and_weights(plan.tensors),
            fallbacks=plan.fallbacks,
            imatrix=plan.imatrices[0].name if plan.imatrices else None,
        )


class MakeReport(msgspec.Struct, frozen=True):
    source: str
    source_sha256: str | None  # of the main file; None in a dry run
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
        tool, facts = self.tool, list(self.notes)
        facts.append(f"tool: {tool['name']} {tool['version']} ({tool['found']})")
        for one in self.files:
            if one.imatrix:
                facts.append(f"{one.kind}: importance matrix {one.imatrix}")
            if one.fallbacks:
                facts.append(f"{one.kind}: {describe_fallbacks(one.fallbacks)}")
        return facts

    def table(self) -> tuple[list[str], list[list[str]]]:
        return ["type", "size, MiB", "bits/weight", "", "file"], [
            [
                one.kind,
                "?" if one.n_bytes is None else f"{one.n_bytes / 2**20:.2f}",
                "?" if one.bits_per_weight is None else f"{one.bits_per_weight:.3f}",
                "WRONG" if one.faults else one.status,
                one.name if one.n_files == 1 else f"{one.name} ({one.n_files} files)",
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


def quantize(
    path: Path,
    out: Path,
    options: MakeOptions,
    existing: FolderOptions | None = None,
    *,
    checkpoint: Checkpoint | None = None,
    log: RunLog | None = None,
) -> MakeReport:
    log, existing = log or RunLog(), existing or FolderOptions()
    folder = None if out.suffix == ".gguf" else out
    _check_options(out, options, existing)
    quantizer = find_quantizer(options.tool)
    place = Path(tempfile.gettempdir()) if existing.dry_run else folder or out.parent
    with protected(_inputs_of(path, checkpoint, options)), ExitStack() as held:
        source = open_source(path, checkpoint, held.enter_context(Scratch(place)), log)
        if folder is not None and not existing.dry_run:
            held.enter_context(made_folder(folder, "for one file, give one that ends in .gguf."))
            held.enter_context(locked_folder(folder))
        listed = {} if folder is None else known_files(folder, force=existing.force)
        names = [file_name(source, kind.name, options) for kind in options.types]
        mains = [out if folder is None else folder / name for name in names]
        targets = [paths_of(main, source.given.files) for main in mains]
        if folder is None or folder.is_dir():
            every = [path for paths in targets for path in paths.values()]
            check_targets(every, source, listed, existing)
        matrices = Matrices.of(source, folder, options, existing)
        if not existing.dry_run:
            _ = [one.digest for one in source.units.values()]  # beside the plan and the program
        plans = plan_types(quantizer, source, targets, options, matrices)
        plans = [with_kept(one, source, listed, existing) for one in plans]
        report = MakeReport(
            source=source.name,
            source_sha256=None,
            tool=plans[0].main.tool | {"found": quantizer.how},
            files=tuple(map(MadeFile.planned, plans)),
            notes=(*_notes(source, plans, options), *notes_on(source, matrices.given)),
            dry_run=existing.dry_run,
        )
        if existing.dry_run:
            return report
        _check_space(source, plans, folder or out.parent)
        if any(plan.imatrices for plan in plans):
            real = matrices.real(log)
            if not matrices.given:
                plans = [plan.with_imatrices(real) for plan in plans]
                plans = [with_kept(plan, source, listed, existing) for plan in plans]
            if folder is not None and matrices.calibration is not None:
                listed |= {one.name: imatrix_entry(one) for one in real.values()}
                write_manifest(folder, listed.values())  # without files that have become invalid
        made = []
        for one in plans:
            made.append(_make_or_keep(one, source, listed, existing, log))
            if folder is not None and not one.kept:
                write_manifest(folder, listed.values())
        notes = () if folder is None else others_in(folder, listed, plans)
        return msgspec.structs.replace(
            report,
            source_sha256=source.main.sha256,
            files=tuple(made),
            notes=(*report.notes, *notes),
        )


def _check_options(out: Path, options: MakeOptions, existing: FolderOptions) -> None:
    single = out.suffix == ".gguf"
    if single and len(options.types) != 1:
        raise InputError(
            f"{out} is one file, but {len(options.types)} types are given; give a folder."
        )
    if single and existing.resume:
        raise InputError("--resume needs the manifest of a folder; give a folder for the output.")


def _inputs_of(path: Path, checkpoint: Checkpoint | None, options: MakeOptions) -> Iterator[Path]:
    yield path
    yield from checkpoint.inputs if checkpoint is not None else ()
    yield from options.inputs
    if options.imatrix_path is not None:
        yield options.imatrix_path


def _make_or_keep(
    plan: TypePlan,
    source: SourceBundle,
    listed: dict[str, ManifestFile],
    existing: FolderOptions,
    log: RunLog,
) -> MadeFile:
    """Make or keep the files of a type, and compare them with their source."""
    start, name = time.perf_counter(), plan.path.name
    n_others = len(plan.paths) - 1
    others = f" and {plural(n_others, 'file')} beside it" if n_others else ""
    if plan.kept:
        log.message(f"kept {name}{others}: source, type, tool and options are the same")
        files = {part: GgufFile(path, allow_part=True) for part, path in plan.paths.items()}
        made = Made(files, plan.kept, faults_of(source, files))
    else:
        if plan.reason:
            log.message(f"making {name} again: {plan.reason}")
        made = make_files(plan, source, force=existing.force, log=log)
        listed |= {entry.name: entry for entry in made.entries}
    tensors: list[TensorInfo] = []
    fallbacks: list[Fallback] = []
    for unit, planned in plan.units.items():
        of_unit = list(made.files[unit.part].tensors.values())
        tensors += of_unit
        fallbacks += planned.fallbacks(of_unit)
    result = msgspec.structs.replace(
        MadeFile.planned(plan),
        status="kept" if plan.kept else "made",
        n_bytes=sum(entry.n_bytes for entry in made.entries),
        **bits_and_weights(tensors),
        fallbacks=tuple(fallbacks),
        sha256=made.entries[0].sha256,
        faults=made.faults,
        seconds=time.perf_counter() - start,
    )
    if not plan.kept:
        log.message(
            f"wrote {plan.path}{others}: {result.n_bytes:,} bytes, "
            f"{result.bits_per_weight:.2f} bits a weight, {result.seconds:.1f} s"
        )
    return result


def _notes(source: SourceBundle, plans: Sequence[TypePlan], options: MakeOptions) -> Iterator[str]:
    yield from (plan.kind.note for plan in plans if plan.kind.note)
    names = {name for file in source.units.values() for name in file.header.tensors}
    fallen = {one.tensor for plan in plans for one in plan.fallbacks}
    types = {(one.name, one.ggml_type.name) for plan in plans for one in plan.tensors}
    for given in dict.fromkeys(options.tensor_types):
        matched = {name for name in names if matches(given, name)}
        kind = given.rpartition("=")[2].upper()
        if not matched:
            yield f"the tensor type {given} matches no tensor of {source.name}"
        elif types and not matched & fallen and not any((one, kind) in types for one in matched):
            yield f"the tensor type {given} changes no tensor of {source.name}"
    unknown = [one for plan in plans for one in plan.units.values() if one.tensors is None]
    if unknown:
        kinds = ", ".join(dict.fromkeys(one.kind.name for one in unknown))
        yield (
            f"the log of {unknown[0].tool_version} has an unknown format, so "
            f"types and sizes of {kinds} were not predicted; those of the result are "
            "read from its files"
        )


def _check_space(source: SourceBundle, plans: Sequence[TypePlan], folder: Path) -> None:
    new = [plan for plan in plans if not plan.kept]
    n_bytes = source.bundle.n_bytes
    sizes = [n_bytes if plan.n_bytes is None else plan.n_bytes for plan in new]
    needed = sum(sizes) + max(sizes, default=0)
    name = f"{source.name} in {len(sizes)} types" if len(sizes) != 1 else "the file"
    check_free_space(folder / name, needed)
