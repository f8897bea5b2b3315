"""The whole command: plan everything, make every file, measure it, judge it.

source    the GGUF files that are quantized (a checkpoint is converted first), and the checkpoint
plan      a BundlePlan for each type, by llama.cpp's own dry run; fallbacks and disk are checked
make      files and manifest, the files of each type as soon as they are whole
measure   files measured against the checkpoint, and judged

Which importance matrix there will be decides what llama.cpp does with some tensors, and the
matrix takes minutes to make. So plans are made with a placeholder that has the right entries,
names and sizes; the real one is made when everything else has been checked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import EnvironmentFault, InputError, ValleConvertError
from valle_convert.families.bundle import open_files
from valle_convert.files import (
    check_free_space,
    check_input_file,
    check_outputs,
    locked_folder,
    made_folder,
    protected,
    valid_utf8,
    write_text_atomically,
)
from valle_convert.gguf_file.keys import SOURCE_SHA256_KEY
from valle_convert.llama.library import INSTALL, find_library
from valle_convert.quantize.audience import Audience
from valle_convert.quantize.examples import Examples
from valle_convert.quantize.folder import (
    UnsettledFolder,
    forget_verdicts,
    known_files,
    record_verdicts,
    settle_folder,
)
from valle_convert.quantize.imatrix import (
    ImatrixInput,
    collect_imatrices,
    imatrix_paths,
    in_scratch,
    made_of,
    make_imatrices,
)
from valle_convert.quantize.limits import Gates, read_earlier
from valle_convert.quantize.make import (
    Made,
    Output,
    imatrix_entry,
    make_all,
    outputs_of,
    plain_entry,
    tool_of,
)
from valle_convert.quantize.manifest import ManifestFile, write_manifest
from valle_convert.quantize.measure import Measuring, judge, open_adapters, tensor_reports
from valle_convert.quantize.options import AUTO, NONE, Options, RunLog, inputs_of
from valle_convert.quantize.plan import BundlePlan, file_name, plan_bundles
from valle_convert.quantize.report import FileReport, QuantizeReport
from valle_convert.quantize.source import Scratch, SourceBundle, open_source
from valle_convert.quantize.tool import Quantizer, find_quantizer
from valle_convert.quantize.types import (
    TENSOR_TYPES_SUFFIX,
    bits_per_weight,
    describe_types,
    ggml_type,
    matches,
)

if TYPE_CHECKING:
    from valle_convert.quantize.scan import Sensitivity

#: What the file of a scan's mixture is called, in the place of a type.
MIXTURE = "mixture"


def quantize(
    path: Path,
    out: Path,
    options: Options,
    *,
    checkpoint: Checkpoint | None = None,
    log: RunLog | None = None,
) -> QuantizeReport:
    """Make quantized files and say how good they are."""
    log = log or RunLog()
    single = out.suffix == ".gguf"
    folder = out.parent if single else out
    _check_options(out, options, single=single)
    gates = gates_of(options)
    quantizer = find_quantizer(options.tool)
    place = Path(tempfile.gettempdir()) if options.dry_run else folder
    with protected(inputs_of(path, checkpoint, options)), ExitStack() as held:
        if single:
            check_outputs([out], force=options.force)
        scratch = held.enter_context(closing(Scratch(place)))
        source = open_source(path, checkpoint, scratch, measure=options.measure)
        _check_adapters(source, options)
        examples = _Examples.of(source, options)
        if examples.measured is not None:
            gates.check_utterances(examples.measured.description)
        if not single and not options.dry_run:
            held.enter_context(made_folder(folder))
            held.enter_context(locked_folder(folder))
        known = {} if single else known_files(folder, force=options.force)
        audience = _audience(source, examples.measured, options)
        job = _plan(quantizer, source, examples, out, known, options, scratch, log)
        if options.dry_run:
            return job.report
        _check_space(source, job.outputs, folder)
        judges = bool(options.measure or any(map(gates.limits_of, job.options.types)))
        if not single:
            unsaid = [one for one in job.outputs if judges or not one.kept]
            names = {path.name for one in unsaid for path in one.plan.paths.values()}
            job = replace(job, known=forget_verdicts(folder, known, names))
        if not source.is_complete:
            log.talk(f"converting {path.name} first")
        source.complete(log.progress)
        listed, made = _make(quantizer, source, job, None if single else folder, scratch, log)
        report = replace(
            job.report, source_sha256=source.main.sha256, files=tuple(map(_done, made))
        )
        if options.measure and examples.measured is not None:
            measuring = Measuring(
                quantizer, source, examples.measured, job.options, scratch, log, audience
            )
            report = measuring.measure(report, made)
        elif options.scan:
            report = replace(report, files=tuple(_with_types(source, made, report)))
        report = judge(report, gates, job.options)
        if single:
            return report
        return _settle(source, job, folder, listed, made, report, judges=judges)


def _settle(
    source: SourceBundle,
    job: _Job,
    folder: Path,
    listed: Mapping[str, ManifestFile],
    made: Sequence[Made],
    report: QuantizeReport,
    *,
    judges: bool,
) -> QuantizeReport:
    """Record the verdicts, and see to the files of earlier runs."""
    ours = {
        *(entry.name for one in made for entry in one.entries),
        *(matrix.name for one in made for matrix in one.plan.imatrices),
        *([_listing_of(job.mixture).name] if job.mixture else []),
    }
    sources = {one.sha256 for one in source.units.values()}
    sources |= {entry.source_sha256 for one in made for entry in one.entries}
    sources.add((report.checkpoint or {}).get("sha256", ""))
    pairs = zip(made, report.files, strict=True)
    judged = [(one, file) for one, file in pairs if judges or one.status == "made"]
    try:
        listed = record_verdicts(folder, listed, judged)
        return settle_folder(report, folder, listed, ours, sources, prune=job.options.prune)
    except ValleConvertError as fault:
        message = f"The files are made and judged, and {folder} is not in order: {fault}"
        raise UnsettledFolder(message, report) from fault


@dataclass(frozen=True)
class _Job:
    """What is to be made: everything is known, and nothing is written yet."""

    plans: list[BundlePlan]
    outputs: list[Output]
    matrices: _Matrices
    known: Mapping[str, ManifestFile]
    options: Options  # with the mixture that a scan chose
    mixture: Path | None  # where that is written, for `--tensor-types`
    report: QuantizeReport


def _plan(
    quantizer: Quantizer,
    source: SourceBundle,
    examples: _Examples,
    out: Path,
    known: Mapping[str, ManifestFile],
    options: Options,
    scratch: Scratch,
    log: RunLog,
) -> _Job:
    """Choose by a scan where that is asked for, and let llama.cpp plan every file."""
    single, chooses = out.suffix == ".gguf", options.chooses
    names = [MIXTURE] if chooses else [kind.name for kind in options.types]
    targets = [out if single else out / file_name(source.main, one, options) for one in names]
    mixture = targets[0] if chooses else None
    if mixture is not None:
        _check_mixture(mixture, known, options)
    matrices = _Matrices.of(source, examples.calibration, None if single else out, options)
    scanned = _scan(quantizer, source, examples, matrices.given, options, scratch, log)
    options = scanned.options
    plans = plan_bundles(
        quantizer,
        source,
        targets,
        options,
        matrices.given,
        names={part: path.name for part, path in matrices.paths.items()},
        calibration=matrices.description,
        scratch=scratch,
    )
    outputs = outputs_of(quantizer, plans, source, known, options)
    if any(plan.lacks_imatrix for plan in plans):
        matrices.check_targets(options)
    report = QuantizeReport(
        source=source.name,
        source_sha256=None,
        tool=tool_of(quantizer, plans[0].main) | {"found": quantizer.how},
        tensor_types=options.tensor_types,
        reference="",
        utterances="",
        baseline=None,
        files=tuple(map(_planned, outputs)),
        notes=(*scanned.notes, *_notes(source, plans)),
        checkpoint=_checkpoint_of(source),
        dry_run=options.dry_run,
        command=valid_utf8(options.command),
        scan=scanned.sensitivities,
    )
    return _Job(plans, outputs, matrices, known, options, mixture, report)


def _make(
    quantizer: Quantizer,
    source: SourceBundle,
    job: _Job,
    folder: Path | None,
    scratch: Scratch,
    log: RunLog,
) -> tuple[dict[str, ManifestFile], list[Made]]:
    """Make the matrices and the files; a folder's manifest lists each once it is whole."""
    outputs, options = job.outputs, job.options
    listed = dict(job.known)
    if any(plan.lacks_imatrix for plan in job.plans):
        real = job.matrices.make(options, scratch, log)
        if folder is not None and job.matrices.is_kept:
            listed |= {one.name: imatrix_entry(one) for one in real.values()}
            write_manifest(folder, list(listed.values()))  # files may be refused now
        plans = [plan.with_imatrices(real) for plan in job.plans]
        outputs = outputs_of(quantizer, plans, source, job.known, options)
    if job.mixture is not None:
        listing = _write_mixture(job.mixture, options)
        listed[listing.name] = plain_entry(listing, "tensor-types", source)
        if folder is not None:
            write_manifest(folder, list(listed.values()))
    made = make_all(
        quantizer, outputs, source, None if folder is None else listed, options, scratch, log
    )
    return listed, list(made)


