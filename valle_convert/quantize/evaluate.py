"""`evaluate`: measure files, judge them, and store the results beside each.

given     files of one model, converted or quantized, ours or from the hub
source    the reference: their checkpoint, or one of them in F16
measure   what no earlier run has measured in the same way
judge     by the limits; the verdict is stored too
prune     remove files of the same source that were not evaluated, once everything passed
"""

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from msgspec import structs

from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import InputError, ValleConvertError
from valle_convert.families.bundle import Bundle, paths_of, plan_bundle
from valle_convert.files import (
    check_outputs,
    describe_os_error,
    locked_folder,
    protected,
    sha256_of,
    valid_utf8,
)
from valle_convert.gguf_file.keys import SOURCE_SHA256_KEY
from valle_convert.llama.library import load_library
from valle_convert.llama.probe import prove_library
from valle_convert.quantize.examples import Examples
from valle_convert.quantize.folder import unlisted_in
from valle_convert.quantize.limits import Gates
from valle_convert.quantize.listening import Audience
from valle_convert.quantize.manifest import (
    MANIFEST,
    SUMS,
    ManifestFile,
    read_manifest,
    write_manifest,
)
from valle_convert.quantize.measure import Measurer, open_adapters
from valle_convert.quantize.measurements import (
    Evaluated,
    path_of,
    read_measurements,
    type_of,
    unmeasured,
    write_measurements,
)
from valle_convert.quantize.options import ListenOptions, MeasureOptions, RunLog
from valle_convert.quantize.release import converted_models_in
from valle_convert.quantize.report import EvaluationReport, judged
from valle_convert.quantize.source import (
    Scratch,
    SourceBundle,
    conversion_of,
    open_checked,
    open_source,
    source_of_plan,
)
from valle_convert.quantize.types import PLAIN_TYPES, FileType
from valle_convert.verify.run import main_type
from valle_convert.verify.structure import check_source


@dataclass(frozen=True)
class FileSelection:
    """The files to evaluate, or folders of them, from which `types` selects. Without `checkpoint`,
    the first plain file is the reference. `keep` stores measurements beside the files; `force`
    replaces unreadable ones.
    """

    paths: tuple[Path, ...]
    types: tuple[FileType, ...] = ()
    checkpoint: Checkpoint | None = None
    keep: bool = True
    force: bool = False


def evaluate(
    given: FileSelection,
    gates: Gates,
    measuring: MeasureOptions,
    listening: ListenOptions | None = None,
    *,
    prunes: bool = False,
    reports: Sequence[Path] = (),
    log: RunLog | None = None,
) -> EvaluationReport:
    """Measure and judge files of one model; old `reports` are removed before it starts."""
    log = log or RunLog()
    prove_library()
    if measuring.gpu_layers:
        load_library().check_gpu(measuring.gpu_layers)
    with protected(_inputs_of(given, measuring, listening)), ExitStack() as held:
        bundles = list({one.path: one for one in _open(given)}.values())
        place = bundles[0].path.parent if given.keep else Path(tempfile.gettempdir())
        scratch = held.enter_context(Scratch(place))
        source = _source_of(given, bundles, scratch, log)
        if listening or not measuring.reference:
            source.check_space()
        examples = Examples.choose(
            source.family, source.model, measuring.data, measuring.n_utterances
        )
        measurer = Measurer(source, examples, measuring, scratch, log, len(bundles))
        types = set(map(type_of, bundles))
        gates.check(types, source.name, measurer.checkpoint, examples.description)
        if measuring.adapters:
            open_adapters(source, measuring)
        if listening is not None:
            measurer.audience = Audience.of(source, examples, measuring, listening)
        if prunes:
            _check_prunes(given)
        paths = [*source.paths, *(path for one in bundles for path in one.paths)]
        remove_old(reports, paths, force=given.force)
        run = _Run(given, gates, _changed(given, bundles), measurer)
        if measuring.reference or measuring.save_reference:
            measurer.reference  # noqa: B018 - fails, or is saved, before an hour of work
        known = [run.start(one) for one in bundles]
        measurer.n_left = sum(not run.is_known(one) for one in known)
        report = EvaluationReport(tuple(map(run.finish, bundles, known)))
        if prunes:
            report = replace(report, notes=tuple(_prune(given, bundles, source, report)))
        return report


