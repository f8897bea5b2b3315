import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from make_checkpoint import Shape, make_checkpoint
from quantize.making import WIDE
from support import Cli, error_of
from vallex_golden import CHECKPOINT as VALLEX

from valle_convert.checkpoint import read_checkpoint
from valle_convert.errors import InputError
from valle_convert.families.bundle import Plan, plan
from valle_convert.families.v5 import FAMILY
from valle_convert.families.v5.reference import ReferenceNetwork
from valle_convert.quantize.examples import Examples
from valle_convert.quantize.imatrix import (
    Entry,
    ImatrixFile,
    Sums,
    encode_imatrix,
    make_imatrices,
    observe,
    read_imatrix,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    path = tmp_path_factory.mktemp("tiny") / "tiny.sft"
    make_checkpoint(path, Shape(dim=32, heads=2, layers=1, levels=2, audio_tokens=16))
    checkpoint = read_checkpoint(path)
    return plan(checkpoint)


@pytest.mark.parametrize("kind", ["IQ4_XS", "IQ2_XXS"])
@pytest.mark.parametrize(
    ("family", "further"),
    [*zip(WIDE, ([], ["m-nar.gguf"], ["m-audio.gguf"]), strict=True)],
)
def test_stock_llama_quantize_takes_it_and_finds_every_matrix(
    family: str, further: list[str], kind: str, cli: Cli, tmp_path: Path
) -> None:
    """Also for a type that cannot be made without."""
    checkpoint, matrix, log = (tmp_path / name for name in ("wide.pt", "m.gguf", "log"))
    WIDE[family](checkpoint)
    imatrix = ("imatrix", checkpoint, "-o", matrix, "--utterances", 1, "--json")
    told = json.loads(cli(*imatrix).out)
    files = [matrix, *(tmp_path / name for name in further)]
    assert told["files"] == [*map(str, files)]
    run = ("quantize", checkpoint, tmp_path / "out", "--types", kind, "--imatrix", matrix)
    result = cli(*run, "--log", log)
    assert result.code == 0, result
    said = log.read_text()
    entries = [len(read_imatrix(path).entries) for path in files]
    found = set(map(int, re.findall(r"have (\d+) importance matrix entries", said)))
    assert (found, told["matrices"]) == ({*entries}, sum(entries))
    # The table of version 7 is looked up, and multiplied with nothing; its heads lie beside it.
    missed = {"token_embd.weight"} if family == "VALL-E of version 7" else set()
    assert set(re.findall(r"did not find weights for (\S+)", said)) == missed
    for path in files:
        assert f"{path.name} exists" in error_of(cli(*imatrix), 2)
        path.unlink()


def test_the_values_are_the_mean_squares_of_what_goes_into_each_matrix(tiny: Plan) -> None:
    checkpoint, description = tiny.checkpoint, tiny.description
    network = ReferenceNetwork(checkpoint.tensors, description)
    (utterance,) = Examples.seeded(FAMILY, description.model, 1, seed=0)
    sums = Sums()
    observe(FAMILY, network, utterance, sums)
    # What goes into ffn_down can be computed from what goes into gate and up: listen again.
    inputs: dict[str, list[np.ndarray]] = {}
    network.watch = lambda _part, name, x, _y: inputs.setdefault(name, []).append(x.numpy().copy())
    for case in FAMILY.trials.cases(description.model, utterance):
        if not case.repeats:
            case.run(network)
    gate = np.array(checkpoint.tensors.read("model.layers.0.mlp.gate_proj.weight"), np.float64)
    up = np.array(checkpoint.tensors.read("model.layers.0.mlp.up_proj.weight"), np.float64)
    x = np.concatenate(inputs["blk.0.ffn_gate.weight"]).astype(np.float64)
    from math import erf, sqrt

    z = x @ gate.T
    hidden = 0.5 * z * (1 + np.vectorize(erf)(z / sqrt(2))) * (x @ up.T)
    expected = np.square(hidden).sum(0)
    np.testing.assert_allclose(sums.squares["model", "blk.0.ffn_down.weight"], expected, rtol=1e-4)
    assert sums.counts["model", "blk.0.ffn_down.weight"] == len(x)


@contextmanager
def stopping_after(n: int) -> Iterator[Callable[..., object]]:
    """A progress that is interrupted, as by Ctrl-C, after so many utterances."""
    done = 0

    @contextmanager
    def progress(_label: str, _total: int, _unit: str) -> Iterator[Callable[[int], object]]:
        def advance(step: int) -> None:
            nonlocal done
            done += step
            if done > n:
                raise KeyboardInterrupt

        yield advance

    yield progress


@pytest.fixture(params=["file", "set"])
def conversion(request: pytest.FixtureRequest, tiny: Plan) -> Plan:
    return tiny if request.param == "file" else plan(read_checkpoint(VALLEX))


def seeded(conversion: Plan, seed: int) -> Examples:
    return Examples.seeded(conversion.family, conversion.model, 2, seed=seed)


def test_a_run_that_was_stopped_leaves_nothing(conversion: Plan, tmp_path: Path) -> None:
    with stopping_after(1) as progress, pytest.raises(KeyboardInterrupt):
        make_imatrices(conversion, seeded(conversion, 5), tmp_path / "m.gguf", progress=progress)
    assert not list(tmp_path.iterdir())


def test_the_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    entries = {"a.weight": Entry(np.array([1, 4], np.float32), 2)}
    path = tmp_path / "m.gguf"
    path.write_bytes(encode_imatrix(ImatrixFile(entries, ("speech",), 3, 7)))
    found = read_imatrix(path)
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("speech",), 3, 7)
    assert found.entries["a.weight"].mean().tolist() == [0.5, 2.0]
    assert Entry(np.zeros(2, np.float32), 0).mean().tolist() == [1.0, 1.0]
    assert [key.name for key in found.keys("m.gguf")] == [
        "quantize.imatrix.file",
        "quantize.imatrix.dataset",
        "quantize.imatrix.entries_count",
        "quantize.imatrix.chunks_count",
    ]
    # A text that is too long for llama.cpp is cut between letters.
    assert len(found.keys("ä" * 100)[0].value.encode()) == 126


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_values_that_are_no_sums_of_squares_are_refused(tmp_path: Path, value: float) -> None:
    path = tmp_path / "m.gguf"
    entries = {"a.weight": Entry(np.array([1, value], np.float32), 2)}
    path.write_bytes(encode_imatrix(ImatrixFile(entries, (), 1, 1)))
    with pytest.raises(InputError, match="not a list of sums of squares"):
        read_imatrix(path)


def test_a_model_is_no_importance_matrix(gguf_256: Path) -> None:
    with pytest.raises(InputError, match="not an importance matrix"):
        read_imatrix(gguf_256)
