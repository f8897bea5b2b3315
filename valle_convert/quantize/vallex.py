"""Quantized sets of VALL-E X: the AR and the NAR's body by llama-quantize, the first parts as
they are.

llama-quantize takes one file. So the body is put together with the first part of level 1 for
it, which is a complete model, and what comes out is taken apart again: the levels differ in
vectors only, which are never quantized, so that the body is the same whichever level it was
made with (measured: byte for byte).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from valle_convert import __version__
from valle_convert.checkpoint import Checkpoint, read_checkpoint
from valle_convert.checkpoint.read import sha256_of
from valle_convert.decode.sampling import GREEDY
from valle_convert.decode.vallex import VallexOptions, decode_vallex_ar, decode_vallex_nar
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.files import (
    atomic_outputs,
    check_free_space,
    check_input_file,
    check_target,
    locked_folder,
    made_folder,
    protected,
    scratch_folder,
    valid_utf8,
)
from valle_convert.gguf_file.header import Key, TensorEntry, pack_header, padded
from valle_convert.gguf_file.keys import DIGEST_KEYS
from valle_convert.gguf_file.read import GgufFile, TensorInfo, is_gguf
from valle_convert.gguf_file.vallex import VallexSet, open_set, plan_vallex, set_paths
from valle_convert.gguf_file.write import header_of, write_set
from valle_convert.llama.library import INSTALL, find_library
from valle_convert.metrics import Logits
from valle_convert.model.vallex import VallexModel, describe_vallex
from valle_convert.network.vallex import ComposedNetwork
from valle_convert.network.vallex_protocol import VallexText
from valle_convert.quantize.folder import known_files, settle_folder
from valle_convert.quantize.imatrix import ImatrixInput, in_scratch, made_of
from valle_convert.quantize.limits import Gates
from valle_convert.quantize.make import (
    check_types,
    copy_file,
    difference,
    imatrix_entry,
    is_kept,
    open_written,
    run_quantizer,
    tool_of,
)
from valle_convert.quantize.manifest import (
    ManifestFile,
    tensor_digests,
    write_manifest,
)
from valle_convert.quantize.options import AUTO, NONE, Options, RunLog, inputs_of
from valle_convert.quantize.plan import FilePlan, file_name, keys_of, plan_files, shown_arguments
from valle_convert.quantize.quality import (
    ALL,
    GREEDY_FRAMES,
    Greedy,
    Measured,
    Rows,
    Speed,
    compare_rows,
    quality_of,
)
from valle_convert.quantize.report import FileReport, QuantizeReport
from valle_convert.quantize.run import gates_of
from valle_convert.quantize.source import Scratch, Source
from valle_convert.quantize.tool import Quantizer, find_quantizer
from valle_convert.quantize.types import FileType, bits_per_weight, describe_types
from valle_convert.quantize.vallex_imatrix import (
    NETS,
    VallexUtterances,
    collect_vallex_imatrix,
    imatrix_paths,
    make_vallex_imatrix,
)
from valle_convert.verify.vallex import VallexUtterance, run_vallex_cases, verify_vallex_path

if TYPE_CHECKING:
    from valle_convert.verify.report import Report

_SPLIT = "split."
# A request of everyday size, as for the other family.
_SPEED_SYMBOLS, _SPEED_PROMPT, _SPEED_FRAMES, _SPEED_STEPS = 60, 225, 300, 16


@dataclass(frozen=True)
class _SetPlan:
    """What a set is to become in one type.

    Attributes:
        kind: the type.
        ar: of the AR.
        nar: of the body with a first part.
        paths: of the files to come, the AR first.
        n_bytes: of all of them, exactly; 0 where it is not known.
    """

    kind: FileType
    ar: FilePlan
    nar: FilePlan
    paths: list[Path]
    n_bytes: int

    @property
    def tensors(self) -> tuple[TensorEntry, ...]:
        """Those of both as far as they are known, the levels' norms once."""
        return (*(self.ar.tensors or ()), *(self.nar.tensors or ()))

    @property
    def matrices(self) -> tuple[ImatrixInput, ...]:
        """The importance matrices of AR and NAR, where they are used."""
        return tuple(plan.imatrix for plan in (self.ar, self.nar) if plan.imatrix)

    @property
    def names(self) -> Iterator[str]:
        """Of the files of a folder that belong to it."""
        yield from (path.name for path in self.paths)
        yield from (one.name for one in self.matrices)

    def with_matrices(self, real: Sequence[ImatrixInput]) -> _SetPlan:
        """The plan with these in the place of stand-ins."""
        if not self.matrices:
            return self
        ar, nar = real
        return replace(self, ar=replace(self.ar, imatrix=ar), nar=replace(self.nar, imatrix=nar))


