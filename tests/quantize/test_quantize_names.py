"""Names that are not UTF-8, and numbers that JSON does not have, go through `quantize`."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from quantize.reports import make_report
from support import PROJECT

from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.forms import FORMS
from valle_convert.quantize.limits import Limits
from valle_convert.quantize.quality import Greedy, Measured, Quality, Speed
from valle_convert.quantize.report import FileReport

PROGRAM = [sys.executable, "-m", "valle_convert"]
LIBRARY = ("--llama-quantize", "library")


def refuse(name: str) -> NoReturn:
    raise AssertionError(f"{name} is no JSON")


def run(*arguments: str | bytes | Path) -> str:
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, check=False, cwd=PROJECT)
    assert done.returncode == 0, done
    return done.stdout.decode("utf-8")


def test_names_that_are_not_utf8(checkpoint_256: Path, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    checkpoint, matrix = folder + b"/\xff.sft", folder + b"/\xff-m.gguf"
    Path(os.fsdecode(checkpoint)).write_bytes(checkpoint_256.read_bytes())
    out, report = folder + b"/\xfe", folder + b"/\xfd.json"
    run("imatrix", checkpoint, "-o", matrix, "--utterances", "1")
    given = ["--types", "Q4_K", "--threads", "1"]
    run("quantize", checkpoint, out, *given, "--imatrix", matrix)
    measuring = ("--utterances", "1", "--report", report)
    run("evaluate", out, "--checkpoint", checkpoint, *measuring)
    (made,) = Path(os.fsdecode(out)).glob("*.gguf")
    assert made.name == "\ufffd-Q4_K.gguf"
    keys = GgufFile(made).keys
    assert keys["valle.quantize.source_name"] == "\ufffd.gguf"
    assert keys["quantize.imatrix.file"] == "\ufffd-m.gguf"
    assert "PASSED" in run("check-manifest", out)
    told = json.loads(Path(os.fsdecode(report)).read_bytes())
    assert told["files"][0]["name"] == made.name
    assert told["checkpoint"]["name"] == "\ufffd.sft"
    run("quantize", checkpoint, out, *given, "--imatrix", matrix, "--resume")
    # And one file, of a name that is the user's own, by the library.
    single = folder + b"/\xfc.gguf"
    converted = folder + b"/\xfb.gguf"
    run(checkpoint, converted, "--verify", "none")
    printed = run("quantize", converted, single, "Q8_0", "--json", *LIBRARY)
    assert json.loads(printed)["files"][0]["name"] == "\ufffd.gguf"
    source = GgufFile(Path(os.fsdecode(single))).keys["valle.quantize.source_name"]
    assert source == "\ufffd.gguf"


def test_a_report_with_numbers_that_json_has_not_is_json() -> None:
    nan, inf = math.nan, math.inf
    file = FileReport(
        name="a.gguf",
        kind="Q8_0",
        n_bytes=10,
        bits_per_weight=8.5,
        weights={"Q8_0": 3},
        measured=Measured(
            {"all": Quality(5, nan, inf, inf, nan, 0.5)},
            Greedy(3, nan, 0.0, 5, nan),
            Speed(1.0, 2.0, 40),
        ),
        limits=Limits("given", {"max_kl": nan}),
    )
    report = replace(make_report(), files=(file,))
    value = json.loads(FORMS[".json"](report), parse_constant=refuse)
    assert value["files"][0]["quality"]["all"]["kl_mean"] is None
    assert value["files"][0]["limits"]["max_kl"] is None
