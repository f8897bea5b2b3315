"""Every hostile file is refused by every command that reads such files, and nothing of it runs."""

import os
import re
import resource
from functools import partial
from pathlib import Path

import pytest
from support import Cli, error_of, run_python

from attacks.attack import dumped, touch
from attacks.catalogue import ATTACKS, BASES
from fuzz import seeds
from fuzz.runner import LONGEST_MESSAGE


@pytest.fixture(scope="session")
def companions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A valid model and codec, beside which something hostile is given."""
    folder = tmp_path_factory.mktemp("right")
    (folder / "model.gguf").write_bytes(seeds.converted())
    (folder / "codec.gguf").write_bytes(seeds.codec_gguf(codebook_size=8))
    return {"model": folder / "model.gguf", "codec": folder / "codec.gguf"}


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_refused_before_anything_of_it_runs(
    name: str,
    tmp_path: Path,
    companions: dict[str, Path],
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, canary = tmp_path / "given", tmp_path / "canary"
    given.mkdir()
    path = ATTACKS[name].make(given, canary)
    monkeypatch.chdir(given)
    # Where an import would look first.
    monkeypatch.syspath_prepend(given)
    before = sorted(tmp_path.rglob("*"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for command in ATTACKS[name].commands:
        words = command.format(str(path), out=str(tmp_path / "out"), **companions).split()
        result = cli(*words)
        if not ATTACKS[name].says:
            assert result.code == 0, result
        elif words[0] == "verify":  # whose verdict it is
            assert result.code == 1
            verdict = result.out.splitlines()[-1]
            assert re.match(f"FAILED: .*({ATTACKS[name].says})", verdict), verdict
        else:
            said = error_of(result, 2).replace(str(tmp_path), "")
            assert re.search(ATTACKS[name].says, said), said
            assert len(said) <= LONGEST_MESSAGE, said
        assert not canary.exists()
    assert sorted(tmp_path.rglob("*")) == before
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    assert grown < 1024, f"{grown:,.0f} MB"


@pytest.mark.parametrize("name", BASES)
def test_it_is_read_if_nothing_is_damaged(
    name: str, tmp_path: Path, companions: dict[str, Path], cli: Cli
) -> None:
    """So the attacks reach the check that refuses them."""
    path = BASES[name].make(tmp_path, tmp_path / "canary")
    for i, command in enumerate(BASES[name].commands):
        words = command.format(path, out=tmp_path / f"out{i}", **companions).split()
        result = cli(*words)
        assert result.code == 0, result


def test_the_canary_sings_where_a_file_is_loaded_without_care(tmp_path: Path) -> None:
    code = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    (tmp_path / "x").write_bytes(dumped(touch(tmp_path / "canary")))
    run_python("-c", code, tmp_path / "x", check=True)
    assert (tmp_path / "canary").exists()


def test_they_are_listed_and_made(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([".", "fixtures"])}
    run = partial(run_python, "-m", "attacks", check=True, env=environment)
    assert len(run().stdout.splitlines()) == len(ATTACKS)
    made = run("reduce", tmp_path)
    assert Path(made.stdout.strip()).read_bytes()