@dataclass(frozen=True)
class _Matrices:
    """The importance matrices of a run: given ones, or those that can be made.

    Attributes:
        given: paths, of AR and NAR; none where they are made.
        paths: where made ones are kept; none for nowhere.
        names: of made ones.
        checkpoint: that they are made of; None where they cannot be.
        calibration: what it is run on.
    """

    given: list[Path]
    paths: list[Path]
    names: list[str]
    checkpoint: Checkpoint | None
    calibration: VallexUtterances

    @classmethod
    def of(
        cls,
        ar: Source,
        model: VallexModel,
        checkpoint: Checkpoint | None,
        folder: Path | None,
        options: Options,
    ) -> _Matrices:
        """As the options say."""
        usual = imatrix_paths(Path(f"{ar.stem}-imatrix.gguf"))
        is_given = options.imatrix not in (AUTO, NONE)
        n = None if options.data else options.n_imatrix
        return cls(
            imatrix_paths(Path(options.imatrix)) if is_given else [],
            [folder / one.name for one in usual] if folder else [],
            [one.name for one in usual],
            checkpoint,
            VallexUtterances.choose(model, options.data, n, seed=options.seed),
        )

    def read_given(self) -> list[ImatrixInput]:
        """The given ones, each held against the network that it is for."""
        found = []
        for path, net in zip(self.given, NETS, strict=False):
            check_input_file(path, f"importance matrix of the {net.upper()}")
            found.append(ImatrixInput.read(path))
            if found[-1].contents.part not in ("", net):
                raise InputError(
                    f"{path} is the importance matrix of the {found[-1].contents.part.upper()}, "
                    f"where that of the {net.upper()} is expected; give the AR's, and keep the "
                    "other's name (as `imatrix` wrote them)."
                )
        return found

    def are_made_for(self, plans: Sequence[_SetPlan]) -> bool:
        """Whether they are still to be made."""
        return any(not one.is_made for plan in plans for one in plan.matrices)

    def check_targets(self, options: Options) -> None:
        """Refuse to replace a file that is no importance matrix of this very work."""
        if not (options.resume and self._are_made()):
            for path in self.paths if self.paths and self.paths[0].parent.is_dir() else ():
                check_target(path, force=options.force)

    def _are_made(self) -> bool:
        return self.checkpoint is not None and all(
            path.exists() and made_of(path, self.checkpoint, self.calibration, net)
            for path, net in zip(self.paths, NETS, strict=True)
        )

    def make(self, log: RunLog, options: Options, scratch: Scratch) -> list[ImatrixInput]:
        """Make them, or keep those that are there."""
        if self.checkpoint is None:
            raise AssertionError("a stand-in is planned only where the real one can be made")
        if options.resume and self.paths and self._are_made():
            log.talk(f"kept {self.paths[0].name} and {self.paths[1].name}")
            return [ImatrixInput.read(path) for path in self.paths]
        log.talk(f"importance matrices of {self.calibration.description}")
        if self.paths:
            make_vallex_imatrix(
                self.checkpoint,
                self.calibration,
                self.paths[0],
                force=options.force,
                progress=log.progress,
            )
            return [ImatrixInput.read(path) for path in self.paths]
        made = collect_vallex_imatrix(self.checkpoint, self.calibration, progress=log.progress)
        return [in_scratch(one, name, scratch) for one, name in zip(made, self.names, strict=True)]


