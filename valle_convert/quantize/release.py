"""A folder of quantized models, compared with its manifest: what `publish` and `merge` read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from valle_convert.errors import InputError
from valle_convert.families.bundle import open_files
from valle_convert.progress import Progress, silent
from valle_convert.quantize.evaluate import converted_models_in
from valle_convert.quantize.manifest import ManifestFile, check_manifest
from valle_convert.quantize.measurements import read_measurements
from valle_convert.quantize.report import Advice, Evaluated, advise
from valle_convert.wording import listing


@dataclass(frozen=True)
class Release:
    """A folder, the files of its manifest by name, and its models by size."""

    path: Path
    files: Mapping[str, ManifestFile]
    models: tuple[Evaluated, ...]

    @property
    def listed(self) -> tuple[ManifestFile, ...]:
        """The files of the models, then others such as importance matrices."""
        ours = [file for one in self.models for file in one.files.values()]
        return (*ours, *(one for one in self.files.values() if not one.is_model))

    def advice(self) -> Advice:
        found = [one.measurements for one in self.models if one.measurements.predictions]
        n_texts = [one.predictions.compared.n_texts for one in found if one.predictions]
        n_texts += [one.speech.listening.n_texts for one in found if one.speech]
        return advise([one.report for one in self.models], min(n_texts, default=0))

    def best(self) -> Evaluated | None:
        taken = self.advice().take
        return next((one for one in self.models if one.report is taken), None)


def read_release(path: Path, progress: Progress = silent) -> Release:
    checked = check_manifest(path, progress=progress)
    if not checked.passed:
        first = checked.findings[0]
        raise InputError(f"{path / first.name}: {first.problem.rstrip('.')}. Quantize again.")
    listed = {one.name: one for one in checked.files}
    models, idle = [], {one.name for one in listed.values() if one.is_model}
    for main in converted_models_in(path):
        bundle = open_files(main)
        names = {part: file.path.name for part, file in bundle.files.items()}
        if missing := [name for name in names.values() if name not in listed]:
            raise InputError(
                f"{path / missing[0]} belongs to {main.name} and is in no manifest. Quantize again."
            )
        files = {part: listed[name] for part, name in names.items()}
        models.append(Evaluated(bundle, read_measurements(bundle), files))
        idle -= {*names.values()}
    if idle:
        raise InputError(
            f"{path}: no converted model has the file {listing(sorted(idle), 2)}. Quantize again."
        )
    if not models:
        raise InputError(f"{path} has no converted model. Give a folder that `quantize` wrote.")
    models.sort(key=lambda one: one.bundle.n_bytes)
    return Release(path, listed, tuple(models))