def _audience(
    source: SourceBundle, examples: Examples[Any] | None, options: Options
) -> Audience | None:
    if not options.listen:
        return None
    source.family.ability("listen")
    return Audience.of(source, examples, options)


def _check_adapters(source: SourceBundle, options: Options) -> None:
    """Refuse LoRAs of other models, before an hour of work."""
    if not options.adapters:
        return
    if not options.measure:
        raise InputError(
            "A LoRA that is kept apart is for measuring only; leave out --lora, or --no-measure."
        )
    open_adapters(source, options)


def _checkpoint_of(source: SourceBundle) -> dict[str, str] | None:
    """Name and digest of the checkpoint that the files come from, as far as it is known."""
    if source.reference is not None:
        checkpoint = source.reference.checkpoint
        return {"name": valid_utf8(checkpoint.path.name), "sha256": checkpoint.sha256()}
    keys = source.bundle.main.keys
    digest, name = keys.get(SOURCE_SHA256_KEY), keys.get("valle.source.name")
    return {"name": str(name), "sha256": digest} if isinstance(digest, str) else None


def gates_of(options: Options) -> Gates:
    """The limits that files are judged by."""
    gates = Gates(
        options.max_kl,
        options.min_agreement,
        read_earlier(options.no_worse_than) if options.no_worse_than else None,
        options.margin,
        options.max_nll,
        options.min_retrieval,
        options.max_wer,
    )
    if options.types:  # a scan chooses, where there are none
        gates.check_types(options.types)
    return gates


