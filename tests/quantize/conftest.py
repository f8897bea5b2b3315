"""Folders of quantized files, made once a session: of a random network whose rows divide by 256, so
that every type can be itself, and of the golden VALL-E X and version 7."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from make_checkpoint import Shape, make_checkpoint
from make_vallex import VallexShape, make_vallex
from quantize.making import source_of
from support import GOLDEN_VERSION_7, golden_checkpoint, resave
from vallex_golden import CHECKPOINT as VALLEX

from valle_convert import plan_conversion, read_checkpoint, write_gguf
from valle_convert.families.bundle import open_files, plan_bundle, write_bundle
from valle_convert.families.family import Choices
from valle_convert.quantize.evaluate import FileSelection, evaluate
from valle_convert.quantize.limits import Gates
from valle_convert.quantize.options import MakeOptions, MeasureOptions
from valle_convert.quantize.run import quantize
from valle_convert.quantize.source import Source
from valle_convert.quantize.tool import Quantizer, find_quantizer
from valle_convert.quantize.types import parse_types

WIDE = Shape(dim=256, heads=4, layers=2, levels=3, seed=1)


@pytest.fixture(scope="session")
def checkpoint_256(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide") / "wide.sft"
    make_checkpoint(path, WIDE)
    return path


@pytest.fixture(scope="session")
def gguf_256(checkpoint_256: Path) -> Path:
    path = checkpoint_256.with_name("wide-f16.gguf")
    write_gguf(plan_conversion(checkpoint_256, Choices("f16")), path)
    return path


@pytest.fixture(scope="session")
def source_256(gguf_256: Path) -> Source:
    return source_of(gguf_256)


def negate(tensors: dict[str, np.ndarray]) -> None:
    tensors.update({name: -values for name, values in tensors.items()})


@dataclass(frozen=True)
class Family:
    """A checkpoint, its F16 file, and a folder with Q8_0 and Q4_0; none is to be changed."""

    checkpoint: Path
    source: Path
    made: Path

    @property
    def stem(self) -> str:
        return self.source.stem.removesuffix("-f16")

    def files(self, folder: Path, kind: str) -> list[Path]:
        """Those of a type, the main one first."""
        names = [path.name for path in open_files(self.made / f"{self.stem}-Q8_0.gguf").paths]
        return [folder / name.replace("Q8_0", kind) for name in names]

    def another(self, folder: Path) -> Path:
        """Another model's F16 file under the same name."""
        checkpoint, path = folder / self.checkpoint.name, folder / self.source.name
        folder.mkdir()
        if self.checkpoint == VALLEX:
            make_vallex(checkpoint, VallexShape(seed=9))
        else:
            resave(self.checkpoint, negate, out=checkpoint)
        write_bundle(plan_bundle(read_checkpoint(checkpoint), Choices("f16")), path)
        return path


@pytest.fixture(scope="session")
def made_256(gguf_256: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two quantized files; not to be changed."""
    folder = tmp_path_factory.mktemp("made") / "out"
    quantize(gguf_256, folder, MakeOptions(parse_types("Q8_0,Q4_0"), threads=1))
    return folder


def _golden(checkpoint: Path, folder: Path) -> Family:
    source = folder / f"{checkpoint.stem}-f16.gguf"
    write_bundle(plan_bundle(read_checkpoint(checkpoint), Choices("f16")), source)
    quantize(source, folder / "out", MakeOptions(parse_types("Q8_0,Q4_0"), threads=1))
    return Family(checkpoint, source, folder / "out")


@pytest.fixture(scope="session")
def golden_set(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return _golden(VALLEX, tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="session")
def golden_pair(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return _golden(golden_checkpoint(GOLDEN_VERSION_7), tmp_path_factory.mktemp("golden"))


@pytest.fixture(params=["file", "pair", "set"])
def family(request: pytest.FixtureRequest) -> Family:
    """A model of one file, of two (version 7), and of nine (VALL-E X)."""
    if request.param != "file":
        found: Family = request.getfixturevalue(f"golden_{request.param}")
        return found
    values = map(request.getfixturevalue, ("checkpoint_256", "gguf_256", "made_256"))
    return Family(*values)


@pytest.fixture
def folder(family: Family, tmp_path: Path) -> Path:
    """A copy of what was made of a family."""
    return Path(shutil.copytree(family.made, tmp_path / "made"))


@pytest.fixture(scope="session")
def evaluated_256(
    made_256: Path, checkpoint_256: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same folder with measurements and verdicts; not to be changed."""
    folder = tmp_path_factory.mktemp("evaluated") / "out"
    shutil.copytree(made_256, folder)
    given = FileSelection((folder,), checkpoint=read_checkpoint(checkpoint_256))
    evaluate(given, Gates(), MeasureOptions(n_utterances=1, threads=1))
    return folder


@pytest.fixture
def made(made_256: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_256, tmp_path / "made"))


@pytest.fixture
def evaluated(evaluated_256: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated_256, tmp_path / "evaluated"))


@pytest.fixture(scope="session")
def program() -> Quantizer:
    """The stock program, as `make llama-tools` builds it."""
    found = find_quantizer()
    assert found.kind == "llama-quantize", "run `make llama-tools` first"
    return found


@pytest.fixture(scope="session")
def library() -> Quantizer:
    """The same routine in the installed library."""
    return find_quantizer("library")
