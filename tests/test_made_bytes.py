"""What is made of the golden checkpoints and the miniature stays as it is, byte for byte."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from make_made import CHECKPOINTS, MADE, RECIPES, VALLEX, make, write_lora
from support import Cli

EXPECTED = json.loads(MADE.read_text(encoding="utf-8"))


def test_every_recipe_has_its_digests() -> None:
    assert EXPECTED.keys() == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_the_bytes_are_those_of_before(name: str, cli: Cli, tmp_path: Path) -> None:
    def run(*arguments: object) -> None:
        result = cli(*arguments)
        assert result.code == 0, result.err

    found, expected = make(name, tmp_path, run), EXPECTED[name]
    assert found.keys() == expected.keys()
    # Where a change of bytes is meant: python fixtures/make_made.py, and the commit says why.
    assert [file for file in found if found[file] != expected[file]] == []


@pytest.mark.parametrize(
    "checkpoint",
    [CHECKPOINTS["ar-nar-len"], CHECKPOINTS["v7-nemo"], VALLEX],
    ids=lambda path: path.parent.name,
)
def test_an_importance_matrix_and_what_is_quantized_with_one_are_the_same_twice(
    checkpoint: Path, cli: Cli, tmp_path: Path
) -> None:
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        made = cli("imatrix", checkpoint, "-o", folder / "m.gguf", "--utterances", 1)
        assert made.code == 0, made.err
        options = ("--types", "Q4_K_M", "--imatrix", folder / "m.gguf")
        quantized = cli("quantize", checkpoint, folder / "out", *options)
        assert quantized.code == 0, quantized.err
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        contents.append({path.relative_to(folder): path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert len(contents[0]) > 3


def test_another_processors_matrix_products_change_no_byte(tmp_path: Path) -> None:
    """The norms of VALL-E X, in which its levels are folded, and a LoRA that is merged."""
    lora = tmp_path / "everywhere.safetensors"
    write_lora(lora, [])
    old = {"OPENBLAS_CORETYPE": "Prescott", "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX2 FMA3"}
    for part, name, checkpoint, options in (
        ("valle-x-small", "valle-x-small-f32", VALLEX, ["--outtype", "f32"]),
        ("lora", "merged", CHECKPOINTS["ar-nar-len"], ["--lora", lora]),
    ):
        command = [sys.executable, "-m", "valle_convert", checkpoint, tmp_path / f"{name}.gguf"]
        command += [*options, "--verify", "none"]
        subprocess.run(command, check=True, env=os.environ | old)
        made = sorted(tmp_path.glob(f"{name}*.gguf"))
        assert made
        for path in made:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert digest == EXPECTED[part][path.name], path.name
