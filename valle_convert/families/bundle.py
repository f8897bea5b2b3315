"""A bundle is the files of one model by part; a single file is a bundle of one.

`plan_bundle` decides everything about the files of a checkpoint, `write_bundle` writes all of them
or none, and `open_bundle` opens and checks them. The main part has the user's name, the others are
beside it and named after their part: OUT.gguf, OUT-nar.gguf.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.folder import locate
from valle_convert.errors import InputError
from valle_convert.families import family_of, family_of_file
from valle_convert.families.family import AnyFamily, Choices
from valle_convert.files import atomic_outputs, check_free_space, check_input_file
from valle_convert.gguf_file.keys import PART_KEY, SET_ID_KEY
from valle_convert.gguf_file.plan import PlannedFile, check_codec, lay_out, out_type_named
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.write import header_of, write_plan_to
from valle_convert.model.description import Description
from valle_convert.progress import Progress, silent
from valle_convert.tokenizer.choose import TokenizerChoice

_OPTIONS = {"tokenizer": "--tokenizer", "codec": "--codec-name", "out_type": "--outtype"}


@dataclass(frozen=True)
class Plan:
    """Everything about the files of a checkpoint before they are written."""

    family: AnyFamily
    checkpoint: Checkpoint
    description: Description[Any]
    choices: Choices
    tokenizer: TokenizerChoice  # the source of the vocabulary
    files: Mapping[str, PlannedFile]  # by part, the main one first

    @property
    def main(self) -> PlannedFile:
        """The file that the others are named after."""
        return next(iter(self.files.values()))

    @property
    def model(self) -> Any:  # noqa: ANN401 - the family's own
        """The model in the files."""
        return self.description.model

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file that was read, which no output may replace."""
        return (*self.checkpoint.inputs, self.tokenizer.file.path)

    @property
    def n_weights(self) -> int:
        """Elements of all tensors of all files."""
        return sum(file.n_weights for file in self.files.values())

    def at(self, target: Path) -> dict[Path, PlannedFile]:
        """The files by path; `target` is that of the main file."""
        return {path: self.files[part] for part, path in paths_of(target, self.files).items()}


def paths_of(main: Path, parts: Iterable[str]) -> dict[str, Path]:
    """The paths of a bundle's files by part; `main` is that of the first part."""
    is_gguf_name = main.suffix.lower() == ".gguf"
    stem, suffix = (main.name[:-5], main.name[-5:]) if is_gguf_name else (main.name, ".gguf")
    return {
        part: main.with_name(f"{stem}-{part}{suffix}") if i else main
        for i, part in enumerate(parts)
    }


def plan_bundle(checkpoint: Checkpoint, choices: Choices | None = None) -> Plan:
    """Decide everything about the files of a checkpoint.

    Reads headers, and for some families a few weights.

    Raises:
        UnsupportedModelError: the checkpoint, or a switch of it, is rejected by name.
        InputError: the checkpoint, its config or its tokenizer cannot be converted exactly, or
            its family does not support a choice.
    """
    choices = choices or Choices()
    family = family_of(checkpoint)
    for name, option in _OPTIONS.items():
        if name not in family.reads and getattr(choices, name) != getattr(Choices(), name):
            raise InputError(f"{option} does not apply to {family.title}; leave it out.")
    if checkpoint.lora is not None and "lora" not in family.abilities:
        raise InputError(f"--lora does not apply to {family.title}; leave it out.")
    forced = out_type_named(choices.out_type)
    description = family.describe(checkpoint, choices)
    if choices.codec is not None:
        check_codec(choices.codec, description.model)
    tokenizer = family.tokenizer(checkpoint, description, choices)
    source = replace(checkpoint, tensors=description.tensors)
    files = {
        part: lay_out(
            source,
            contents,
            family.keys(checkpoint, description, part, tokenizer),
            forced=forced,
            metadata=choices.metadata,
            set_salt=(family.name, description.salt) if len(description.contents) > 1 else None,
            assumed=description.assumed,
        )
        for part, contents in description.contents.items()
    }
    return Plan(family, checkpoint, description, choices, tokenizer, files)


