"""Cost against the length of the speech, the number of sentences, depth and width: docs/speed.png.

    python benchmarks/bench_scale.py [--folder DIR] [--seconds 1,3,10,30,60] [--write]

Random weights, with flash attention and a cache in f16. For each point: milliseconds of a NAR pass
and of an AR step, beside those of the model's arithmetic. A pass multiplies every weight with every
position, and every position with every other; a step reads every weight, cached key and value once.
The machine's speed is that of numpy: a matrix product in float32, and a sum over 256 MB. `--write`
puts speed.csv and speed.png beside docs/performance.md. BUSY=1 is that of bench_speak.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np
from bench_speak import (
    BUSY,
    DEPTH,
    N_FRAMES,
    N_PHONEMES,
    N_PROMPT,
    clock,
    pass_ms,
    step_ms,
)
from matplotlib.figure import Figure
from shared import DOCS, PRODUCTION, Shape, make_file, make_source, options, print_rows

from valle_convert.families.bundle import open_bundle
from valle_convert.llama.context import Settings
from valle_convert.llama.cpu import cpu_name, usable_cores
from valle_convert.speech.results import SpeakOptions
from valle_convert.speech.settings import with_settings

FRAMES_A_SECOND = 75
LAYERS, WIDTHS = (3, 6, 12, 24), (256, 512, 1024, 1536)
N_THREADS = 1 if BUSY else None
FAST = Settings("f16", flash_attention=True, own_head=True, n_threads=N_THREADS)
#: Of the model that speaks many sentences.
SMALL = replace(PRODUCTION, dim=256, heads=4, layers=4)


@dataclass(frozen=True)
class Point:
    """The varied quantity, and milliseconds: measured, and computed from the arithmetic."""

    varied: str
    value: float
    pass_ms: float
    pass_by_flop_ms: float | str = ""
    step_ms: float | str = ""
    step_by_bytes_ms: float | str = ""


@dataclass(frozen=True)
class Machine:
    """The speed of the machine, per second."""

    flop: float
    bytes: float


def main(argv: Sequence[str] | None = None) -> None:
    lengths = {"seconds": "1,3,10,30,60", "sentences": "1,10,50,200"}
    points = []
    with options(__doc__, argv, **lengths, write=False) as given:
        for point in measure(given.folder, given.seconds.split(","), given.sentences.split(",")):
            print(asdict(point), file=sys.stderr, flush=True)
            points.append(point)
    rows = [[field.name for field in fields(Point)]]
    rows += [
        [f"{one:.4g}" if isinstance(one, float) else str(one) for one in astuple(p)] for p in points
    ]
    print_rows(rows, DOCS / "speed.csv" if given.write else None)
    if given.write:
        plot(points).savefig(DOCS / "speed.png", dpi=110)


def measure(folder: Path, seconds: Sequence[str], sentences: Sequence[str]) -> Iterator[Point]:
    """All points, the cheap ones first."""
    machine = Machine(flop_a_second(), bytes_a_second())
    for layers in LAYERS:
        shape = replace(PRODUCTION, layers=layers)
        yield of_model("layers", layers, folder / f"{layers}", shape, machine)
    for width in WIDTHS:
        shape = replace(PRODUCTION, dim=width, heads=width // 64)
        yield of_model("width", width, folder / f"w{width}", shape, machine)
    yield from of_sentences(folder / "small", map(int, sentences))
    folder = folder / str(PRODUCTION.layers)
    path = make_file(*make_source(folder), "Q4_K_M")
    for n in map(float, seconds):
        yield of_file("seconds", n, path, round(n * FRAMES_A_SECOND), machine)


def of_model(varied: str, value: float, folder: Path, shape: Shape, machine: Machine) -> Point:
    """A pass and a step of a model of another size, in F16."""
    folder.mkdir(exist_ok=True, parents=True)
    return of_file(varied, value, make_source(folder, shape)[1], N_FRAMES, machine)


def of_file(varied: str, value: float, path: Path, n_frames: int, machine: Machine) -> Point:
    """A pass over so many frames, and a step after as many."""
    bundle = open_bundle(path)
    tensors = bundle.files[next(iter(bundle.files))].tensors
    layers = {name: one for name, one in tensors.items() if name.startswith("blk.")}
    n_layer = 1 + max(int(name.split(".")[1]) for name in layers)
    width = tensors["token_embd.weight"].shape[1]
    n = N_PHONEMES + N_PROMPT + 6 + n_frames
    n_weights = sum(one.n_elements for one in layers.values())
    flop = 2 * n * n_weights + 4 * n * n * width * n_layer
    depth = DEPTH if varied != "seconds" else DEPTH + n_frames
    read = sum(one.n_bytes for one in tensors.values()) + 2 * 2 * depth * width * n_layer
    with bundle.family.open(bundle, settings=FAST) as network:
        passes = min(pass_ms(network, n_frames) for _ in range(1 if n > 1000 else 2))
        steps = step_ms(network, depth - N_PHONEMES - 6)
    return Point(
        varied, value, passes, flop / machine.flop * 1e3, steps, read / machine.bytes * 1e3
    )


def of_sentences(folder: Path, numbers: Iterable[int]) -> Iterator[Point]:
    """Texts of many sentences, half a second each; all passes and steps together."""
    folder.mkdir(exist_ok=True, parents=True)
    bundle = open_bundle(make_source(folder, SMALL)[1])
    options = with_settings(SpeakOptions(language="en", seed=1), {"mode": "ar", "max_seconds": 0.5})
    with bundle.family.speaker(bundle, settings=Settings(n_threads=N_THREADS)) as speaker:
        for n in numbers:
            begin = clock()
            speaker.speak("He went home. " * n, None, options, keep_audio=False)
            whole = (clock() - begin) * 1e3
            yield Point("sentences", n, whole)


def flop_a_second() -> float:
    """The speed of a matrix product in float32."""
    a, b = np.ones((1024, 1024), np.float32), np.ones((1024, 4096), np.float32)
    return 2 * 1024 * 1024 * 4096 / _best(lambda: a @ b)


def bytes_a_second() -> float:
    """The speed of a sum, which one core may limit."""
    a = np.ones(64 << 20, np.float32)
    return a.nbytes / _best(lambda: np.add.reduce(a))


def _best(run: Callable[[], object]) -> float:
    times = []
    for _ in range(4):
        begin = clock()
        run()
        times.append(clock() - begin)
    return min(times)


def plot(points: Sequence[Point]) -> Figure:
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    labels = {
        "seconds": f"seconds of speech (12 x 1024, Q4_K_M, after {N_PROMPT} frames of prompt)",
        "sentences": f"sentences of half a second ({SMALL.layers} x {SMALL.dim}, F16)",
        "layers": "layers of 1024 (F16)",
        "width": "width of 12 layers (F16)",
    }
    for axes, (varied, label) in zip(figure.subplots(2, 2).flat, labels.items(), strict=True):
        chosen = [one for one in points if one.varied == varied]
        values = [one.value for one in chosen]
        if varied == "sentences":
            axes.loglog(values, [one.pass_ms for one in chosen], "o-", label="the whole text")
        else:
            for name, computed, color in (
                ("pass", "pass_by_flop_ms", "#2b6cb0"),
                ("step", "step_by_bytes_ms", "#c53030"),
            ):
                measured = [getattr(one, f"{name}_ms") for one in chosen]
                axes.loglog(values, measured, "o-", color=color, label=name)
                by = [getattr(one, computed) for one in chosen]
                axes.loglog(values, by, "--", color=color, label=f"{name}, by the arithmetic")
        axes.set(xlabel=label, ylabel="milliseconds")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        axes.grid(color="#e2e8f0")
        axes.legend(fontsize=8)
    threads = "one thread, processor time" if BUSY else f"{usable_cores()} threads"
    figure.suptitle(f"{cpu_name()}, {threads}", fontsize=10)
    return figure


if __name__ == "__main__":
    main()
