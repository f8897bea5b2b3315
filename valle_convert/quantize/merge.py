"""`merge`: joins folders of jobs that each made some types of one model.

read    compares every folder with its manifest
check   all models have one checkpoint, and were made and measured in one way
place   files (hard links if the file system has them), measurements, then the manifest
judge   one report of all files
"""

import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from valle_convert.errors import InputError
from valle_convert.families.bundle import open_files
from valle_convert.files import (
    atomic_output,
    check_free_space,
    check_outputs,
    locked_folder,
    made_folder,
    protected,
    sha256_of,
)
from valle_convert.gguf_file.keys import SOURCE_SHA256_KEY
from valle_convert.progress import Progress, silent
from valle_convert.quantize.evaluate import remove_old
from valle_convert.quantize.folder import unlisted_in
from valle_convert.quantize.identity import IDENTITY_KEYS
from valle_convert.quantize.limits import Gates
from valle_convert.quantize.manifest import MANIFEST, SUMS, ManifestFile, write_manifest
from valle_convert.quantize.measurements import path_of, write_measurements
from valle_convert.quantize.release import Released, read_release
from valle_convert.quantize.report import EvaluationReport, judged

_PIECE = 4 << 20


@dataclass(frozen=True)
class Merged:
    """The files of the new manifest, and the report; None if nothing was measured."""

    files: tuple[ManifestFile, ...]
    report: EvaluationReport | None
    notes: tuple[str, ...] = ()


def merge(
    folders: Sequence[Path],
    out: Path,
    gates: Gates | None = None,
    *,
    reports: Sequence[Path] = (),
    has_report: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> Merged:
    """Join folders; files that the output's manifest lists already stay, and have to fit."""
    if any(one.resolve() == out.resolve() for one in folders):
        raise InputError(f"{out} is among the folders to merge. Give another output.")
    sources = [*folders, *([out] if (out / MANIFEST).is_file() and not force else [])]
    places: dict[str, Path] = {}
    files: dict[str, ManifestFile] = {}
    models: dict[str, Released] = {}
    for folder in sources:
        release = read_release(folder, progress)
        for name, file in release.files.items():
            if files.setdefault(name, file) != file:
                raise InputError(
                    f"{folder / name} and {places[name]} are different files of one name. Merge "
                    "only one of them."
                )
            places.setdefault(name, folder / name)
        for model in release.models:
            known = models.get(model.path.name)
            if known is None or known.report.compared is None:
                models[model.path.name] = model
    made = {one.sha256 for one in files.values() if one.kind == "imatrix"}
    check_together(tuple(models.values()), made)
    is_measured = _check_measured(tuple(models.values()), gates, has_report=has_report)
    remove_old(reports, [one.path for one in models.values()], force=force)
    with (
        made_folder(out),
        protected(places.values()),
        locked_folder(out),
        _placed(places, files, [out / name for name in models], out, force=force),
    ):
        placed = [replace(one, bundle=open_files(out / name)) for name, one in models.items()]
        placed.sort(key=lambda one: (-one.bundle.n_bytes, one.path.name))
        if gates is not None:
            placed = [replace(one, report=judged(one.report, gates)) for one in placed]
        for one in placed if is_measured else ():
            write_measurements(one.path, one.report)
        write_manifest(out, files.values())
    report = EvaluationReport(tuple(one.report for one in placed)) if is_measured else None
    return Merged(tuple(files.values()), report, tuple(unlisted_in(out, files)))


def check_together(models: Sequence[Released], matrices: Collection[str]) -> None:
    """Refuse models made or measured in different ways; `matrices` were made for a folder."""
    known: dict[str, tuple[Path, str]] = {}
    for one in models:
        for what, value in _ways(one, matrices):
            path, expected = known.setdefault(what, (one.path, value))
            if value != expected:
                new, old = _only(value, expected), _only(expected, value)
                raise InputError(f"{one.path} and {path} differ in {what} ({new}, {old}).")


def _only(text: str, other: str) -> str:
    """The words that the other text lacks."""
    words = [word for word in text.split() if word not in other.split()]
    return f"{' '.join(words):.24}" or "nothing"


def _ways(model: Released, matrices: Collection[str]) -> Iterator[tuple[str, str]]:
    """How a model was made and measured, each with words for it."""
    keys = model.bundle.main.keys
    yield "the checkpoint", str(keys.get(SOURCE_SHA256_KEY))
    for name in IDENTITY_KEYS:
        yield f"the key {name}", str(keys.get(name, "not set"))
    for part, file in model.files.items():
        yield f"the tool of {part}", " ".join(file.tool[one] for one in sorted(file.tool))
        yield f"the options of {part}", _options_of(file, model.report.kind)
        yield f"the source of {part}", file.source_sha256
        matrix = file.imatrix_sha256
        if matrix is not None:
            yield f"the importance matrix of {part}", matrix
        if matrix not in matrices:  # those serve only the types that need one
            yield f"the use of a matrix for {part}", "none" if matrix is None else "given"
    if model.report.compared is not None:
        for what, value in model.report.compared.inputs.items():
            yield f"the {what} of the measurements", value
    if model.report.speech is not None:
        yield "what was listened to", model.report.speech.key


def _options_of(file: ManifestFile, kind: str) -> str:
    """The command without the type, its file, and the matrix, which some types need."""
    given = list(file.arguments)
    if "--imatrix" in given:
        del given[(at := given.index("--imatrix")) : at + 2]
    return " ".join(one for one in given if one != kind and not one.endswith(f"-{kind}.gguf"))


def _check_measured(models: Sequence[Released], gates: Gates | None, *, has_report: bool) -> bool:
    """Whether the models were measured, which limits and reports need."""
    if gates is None and not has_report and not any(one.report.compared for one in models):
        return False
    types = {one.report.kind for one in models}
    for one in models:
        found = one.report.compared
        if found is None:
            raise InputError(f"{one.path} was not measured. Run `valle-convert evaluate` on it.")
        if gates is not None:
            gates.check(types, found.source, found.checkpoint, found.sequences)
    return True


@contextmanager
def _placed(
    places: Mapping[str, Path],
    files: Mapping[str, ManifestFile],
    models: Sequence[Path],
    out: Path,
    *,
    force: bool,
) -> Iterator[None]:
    """Place every file that is not there yet; if the rest fails, remove what has come."""
    later = [out / MANIFEST, out / SUMS, *map(path_of, models)]
    check_outputs(later, force=True)
    left = []
    for name, path in places.items():
        target = out / name
        if target.is_file() and sha256_of(target) == files[name].sha256:
            continue
        check_outputs([target], force=force)
        left.append((path, target))
    check_free_space(out / MANIFEST, sum(files[path.name].n_bytes for path, _ in left))
    new = [one for one in (*later, *(target for _, target in left)) if not one.exists()]
    try:
        for path, target in left:
            _link(path, target, force=force)
        yield
    except BaseException:
        for target in new:
            target.unlink(missing_ok=True)
        raise


def _link(path: Path, target: Path, *, force: bool) -> None:
    """A hard link, or a copy if the file system has none."""
    with suppress(OSError):
        os.link(path.resolve(), target)
        return
    with atomic_output(target, force=force) as file, path.open("rb") as original:
        shutil.copyfileobj(original, file, _PIECE)
