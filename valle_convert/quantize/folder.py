"""A folder of quantized files and its manifest: which files a run keeps."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from valle_convert.errors import InputError
from valle_convert.files import check_outputs, sha256_of, valid_utf8
from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.manifest import (
    MANIFEST,
    SUMS,
    ManifestFile,
    read_manifest,
    unlisted_models,
)
from valle_convert.quantize.options import FolderOptions
from valle_convert.quantize.plan import TypePlan, UnitPlan
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


def check_targets(
    targets: Sequence[Path],
    source: SourceBundle,
    known: Mapping[str, ManifestFile],
    options: FolderOptions,
) -> None:
    """Refuse to replace existing files; with --resume, `with_kept` decides later."""
    may_exist = options.resume or options.force
    listed = [path for path in targets if path.name in known]
    if listed and not may_exist:
        raise InputError(
            f"The output {listed[0]} exists and is not overwritten; --resume keeps the files of "
            f"the folder's {MANIFEST} that were made in the same way, --force makes all of them "
            "again."
        )
    check_outputs(targets, force=may_exist, inputs=source.paths)


def with_kept(
    plan: TypePlan,
    source: SourceBundle,
    known: Mapping[str, ManifestFile],
    options: FolderOptions,
) -> TypePlan:
    """The plan with what --resume keeps, or why it makes existing files again.

    All files of a type are kept if the manifest lists them, they were made in the same way, and
    their bytes have not changed. A matrix that is not made yet counts as unchanged.
    """
    plan = replace(plan, kept=(), reason="")
    there = [(part, path) for part, path in plan.paths.items() if path.exists()]
    if not (options.resume and there):
        return plan
    units = {unit.part: one for unit, one in plan.units.items()}
    for part, path in dict.fromkeys([*there, *plan.paths.items()]):
        difference = _difference(source, part, units.get(part), path, known.get(path.name))
        if difference and not options.force:
            raise InputError(
                f"--resume does not keep {plan.path}, since {path.name} {difference}; give --force "
                "to make it again, or another folder."
            )
        if difference:
            return replace(plan, reason=f"{path.name} {difference}")
    return replace(plan, kept=tuple(known[one.name] for one in plan.paths.values()))


def _difference(
    source: SourceBundle, part: str, plan: UnitPlan | None, path: Path, old: ManifestFile | None
) -> str:
    """How an existing file differs from what would be made, or copied; empty if it does not."""
    if not path.exists():
        return "is missing"
    if old is None:
        return f"is not in {MANIFEST}"
    new = plan.source.sha256 if plan else sha256_of(source.bundle.files[part].path)
    facts: dict[str, tuple[object, object]] = {"from another source": (old.source_sha256, new)}
    if plan is not None:
        facts["as another type"] = old.kind, plan.kind.name
        facts["by another tool"] = old.tool, plan.tool
        facts["with other options"] = old.arguments, plan.arguments
        if not (plan.imatrix and plan.imatrix.is_placeholder):
            matrix = plan.imatrix.sha256 if plan.imatrix else None
            facts["with another importance matrix"] = old.imatrix_sha256, matrix
    if otherwise := [words for words, (was, new) in facts.items() if was != new]:
        return f"was made {otherwise[0]}"
    if not path.is_file() or path.stat().st_size != old.n_bytes:
        return f"has another size than {MANIFEST} says"
    if sha256_of(path) != old.sha256:
        return f"has other bytes than {MANIFEST} says"
    if plan is None:
        return ""
    keys = GgufFile(path, allow_part=True).keys
    wanted = plan.options.identity.keys(plan.source.header.keys)
    differing = [key.name for key in wanted if keys.get(key.name) != key.value]
    return f"has another {differing[0]}" if differing else ""


def others_in(
    folder: Path, listed: Mapping[str, ManifestFile], plans: Sequence[TypePlan]
) -> Iterator[str]:
    ours = {path.name for plan in plans for path in plan.paths.values()}
    ours |= {matrix.name for plan in plans for matrix in plan.imatrices}
    others = sorted(listed.keys() - ours)
    if others:
        yield (
            f"{valid_utf8(folder.name)} still has files of earlier runs: {', '.join(others)}; "
            "`evaluate --prune` removes those of the same source"
        )
    yield from unlisted_in(folder, listed)


def unlisted_in(folder: Path, listed: Iterable[str]) -> Iterator[str]:
    if unlisted := unlisted_models(folder, listed):
        names = valid_utf8(", ".join(unlisted))
        yield f"{valid_utf8(folder.name)} has files that no manifest lists: {names}"