def quantize_set(
    path: Path,
    out: Path,
    options: Options,
    *,
    checkpoint: Checkpoint | None = None,
    log: RunLog | None = None,
) -> QuantizeReport:
    """Make quantized sets, one a type, and say how good they are.

    Args:
        path: the AR of a converted set, or a checkpoint, which is converted first.
        out: a folder, or the `.gguf` file of an AR where `options.types` is one type.
        options: everything else; `listen`, `scan` and `adapters` are not for sets.
        checkpoint: what quality is measured against; a checkpoint as `path` is its own.
        log: is told what is done.

    Raises:
        InputError: something given cannot be used.
        EnvironmentFault: no tool, no space, no permission, or the tool failed.
    """
    log = log or RunLog()
    single = out.suffix == ".gguf"
    folder = out.parent if single else out
    _check_options(out, options, single=single)
    gates = gates_of(options)
    quantizer = find_quantizer(options.tool)
    if not is_gguf(path) and not options.dry_run:
        # All that can be wrong is seen in headers, before a checkpoint is converted.
        quantize_set(path, out, replace(options, dry_run=True), checkpoint=checkpoint)
    with ExitStack() as held:
        held.enter_context(protected(inputs_of(path, checkpoint, options)))
        work, scratch = _places(folder, held, options, single=single)
        known = {} if single else known_files(folder, force=options.force)
        files, name = _source_set(path, checkpoint, work, options, log)
        # Of a checkpoint there are no more than headers in a dry run.
        empty = options.dry_run and not is_gguf(path)
        ar = Source(files.ar.path, valid_utf8(name), files.ar, is_empty=empty)
        nar = _whole_nar(files, work, empty=options.dry_run)
        nar.is_empty = empty
        measured = VallexUtterances.choose(
            files.model, options.data, options.n_utterances, seed=options.seed
        )
        gates.check_utterances(measured.description)
        matrices = _Matrices.of(ar, files.model, checkpoint, None if single else folder, options)
        plans = _plans(quantizer, files, (ar, nar), options, matrices, out, scratch)
        if matrices.are_made_for(plans):
            matrices.check_targets(options)
        sources = [path, *(file.path for file in files.files), *matrices.given]
        kept = [_kept(quantizer, plan, files, known, options, sources) for plan in plans]
        report = _first_report(name, quantizer, plans, kept, files, checkpoint, options)
        if options.dry_run:
            return report
        _check_space(folder / f"{name} in {len(plans)} types", plans, kept, files)
        ar.complete()
        nar.complete()
        listed = dict(known)
        if matrices.are_made_for(plans):
            real = matrices.make(log, options, scratch)
            plans = [plan.with_matrices(real) for plan in plans]
            if matrices.paths:
                listed |= {one.name: imatrix_entry(one) for one in real}
                write_manifest(folder, list(listed.values()))
            kept = [_kept(quantizer, plan, files, known, options, sources) for plan in plans]
        done = []
        for plan, entries in zip(plans, kept, strict=True):
            one = _make_or_keep(quantizer, plan, entries, files, scratch, options, sources, log)
            listed |= {entry.name: entry for entry in one[0]}
            if not single:
                write_manifest(folder, list(listed.values()))
            done.append(one[1])
        report = replace(report, source_sha256=ar.sha256, files=tuple(done))
        if options.measure:
            report = _measured(report, plans, files, checkpoint, measured, options, log)
        report = _judged(report, gates, options)
        return report if single else _settled(report, folder, listed, plans, files, options)


def _places(
    folder: Path, held: ExitStack, options: Options, *, single: bool
) -> tuple[Path, Scratch]:
    """The output's folder, made and locked; where files of the run lie, with and without names."""
    if not single and not options.dry_run:
        held.enter_context(made_folder(folder))
        held.enter_context(locked_folder(folder))
    room = Path(tempfile.gettempdir()) if options.dry_run else folder
    return held.enter_context(scratch_folder(room)), held.enter_context(closing(Scratch(room)))


def _judged(report: QuantizeReport, gates: Gates, options: Options) -> QuantizeReport:
    """The report with the user's limits, and what is beyond them."""
    judged = []
    for kind, file in zip(options.types, report.files, strict=True):
        limits = gates.limits_of(kind)
        failures = limits.failures(file.measured) if limits and file.measured else ()
        judged.append(replace(file, limits=limits, failures=failures))
    return replace(report, files=tuple(judged))