@dataclass(frozen=True)
class _Examples:
    """What is measured, and what an importance matrix is made of; None for what no model has."""

    measured: Examples[Any] | None
    calibration: Examples[Any] | None

    @classmethod
    def of(cls, source: SourceBundle, options: Options) -> _Examples:
        """Given ones are read and checked now; a model that is not ours has none."""
        if not source.is_ours:
            return cls(None, None)
        family, model = source.family, source.model
        data, seed = options.data, options.seed
        n_imatrix = None if data else options.n_imatrix
        return cls(
            Examples.choose(family, model, data, options.n_utterances, seed=seed),
            Examples.choose(family, model, data, n_imatrix, seed=seed),
        )


@dataclass(frozen=True)
class _Matrices:
    """The importance matrices of a run, by part: given ones, or those that can be made.

    Attributes:
        calibration: what made ones are made on; None where they cannot be.
        given: those that were given; none where they are made.
        paths: what made ones are called, and where they are kept.
    """

    source: SourceBundle
    calibration: Examples[Any] | None
    given: Mapping[str, ImatrixInput]
    paths: Mapping[str, Path]
    is_kept: bool

    @classmethod
    def of(
        cls,
        source: SourceBundle,
        calibration: Examples[Any] | None,
        folder: Path | None,
        options: Options,
    ) -> _Matrices:
        """As the options say; given ones are read now."""
        family, parts = source.family, source.bundle.files
        name = Path(f"{source.main.stem}-imatrix.gguf")
        paths = imatrix_paths(family, parts, (folder or Path()) / name)
        given = {}
        if options.imatrix not in (AUTO, NONE):
            for part, path in imatrix_paths(family, parts, Path(options.imatrix)).items():
                given[part] = _read_given(path, part, n_units=len(source.units))
        possible = calibration if source.reference is not None else None
        return cls(source, possible, given, paths, folder is not None)

    @property
    def description(self) -> str | None:
        """What made ones are made of; None where they cannot be."""
        return None if self.calibration is None else self.calibration.description

    def check_targets(self, options: Options) -> None:
        """Refuse to replace files that are no importance matrices of this very work."""
        if not self.is_kept or (options.resume and self._are_made()):
            return
        for path in self.paths.values():
            if path.parent.is_dir():
                check_outputs([path], force=options.force)

    def _are_made(self) -> bool:
        reference, calibration = self.source.reference, self.calibration
        several = len(self.paths) > 1
        return (
            reference is not None
            and calibration is not None
            and all(
                path.exists()
                and made_of(path, reference.checkpoint, calibration, part if several else "")
                for part, path in self.paths.items()
            )
        )

    def make(self, options: Options, scratch: Scratch, log: RunLog) -> dict[str, ImatrixInput]:
        """Make them, or keep those that are there."""
        reference, calibration = self.source.reference, self.calibration
        if reference is None or calibration is None:
            raise AssertionError("a placeholder is planned only where the real one can be made")
        if not self.is_kept:
            log.talk(f"importance matrix of {calibration.description}")
            made = collect_imatrices(reference, calibration, progress=log.progress)
            return {
                part: in_scratch(made[part], path.name, scratch)
                for part, path in self.paths.items()
            }
        if options.resume and self._are_made():
            log.talk(f"kept {' and '.join(path.name for path in self.paths.values())}")
        else:
            log.talk(f"importance matrix of {calibration.description}")
            main = next(iter(self.paths.values()))
            make_imatrices(reference, calibration, main, force=options.force, progress=log.progress)
        return {part: ImatrixInput.read(path) for part, path in self.paths.items()}


