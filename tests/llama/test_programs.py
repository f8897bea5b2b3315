from pathlib import Path

import pytest
from support import executable

from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.llama.programs import find_program


@pytest.fixture(autouse=True)
def _nothing_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_QUANTIZE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))


def test_the_variable_goes_before_path_and_path_before_the_projects_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").touch()
    built = executable(tmp_path / ".cache" / "llama.cpp" / "0.3.36" / "bin" / "llama-quantize")
    found = find_program("llama-quantize", checkout=tmp_path)
    assert (found.path, found.how) == (built, "make llama-tools")
    in_path = executable(tmp_path / "path" / "llama-quantize")
    found = find_program("llama-quantize", checkout=tmp_path)
    assert (found.path, found.how) == (in_path, "PATH")
    named = executable(tmp_path / "mine" / "quantize")
    monkeypatch.setenv("LLAMA_QUANTIZE", str(named))
    found = find_program("llama-quantize", checkout=tmp_path)
    assert (found.path, found.how) == (named, "LLAMA_QUANTIZE")


def test_a_variable_that_names_nothing_is_an_error_and_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(tmp_path / "path" / "llama-quantize")
    no_program = tmp_path / "text"
    no_program.touch()
    for value in (tmp_path / "absent", no_program, tmp_path):
        monkeypatch.setenv("LLAMA_QUANTIZE", str(value))
        with pytest.raises(InputError, match=r"\$LLAMA_QUANTIZE is .*not an executable program"):
            find_program("llama-quantize", checkout=tmp_path)


def test_a_program_that_is_nowhere_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="make llama-tools"):
        find_program("llama-quantize", checkout=tmp_path)
