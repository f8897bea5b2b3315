import os
from pathlib import Path

import pytest
from support import PROJECT, run_python

from valle_convert.llama.library import TESTED, Log

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