def _settled(
    report: QuantizeReport,
    folder: Path,
    listed: Mapping[str, ManifestFile],
    plans: Sequence[_SetPlan],
    files: VallexSet,
    options: Options,
) -> QuantizeReport:
    """See `settle_folder`."""
    ours = {name for plan in plans for name in plan.names}
    sources = {sha256_of(file.path) for file in files.files}
    sources.add((report.checkpoint or {}).get("sha256", ""))
    return settle_folder(report, folder, listed, ours, sources, prune=options.prune)


def _check_space(
    target: Path, plans: Sequence[_SetPlan], kept: Sequence[Sequence[object]], files: VallexSet
) -> None:
    """Every file that is made, and the largest once more, from which the tool's work is copied."""
    whole = sum(file.size for file in files.files)
    sizes = [
        plan.n_bytes or whole for plan, entries in zip(plans, kept, strict=True) if not entries
    ]
    check_free_space(target, sum(sizes) + max(sizes, default=0))


def _check_options(out: Path, options: Options, *, single: bool) -> None:
    if single and len(options.types) != 1:
        raise InputError(
            f"{out} is one set, and {len(options.types)} types are asked for; give a folder."
        )
    for name, is_given in (("--resume", options.resume), ("--prune", options.prune)):
        if single and is_given:
            raise InputError(
                f"{name} goes by the manifest of a folder; give a folder for the output."
            )
    unknown = {
        "--listen": options.listen,
        "--scan": options.scan,
        "--lora": bool(options.adapters),
    }
    given = [name for name, is_given in unknown.items() if is_given]
    if given:
        raise InputError(
            f"{', '.join(given)} cannot be used with a VALL-E X, of which it knows nothing; leave "
            "it out."
        )
    if options.measure and not options.dry_run and find_library() is None:
        raise EnvironmentFault(
            "llama-cpp-python is not installed, and quality is measured with its llama.cpp; "
            f"{INSTALL}, or give --no-measure."
        )


# ------------------------------------------------------------------------------- the source


def _source_set(
    path: Path, checkpoint: Checkpoint | None, work: Path, options: Options, log: RunLog
) -> tuple[VallexSet, str]:
    """The set to quantize, and the name of its AR; a checkpoint is converted into `work`."""
    if is_gguf(path):
        return open_set(path), path.name
    plan = plan_vallex(checkpoint or read_checkpoint(path))
    target = work / f"{path.stem}.gguf"
    if options.dry_run:
        for place, part in plan.files(target).items():
            with place.open("wb") as file:
                file.write(header_of(part))
                file.truncate(file.tell() + part.data_bytes)
            # What is checked of the contents: the divisors.
            _fill(place, plan.description.model.activation_factor)
    else:
        log.talk(f"converting {path.name} first")
        write_set(plan, target, progress=log.progress)
    return open_set(target), target.name


def _fill(path: Path, factor: int) -> None:
    """Write the divisors of a file that has a header only."""
    tensors = GgufFile(path, allow_part=True).tensors.values()
    with path.open("r+b") as file:
        for tensor in tensors:
            if tensor.name.endswith(".act.scales"):
                file.seek(tensor.start)
                file.write(np.full(tensor.n_elements, factor, np.float32).tobytes())


def _whole_nar(files: VallexSet, work: Path, *, empty: bool) -> Source:
    """Body and first part of level 1 as one file."""
    first, body = files.levels[0], files.body
    keys = [key for key in _keys(first) if not key.name.startswith(_SPLIT)]
    path = work / "nar.gguf"
    with path.open("wb") as out:
        _write_tensors(out, keys, [*first.tensors.values(), *body.tensors.values()], empty=empty)
    return Source(path, valid_utf8(body.path.name), GgufFile(path), original=body.path)


def _keys(file: GgufFile) -> list[Key]:
    """All but the digests, which hold for what was converted only."""
    names = [name for name in file.keys if name not in DIGEST_KEYS]
    return [Key(name, file.keys[name], file.key_types[name]) for name in names]


