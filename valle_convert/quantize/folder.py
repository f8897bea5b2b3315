"""The folder of a run: what its manifest lists before, and what becomes of it at the end.

The manifest says of each model what the last run found that judged it. A run that makes or judges a
file takes that back before it starts, so that nothing that breaks off leaves a verdict behind.

Removing files is the last step of a run. It takes a verdict that passed, and only files that the
manifest lists with the digest they have, made from the source of this run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from valle_convert.errors import EnvironmentFault, InputError, ValleConvertError
from valle_convert.files import check_outputs, describe_os_error, sha256_of, valid_utf8
from valle_convert.quantize.make import Made
from valle_convert.quantize.manifest import (
    MANIFEST,
    SUMS,
    Judgement,
    ManifestFile,
    read_manifest,
    unlisted_models,
    write_manifest,
)
from valle_convert.quantize.report import FileReport, QuantizeReport

# The other files of a set of VALL-E X are called after its first.
_PART = re.compile(r"-(nar(-\d+)?|audio)(?=\.gguf$)")


def known_files(folder: Path, *, force: bool) -> dict[str, ManifestFile]:
    """What the folder's manifest lists and still lies there."""
    path = folder / MANIFEST
    for name in (MANIFEST, SUMS) if folder.is_dir() else ():
        check_outputs([folder / name], force=True)  # they may be links to what is read
    if not path.exists():
        if (folder / SUMS).exists() and not force:
            raise InputError(
                f"{folder} has {SUMS} and no {MANIFEST}, so it is not of this program and is "
                "not overwritten; give another folder, or --force."
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


class UnsettledFolder(EnvironmentFault):
    """The files are made and judged, and the folder could not be written to after that."""

    def __init__(self, message: str, report: QuantizeReport) -> None:
        super().__init__(message)
        self.report = report


def forget_verdicts(
    folder: Path, listed: Mapping[str, ManifestFile], names: Collection[str]
) -> dict[str, ManifestFile]:
    """The manifest with nothing said of these files, which is written where that is new."""
    changed = {
        name: replace(file, judgement=Judgement())
        for name, file in listed.items()
        if name in names and file.judgement != Judgement()
    }
    if changed:
        write_manifest(folder, list({**listed, **changed}.values()))
    return {**listed, **changed}


def record_verdicts(
    folder: Path,
    listed: Mapping[str, ManifestFile],
    judged: Sequence[tuple[Made, FileReport]],
) -> dict[str, ManifestFile]:
    """The manifest, written, with what a run found."""
    found = {
        entry.name: replace(listed[entry.name], judgement=_judgement(file))
        for made, file in judged
        for entry in made.entries
    }
    write_manifest(folder, list({**listed, **found}.values()))
    return {**listed, **found}


def _judgement(file: FileReport) -> Judgement:
    given = {} if file.limits is None else asdict(file.limits)
    given.pop("why", None)
    none = {"max": math.inf, "min": 0.0}  # of what limits nothing
    limits = {name: x for name, x in given.items() if x != none[name[:3]]}
    if file.faults:
        return Judgement("failed", limits)
    if file.open_questions or not (file.verified or file.limits):
        return Judgement("not judged", limits)
    return Judgement("passed", limits)


def settle_folder(
    report: QuantizeReport,
    folder: Path,
    listed: Mapping[str, ManifestFile],
    ours: Collection[str],
    sources: Collection[str],
    *,
    prune: bool,
) -> QuantizeReport:
    """End a run: remove files of earlier runs, where asked to, and say what else is there."""
    others = sorted(name for name in listed if name not in ours)
    notes: list[str] = []
    if others and prune:
        stays = dict(_staying(report, folder, listed, others, sources))
        stays |= _remove(folder, listed, [name for name in others if name not in stays])
        if removed := [name for name in others if name not in stays]:
            notes.append(f"removed from {valid_utf8(folder.name)}: {', '.join(removed)}")
        for reason in dict.fromkeys(stays.values()):
            names = ", ".join(name for name in others if stays.get(name) == reason)
            notes.append(f"not removed: {names}, since {reason}")
        listed = {name: file for name, file in listed.items() if name in {*ours, *stays}}
    elif others:
        notes.append(
            f"{valid_utf8(folder.name)} still has files of earlier runs, which this one has not "
            f"judged: {', '.join(others)}; --prune removes those of the same source"
        )
    if unlisted := unlisted_models(folder, listed):
        notes.append(
            f"{valid_utf8(folder.name)} has files that no manifest lists: "
            f"{valid_utf8(', '.join(unlisted))}"
        )
    return replace(report, notes=(*report.notes, *notes))


def _staying(
    report: QuantizeReport,
    folder: Path,
    listed: Mapping[str, ManifestFile],
    others: Sequence[str],
    sources: Collection[str],
) -> Iterator[tuple[str, str]]:
    """The files that are not to be removed, each with the reason; sets stay as a whole."""
    if not report.passed:
        why = "this run failed" if report.faults else "not everything could be judged"
        yield from ((name, why) for name in others)
        return
    sets: dict[str, list[ManifestFile]] = {}
    for name in others:
        sets.setdefault(_PART.sub("", name), []).append(listed[name])
    used = {file.imatrix_sha256 for name, file in listed.items() if name not in others}
    # Importance matrices last: one that a file was made with stays with it.
    for files in sorted(sets.values(), key=lambda files: files[0].kind == "imatrix"):
        why = ""
        if any(file.source_sha256 not in sources for file in files):
            why = "this run did not quantize their source"
        elif any(file.sha256 in used for file in files):
            why = "other files here were made with it"
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
            return "the manifest lists other bytes under this name"
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
    write_manifest(folder, list(left.values()))
    refused: dict[str, str] = {}
    for name in names:
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            refused[name] = describe_os_error(error)
    if refused:
        write_manifest(folder, [*left.values(), *(listed[name] for name in refused)])
    return refused
