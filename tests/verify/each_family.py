"""What the tests of `verify` are run on: a row a family, so that a further one is one more."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_cases import golden_cases, golden_tensors
from make_checkpoint import PRODUCTION, PUBLISHED_SIZES, Shape, make_checkpoint
from make_vallex import PUBLISHED, make_vallex
from numpy.typing import NDArray
from random_shapes import random_dtype, random_shape, random_vallex, random_version_7
from support import GOLDEN_NAMES, GOLDEN_VALLEX, GOLDEN_VERSION_7, with_keys
from vallex_golden import all_logits, golden

from valle_convert.families.bundle import Bundle, open_files
from valle_convert.gguf_file.header import Key
from valle_convert.gguf_file.read import GgufFile
from valle_convert.model.inputs import Condition

OUT_TYPES = ("auto", "f32", "f16", "bf16", "q8_0")
Logits = Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True)
class Random:
    """A random checkpoint: where it lies, its type, in how many columns its matrices come."""

    path: Path
    dtype: str
    widths: tuple[int, ...]
    words: str

    def can_be(self, out_type: str) -> bool:
        """Whether the rows of all matrices are whole blocks of a type."""
        return out_type != "q8_0" or not any(width % 32 for width in self.widths)


@dataclass(frozen=True)
class Row:
    """One family.

    Attributes:
        golden: folders of its golden checkpoints.
        logits: `logits(folder, network)`: each golden logit with its name, and the network's.
        names: some of their names.
        max_nmse: set for this project, by output type.
        cases: what the logits' level compares on any of the golden checkpoints.
        main: the part that the others are named after, as checks call it.
        random: `random(seed, folder)` makes a checkpoint that nobody chose by hand.
        published: makes one of the size of the published models.
    """

    golden: tuple[str, ...]
    logits: Callable[[str, Any], Logits]
    names: frozenset[str]
    max_nmse: Mapping[str, float]
    cases: frozenset[str]
    main: str
    random: Callable[[int, Path], Random]
    published: Callable[[Path], object]


def _golden_logits(folder: str, network: Any) -> Logits:
    for one in golden_cases(folder, network.model):
        yield one.case.name, one.logits, one.case.run(network)


def _golden_vallex_logits(folder: str, network: Any) -> Logits:
    del folder
    for prefix in ("", "noprompt."):
        given = golden(prefix)
        found = all_logits(network, given)
        for name, logits in given.logits.items():
            yield prefix + name, logits, found[name]


def _golden_version_7_logits(folder: str, network: Any) -> Logits:
    given, _ = golden_tensors(folder)
    condition = Condition(given["in.phn"], language=2, prompt=given["in.prom"])
    for name, one in (("mask", condition), ("mask_null", condition.null())):
        logits = network.levels(one, given["in.masked"])
        for level, expected in enumerate(given[f"logits.{name}"]):
            yield f"{name} {level}", expected, logits[level]
    yield "len", given["logits.len"], network.length(condition)


def _random(seed: int, folder: Path, choose: Callable[[int], dict[str, Any]]) -> Random:
    shape, dtype = Shape(**choose(seed)), random_dtype(seed)
    make_checkpoint(folder / "random.sft", shape, dtype=dtype)
    return Random(folder / "random.sft", dtype, (shape.dim,), f"{shape}, {dtype}")


def _random_vallex(seed: int, folder: Path) -> Random:
    shape, dtype = random_vallex(seed)
    make_vallex(folder / "random.pt", shape, dtype=dtype)
    widths = (shape.dim, shape.dim * shape.ffn)
    return Random(folder / "random.pt", dtype, widths, f"{shape}, {dtype}")


_LEVELS = {f"level.{level}" for level in range(8)}
_NAR = {f"nar.{level}" for level in range(1, 8)}
FAMILIES = {
    "VALL-E": Row(
        golden=GOLDEN_NAMES,
        logits=_golden_logits,
        names=frozenset({"ar", "nar1", "nar4", "nar7"}),
        # 4e-7 is reached in f32 (llama.cpp looks GELU up in a float16 table) and 3e-6 in f16
        # (activations are rounded to float16).
        max_nmse={"f32": 1e-6, "f16": 1e-4},
        cases=frozenset(
            {*_NAR, "ar", "ar ns", "ar sr", "mask", "mask null", "stt", "ar one code a step"}
        ),
        main="",
        random=partial(_random, choose=random_shape),
        published=partial(make_checkpoint, shape=PRODUCTION),
    ),
    "VALL-E X": Row(
        golden=(GOLDEN_VALLEX,),
        logits=_golden_vallex_logits,
        names=frozenset(
            {"ar", *(f"nar{level}" for level in range(1, 8))}
            | {f"noprompt.{name}" for name in ("ar", "nar1", "nar7")}
        ),
        # 6e-13, 6e-7 and 4e-4 were measured.
        max_nmse={"f32": 1e-10, "f16": 1e-5, "q8_0": 5e-3},
        cases=frozenset(
            {*_NAR, "ar", "ar one code a step"}
            | {f"{name} without prompt" for name in ("ar", "nar.1", "nar.7")}
        ),
        main="ar: ",
        random=_random_vallex,
        published=partial(make_vallex, shape=PUBLISHED),
    ),
    "VALL-E of version 7": Row(
        golden=(GOLDEN_VERSION_7,),
        logits=_golden_version_7_logits,
        names=frozenset({"len", *(f"mask_null {level}" for level in range(8))}),
        # 1.4e-7, 1.1e-6 and 2e-3 were measured, of the duration alone 5e-8, 6e-7 and 2e-3.
        max_nmse={"f32": 1e-6, "f16": 1e-4},
        cases=frozenset(
            {*_LEVELS, *(f"{level} null" for level in _LEVELS), "level.0 ns", "level.0 sr"}
            | {"level.0 without prompt", "length", "phonemes", "text"}
        ),
        main="model: ",
        random=partial(_random, choose=random_version_7),
        published=partial(make_checkpoint, shape=PUBLISHED_SIZES["nemo-smaller"]),
    ),
}


def copied(path: Path, folder: Path) -> Bundle:
    """A converted model in another folder, to be spoiled there."""
    for one in open_files(path).paths:
        shutil.copy(one, folder)
    return open_files(folder / path.name)


def set_key(file: GgufFile, name: str, value: object) -> None:
    """Write another value of a key into a file; None takes the key out."""
    keys = [] if value is None else [Key(name, value, file.key_types[name])]
    with_keys(file.path, file.path, *keys, drop=[] if keys else [name])


#: Every golden checkpoint with the row of its family.
EACH_GOLDEN = [pytest.param(name, row, id=name) for row in FAMILIES.values() for name in row.golden]
#: One golden checkpoint of each family, with its row and alone.
ONE_GOLDEN = [pytest.param(row.golden[0], row, id=title) for title, row in FAMILIES.items()]
NAMES = [row.golden[0] for row in FAMILIES.values()]