def _write_tensors(
    out: BinaryIO, keys: Sequence[Key], tensors: Sequence[TensorInfo], *, empty: bool = False
) -> None:
    """A file with keys and tensors of others; `empty` leaves the data to be zeros."""
    entries: list[TensorEntry] = []
    end = 0
    for tensor in tensors:
        entries.append(TensorEntry(tensor.name, tensor.shape, tensor.ggml_type, end))
        end += padded(tensor.n_bytes)
    out.write(pack_header(keys, entries))
    if empty:
        out.truncate(out.tell() + end)
        return
    for tensor in tensors:
        out.write(tensor.data.data)
        out.write(bytes(padded(tensor.n_bytes) - tensor.n_bytes))


# --------------------------------------------------------------------------------- the plan


def _plans(
    quantizer: Quantizer,
    files: VallexSet,
    sources: tuple[Source, Source],
    options: Options,
    matrices: _Matrices,
    out: Path,
    scratch: Scratch,
) -> list[_SetPlan]:
    """What becomes of AR and NAR in each type, where, and how large it will be."""
    rows = plan_files(
        quantizer,
        sources,
        options,
        matrices.read_given(),
        names=matrices.names,
        calibration=matrices.calibration.description if matrices.checkpoint else None,
        scratch=scratch,
    )
    plans = []
    for ar, nar in rows:
        path = out if out.suffix == ".gguf" else out / file_name(ar.source, ar.kind.name, options)
        n_bytes = 0
        if ar.n_bytes is not None and nar.tensors is not None:
            body = [tensor for tensor in nar.tensors if tensor.name in files.body.tensors]
            n_bytes = ar.n_bytes + sum(file.size for file in files.levels)
            keys = _body_keys(quantizer, nar, files.body, "0" * 64)
            n_bytes += len(pack_header(keys, body))
            n_bytes += sum(padded(tensor.n_bytes) for tensor in body)
        plans.append(_SetPlan(ar.kind, ar, nar, set_paths(path, len(files.levels)), n_bytes))
    return plans


def _kept(
    quantizer: Quantizer,
    plan: _SetPlan,
    files: VallexSet,
    known: Mapping[str, ManifestFile],
    options: Options,
    sources: Sequence[Path],
) -> list[ManifestFile]:
    """The manifest's entries of a set that need not be made again; none of one that is made.

    Raises:
        InputError: a file is there that is neither to stay nor to be replaced.
    """
    there = [path for path in plan.paths if path.exists()]
    if not there:
        if plan.paths[0].parent.is_dir():
            check_target(plan.paths[0], force=options.force, sources=sources)
        return []
    missing = [path.name for path in plan.paths if path not in there]
    reasons: list[tuple[Path, str]] = []
    for path, file, one in zip(
        plan.paths, files.files, (plan.ar, plan.nar, *[None] * len(files.levels)), strict=True
    ):
        old = known.get(path.name)
        if path not in there:
            continue
        if one is not None:
            reason = difference(quantizer, one, path, old)
        elif old is None:
            reason = "no manifest lists it"
        elif sha256_of(path) != old.sha256:
            reason = "its bytes are not those of the manifest"
        elif plan.ar.source.is_complete and old.sha256 != sha256_of(file.path):
            reason = "it was made of another source"
        else:
            reason = ""
        reasons.append((path, reason))
    path, reason = next(((p, r) for p, r in reasons if r), (there[0], ""))
    if not reason and missing:
        reason = f"{missing[0]} of its set is missing"
    if is_kept(path, known.get(path.name), reason, options, sources):
        return [known[path.name] for path in plan.paths]
    for path in there:
        is_kept(path, known.get(path.name), reason, options, sources)
    return []


def _body_keys(
    quantizer: Quantizer, plan: FilePlan, body: GgufFile, source_sha256: str
) -> list[Key]:
    """Those of the body, and how it was made; llama-quantize has none of the former."""
    made = _made_keys(quantizer, plan, source_sha256)
    names = {key.name for key in made}
    return [*(key for key in _keys(body) if key.name not in names), *made]


def _made_keys(quantizer: Quantizer, plan: FilePlan, source_sha256: str) -> list[Key]:
    return keys_of(
        quantizer.kind,
        plan.tool_version,
        quantizer.sha256,
        plan.source,
        plan.kind,
        plan.options,
        plan.imatrix,
        source_sha256=source_sha256,
    )