@dataclass(frozen=True)
class _Run:
    given: FileSelection
    gates: Gates
    faults: Mapping[Path, str]  # what is wrong with files, apart from their measurements
    measurer: Measurer

    def start(self, bundle: Bundle) -> Evaluated:
        """The stored measurements; the verdict is removed until there is a new one."""
        if not self.given.keep:
            return unmeasured(bundle)
        check_outputs([path_of(bundle.path)], force=True)
        known = read_measurements(bundle, force=self.given.force)
        if known.outcome != "not judged":
            known = structs.replace(known, outcome="not judged", limits=None, failures=())
            write_measurements(bundle.path, known)
        return known

    def is_known(self, file: Evaluated) -> bool:
        return file.compared is not None and file.compared.inputs == self.measurer.inputs

    def finish(self, bundle: Bundle, file: Evaluated) -> Evaluated:
        measurer = self.measurer
        if self.is_known(file):
            measurer.log.message(f"kept the measurements of {file.name}")
        else:
            file = measurer.measure(bundle, file)
        stored = speech = file.speech
        if measurer.audience is None or file.measured is None:
            speech = None  # nothing says whether the stored one is current
        elif speech is None or speech.key != measurer.speech_key:
            stored = speech = measurer.listen(bundle, file.name)
        faults = [self.faults[one] for one in bundle.paths if one in self.faults]
        file = judged(structs.replace(file, speech=speech), self.gates, faults)
        if self.given.keep:
            write_measurements(bundle.path, structs.replace(file, speech=stored))
        return file


def _open(given: FileSelection) -> Iterator[Bundle]:
    types = {one.name for one in given.types}
    if types and not any(path.is_dir() for path in given.paths):
        raise InputError("--types selects files of a folder; give one, or leave it out.")
    for path in given.paths:
        if not path.is_dir():
            bundle = open_checked(path)
            _ = bundle.model  # raises if it is not converted
            yield bundle
            continue
        found = list(converted_models_in(path))
        kept = [one for one in found if not types or type_of(one) in types]
        if not kept:
            of = f" of type {', '.join(sorted(types))}" if types else ""
            raise InputError(f"{path} has no converted model{of}; give a folder of `quantize`.")
        missing = sorted(types - {*map(type_of, kept)})
        if missing:
            raise InputError(f"{path} has no file of type {', '.join(missing)}; quantize it first.")
        yield from sorted(kept, key=lambda one: -one.n_bytes)


def _changed(given: FileSelection, bundles: Sequence[Bundle]) -> dict[Path, str]:
    """The files of folders whose bytes are not those of the manifest."""
    listed = {
        folder / one.name: one.sha256
        for folder in given.paths
        if (folder / MANIFEST).is_file()
        for one in read_manifest(folder / MANIFEST)
    }
    return {
        path: f"the sha256 of {path.name} differs from {MANIFEST}"
        for one in bundles
        for path in one.paths
        if path in listed and sha256_of(path) != listed[path]
    }


def _source_of(
    given: FileSelection, bundles: list[Bundle], scratch: Scratch, log: RunLog
) -> SourceBundle:
    """The reference; a file that is the reference is removed from the others."""
    if given.checkpoint is not None:
        for one in bundles:
            check = check_source(given.checkpoint, one.main)
            if check is not None and not check.passed:
                raise InputError(f"{check.summary}.")
        conversion = conversion_of(bundles[0], given.checkpoint)
        if conversion.choices.out_type == "bf16":  # would be rounded twice on its way to F16
            choices = replace(conversion.choices, out_type="f16")
            conversion = plan_bundle(conversion.checkpoint, choices)
        return source_of_plan(conversion, scratch, log)
    base = next((one for one in bundles if main_type(one) in PLAIN_TYPES), None)
    if base is None or len(bundles) == 1:
        raise InputError(
            f"There is nothing to compare {bundles[0].path} with. Give --checkpoint, or add a file "
            "in F16, BF16 or F32."
        )
    bundles.remove(base)
    for one in bundles:
        if one.family is not base.family or _shapes(one) != _shapes(base):
            raise InputError(
                f"{one.path} belongs to another model than {base.path}; evaluate them separately."
            )
    return open_source(base.path, None, scratch, log)


def _shapes(bundle: Bundle) -> dict[tuple[str, str], tuple[int, ...]]:
    return {
        (part, name): tensor.shape
        for part, file in bundle.files.items()
        for name, tensor in file.tensors.items()
    }


def _inputs_of(
    given: FileSelection, measuring: MeasureOptions, listening: ListenOptions | None
) -> Iterator[Path]:
    yield from (path for path in given.paths if not path.is_dir())
    yield from given.checkpoint.inputs if given.checkpoint is not None else ()
    yield from (one.path for one in measuring.adapters)
    yield from measuring.data.glob("*.npz") if measuring.data is not None else ()
    yield from (measuring.reference,) if measuring.reference is not None else ()
    if listening is not None:
        more = (listening.sentences, listening.voice, listening.codec)
        yield from (Path(one) for one in more if one is not None)


