"""What this machine has: the library, its proof, the processor, the programs."""

import os
import sys
from pathlib import Path

import pytest
from support import PROJECT, executable, run_python

from valle_convert.errors import EXIT_ENVIRONMENT, EnvironmentFault, InputError
from valle_convert.llama.cpu import (
    features_of_interest,
    parse_cpuinfo,
    usable_cores,
)
from valle_convert.llama.library import TESTED, Log
from valle_convert.llama.probe import cache_folder, fingerprint, probe_and_remember, run_probe
from valle_convert.llama.programs import find_program


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


# The library, and its log

INFO, WARN, ERROR, CONTINUED = 2, 3, 4, 5


def report_of_loading(environment: dict[str, str], before: str = "") -> tuple[int, str]:
    """Load the library in a child; the exit code and the message are those of the error."""
    program = (
        f"import sys\n{before}\n"
        "from valle_convert.errors import ValleConvertError\n"
        "from valle_convert.llama.library import load_library\n"
        "try:\n    load_library()\n"
        "except ValleConvertError as error:\n    print(error); sys.exit(error.exit_code)\n"
    )
    child = run_python("-c", program, env=os.environ | environment)
    assert child.stderr == ""
    return child.returncode, child.stdout


def test_complaints_are_warnings_and_errors_after_the_mark_only() -> None:
    log = Log()
    log.write(ERROR, "before\n")
    mark = log.mark()
    log.write(INFO, "loading\n")
    log.write(WARN, "odd\n")
    log.write(ERROR, "bad\n")
    log.write(ERROR, "bad\n")
    log.write(ERROR, "unfinished")
    assert log.complaints(mark) == ["odd", "bad", "unfinished"]
    assert log.explain(mark) == " llama.cpp says: odd | bad | unfinished."
    assert log.explain(log.mark()) == ""


def test_pieces_of_a_line_are_one_line_of_the_first_pieces_level() -> None:
    log = Log()
    log.write(ERROR, "no room ")
    log.write(CONTINUED, "for 7 ")
    log.write(CONTINUED, "cells\nnext")
    log.write(INFO, "other\n")
    assert log.complaints(0) == ["no room for 7 cells", "next"]


@pytest.mark.parametrize("data", [None, b"not an ELF file"])
def test_a_folder_without_the_library_says_to_build_it(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "libllama.so").write_bytes(data)
    code, message = report_of_loading({"LLAMA_CPP_LIB_PATH": str(tmp_path)})
    assert code == 3
    assert "does not load" in message
    assert "GGML_NATIVE=OFF" in message


def test_the_version_to_install_is_the_pinned_one() -> None:
    pins = (PROJECT / "constraints.txt").read_text(encoding="utf-8").split()
    assert f"llama-cpp-python=={TESTED}" in pins


# The processor

X86 = "processor\t: 0\nflags\t\t: fpu avx2 avx2 smep amx_tile\n\nprocessor\t: 1\nflags\t\t: fpu\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp sve\n"


def test_features_are_read_as_x86_and_arm_write_them() -> None:
    assert parse_cpuinfo(X86) == ("amx_tile", "avx2", "fpu", "smep")
    assert parse_cpuinfo(ARM) == ("asimd", "asimddp", "fp", "sve")
    assert parse_cpuinfo("model name : none\n") == ()


def test_features_of_interest_are_those_with_kernels() -> None:
    assert features_of_interest(parse_cpuinfo(X86)) == ("amx_tile", "avx2")
    assert features_of_interest(("sme", "sme2", "smep", "fma")) == ("sme", "sme2", "fma")


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 2, 5}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # not every system has it
    assert usable_cores() == os.cpu_count()


# Programs


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