def write_bundle(
    plan: Plan, target: Path, *, force: bool = False, progress: Progress = silent
) -> dict[Path, int]:
    """Write all files of a plan, or leave nothing; returns their sizes in bytes."""
    files = plan.at(target)
    n_bytes = sum(len(header_of(one)) + one.data_bytes for one in files.values())
    with atomic_outputs(list(files), force=force, inputs=plan.inputs) as opened:
        check_free_space(target, n_bytes)
        return {
            path: write_plan_to(planned, file, progress=progress)
            for (path, planned), file in zip(files.items(), opened, strict=True)
        }


@dataclass(frozen=True)
class Bundle:
    """The files of a converted model, opened."""

    family: AnyFamily
    files: Mapping[str, GgufFile]  # by part, the main one first

    @property
    def main(self) -> GgufFile:
        """The file that the others are named after."""
        return next(iter(self.files.values()))

    @property
    def path(self) -> Path:
        """Of the main file."""
        return self.main.path

    @property
    def paths(self) -> tuple[Path, ...]:
        """Of all files."""
        return tuple(file.path for file in self.files.values())

    @property
    def n_bytes(self) -> int:
        """The size of all files."""
        return sum(file.size for file in self.files.values())

    @cached_property
    def model(self) -> Any:  # noqa: ANN401 - the family's own
        """The model in the files."""
        return self.family.read_model(self.files)

    def check(self) -> None:
        """Reject files that are not a converted model, or that llama.cpp would not survive."""
        _ = self.model
        found = list(self.family.dangers(self.files))
        if found:
            raise InputError(
                f"{self.path} would make llama.cpp abort: {'; '.join(found)}. Convert the "
                "checkpoint again."
            )


def part_of(file: GgufFile) -> str:
    """The part of a set that a file belongs to, unless it is the main one; else ""."""
    try:
        family_of_file(file).parts(file)
    except InputError:
        return str(file.keys.get(PART_KEY, "part"))
    return ""


def files_at(path: Path) -> Mapping[str, GgufFile]:
    """The files of a model, given its main file; any other part of a set is alone."""
    file = GgufFile(path, allow_part=True)
    is_one_of_many = PART_KEY in file.keys and part_of(file)
    return {part_of(file): file} if is_one_of_many else open_files(file).files


def open_files(main: Path | GgufFile) -> Bundle:
    """Open the files of a model, given its main one; the others of its set are beside it.

    Raises:
        InputError: a file is missing, damaged or of another kind, or two belong to different sets.
    """
    main = main if isinstance(main, GgufFile) else GgufFile(main, allow_part=True)
    family = family_of_file(main)
    files: dict[str, GgufFile] = {}
    for part, place in paths_of(main.path, family.parts(main)).items():
        if not files:
            files[part] = main
            continue
        if not os.path.lexists(place):
            raise InputError(
                f"{place.name} of the set of {main.path} is missing. Put it beside that file, or "
                "make the set again."
            )
        check_input_file(place, f"part of {main.path.name}")
        file = GgufFile(place, allow_part=True)
        family.check_part(file, part)
        if file.keys.get(SET_ID_KEY) != main.keys.get(SET_ID_KEY):
            raise InputError(
                f"{place} belongs to another set than {main.path} (their {SET_ID_KEY} differ). "
                "Convert the checkpoint again, and keep the files of a set together."
            )
        files[part] = file
    return Bundle(family, files)


def fetched(path: Path) -> Path:
    """The main file of a model on the hub, downloaded with its other files."""
    tree, place = locate(path)
    local = tree.get(place)
    file = GgufFile(local, allow_part=True)
    # A part alone has no others.
    parts = () if part_of(file) else family_of_file(file).parts(file)
    for beside in list(paths_of(Path(place), parts).values())[1:]:
        tree.get(beside)
    return local


def open_bundle(path: Path) -> Bundle:
    """Open a converted model, and check everything that llama.cpp relies on.

    Raises:
        InputError: as `open_files`; it is not a converted model, or inconsistent.
    """
    bundle = open_files(path)
    bundle.check()
    return bundle
