"""A folder of quantized files: what its manifest lists before a run, which files are kept, whether
all passed, and which are removed.

Removing files is the last step of `evaluate`. It takes a verdict that passed, and only files that
the manifest lists with the digest they have, made from the source of the files that passed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from valle_convert.errors import InputError, ValleConvertError
from valle_convert.families.bundle import paths_of
from valle_convert.files import check_outputs, describe_os_error, sha256_of, valid_utf8
from valle_convert.gguf_file.read import GgufFile
from valle_convert.progress import Progress, silent
from valle_convert.quantize.manifest import (
    MANIFEST,
    SUMS,
    Finding,
    ManifestCheck,
    ManifestFile,
    check_manifest,
    read_manifest,
    unlisted_models,
    write_manifest,
)
from valle_convert.quantize.measurements import Judgement, measurements_in, path_of
from valle_convert.quantize.options import FolderOptions
from valle_convert.quantize.plan import BundlePlan, FilePlan
from valle_convert.quantize.source import SourceBundle


def known_files(folder: Path, *, force: bool) -> dict[str, ManifestFile]:
    """What the folder's manifest lists and still lies there."""
    path = folder / MANIFEST
    for name in (MANIFEST, SUMS) if folder.is_dir() else ():
        check_outputs([folder / name], force=True)  # they may be links to what is read
    if not path.exists():
        if (folder / SUMS).exists() and not force:
            raise InputError(
                f"{folder} has {SUMS} but no {MANIFEST}, so another program wrote it. It is not "
                "overwritten; give another folder, or --force."
            )
        return {}
    try:
        files = read_manifest(path)
    except InputError as error:
        if force:
            return {}
        raise InputError(
            f"{str(error).rstrip('.')}, and is not overwritten; give another folder, or --force."
        ) from error
    return {file.name: file for file in files if (folder / file.name).is_file()}


def with_kept(
    plan: BundlePlan,
    source: SourceBundle,
    known: Mapping[str, ManifestFile],
    options: FolderOptions,
) -> BundlePlan:
    """The plan with what is kept; refuses to replace what is there.

    With --resume, all files of a type are kept if the manifest lists them, they were made in the
    same way, and their bytes have not changed. As long as source or importance matrix are still to
    be made, what depends on them is taken to be the same.
    """
    there = {part: path for part, path in plan.paths.items() if path.exists()}
    if not there:
        if plan.path.parent.is_dir():
            check_outputs([plan.path], force=options.force, inputs=source.paths)
        return replace(plan, kept=(), reason="")
    units = {unit.part: one for unit, one in plan.units.items()}
    reasons = (
        (path, _difference(source, part, units.get(part), path, known.get(path.name)))
        for part, path in there.items()
    )
    path, reason = next((one for one in reasons if one[1]), (next(iter(there.values())), ""))
    missing = [one.name for part, one in plan.paths.items() if part not in there]
    if not reason and missing:
        reason = f"{missing[0]} of its set is missing"
    if options.resume and not reason:
        return replace(plan, kept=tuple(known[one.name] for one in plan.paths.values()), reason="")
    for one in (path, *there.values()):
        _check_replaced(one, known, reason, options, source.paths)
    return replace(plan, kept=(), reason=reason)


def _check_replaced(
    path: Path,
    known: Mapping[str, ManifestFile],
    reason: str,
    options: FolderOptions,
    sources: Sequence[Path],
) -> None:
    if options.resume and not options.force:
        raise InputError(
            f"The output {path} exists, and --resume does not keep it, since {reason}; "
            "give --force to make it again, or another folder."
        )
    if path.name in known and not options.force:
        raise InputError(
            f"The output {path} exists and is not overwritten; --resume keeps the files of "
            f"the folder's {MANIFEST} that were made in the same way, --force makes all "
            "of them again."
        )
    check_outputs([path], force=options.force, inputs=sources)


def _difference(
    source: SourceBundle, part: str, plan: FilePlan | None, path: Path, old: ManifestFile | None
) -> str:
    """Why an existing file is not what would be made, or copied; empty if it is."""
    if old is None:
        return "no manifest lists it"
    if plan is not None and (reason := _made_otherwise(plan, old)):
        return reason
    if not path.is_file() or path.stat().st_size != old.n_bytes:
        return "its size differs from the manifest"
    if sha256_of(path) != old.sha256:
        return "its bytes differ from the manifest"
    if plan is None:
        is_new = source.is_complete and sha256_of(source.bundle.files[part].path) != old.sha256
        return "it was made from another source" if is_new else ""
    keys = GgufFile(path, allow_part=True).keys
    wanted = plan.options.identity.keys(plan.source.header.keys)
    differing = [key.name for key in wanted if keys.get(key.name) != key.value]
    return f"its {differing[0]} differs" if differing else ""


def _made_otherwise(plan: FilePlan, old: ManifestFile) -> str:
    """How the manifest's entry differs from the plan; empty if it does not."""
    if old.kind != plan.kind.name:
        return f"it has the type {old.kind}"
    if plan.source.is_complete and old.source_sha256 != plan.source.sha256:
        return "it was made from another source"
    if old.tool != plan.tool:
        return f"it was made by {old.tool.get('name')} {old.tool.get('version')}"
    if old.arguments != plan.arguments:
        return f"it was made with other options ({' '.join(old.arguments)})"
    imatrix = plan.imatrix
    is_known = imatrix is None or imatrix.is_made
    if is_known and old.imatrix_sha256 != (imatrix.sha256 if imatrix else None):
        return "it was made with another importance matrix"
    return ""