def _first_report(
    name: str,
    quantizer: Quantizer,
    plans: Sequence[_SetPlan],
    kept: Sequence[Sequence[ManifestFile]],
    files: VallexSet,
    checkpoint: Checkpoint | None,
    options: Options,
) -> QuantizeReport:
    notes = [plan.kind.note for plan in plans if plan.kind.note]
    if checkpoint is None:
        notes.append(
            "no checkpoint was given, so sets are measured against the input on llama.cpp and not "
            "verified: what is wrong with the input, or was lost in it, is not seen"
        )
    keys = files.ar.keys
    return QuantizeReport(
        source=valid_utf8(name),
        source_sha256=None,
        tool=tool_of(quantizer, plans[0].ar) | {"found": quantizer.how},
        tensor_types=options.tensor_types,
        reference="",
        utterances="",
        baseline=None,
        files=tuple(
            FileReport(
                name=valid_utf8(plan.paths[0].name),
                kind=plan.kind.name,
                status="kept" if entries else "planned",
                n_bytes=plan.n_bytes,
                bits_per_weight=bits_per_weight(plan.tensors) if plan.tensors else 0.0,
                weights=describe_types(plan.tensors),
                fallbacks=(*plan.ar.fallbacks, *plan.nar.fallbacks),
                imatrix=plan.ar.imatrix.name if plan.ar.imatrix else None,
                note=f"a set of {len(plan.paths)} files",
            )
            for plan, entries in zip(plans, kept, strict=True)
        ),
        notes=tuple(notes),
        checkpoint={
            "name": str(keys["valle.source.name"]),
            "sha256": str(keys["valle.source.sha256"]),
        },
        dry_run=options.dry_run,
        command=valid_utf8(options.command),
    )


def _make_or_keep(
    quantizer: Quantizer,
    plan: _SetPlan,
    kept: list[ManifestFile],
    files: VallexSet,
    scratch: Scratch,
    options: Options,
    sources: Sequence[Path],
    log: RunLog,
) -> tuple[list[ManifestFile], FileReport]:
    """A set's entries of the manifest, and its row of the report."""
    start = time.perf_counter()
    if kept:
        log.talk(f"kept {plan.paths[0].name} and the files of its set")
    entries = kept or _make(quantizer, plan, files, scratch, options, sources, log)
    seconds = time.perf_counter() - start
    tensors = [
        tensor
        for path in plan.paths[:2]
        for tensor in GgufFile(path, allow_part=True).tensors.values()
    ]
    n_bytes = sum(entry.n_bytes for entry in entries)
    if not kept:
        log.talk(
            f"wrote {plan.paths[0]} and {len(entries) - 1} files beside it: {n_bytes:,} bytes, "
            f"{bits_per_weight(tensors):.2f} bits a weight, {seconds:.1f} s"
        )
    report = FileReport(
        name=valid_utf8(plan.paths[0].name),
        kind=plan.kind.name,
        status="kept" if kept else "made",
        n_bytes=n_bytes,
        bits_per_weight=bits_per_weight(tensors),
        weights=describe_types(tensors),
        fallbacks=(*plan.ar.fallbacks, *plan.nar.fallbacks),
        sha256=entries[0].sha256,
        imatrix=plan.ar.imatrix.name if plan.ar.imatrix else None,
        seconds=seconds,
        note=f"a set of {len(entries)} files; the digest is that of the first",
    )
    return entries, report


# ---------------------------------------------------------------------------------- making