def remove_old(reports: Sequence[Path], models: Sequence[Path], *, force: bool) -> None:
    """Remove reports of an earlier run, which would be misleading if this one fails."""
    own = [path for one in models for path in (one, path_of(one))]
    own += [one.parent / name for one in models for name in (MANIFEST, SUMS)]
    check_outputs({f"--report {one}": one for one in reports}, inputs=own, force=force)
    for one in reports:
        if not one.is_symlink():
            one.unlink(missing_ok=True)


def _check_prunes(given: FileSelection) -> None:
    folders = [path for path in given.paths if path.is_dir()]
    if len(folders) != len(given.paths) or not all((one / MANIFEST).is_file() for one in folders):
        raise InputError(f"--prune needs the {MANIFEST} of a folder; give folders of `quantize`.")


def _prune(
    given: FileSelection, bundles: Sequence[Bundle], source: SourceBundle, report: EvaluationReport
) -> Iterator[str]:
    is_right = all(file.outcome == "passed" for file in report.files)
    why_not = "" if is_right else "not everything passed"
    digests = {one.main.keys.get(SOURCE_SHA256_KEY) for one in bundles}
    sources = {one for one in digests if isinstance(one, str)}
    for folder in given.paths:
        here = [one for one in bundles if one.path.parent == folder]
        names = {path.name for one in here for path in one.paths}
        names |= {path.name for path in source.paths if path.parent == folder}
        with locked_folder(folder):
            yield from prune(folder, names, sources, source.bundle.files, why_not)


def prune(
    folder: Path,
    passed: Collection[str],
    sources: Collection[str],
    parts: Iterable[str],
    why_not: str = "",
) -> list[str]:
    """Remove the folder's other models of the same `sources`; returns notes on what was removed.

    `passed` names the files that were judged; the `parts` of a model stay or go together. With
    `why_not`, nothing is removed.
    """
    listed = {file.name: file for file in read_manifest(folder / MANIFEST)}
    ours = [listed[name] for name in passed if name in listed]
    sources = {*sources, *(file.source_sha256 for file in ours)}
    used = {file.imatrix_sha256 for file in ours}
    others = [one for one in listed.values() if one not in ours and one.sha256 not in used]
    stays: dict[str, list[str]] = {}
    removed: list[str] = []
    for files in _models_of(others, tuple(parts)):
        why = why_not or _why_kept(folder, files, sources)
        if not why and any(file.sha256 in used for file in files):
            why = "other files were made with it"
        names = [file.name for file in files]
        if why:
            used |= {file.imatrix_sha256 for file in files}
            stays.setdefault(why, []).extend(names)
        else:
            removed += names
    notes = [f"removed from {valid_utf8(folder.name)}: {', '.join(removed)}"] if removed else []
    notes += [f"not removed: {', '.join(names)}, since {why}" for why, names in stays.items()]
    # The manifest first: an interruption leaves an extra file, never a missing one.
    if removed:
        write_manifest(folder, [file for file in listed.values() if file.name not in removed])
    for name in removed:
        for path in (folder / name, path_of(folder / name)):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                notes.append(f"{valid_utf8(path.name)} stays: {describe_os_error(error)}")
    return [*notes, *unlisted_in(folder, listed)]


def _models_of(files: Sequence[ManifestFile], parts: Sequence[str]) -> list[list[ManifestFile]]:
    """The files of each model, then importance matrices."""
    main_of = {file.name: file.name for file in files}
    for file in files:
        _, *more = paths_of(Path(file.name), parts).values()
        main_of |= {part.name: file.name for part in more}
    models: dict[str, list[ManifestFile]] = {}
    for file in files:
        models.setdefault(main_of[file.name], []).append(file)
    return sorted(models.values(), key=lambda model: model[0].kind == "imatrix")


def _why_kept(folder: Path, files: Sequence[ManifestFile], sources: Collection[str]) -> str:
    """Why a model stays; empty if it is removed."""
    if any(file.source_sha256 not in sources for file in files):
        return "their source is not that of the files that passed"
    for file in files:
        path = folder / file.name
        try:
            check_outputs([path], force=True)
            if path.stat().st_size != file.n_bytes or sha256_of(path) != file.sha256:
                return "its bytes differ from the manifest"
        except InputError:
            return "this run reads it"
        except ValleConvertError as error:
            return str(error)
        except OSError as error:
            return describe_os_error(error)
    return ""
