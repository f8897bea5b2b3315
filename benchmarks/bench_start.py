"""From the start of `speak` to the first sample of a short sentence, by stage.

    python benchmarks/bench_start.py [--runs 3] [--model GGUF --codec FOLDER]

Each run is a process of its own, which does what the command does, in its order: random production
weights in Q4_K_M, EnCodec's published architecture, a recording of three seconds, half a second of
speech. For each stage: all of its seconds, and those outside of llama.cpp's functions; medians.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from valle_convert.wording import markdown_table

TEXT, MEMORY = "Hello world.", "memory"
#: Functions of llama.cpp that take more than a millisecond.
SLOW = ("llama_model_load_from_file", "llama_init_from_model", "llama_decode")


def main(argv: Sequence[str] | None = None) -> None:
    from shared import make_file, make_source, options

    with options(__doc__, argv, runs=3, model="", codec="") as given:
        model = given.model or make_file(*make_source(given.folder), "Q4_K_M")
        codec = given.codec or make_codec(given.folder / "codec")
        runs = [in_child(model, codec) for _ in range(given.runs + 1)][1:]
    stages = {stage: [median(run[stage][i] for run in runs) for i in range(2)] for stage in runs[0]}
    memory = stages.pop(MEMORY)[0]
    stages["all"] = [sum(one[i] for one in stages.values()) for i in range(2)]
    rows = [(stage, *(f"{one:.2f}" for one in both)) for stage, both in stages.items()]
    print(markdown_table(("stage", "seconds", "outside of llama.cpp"), rows))
    print(f"\n{memory:.0f} MB of memory at most.")


def make_codec(folder: Path) -> Path:
    """EnCodec's published architecture with random weights."""
    from transformers import EncodecConfig, EncodecModel

    EncodecModel(EncodecConfig()).save_pretrained(folder)
    return folder


def in_child(model: object, codec: object) -> dict[str, list[float]]:
    """The stages of a new process, from before it starts."""
    command = [sys.executable, __file__, repr(time.time()), str(model), str(codec)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(begin: float, model: Path, codec: Path) -> dict[str, list[float]]:
    """All seconds of each stage, and those outside of llama.cpp."""
    stages: dict[str, list[float]] = {}
    inside = 0.0

    def done(stage: str) -> None:
        nonlocal begin, inside
        whole = time.time() - begin
        stages[stage] = [whole, whole - inside]
        begin, inside = time.time(), 0.0

    from typer.main import get_command

    from valle_convert.cli.app import app

    get_command(app)
    done("Python and the command line")

    from valle_convert.audio import Audio, open_codec
    from valle_convert.families.bundle import open_bundle
    from valle_convert.llama.context import Settings
    from valle_convert.speech.results import SpeakOptions
    from valle_convert.speech.settings import with_settings

    bundle = open_bundle(model)
    done("open the file")
    from valle_convert.threads import in_background

    future = in_background(partial(open_codec, str(codec), bundle.model))

    from valle_convert.llama.library import load_library

    api = load_library().api

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:  # noqa: ANN401
            nonlocal inside
            start = time.perf_counter()
            found = function(*given)
            inside += time.perf_counter() - start
            return found

        return run

    for name in SLOW:
        setattr(api, name, timed(getattr(api, name)))
    with bundle.family.speaker(bundle, codec=future, settings=Settings(tune="auto")) as speaker:
        done("load the model; open the codec, import torch")
        import numpy as np

        noise = 0.1 * np.random.default_rng(0).standard_normal(72_000).astype(np.float32)
        options = with_settings(SpeakOptions(seed=1), {"mode": "ar", "max_seconds": 0.5})
        piece = next(speaker.pieces(TEXT, Audio(noise, 24_000), options))
        done("speak")
    whole, outside = stages.pop("speak")
    seconds = piece.seconds
    stages["text to phonemes"] = [seconds.text] * 2
    stages["encode the voice"] = [seconds.voice] * 2
    network = seconds.level_0 + seconds.levels
    stages["codes"] = [network, network - (whole - outside)]
    stages["decode the codes"] = [seconds.codec] * 2
    stages[MEMORY] = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, 0.0]
    return stages


if __name__ == "__main__":
    if len(sys.argv) == 4 and not sys.argv[1].startswith("-"):
        begin, *files = sys.argv[1:]
        print(json.dumps(measure(float(begin), *map(Path, files))))
    else:
        main()