def _read_given(path: Path, part: str, *, n_units: int) -> ImatrixInput:
    """A given importance matrix, which has to be the one of a part where there are several."""
    if n_units > 1:
        check_input_file(path, f"importance matrix of {part}")
    found = ImatrixInput.read(path)
    if n_units > 1 and found.contents.part not in ("", part):
        raise InputError(
            f"{path} is the importance matrix of {found.contents.part}, and that of {part} is "
            "expected; give the first one, and keep the names that `imatrix` gave them."
        )
    return found


@dataclass(frozen=True)
class _Scanned:
    """What a scan found.

    Attributes:
        options: with the mixture, where one was chosen.
    """

    options: Options
    sensitivities: tuple[Sensitivity, ...] = ()
    notes: tuple[str, ...] = ()


def _scan(
    quantizer: Quantizer,
    source: SourceBundle,
    examples: _Examples,
    imatrices: Mapping[str, ImatrixInput],
    options: Options,
    scratch: Scratch,
    log: RunLog,
) -> _Scanned:
    """Every matrix in every type, and a mixture where one is to be chosen."""
    if not options.scan:
        return _Scanned(options)
    from valle_convert.families.bundle import plan
    from valle_convert.quantize.scan import SCANNED, Scan, choose_mixture, mixture_within

    kinds = tuple(map(ggml_type, options.scan_types or SCANNED))
    if source.reference is None or examples.measured is None:
        raise InputError("--scan exchanges matrices of the checkpoint; give it with --checkpoint.")
    source.complete(log.progress)
    planned = source.conversion or plan(source.reference.checkpoint)
    scan = Scan(quantizer, source, planned, examples.measured, options, imatrices, scratch)
    found = scan.run(kinds, log.progress)
    if options.types:
        return _Scanned(options, tuple(found))
    weights: dict[str, int] = {}
    for unit in source.units:
        for name, tensor in source.bundle.files[unit.part].tensors.items():
            weights[name] = weights.get(name, 0) + tensor.n_elements
    if options.target_bits is not None:
        mixture = choose_mixture(found, weights, target_bits=options.target_bits)
        aim = f"{options.target_bits:g} bits a weight"
    else:
        limit = options.max_kl[""]
        mixture = mixture_within(scan, found, weights, limit)
        aim = f"a KL of {limit:g}"
    note = (
        f"the mixture was chosen by sensitivity for {aim}: {mixture.bits:.2f} bits a weight, "
        f"predicted KL {mixture.predicted_kl:.2e}"
    )
    tensor_types = (*options.tensor_types, *mixture.tensor_types)
    chosen = replace(options, types=(mixture.file_type,), tensor_types=tensor_types)
    return _Scanned(chosen, tuple(found), (note,))


def _check_mixture(target: Path, known: Mapping[str, ManifestFile], options: Options) -> None:
    """Refuse to replace files before an hour of scanning; what --resume keeps is known after it."""
    for one in (target, _listing_of(target)):
        if not (options.resume and one.name in known):
            check_outputs([one], force=options.force)


def _listing_of(mixture: Path) -> Path:
    return mixture.with_suffix(TENSOR_TYPES_SUFFIX)


def _write_mixture(target: Path, options: Options) -> Path:
    """Write the tensor types beside the file, for `--tensor-types` and `--tensor-type-file`."""
    listing = _listing_of(target)
    text = "".join(f"{one}\n" for one in options.tensor_types)
    if not (options.resume and listing.is_file() and listing.read_bytes() == text.encode()):
        write_text_atomically(listing, text, force=options.force)
    return listing