def _make(
    quantizer: Quantizer,
    plan: _SetPlan,
    files: VallexSet,
    scratch: Scratch,
    options: Options,
    sources: Sequence[Path],
    log: RunLog,
) -> list[ManifestFile]:
    """All files of a type, or none; the manifest's entries."""
    with atomic_outputs(plan.paths, force=options.force, sources=sources) as opened:
        with _quantized(quantizer, plan.ar, scratch, log) as (work, header):
            made_keys = _made_keys(quantizer, plan.ar, plan.ar.source.sha256)
            new_header = header.changed(made_keys, drop=DIGEST_KEYS)
            copy_file(work, header, new_header, opened[0])
        with _quantized(quantizer, plan.nar, scratch, log) as (_, header):
            shared = [t for t in header.tensors.values() if t.name in files.body.tensors]
            keys = _body_keys(quantizer, plan.nar, files.body, plan.nar.source.sha256)
            _write_tensors(opened[1], keys, shared)
        for level, target in zip(files.levels, opened[2:], strict=True):
            with level.path.open("rb") as part:
                shutil.copyfileobj(part, target)
    arguments = [shown_arguments(p.source, p.kind, options, p.imatrix) for p in (plan.ar, plan.nar)]
    entries: list[ManifestFile] = []
    for i, (path, source) in enumerate(zip(plan.paths, files.files, strict=True)):
        made = GgufFile(path, allow_part=True)
        one = (plan.ar, plan.nar)[min(i, 1)]
        copied = {"name": "valle-convert", "version": __version__}
        entries.append(
            ManifestFile(
                name=path.name,
                kind=plan.kind.name,
                n_bytes=made.size,
                sha256=sha256_of(path),
                source_sha256=sha256_of(source.path),
                tool=tool_of(quantizer, one) if i < 2 else copied,
                arguments=arguments[i] if i < 2 else ("copy",),
                imatrix_sha256=one.imatrix.sha256 if i < 2 and one.imatrix else None,
                tensors=tensor_digests(made),
            )
        )
    return entries


@contextmanager
def _quantized(
    quantizer: Quantizer, plan: FilePlan, scratch: Scratch, log: RunLog
) -> Iterator[tuple[BinaryIO, GgufFile]]:
    """What llama-quantize makes of one file, in a file without a name."""
    work, path = scratch.new()
    with work:
        run_quantizer(quantizer, plan, path, log.progress, log.keep_log)
        header = open_written(quantizer, work)
        if plan.tensors is not None:
            check_types(quantizer, plan.tensors, header)
        yield work, header


# --------------------------------------------------------------------------------- measuring


@dataclass(frozen=True, eq=False)
class _Expected:
    """What sets are held against, computed once."""

    name: str
    utterances: tuple[VallexUtterance, ...]
    cases: tuple[tuple[str, Logits], ...]
    spoken: tuple[np.ndarray[tuple[int, ...], np.dtype[np.int32]], ...]


def _measured(
    report: QuantizeReport,
    plans: Sequence[_SetPlan],
    files: VallexSet,
    checkpoint: Checkpoint | None,
    given: VallexUtterances,
    options: Options,
    log: RunLog,
) -> QuantizeReport:
    """The report with quality, speed and verdict of every set."""
    from valle_convert.network.vallex_converted import VallexGguf

    utterances = tuple(given)
    n_threads = options.threads or None
    if checkpoint is None:
        with VallexGguf(files, n_threads=n_threads) as network:
            name = f"{report.source} on llama.cpp (no checkpoint was given)"
            expected = _expect(network, name, utterances, log)
    else:
        from valle_convert.network.vallex_reference import VallexReference

        model = describe_vallex(checkpoint).model
        expected = _expect(
            VallexReference(checkpoint.tensors, model),
            f"{checkpoint.path.name} in PyTorch, float32",
            utterances,
            log,
        )

    def measure(one: VallexSet, kind: str) -> Measured:
        with VallexGguf(one, n_threads=n_threads) as network:
            return _measure(network, expected, kind, log)

    tensors = [*files.ar.tensors.values(), *files.body.tensors.values()]
    baseline = FileReport(
        name=report.source,
        kind=next(iter(describe_types(tensors))),
        status="input",
        n_bytes=sum(file.size for file in files.files),
        bits_per_weight=bits_per_weight(tensors),
        weights=describe_types(tensors),
        measured=measure(files, "the input"),
    )
    done: list[FileReport] = []
    for plan, file in zip(plans, report.files, strict=True):
        verified: Report | None = None
        if checkpoint is not None:
            verified = verify_vallex_path(
                checkpoint,
                plan.paths[0],
                levels=("structure", "tensors", "logits"),
                seed=options.seed,
                progress=log.progress,
            )
        measured = measure(open_set(plan.paths[0]), plan.kind.name)
        done.append(replace(file, measured=measured, verified=verified))
    return replace(
        report,
        reference=expected.name,
        utterances=given.description,
        baseline=baseline,
        files=tuple(done),
    )


