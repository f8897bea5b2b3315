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
from valle_convert.quantize.source import Scratch, SourceBundle

#: Number of random utterances to make a matrix from if none are given.
N_RANDOM = 32


@dataclass(frozen=True)
class Matrices:
    source: SourceBundle
    given: Mapping[str, ImatrixInput]  # matrices that were read from files, if any
    calibration: Examples | None  # the utterances to make matrices from; None if that is impossible
    paths: Mapping[str, Path]  # where made matrices are written, if `is_kept`
    is_kept: bool
    for_all: bool  # whether every quantized type gets a matrix, or only those that need one

    @classmethod
    def of(cls, source: SourceBundle, folder: Path | None, options: MakeOptions) -> Self:
        """The matrices that the options ask for; files are read and checked now."""
        family, parts, path = source.family, source.bundle.files, options.imatrix_path
        target = (folder or Path()) / f"{source.main.stem}-imatrix.gguf"
        given: dict[str, ImatrixInput] = {}
        calibration: Examples | None = None
        if path is not None and path.is_dir():
            if source.conversion is None:
                raise InputError(
                    f"Making an importance matrix needs the checkpoint: give --checkpoint, or a "
                    f"matrix instead of {path}."
                )
            calibration = Examples.choose(family, source.model, path, None)
        elif path is not None:
            for part, one in imatrix_paths(family, parts, path).items():
                given[part] = _read_given(one, part, n_units=len(source.units))
            for unit, file in source.units.items():
                check_fits(given[unit.part], file)
        elif options.imatrix == AUTO and source.conversion is not None:
            calibration = Examples.seeded(family, source.model, N_RANDOM, seed=0)
        paths = imatrix_paths(family, parts, target)
        return cls(source, given, calibration, paths, folder is not None, path is not None)

    def notes(self) -> Iterator[str]:
        """Names given matrices of another checkpoint; those of llama-imatrix do not say which."""
        said = {one.name: GgufFile(one.path).keys.get(SOURCE_KEY) for one in self.given.values()}
        source = self.source
        names = [n for n, of in said.items() if of and source.checkpoint_sha256 not in (None, of)]
        if names:
            yield (
                f"the importance matrix in {' and '.join(names)} was made from another checkpoint "
                f"than {source.name}; make it again, unless both hold the same weights"
            )

    def planned(self, scratch: Scratch) -> Mapping[str, ImatrixInput]:
        """The given matrices, or placeholders; empty if there are none."""
        if self.given or self.calibration is None:
            return self.given
        words = self.calibration.description
        return {
            unit.part: placeholder(one, self.paths[unit.part].name, words, scratch)
            for unit, one in self.source.units.items()
        }

    def check_targets(self, options: FolderOptions) -> None:
        """Refuse to replace files other than importance matrices of the same inputs."""
        if self.is_kept and not self._stay(options):
            there = [path for path in self.paths.values() if path.parent.is_dir()]
            check_outputs(there, force=options.force)

    def make(
        self, options: FolderOptions, scratch: Scratch, log: RunLog
    ) -> dict[str, ImatrixInput]:
        conversion, calibration = self.source.conversion, self.calibration
        if conversion is None or calibration is None:
            raise AssertionError("a placeholder is planned only if the real one can be made")
        if self._stay(options):
            log.message(f"kept {' and '.join(path.name for path in self.paths.values())}")
            return {part: ImatrixInput.read(path) for part, path in self.paths.items()}
        log.message(f"importance matrix of {calibration.description}")
        if not self.is_kept:
            made = collect_imatrices(conversion, calibration, progress=log.progress)
            return {
                part: in_scratch(made[part], path.name, scratch)
                for part, path in self.paths.items()
            }
        main = next(iter(self.paths.values()))
        make_imatrices(conversion, calibration, main, force=options.force, progress=log.progress)
        return {part: ImatrixInput.read(path) for part, path in self.paths.items()}

    def _stay(self, options: FolderOptions) -> bool:
        """Whether the folder's matrices were made from the same inputs, and are kept."""
        conversion, calibration = self.source.conversion, self.calibration
        if not (self.is_kept and options.resume and conversion and calibration):
            return False
        several = len(self.paths) > 1
        return all(
            path.exists()
            and made_of(path, conversion.checkpoint, calibration, part if several else "")
            for part, path in self.paths.items()
        )


def _read_given(path: Path, part: str, *, n_units: int) -> ImatrixInput:
    """A given importance matrix; of several, the one of a part."""
    if n_units > 1:
        check_input_file(path, f"importance matrix of {part}")
    found = ImatrixInput.read(path)
    if n_units > 1 and found.contents.part not in ("", part):
        raise InputError(
            f"{path} is the importance matrix of {found.contents.part}, expected that of {part}; "
            "give the first file, and keep the names that `imatrix` wrote."
        )
    return found