def _check_options(out: Path, options: Options, *, single: bool) -> None:
    chooses = options.chooses
    if options.scan and options.dry_run:
        raise InputError("--scan measures; leave out --dry-run.")
    if chooses and any(
        name for values in (options.max_kl, options.min_agreement) for name in values
    ):
        raise InputError(
            "--scan without --types chooses one mixture; give limits without the name of a type."
        )
    if chooses and options.target_bits is None and "" not in options.max_kl:
        raise InputError(
            "--scan chooses the types itself where there is no --types; say for what, with "
            "--target-bits or --max-kl."
        )
    if single and len(options.types) != 1 and not chooses:
        raise InputError(
            f"{out} is one file, and {len(options.types)} types are asked for; give a folder."
        )
    for name, given in (("--resume", options.resume), ("--prune", options.prune)):
        if single and given:
            raise InputError(
                f"{name} goes by the manifest of a folder; give a folder for the output."
            )
    if options.measure and not options.dry_run and find_library() is None:
        raise EnvironmentFault(
            "llama-cpp-python is not installed, and quality is measured with its llama.cpp. "
            f"Run {INSTALL}, or give --no-measure."
        )


def _notes(source: SourceBundle, plans: Sequence[BundlePlan]) -> Iterator[str]:
    yield from (plan.kind.note for plan in plans if plan.kind.note)
    files = [plan for one in plans for plan in one.units.values()]
    names = {name for one in source.units.values() for name in one.header.tensors}
    for given in dict.fromkeys(one for plan in files for one in plan.options.tensor_types):
        if not any(matches(given, name) for name in names):
            yield f"the tensor type {given} matches no tensor of {source.name}"
    if source.reference is None:
        yield (
            "no checkpoint was given, so files are measured against the input on llama.cpp and "
            "not verified: what is wrong with the input, or was lost in it, is not seen"
        )
    unknown = [plan for plan in files if plan.tensors is None]
    if unknown:
        kinds = ", ".join(dict.fromkeys(plan.kind.name for plan in unknown))
        yield (
            f"the log of {unknown[0].tool_version} is in words that this program does not know, so "
            f"types and sizes of {kinds} were not predicted; those of the files that were made are "
            "from their own headers"
        )


def _planned(output: Output) -> FileReport:
    plan = output.plan
    return FileReport(
        name=valid_utf8(plan.path.name),
        kind=plan.kind.name,
        status="kept" if output.kept else "planned",
        n_bytes=plan.n_bytes or 0,
        bits_per_weight=bits_per_weight(plan.tensors) if plan.tensors else 0.0,
        weights=describe_types(plan.tensors),
        fallbacks=plan.fallbacks,
        imatrix=plan.imatrices[0].name if plan.imatrices else None,
        note=_set_note(plan),
    )


def _done(made: Made) -> FileReport:
    plan = made.plan
    return FileReport(
        name=valid_utf8(plan.path.name),
        kind=plan.kind.name,
        status=made.status,
        n_bytes=sum(entry.n_bytes for entry in made.entries),
        bits_per_weight=bits_per_weight(made.tensors),
        weights=describe_types(made.tensors),
        fallbacks=made.fallbacks,
        sha256=made.entries[0].sha256,
        imatrix=plan.imatrices[0].name if plan.imatrices else None,
        seconds=made.seconds,
        note=_set_note(plan),
    )


def _with_types(
    source: SourceBundle, made: Sequence[Made], report: QuantizeReport
) -> Iterator[FileReport]:
    """Files that are not measured, with the type of each matrix all the same."""
    for one, file in zip(made, report.files, strict=True):
        yield replace(file, tensors=tuple(tensor_reports(source, open_files(one.plan.path))))


def _set_note(plan: BundlePlan) -> str:
    n_files = len(plan.paths)
    return f"{n_files} files; the digest is that of the first" if n_files > 1 else ""


def _check_space(source: SourceBundle, outputs: Sequence[Output], folder: Path) -> None:
    """Every file that is made, and the unnamed ones: what the largest is copied from, and the
    conversion of a checkpoint.
    """
    sizes = [
        source.n_bytes if output.plan.n_bytes is None else output.plan.n_bytes
        for output in outputs
        if not output.kept
    ]
    needed = sum(sizes) + max(sizes, default=0)
    if not source.is_complete:
        needed += source.n_bytes
    name = f"{source.name} in {len(sizes)} types" if len(sizes) != 1 else "the file"
    check_free_space(folder / name, needed)