def others_in(
    folder: Path, listed: Mapping[str, ManifestFile], plans: Sequence[BundlePlan]
) -> Iterator[str]:
    ours = {path.name for plan in plans for path in plan.paths.values()}
    ours |= {matrix.name for plan in plans for matrix in plan.imatrices}
    others = sorted(listed.keys() - ours)
    if others:
        yield (
            f"{valid_utf8(folder.name)} still has files of earlier runs: {', '.join(others)}; "
            "`evaluate --prune` removes those of the same source"
        )
    yield from _unlisted(folder, listed)


def _unlisted(folder: Path, listed: Iterable[str]) -> Iterator[str]:
    if unlisted := unlisted_models(folder, listed):
        names = valid_utf8(", ".join(unlisted))
        yield f"{valid_utf8(folder.name)} has files that no manifest lists: {names}"


def check_folder(
    path: Path, *, require_passed: bool = False, progress: Progress = silent
) -> ManifestCheck:
    """Compare a folder with its manifest, and see whether the last verdict on each model passed."""
    found = check_manifest(path, progress=progress)
    if not require_passed:
        return found
    folder = path if path.is_dir() else path.parent
    models = [file for file in read_manifest(folder / MANIFEST) if file.is_model]
    verdicts = {
        (name, sha256): one.judgement
        for one in measurements_in(folder)
        for name, sha256 in one.files.items()
    }
    missing = [] if models else [Finding(MANIFEST, "it lists no model")]
    for file in models:
        judgement = verdicts.get((file.name, file.sha256)) or Judgement("not judged")
        if judgement.outcome != "passed":
            limits = ", ".join(f"{name} {value:g}" for name, value in judgement.limits.items())
            missing.append(
                Finding(file.name, f"{judgement.outcome}{limits and f' (limits: {limits})'}")
            )
    return replace(found, findings=(*found.findings, *missing))


def prune(
    folder: Path,
    passed: Collection[str],
    sources: Collection[str],
    parts: Iterable[str],
    why_not: str = "",
) -> list[str]:
    """Remove the other files of the same source, and say what was removed and what was not.

    Args:
        passed: the names of all files that the verdict is on.
        sources: the digests of what they were made from, beside those in the manifest.
        parts: of each model, the main one first; sets stay as a whole.
        why_not: why nothing is to be removed; empty where the verdict passed.
    """
    listed = {file.name: file for file in read_manifest(folder / MANIFEST)}
    ours = {name for name in passed if name in listed}
    sources = {*sources, *(listed[name].source_sha256 for name in ours)}
    used = {listed[name].imatrix_sha256 for name in ours}
    others = sorted(n for n, file in listed.items() if n not in ours and file.sha256 not in used)
    stays = dict(_staying(folder, listed, others, sources, tuple(parts), why_not))
    stays |= _remove(folder, listed, [name for name in others if name not in stays])
    notes = []
    if removed := [name for name in others if name not in stays]:
        notes.append(f"removed from {valid_utf8(folder.name)}: {', '.join(removed)}")
    for reason in dict.fromkeys(stays.values()):
        names = ", ".join(name for name in others if stays.get(name) == reason)
        notes.append(f"not removed: {names}, since {reason}")
    return [*notes, *_unlisted(folder, listed)]


def _staying(
    folder: Path,
    listed: Mapping[str, ManifestFile],
    others: Sequence[str],
    sources: Collection[str],
    parts: Sequence[str],
    why_not: str,
) -> Iterator[tuple[str, str]]:
    """The files that are not to be removed, each with the reason; sets stay as a whole."""
    if why_not:
        yield from ((name, why_not) for name in others)
        return
    main_of = {name: name for name in others}
    for name in others:
        _, *more = paths_of(Path(name), parts).values()
        main_of |= {part.name: name for part in more}
    sets: dict[str, list[ManifestFile]] = {}
    for name in others:
        sets.setdefault(main_of[name], []).append(listed[name])
    used = {file.imatrix_sha256 for name, file in listed.items() if name not in others}
    # Importance matrices last: one that a file was made with stays with it.
    for files in sorted(sets.values(), key=lambda files: files[0].kind == "imatrix"):
        why = ""
        if any(file.source_sha256 not in sources for file in files):
            why = "their source is not that of the files that passed"
        elif any(file.sha256 in used for file in files):
            why = "other files were made with it"
        else:
            why = next(filter(None, (_why_kept(folder, file) for file in files)), "")
        if why:
            used |= {file.imatrix_sha256 for file in files}
            yield from ((file.name, why) for file in files)


def _why_kept(folder: Path, file: ManifestFile) -> str:
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


def _remove(
    folder: Path, listed: Mapping[str, ManifestFile], names: Collection[str]
) -> dict[str, str]:
    """Remove files; those that the system does not let go of, each with its words."""
    # The manifest first: if this is interrupted there is a file too many, and none missing.
    left = {name: file for name, file in listed.items() if name not in names}
    write_manifest(folder, left.values())
    refused: dict[str, str] = {}
    for name in names:
        try:
            for path in (folder / name, path_of(folder / name)):
                path.unlink(missing_ok=True)
        except OSError as error:
            refused[name] = describe_os_error(error)
    if refused:
        write_manifest(folder, [*left.values(), *(listed[name] for name in refused)])
    return refused
