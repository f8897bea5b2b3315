import os
import sys
from pathlib import Path

import pytest

from valle_convert.errors import EXIT_ENVIRONMENT, EnvironmentFault
from valle_convert.llama.probe import cache_folder, fingerprint, probe_and_remember, run_probe


def child(program: str) -> list[str]:
    return [sys.executable, "-c", program]


SEGFAULT = child(
    "import os, signal\n"
    "print('stage: loading the library')\n"
    "print('stage: decoding with Q8_0 weights', flush=True)\n"
    "os.kill(os.getpid(), signal.SIGSEGV)\n"
)


def test_this_machines_library_passes_its_selftest() -> None:
    run_probe()


def test_a_child_that_dies_is_an_error_with_the_signal_the_stage_and_the_remedy() -> None:
    with pytest.raises(EnvironmentFault) as caught:
        run_probe(SEGFAULT)
    message = str(caught.value)
    assert "crashed (signal 11, SIGSEGV) on this machine" in message
    assert "while decoding with Q8_0 weights" in message
    assert 'CMAKE_ARGS="-DGGML_NATIVE=OFF" pip install --force-reinstall' in message
    assert caught.value.exit_code == EXIT_ENVIRONMENT


@pytest.mark.parametrize(("number", "words"), [(4, "signal 4, SIGILL"), (40, "signal 40")])
def test_a_signal_is_reported_by_its_name_if_it_has_one(number: int, words: str) -> None:
    with pytest.raises(EnvironmentFault, match=words):
        run_probe(child(f"import os; os.kill(os.getpid(), {number})"))


def test_a_child_that_fails_is_quoted() -> None:
    program = "import sys; print('stage: quantizing to Q4_K'); sys.exit('logits are off')"
    with pytest.raises(EnvironmentFault, match=r"\(exit code 1\) while quantizing.*: logits are"):
        run_probe(child(program))


def test_a_child_that_hangs_is_stopped() -> None:
    program = "import time; print('stage: decoding', flush=True); time.sleep(600)"
    with pytest.raises(EnvironmentFault, match=r"within 0.5 seconds"):
        run_probe(child(program), timeout=0.5)


def test_an_interpreter_that_is_not_there_is_an_environment_fault() -> None:
    with pytest.raises(EnvironmentFault, match="cannot be started"):
        run_probe(["/no/such/python"])


def test_a_good_result_is_remembered_and_a_bad_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "valle-convert"
    for _ in range(2):
        with pytest.raises(EnvironmentFault):
            probe_and_remember(folder, SEGFAULT)
    assert not probe_and_remember(folder, child("")).remembered
    # The command would die; it is not run any more.
    assert probe_and_remember(folder, SEGFAULT).remembered


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    for _ in range(2):
        assert not probe_and_remember(blocked / "valle-convert", child("")).remembered


def test_no_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault, match=r"pip install '\.\[llama\]'"):
        probe_and_remember(tmp_path, child(""))


def test_another_build_of_any_of_the_libraries_is_probed_again(tmp_path: Path) -> None:
    for name in ("libllama.so", "libggml-cpu.so"):
        (tmp_path / name).write_bytes(b"1")
    before = fingerprint(tmp_path / "libllama.so")
    assert fingerprint(tmp_path / "libllama.so") == before
    os.utime(tmp_path / "libggml-cpu.so", (1, 1))
    after = fingerprint(tmp_path / "libllama.so")
    assert after != before
    (tmp_path / "libggml-cpu.so").write_bytes(b"22")
    os.utime(tmp_path / "libggml-cpu.so", (1, 1))
    assert fingerprint(tmp_path / "libllama.so") not in {before, after}


def test_the_cache_lies_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "valle-convert"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for not_absolute in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", not_absolute)
        assert cache_folder() == tmp_path / "home" / ".cache" / "valle-convert"
