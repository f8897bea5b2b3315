"""The whole command: plan everything, make every file, measure it, judge it.

source    the GGUF file that is quantized (a checkpoint is converted first), and the checkpoint
plan      a FilePlan for each type, by llama.cpp's own dry run; fallbacks and disk are checked
make      files and manifest, each file as soon as it is whole
quality   files measured against the checkpoint, and judged

Which importance matrix there will be decides what llama.cpp does with some tensors, and the
matrix takes minutes to make. So plans are made with a stand-in that has the right entries,
names and sizes; the real one is made when everything else has been checked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.files import (
    check_free_space,
    check_target,
    locked_folder,
    made_folder,
    protected,
    valid_utf8,
    write_text_atomically,
)
from valle_convert.gguf_file.compare import signal_to_noise
from valle_convert.gguf_file.encode import can_decode
from valle_convert.gguf_file.keys import SOURCE_SHA256_KEY, is_converted
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING
from valle_convert.gguf_file.read import GgufFile
from valle_convert.llama.library import INSTALL, find_library
from valle_convert.quantize.audience import Audience
from valle_convert.quantize.folder import known_files, settle_folder
from valle_convert.quantize.imatrix import (
    ImatrixInput,
    collect_imatrix,
    in_scratch,
    made_of,
    make_imatrix,
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
from valle_convert.quantize.options import AUTO, NONE, Options, RunLog, inputs_of
from valle_convert.quantize.plan import FilePlan, arguments_of, file_name, plan_files
from valle_convert.quantize.report import FileReport, QuantizeReport, TensorReport
from valle_convert.quantize.source import Scratch, Source, model_of, open_source
from valle_convert.quantize.tool import Quantizer, find_quantizer
from valle_convert.quantize.types import (
    FILE_TYPES,
    TENSOR_TYPES_SUFFIX,
    bits_per_weight,
    describe_types,
    ggml_type,
    matches,
)

if TYPE_CHECKING:
    from valle_convert.gguf_file.adapter import Adapter
    from valle_convert.listening.listen import Listened, ListeningTest
    from valle_convert.network.converted import GgufNetwork
    from valle_convert.network.protocol import Network
    from valle_convert.quantize.listening import Listening
    from valle_convert.quantize.quality import Expected, Measured
    from valle_convert.quantize.scan import Sensitivity
    from valle_convert.quantize.utterances import Utterances
    from valle_convert.verify.report import Report

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
    """Make quantized files and say how good they are.

    Args:
        path: a converted GGUF file, or a checkpoint, which is converted first.
        out: a folder, or one `.gguf` file where `options.types` is one type.
        options: everything else.
        checkpoint: what quality is measured against; a checkpoint as `path` is its own.
        log: is told what is done.

    Raises:
        InputError: something given cannot be used.
        EnvironmentFault: no tool, no space, no permission, another run at work in the folder, or
            the tool failed.
    """
    log = log or RunLog()
    single = out.suffix == ".gguf"
    folder = out.parent if single else out
    chooses = options.scan and not options.types
    _check_options(out, options, single=single, chooses=chooses)
    gates = gates_of(options)
    quantizer = find_quantizer(options.tool)
    place = Path(tempfile.gettempdir()) if options.dry_run else folder
    with protected(inputs_of(path, checkpoint, options)), ExitStack() as held:
        if single:
            check_target(out, force=options.force)
        scratch = held.enter_context(closing(Scratch(place)))
        source = open_source(path, checkpoint, scratch, measure=options.measure)
        _check_adapters(source, options)
        utterances = _Utterances.of(source, options)
        if utterances.measured is not None:
            gates.check_utterances(utterances.measured.description)
        if not single and not options.dry_run:
            held.enter_context(made_folder(folder))
            held.enter_context(locked_folder(folder))
        known = {} if single else known_files(folder, force=options.force)
        audience = None if not options.listen else Audience.of(source, utterances.measured, options)
        names = [MIXTURE] if chooses else [kind.name for kind in options.types]
        targets = [out if single else folder / file_name(source, one, options) for one in names]
        if chooses:
            _check_mixture(targets[0], known, options)
        scanned = _scan(quantizer, source, utterances, options, scratch, log)
        options = scanned.options
        listing = _write_mixture(targets[0], options) if chooses else None
        run = _Run(quantizer, source, utterances, gates, options, scratch, log, audience)
        plans = run.plan()
        outputs = outputs_of(quantizer, plans, targets, known, options)
        imatrix_path = None if single else folder / f"{source.stem}-imatrix.gguf"
        if imatrix_path is not None and any(map(_lacks_imatrix, plans)):
            run.check_imatrix_target(imatrix_path)
        report = QuantizeReport(
            source=source.name,
            source_sha256=None,
            tool=tool_of(quantizer, plans[0]) | {"found": quantizer.how},
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
        if options.dry_run:
            return report
        _check_space(source, outputs, folder)
        if not source.is_complete:
            log.talk(f"converting {path.name} first")
        source.complete(log.progress)
        return run.carry_out(report, outputs, None if single else known, imatrix_path, listing)


def _lacks_imatrix(plan: FilePlan) -> bool:
    return plan.imatrix is not None and not plan.imatrix.is_made


def _check_adapters(source: Source, options: Options) -> None:
    """Refuse LoRAs of other models, before an hour of work.

    Raises:
        InputError: one does not fit, or none of them would be used.
    """
    if not options.adapters:
        return
    if not options.measure:
        raise InputError(
            "A LoRA that is kept apart is for measuring only; leave out --lora, or --no-measure."
        )
    _adapters(source, options)


def _adapters(source: Source, options: Options) -> list[Adapter]:
    """The LoRAs that are kept apart, opened.

    Raises:
        InputError: one does not fit.
    """
    from valle_convert.gguf_file.adapter import AdapterBase, read_adapter

    if source.conversion is not None and source.reference is not None:
        # The header of a file that is converted on the way has no digest of its checkpoint.
        base = AdapterBase.of_checkpoint(source.reference.checkpoint)
    else:
        base = AdapterBase.of_gguf(source.header)
    return [
        replace(read_adapter(GgufFile(one.path), base), factor=one.factor)
        for one in options.adapters
    ]


def _checkpoint_of(source: Source) -> dict[str, str] | None:
    """Name and digest of the checkpoint that the files come from, as far as it is known."""
    if source.reference is not None:
        checkpoint = source.reference.checkpoint
        return {"name": valid_utf8(checkpoint.path.name), "sha256": checkpoint.sha256()}
    keys = source.header.keys
    digest, name = keys.get(SOURCE_SHA256_KEY), keys.get("valle.source.name")
    return {"name": str(name), "sha256": digest} if isinstance(digest, str) else None


def gates_of(options: Options) -> Gates:
    """The limits that files are judged by.

    Raises:
        InputError: one is of a type that is not made, or the earlier report cannot be read.
    """
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
class _Scanned:
    """What a scan found.

    Attributes:
        options: with the mixture, where one was chosen.
        sensitivities: every matrix in every type.
        notes: of the mixture.
    """

    options: Options
    sensitivities: tuple[Sensitivity, ...] = ()
    notes: tuple[str, ...] = ()


def _scan(
    quantizer: Quantizer,
    source: Source,
    utterances: _Utterances,
    options: Options,
    scratch: Scratch,
    log: RunLog,
) -> _Scanned:
    """Every matrix in every type, and a mixture where one is to be chosen."""
    if not options.scan:
        return _Scanned(options)
    from valle_convert.gguf_file.plan import plan_gguf
    from valle_convert.quantize.scan import SCANNED, Scan, choose_mixture, mixture_within

    kinds = tuple(map(ggml_type, options.scan_types or SCANNED))
    if source.reference is None or utterances.measured is None:
        raise InputError("--scan exchanges matrices of the checkpoint; give it with --checkpoint.")
    source.complete(log.progress)
    plan = source.conversion or plan_gguf(source.reference.checkpoint)
    scan = Scan(quantizer, source, source.reference, plan, utterances.measured, options, scratch)
    found = scan.run(kinds, log.progress)
    if options.types:
        return _Scanned(options, tuple(found))
    weights = {name: tensor.n_elements for name, tensor in source.header.tensors.items()}
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
    for one in (target, target.with_suffix(TENSOR_TYPES_SUFFIX)):
        if not (options.resume and one.name in known):
            check_target(one, force=options.force)


def _write_mixture(target: Path, options: Options) -> Path:
    """Write the tensor types beside the file, for `--tensor-types` and `--tensor-type-file`."""
    listing = target.with_suffix(TENSOR_TYPES_SUFFIX)
    text = "".join(f"{one}\n" for one in options.tensor_types)
    if not (options.resume and listing.is_file() and listing.read_bytes() == text.encode()):
        write_text_atomically(listing, text, force=options.force)
    return listing


def _check_options(out: Path, options: Options, *, single: bool, chooses: bool) -> None:
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
            "llama-cpp-python is not installed, and quality is measured with its llama.cpp; "
            f"{INSTALL}, or give --no-measure."
        )


def _notes(source: Source, plans: Sequence[FilePlan]) -> Iterator[str]:
    yield from (plan.kind.note for plan in plans if plan.kind.note)
    for given in dict.fromkeys(one for plan in plans for one in plan.options.tensor_types):
        if not any(matches(given, name) for name in source.header.tensors):
            yield f"the tensor type {given} matches no tensor of {source.name}"
    if source.reference is None:
        yield (
            "no checkpoint was given, so files are measured against the input file on llama.cpp "
            "and not verified: what is wrong with the input, or was lost in it, is not seen"
        )
    unknown = [plan for plan in plans if plan.tensors is None]
    if unknown:
        yield (
            f"the log of {unknown[0].tool_version} is in words that this program does not know, so "
            f"types and sizes of {', '.join(plan.kind.name for plan in unknown)} were not "
            "predicted; those of the files that were made are from their own headers"
        )


def _tensors(source: GgufFile, file: GgufFile) -> Iterator[TensorReport]:
    for name, tensor in file.tensors.items():
        if len(tensor.shape) == 2:
            noise = signal_to_noise(source.tensors[name], tensor)
            yield TensorReport(name, tensor.ggml_type.name, tensor.ggml_type.bits, noise)


def _planned(output: Output) -> FileReport:
    plan = output.plan
    return FileReport(
        name=valid_utf8(output.path.name),
        kind=plan.kind.name,
        status="kept" if output.kept else "planned",
        n_bytes=plan.n_bytes or 0,
        bits_per_weight=bits_per_weight(plan.tensors) if plan.tensors else 0.0,
        weights=describe_types(plan.tensors or ()),
        fallbacks=plan.fallbacks,
        imatrix=plan.imatrix.name if plan.imatrix else None,
    )


def _done(made: Made) -> FileReport:
    return FileReport(
        name=valid_utf8(made.path.name),
        kind=made.plan.kind.name,
        status=made.status,
        n_bytes=made.entry.n_bytes,
        bits_per_weight=bits_per_weight(made.tensors),
        weights=describe_types(made.tensors),
        fallbacks=made.fallbacks,
        sha256=made.entry.sha256,
        imatrix=made.plan.imatrix.name if made.plan.imatrix else None,
        seconds=made.seconds,
    )


def _check_space(source: Source, outputs: Sequence[Output], folder: Path) -> None:
    """Every file that is made, and the unnamed ones: what the largest is copied from, and the
    conversion of a checkpoint.
    """
    sizes = [output.plan.most_bytes for output in outputs if output.kept is None]
    needed = sum(sizes) + max(sizes, default=0)
    if not source.is_complete:
        needed += source.n_bytes
    name = f"the {len(sizes)} files" if len(sizes) > 1 else "the file"
    check_free_space(folder / name, needed)


@dataclass(frozen=True)
class _Utterances:
    """What is measured, and what an importance matrix is made of; None for what no model has."""

    measured: Utterances | None
    calibration: Utterances | None

    @classmethod
    def of(cls, source: Source, options: Options) -> _Utterances:
        """Given ones are read and checked now; a model that is not ours has none."""
        from valle_convert.quantize.utterances import Utterances

        if not is_converted(source.header.keys):
            return cls(None, None)
        model, data, seed = model_of(source), options.data, options.seed
        n_imatrix = None if data else options.n_imatrix
        return cls(
            Utterances.choose(model, data, options.n_utterances, seed=seed),
            Utterances.choose(model, data, n_imatrix, seed=seed),
        )


@dataclass(frozen=True)
class _Run:
    """What every step of a run needs."""

    quantizer: Quantizer
    source: Source
    utterances: _Utterances
    gates: Gates
    options: Options
    scratch: Scratch
    log: RunLog
    audience: Audience | None = None

    # ------------------------------------------------------------------------ all plans

    def plan(self) -> list[FilePlan]:
        """All plans, with a stand-in for an importance matrix that is still to be made."""
        options = self.options
        calibration = self.utterances.calibration if self.source.reference is not None else None
        given = options.imatrix not in (AUTO, NONE)
        rows = plan_files(
            self.quantizer,
            [self.source],
            options,
            [ImatrixInput.read(Path(options.imatrix))] if given else [],
            names=[f"{self.source.stem}-imatrix.gguf"],
            calibration=None if calibration is None else calibration.description,
            scratch=self.scratch,
        )
        return [plan for (plan,) in rows]

    def check_imatrix_target(self, path: Path) -> None:
        """Refuse to replace a file that is no importance matrix of this very work."""
        if path.exists() and not (self.options.resume and self._is_made(path)):
            check_target(path, force=self.options.force)

    def _is_made(self, path: Path) -> bool:
        reference, utterances = self.source.reference, self.utterances.calibration
        return (
            reference is not None
            and utterances is not None
            and made_of(path, reference.checkpoint, utterances)
        )

    def with_real_imatrix(self, plans: list[FilePlan], path: Path | None) -> list[FilePlan]:
        """The plans with the importance matrix that stands in so far, made now.

        Args:
            plans: with the stand-in.
            path: where it is kept; None for nowhere.
        """
        reference, utterances = self.source.reference, self.utterances.calibration
        if reference is None or utterances is None:
            return plans
        progress, options = self.log.progress, self.options
        if path is None:
            self.log.talk(f"importance matrix of {utterances.description}")
            contents = collect_imatrix(reference, utterances, progress=progress)
            real = in_scratch(contents, f"{self.source.stem}-imatrix.gguf", self.scratch)
        else:
            if options.resume and path.exists() and self._is_made(path):
                self.log.talk(f"kept {path.name}")
            else:
                self.log.talk(f"importance matrix of {utterances.description}")
                make_imatrix(
                    reference,
                    utterances,
                    path,
                    force=options.force,
                    progress=progress,
                )
            real = ImatrixInput.read(path)
        return [replace(plan, imatrix=real) if plan.imatrix else plan for plan in plans]

    # ------------------------------------------------------------------------ all files

    def carry_out(
        self,
        report: QuantizeReport,
        outputs: Sequence[Output],
        known: Mapping[str, ManifestFile] | None,
        imatrix_path: Path | None,
        listing: Path | None,
    ) -> QuantizeReport:
        """Make, measure and judge what was planned.

        Args:
            report: of the plan.
            outputs: what becomes of each type.
            known: the folder's manifest; None for a single file, which has none.
            imatrix_path: where a made importance matrix is kept; None for nowhere.
            listing: the tensor types of a scan; None where there are none.
        """
        options, source = self.options, self.source
        plans, targets = [one.plan for one in outputs], [one.path for one in outputs]
        folder = targets[0].parent
        if any(map(_lacks_imatrix, plans)):
            plans = self.with_real_imatrix(plans, imatrix_path)
        ours: dict[str, ManifestFile] = {}
        imatrix = next((plan.imatrix for plan in plans if plan.imatrix), None)
        if imatrix is not None and imatrix.path == imatrix_path:
            ours[imatrix.name] = imatrix_entry(imatrix)
        if listing is not None:
            ours[listing.name] = plain_entry(listing, "tensor-types", source)
        listed = None if known is None else {**known, **ours}
        if listed is not None and ours:
            write_manifest(folder, list(listed.values()))
        outputs = outputs_of(self.quantizer, plans, targets, known or {}, options)
        made = list(make_all(self.quantizer, outputs, listed, options, self.scratch, self.log))
        report = replace(report, source_sha256=source.sha256, files=tuple(map(_done, made)))
        if options.measure:
            report = self.measure(report, made)
        report = self.judge(report)
        if listed is None:
            return report
        names = {*ours, *(one.path.name for one in made)}
        names |= {one.plan.imatrix.name for one in made if one.plan.imatrix}
        sources = {source.sha256, (report.checkpoint or {}).get("sha256", "")}
        return settle_folder(report, folder, listed, names, sources, prune=options.prune)

    # ------------------------------------------------------------------------ quality

    def measure(self, report: QuantizeReport, made: Sequence[Made]) -> QuantizeReport:
        """The report with quality, speed and verdict of every file.

        Raises:
            EnvironmentFault: llama.cpp does not work on this machine.
        """
        expected = self._expected()
        base_path, base_kind = self._baseline()
        tensors = tuple(GgufFile(base_path).tensors.values())
        measured, _ = self._measure(base_path, base_kind, expected)
        source = self.source
        baseline = FileReport(
            name=source.name if base_path == source.path else f"{source.stem}-F16.gguf",
            kind=base_kind,
            status="input",
            n_bytes=base_path.stat().st_size,
            bits_per_weight=bits_per_weight(tensors),
            weights=describe_types(tensors),
            measured=measured,
        )
        listening: Listening | None = None
        test: ListeningTest | None = None
        if self.audience is not None:
            listening, test = self.audience.listen_to_baseline(
                base_path, self.options, self.log.progress
            )
        files: list[FileReport] = []
        for one, file in zip(made, report.files, strict=True):
            measured, note = self._measure(one.path, one.plan.kind.name, expected)
            if measured is not None and listening is not None and test is not None:
                listened = self._listen(one.path, one.plan.kind.name, test)
                beyond = listening.beyond_noise(listened)
                file = replace(file, listened=listened, beyond_noise=beyond)  # noqa: PLW2901
            verified, why_not = self._verify(one.path)
            notes = "; ".join(filter(None, (note, why_not)))
            files.append(
                replace(
                    file,
                    measured=measured,
                    verified=verified,
                    note=notes,
                    tensors=tuple(_tensors(self.source.header, GgufFile(one.path))),
                )
            )
        return replace(
            report,
            reference=expected.name,
            utterances=self._measured_utterances.description,
            baseline=baseline,
            files=tuple(files),
            listening=listening,
        )

    def _open(self, path: Path) -> GgufNetwork:
        """A file on llama.cpp, with the adapters that it is measured with."""
        from valle_convert.network.converted import GgufNetwork

        n_threads = self.options.threads or None
        return GgufNetwork(path, n_threads=n_threads, adapters=self.options.adapters)

    def _listen(self, path: Path, kind: str, test: ListeningTest) -> Listened:

        with self._open(path) as network:
            return test.listen(network, self.log.progress, f"listening to {kind}")

    def _verify(self, path: Path) -> tuple[Report | None, str]:
        """Whether a file is right: the checkpoint's weights, and the logits that follow of them."""
        from valle_convert.verify.run import verify_path

        if self.source.reference is None:
            return None, ""
        types = {tensor.ggml_type for tensor in GgufFile(path).tensors.values()}
        unknown = sorted(one.name for one in types if not can_decode(one))
        if unknown:
            return None, f"not verified: the gguf package cannot read {', '.join(unknown)} yet"
        report = verify_path(
            self.source.reference.checkpoint,
            path,
            levels=("structure", "tensors", "logits"),
            seed=self.options.seed,
            adapters=self.options.adapters,
            progress=self.log.progress,
        )
        return report, ""

    def judge(self, report: QuantizeReport) -> QuantizeReport:
        """The report with the user's limits, and what is beyond them."""
        files: list[FileReport] = []
        for kind, file in zip(self.options.types, report.files, strict=True):
            limits = self.gates.limits_of(kind)
            failures = limits.failures(file.measured) if limits and file.measured else ()
            if limits and file.listened and report.listening:
                failures += limits.failures_of_speech(file.listened, report.listening.baseline)
            files.append(replace(file, limits=limits, failures=failures))
        return replace(report, files=tuple(files))

    @property
    def _measured_utterances(self) -> Utterances:
        if self.utterances.measured is None:
            raise AssertionError("open_source refuses to measure what is no model of ours")
        return self.utterances.measured

    def _expected(self) -> Expected:
        from valle_convert.quantize.quality import run_reference

        utterances, source = self._measured_utterances, self.source

        def run(network: Network, name: str) -> Expected:
            with self.log.progress("reference", utterances.count, "utterances") as advance:
                return run_reference(network, name, utterances, advance)

        if source.reference is not None:
            from valle_convert.network.adapted import adapted_reference

            checkpoint, description = source.reference.checkpoint, source.reference.description
            adapters = _adapters(source, self.options)
            network = adapted_reference(checkpoint.tensors, description, adapters)
            names = "".join(f", with {one.path.name}" for one in adapters)
            return run(network, f"{checkpoint.path.name} in PyTorch, float32{names}")
        with self._open(source.path) as file:
            return run(file, f"{source.name} on llama.cpp (no checkpoint was given)")

    def _baseline(self) -> tuple[Path, str]:
        """The F16 file that sizes and speeds stand beside; made where the input is none."""
        main = next(iter(describe_types(tuple(self.source.header.tensors.values()))))
        if main not in ("F32", "BF16"):
            return self.source.path, main
        _, path = self.scratch.new()
        kind, options = FILE_TYPES["F16"], Options(threads=self.options.threads)
        self.quantizer.run(arguments_of(kind, options, self.source.path, path, None))
        return path, kind.name

    def _measure(self, path: Path, kind: str, expected: Expected) -> tuple[Measured | None, str]:
        """Quality and speed, or why they could not be measured."""
        from valle_convert.gguf_file.read import GgufFile
        from valle_convert.quantize.quality import measure

        table = GgufFile(path).tensors[TOKEN_EMBEDDING].ggml_type
        if not can_decode(table):
            return None, f"not measured: the gguf package cannot read {table.name} yet"
        with (
            self._open(path) as network,
            self.log.progress(f"measuring {kind}", len(expected.cases), "passes") as advance,
        ):
            return measure(network, expected, advance), ""
