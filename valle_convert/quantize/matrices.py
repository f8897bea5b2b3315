"""The importance matrices of a run: given, or made by the run.

llama.cpp plans some tensors by whether they have a matrix, and making one takes minutes. So files
are planned with a placeholder that has the right entries, names and sizes; the real matrix is made
after everything else was checked.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from valle_convert.errors import InputError
from valle_convert.files import check_input_file, check_outputs
from valle_convert.gguf_file.keys import SOURCE_SHA256_KEY
from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.examples import Examples
from valle_convert.quantize.imatrix import (
    SOURCE_KEY,
    ImatrixInput,
    check_fits,
    collect_imatrices,
    imatrix_paths,
    in_scratch,
    made_of,
    make_imatrices,
    placeholder,
)
from valle_convert.quantize.options import AUTO, FolderOptions, MakeOptions, RunLog
from valle_convert.quantize.source import SourceBundle

#: Number of random utterances to make a matrix from if none are given.
N_RANDOM = 32


@dataclass(frozen=True)
class Matrices:
    source: SourceBundle
    given: Mapping[str, ImatrixInput]  # matrices that exist, if any
    calibration: Examples | None  # the utterances to make matrices from; None if that is impossible
    folder: Path | None  # where made matrices stay; None for the time of the run
    paths: Mapping[str, Path]  # of made matrices, by part
    for_all: bool  # whether every quantized type gets a matrix, or only those that need one
    force: bool

    @classmethod
    def of(
        cls,
        source: SourceBundle,
        folder: Path | None,
        options: MakeOptions,
        existing: FolderOptions,
    ) -> Self:
        """The matrices that the options ask for; files are read and checked now."""
        family, conversion, path = source.family, source.conversion, options.imatrix_path
        target = (folder or Path()) / f"{source.stem}-imatrix.gguf"
        paths = imatrix_paths(family, source.given.files, target)
        given: dict[str, ImatrixInput] = {}
        calibration: Examples | None = None
        if path is not None and not path.is_dir():
            given = read_matrices(source, path)
        elif path is not None and conversion is None:
            raise InputError(
                f"Making an importance matrix needs the checkpoint: give --checkpoint, or a "
                f"matrix instead of {path}."
            )
        elif path is not None:
            calibration = Examples.choose(family, source.model, path, None)
        elif options.imatrix == AUTO and conversion is not None:
            calibration = Examples.seeded(family, source.model, N_RANDOM, seed=0)
        if existing.resume and conversion is not None and calibration is not None:
            several = len(paths) > 1
            if all(
                one.exists()
                and made_of(one, conversion.checkpoint, calibration, part if several else "")
                for part, one in paths.items()
            ):
                given = {part: ImatrixInput.read(one) for part, one in paths.items()}
                source.log.message(f"kept {' and '.join(one.name for one in given.values())}")
        for_all = path is not None and any(kind.is_quantized for kind in options.types)
        return cls(source, given, calibration, folder, paths, for_all, existing.force)

    def planned(self) -> Mapping[str, ImatrixInput]:
        """The matrices that exist, or placeholders; empty if there are none."""
        if self.given or self.calibration is None:
            return self.given
        if self.folder is not None and self.folder.is_dir():
            check_outputs([*self.paths.values()], force=self.force)
        words, scratch = self.calibration.description, self.source.scratch
        return {
            unit.part: placeholder(one, self.paths[unit.part].name, words, scratch)
            for unit, one in self.source.units.items()
        }

    def real(self, log: RunLog) -> Mapping[str, ImatrixInput]:
        """The matrices that exist, or made ones."""
        conversion, calibration = self.source.conversion, self.calibration
        if self.given or conversion is None or calibration is None:
            return self.given
        log.message(f"importance matrix of {calibration.description}")
        if self.folder is not None:
            main = next(iter(self.paths.values()))
            make_imatrices(conversion, calibration, main, force=self.force, progress=log.progress)
            return {part: ImatrixInput.read(path) for part, path in self.paths.items()}
        made = collect_imatrices(conversion, calibration, progress=log.progress)
        return {
            part: in_scratch(made[part], path.name, self.source.scratch)
            for part, path in self.paths.items()
        }


def notes_on(source: SourceBundle, given: Mapping[str, ImatrixInput]) -> Iterator[str]:
    """Names given matrices of another checkpoint; those of llama-imatrix do not say which."""
    checkpoint = source.bundle.main.keys.get(SOURCE_SHA256_KEY)
    said = {one.name: GgufFile(one.path).keys.get(SOURCE_KEY) for one in given.values()}
    names = [name for name, sha256 in said.items() if sha256 and checkpoint not in (None, sha256)]
    if names:
        yield (
            f"the importance matrix in {' and '.join(names)} was made from another checkpoint "
            f"than {source.name}; make it again, unless both hold the same weights"
        )


def read_matrices(source: SourceBundle, path: Path) -> dict[str, ImatrixInput]:
    """Given importance matrices, by part, checked; `path` is that of the first."""
    found: dict[str, ImatrixInput] = {}
    paths = imatrix_paths(source.family, source.given.files, path)
    for part, one in paths.items():
        if len(paths) > 1:
            check_input_file(one, f"importance matrix of {part}")
        found[part] = ImatrixInput.read(one)
        of_part = found[part].contents.part
        if len(paths) > 1 and of_part not in ("", part):
            raise InputError(
                f"{one} is the importance matrix of {of_part}, expected that of {part}; give the "
                "first file, and keep the names that `imatrix` wrote."
            )
    for unit, file in source.units.items():
        check_fits(found[unit.part], file)
    return found
