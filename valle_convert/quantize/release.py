"""A finished folder: its models, what is measured of them, and which of them to take."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from valle_convert.errors import InputError
from valle_convert.families.bundle import Bundle, part_of
from valle_convert.gguf_file.keys import is_converted
from valle_convert.gguf_file.read import GgufFile
from valle_convert.progress import Progress, silent
from valle_convert.quantize.manifest import MANIFEST, ManifestFile, check_manifest, read_manifest
from valle_convert.quantize.measurements import Evaluated, read_measurements
from valle_convert.quantize.report import Advice, advise
from valle_convert.quantize.source import open_checked
from valle_convert.wording import listing


def converted_models_in(folder: Path) -> Iterator[Bundle]:
    """The converted models of a folder: those of its manifest, else all."""
    paths = sorted(folder.glob("*.gguf"))
    if (folder / MANIFEST).is_file():
        paths = [folder / one.name for one in read_manifest(folder / MANIFEST) if one.is_model]
    seen: set[Path] = set()
    for path in sorted(paths, key=lambda one: len(one.name)):  # a main file before its parts
        if path in seen:
            continue
        file = GgufFile(path, allow_part=True)
        if is_converted(file.keys) and not part_of(file):
            bundle = open_checked(file)
            seen.update(bundle.paths)
            yield bundle


@dataclass(frozen=True)
class Released:
    """A model of a folder; `files` are its entries in the manifest, by part."""

    bundle: Bundle
    report: Evaluated
    files: Mapping[str, ManifestFile]

    @property
    def path(self) -> Path:
        return self.bundle.path

    @property
    def main(self) -> ManifestFile:
        return next(iter(self.files.values()))


@dataclass(frozen=True)
class Release:
    """A folder that matches its manifest: the files by name, and the models by size."""

    path: Path
    files: Mapping[str, ManifestFile]
    models: tuple[Released, ...]

    @property
    def listed(self) -> tuple[ManifestFile, ...]:
        """The files of the models, then others such as importance matrices."""
        ours = [file for one in self.models for file in one.files.values()]
        return (*ours, *(one for one in self.files.values() if not one.is_model))

    def advice(self) -> Advice:
        return advise([one.report for one in self.models])

    def best(self) -> Released | None:
        taken = self.advice().take
        return next((one for one in self.models if one.report is taken), None)


def read_release(path: Path, progress: Progress = silent) -> Release:
    checked = check_manifest(path, progress=progress)
    if not checked.passed:
        first = checked.findings[0]
        raise InputError(f"{path / first.name}: {first.problem.rstrip('.')}. Quantize again.")
    listed = {one.name: one for one in checked.files}
    models, idle = [], {one.name for one in listed.values() if one.is_model}
    for bundle in converted_models_in(path):
        unknown = [one.name for one in bundle.paths if one.name not in listed]
        if unknown:
            raise InputError(
                f"{path / unknown[0]} belongs to {bundle.path.name}, and {MANIFEST} does not list "
                "it. Quantize again."
            )
        files = {part: listed[file.path.name] for part, file in bundle.files.items()}
        models.append(Released(bundle, read_measurements(bundle), files))
        idle -= {one.name for one in files.values()}
    if idle:
        raise InputError(
            f"{path}: no converted model has the file {listing(sorted(idle), 2)}. Quantize again."
        )
    if not models:
        raise InputError(f"{path} has no converted model. Give a folder that `quantize` wrote.")
    models.sort(key=lambda one: one.bundle.n_bytes)
    return Release(path, listed, tuple(models))
