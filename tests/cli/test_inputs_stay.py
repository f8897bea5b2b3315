"""A command never overwrites its inputs, or files that others wrote."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support import GOLDEN, Cli, golden_checkpoint
from vallex_golden import CHECKPOINT as VALLEX

from valle_convert.families.bundle import open_files
from valle_convert.tokenizer.choose import BUILT_IN

CHECKPOINT = golden_checkpoint("ar-nar-len")
LOST, INPUT = "which would be lost", "is the input file itself"
IRREGULAR, THERE = "expected a regular file", "is not overwritten"
SPEAK = "speak m-F16.gguf Hi. --language en --codec CODEC --set max_seconds=0.2"

#: A command, run in `stage`, and words of its refusal.
REFUSED = [
    *((f"c.sft {out} --force", INPUT) for out in ("c.sft", "hard.gguf", "soft.gguf")),
    ("c.sft c.sft", INPUT),
    ("c.sft mine", THERE),
    ("c.sft tokenizer.json --force", INPUT),  # which lies beside
    *(
        (f"c.sft {out} {option} mine --force", INPUT)
        for option in ("--config", "--lora", "--tokenizer", "--metadata")
        for out in ("mine", "to-mine")
    ),
    ("x.pt y.gguf --metadata y-nar.gguf --force --verify none", LOST),
    *(
        (f"{command} {out} {more} --force", IRREGULAR)
        for command, more in (
            ("c.sft", ""),
            ("repair m-F16.gguf", ""),
            ("quantize m-F16.gguf", "Q8_0"),
        )
        for out in ("pipe.gguf", "null.gguf")
    ),
    *((f"export m-F16.gguf {out}", "expected a folder") for out in ("mine", "/dev/null")),
    ("export m-F16.gguf to-nothing", "does not exist"),
    ("repair old.gguf old.gguf --force", INPUT),
    ("verify x.pt x.gguf --level structure --force --report x-nar.gguf", LOST),
    *(
        (f"evaluate x.gguf --checkpoint x.pt --force --report to-{what}.json", LOST)
        for what in ("part", "checkpoint", "measurements", "manifest")
    ),
    ("evaluate out/m-Q8_0.gguf --checkpoint c.sft --force", "input"),
    ("quantize m-F16.gguf m-F16.gguf Q8_0 --force", INPUT),
    ("quantize m-F16.gguf . --types F16 --force", "input"),
    *((f"quantize x.gguf {link}/y.gguf Q8_0 --force", LOST) for link in ("soft", "hard")),
    *(
        (f"quantize m-F16.gguf to-{i} --types Q8_0 --checkpoint c.sft --force", LOST)
        for i in range(3)
    ),
    ("quantize c.sft o.gguf Q8_0 --force --log o.gguf", "the name of an output"),
    ("quantize c.sft o.gguf Q8_0 --force --log c.sft", INPUT),
    ("quantize c.sft . --types Q8_0 --force --log a.gguf", "the name of an output"),
    *((f"publish card-{i} --force", LOST) for i in range(2)),
    *((f"publish card-{i} --force", IRREGULAR) for i in (2, 3)),
    (f"{SPEAK} --voice voice.flac -o voice.flac --force", INPUT),
    (f"{SPEAK} -o voice.flac", "--force to replace it"),
    (f"{SPEAK} -o other.wav --save-codes to-other.wav", "are the same file"),
    (f"{SPEAK} -o nowhere/o.wav", "does not exist"),
]


@pytest.fixture
def stage(
    quantized: Path, vallex: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """The files of the commands above, and links between them, in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(quantized, tmp_path, dirs_exist_ok=True)
    for path, name in (
        (CHECKPOINT, "c.sft"),
        (VALLEX, "x.pt"),
        (BUILT_IN, "tokenizer.json"),
        (GOLDEN / "old-gguf" / "f16.gguf", "old.gguf"),
        *((one, one.name.replace(vallex.stem, "x")) for one in open_files(vallex).paths),
    ):
        shutil.copy(path, name)
    for name in ("mine", "x.measurements.json", "manifest.json", "y-nar.gguf"):
        Path(name).write_text('{"author": "me"}')
    soundfile.write("voice.flac", 0.1 * np.random.default_rng(0).standard_normal(9000), 24_000)
    for i in range(4):
        shutil.copytree("out", f"card-{i}")
    for name in ("soft", "hard", "to-0", "to-1", "to-2", "to-nothing"):
        Path(name).mkdir()
    os.link("c.sft", "hard.gguf")
    os.link("x-nar.gguf", "hard/y-nar.gguf")
    os.mkfifo("pipe.gguf")
    os.mkfifo("card-2/README.md")
    for link, there in {
        "soft.gguf": "c.sft",
        "null.gguf": "/dev/null",
        "to-mine": "mine",
        "to-part.json": "x-nar-3.gguf",
        "to-checkpoint.json": "x.pt",
        "to-measurements.json": "x.measurements.json",
        "to-manifest.json": "manifest.json",
        "to-other.wav": "other.wav",
        "to-nothing/fp32.sft": "nothing/x",
        "to-0/m-Q8_0.gguf": "../c.sft",
        "to-1/manifest.json": "../c.sft",
        "to-2/SHA256SUMS": "../c.sft",
        "soft/y-nar.gguf": "../x-nar.gguf",
        "out/m-Q8_0.measurements.json": "../c.sft",
        "card-0/README.md": "manifest.json",
        "card-1/README.md": "m-Q8_0.gguf",
        "card-3/README.md": "/dev/null",
    }.items():
        Path(link).symlink_to(there)
    return tmp_path


@pytest.mark.usefixtures("stage")
@pytest.mark.parametrize(("command", "words"), REFUSED)
def test_nothing_that_is_there_is_replaced(
    command: str, words: str, codec: Path, untouched: Callable[[], None], cli: Cli
) -> None:
    untouched()
    result = cli(*(codec if one == "CODEC" else one for one in command.split()))
    assert result.code == 2, result
    assert words in " ".join(result.err.split())
