"""Names that are not UTF-8, and numbers that JSON does not have, go through `quantize`."""

import json
import os
from pathlib import Path

from support import run_program

from valle_convert.gguf_file.read import GgufFile

LIBRARY = ("--llama-quantize", "library")


def run(*arguments: str | bytes | Path) -> str:
    done = run_program(*arguments)
    assert done.returncode == 0, done
    return done.stdout


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