def _expect(
    network: ComposedNetwork,
    name: str,
    utterances: tuple[VallexUtterance, ...],
    log: RunLog,
) -> _Expected:
    cases: list[tuple[str, Logits]] = []
    spoken = []
    with log.progress("reference", len(utterances), "utterances") as advance:
        for one in utterances:
            cases += run_vallex_cases(network, one)
            spoken.append(_finish(network, one, _speak(network, one)))
            advance(1)
    return _Expected(name, utterances, tuple(cases), tuple(spoken))


def _measure(network: ComposedNetwork, expected: _Expected, kind: str, log: RunLog) -> Measured:
    tallies: dict[str, list[Rows]] = {}
    with log.progress(f"measuring {kind}", len(expected.cases), "passes") as advance:
        found = (case for one in expected.utterances for case in run_vallex_cases(network, one))
        for (name, logits), (_, ours) in zip(expected.cases, found, strict=True):
            tallies.setdefault(name.split()[0], []).append(compare_rows(logits, ours))
            advance(1)
    quality = {ALL: quality_of([one for rows in tallies.values() for one in rows])}
    quality |= {head: quality_of(rows) for head, rows in tallies.items()}
    return Measured(quality, _greedy(network, expected), _speed(network))


def _greedy(network: ComposedNetwork, expected: _Expected) -> Greedy:
    frames = equal = before = codes = codes_equal = 0
    for given, spoken in zip(expected.utterances, expected.spoken, strict=True):
        n = len(spoken)
        found = _speak(network, given)[:n]
        same = np.zeros(n, bool)
        same[: len(found)] = found == spoken[: len(found), 0]
        frames += n
        equal += int(same.sum())
        before += n if same.all() else int(same.argmin())
        finished = _finish(network, given, spoken[:, 0])
        codes += finished[:, 1:].size
        codes_equal += int((finished[:, 1:] == spoken[:, 1:]).sum())
    return Greedy(
        ar_frames=frames,
        ar_equal=equal / frames if frames else 1.0,
        ar_before_first=before / len(expected.spoken) if expected.spoken else 0.0,
        nar_codes=codes,
        nar_equal=codes_equal / codes if codes else 1.0,
    )


def _speak(
    network: ComposedNetwork, given: VallexUtterance
) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    options = VallexOptions(sampling=GREEDY, max_frames=GREEDY_FRAMES)
    rng = np.random.default_rng(0)
    return decode_vallex_ar(network, given.text, given.prompt[:, 0], options, rng)[0]


def _finish(
    network: ComposedNetwork,
    given: VallexUtterance,
    level_0: np.ndarray[tuple[int, ...], np.dtype[np.int32]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    rng = np.random.default_rng(0)
    return decode_vallex_nar(network, given.text, given.prompt, level_0, GREEDY, rng)[0]


def _speed(network: ComposedNetwork) -> Speed:
    """Time AR steps and NAR passes on a request of everyday size."""
    draw = np.random.default_rng(0)
    symbols = draw.integers(5, 70, _SPEED_SYMBOLS, dtype=np.int32)
    text = VallexText(symbols, np.zeros(_SPEED_SYMBOLS, np.int32))
    n = _SPEED_PROMPT + _SPEED_FRAMES
    codes = draw.integers(0, network.codebook_size, (n, network.n_levels), dtype=np.int32)
    network.begin_ar(text, codes[: n - _SPEED_STEPS, 0], room=_SPEED_STEPS)
    steps, passes = [], []
    for code in codes[n - _SPEED_STEPS :, :1]:
        start = time.perf_counter()
        network.step_ar([0], code)
        steps.append(time.perf_counter() - start)
    for level in range(1, min(4, network.n_levels)):
        start = time.perf_counter()
        network.pass_nar(text, codes[:_SPEED_PROMPT], codes[_SPEED_PROMPT:, :level])
        passes.append(time.perf_counter() - start)
    return Speed(
        ar_step=1000 * float(np.median(steps)),
        nar_pass=1000 * float(np.median(passes)),
        n_positions=_SPEED_SYMBOLS + n,
    )
