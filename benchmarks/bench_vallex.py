"""VALL-E X at the published size, beside what runs in the same call.

convert    vallex-checkpoint.pt to a set in f16, against a plain loop that casts and writes it
step       a code of the AR through the session, against llama.cpp's own decode of one row
pass       a level of the NAR through the session, against llama.cpp's own decode of the same rows
switch     from one level to another, by processor time and by the clock, the least of many
memory     the process's own pages, and its share of mapped ones, over those of the AR, after all
           levels have spoken

python benchmarks/bench_vallex.py [--folder DIR] [--threads N]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from shared import in_turns, options, print_numbers

# isort: split
from make_vallex import PUBLISHED, make_vallex

from valle_convert import open_network, plan_conversion, write_gguf
from valle_convert.checkpoint.read import read_checkpoint
from valle_convert.decode.batch import Element
from valle_convert.families.family import Choices
from valle_convert.families.vallex.composed import VallexText

N_TEXT, N_PROMPT, N_FRAMES = 60, 225, 300


def milliseconds(run: Callable[..., object], *given: object, **named: object) -> float:
    """The CPU time of a call, of all threads; other processes do not count."""
    start = time.process_time()
    run(*given, **named)
    return 1000 * (time.process_time() - start)


def pages() -> tuple[float, float]:
    """The process's share of all pages that it maps, and of those without a file, MiB."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines[1:]}
    return found["Pss"], found["Pss_Anon"]


def bench_conversion(checkpoint: Path, out: Path, repeat: int) -> dict[str, float]:
    """The set, against reading every tensor, casting it and writing it."""
    tensors = read_checkpoint(checkpoint).tensors

    def loop() -> None:
        with out.with_name("loop.bin").open("wb") as file:
            for name in tensors.specs:
                file.write(np.ascontiguousarray(tensors.read(name), np.float16).tobytes())

    def convert() -> None:
        write_gguf(plan_conversion(checkpoint, Choices("f16")), out, force=True)

    results = {}
    for name, clock in (("cpu", time.process_time), ("clock", time.perf_counter)):
        seconds = in_turns(repeat, clock, loop=loop, convert=convert)
        results[f"convert_{name}_s"] = seconds["convert"]
        results[f"convert_over_loop_{name}"] = seconds["convert"] / seconds["loop"]
    return results


def bench_session(path: Path, threads: int, repeat: int) -> dict[str, float]:
    """Steps, passes and switches, each beside llama.cpp's own, one after the other in turn."""
    draw = np.random.default_rng(0)
    text = VallexText(draw.integers(5, 70, N_TEXT, dtype=np.int32), np.zeros(N_TEXT, np.int32))
    with open_network(path, n_threads=threads) as network:
        size, shape = network.model.codebook_size, (N_PROMPT + N_FRAMES, 8)
        codes = draw.integers(0, size, shape, dtype=np.int32)
        prompt, frames = codes[:N_PROMPT], codes[N_PROMPT:]
        n = N_TEXT + len(codes)
        network.begin_ar(text, codes[:, 0], room=200)
        context = network._ar._context
        assert context is not None  # noqa: S101 - begin_ar made it
        row = network.look_up("ar", "audio", codes[:1, 0])
        bare, steps = [], []
        for i in range(4 * repeat):
            place = np.array([n + 1 + i], np.int32)
            bare.append(milliseconds(context.decode, row, place, causal=True))
            context.remove(0, start=n + 1 + i)
            element = Element(0, codes[i, 0], 1 + len(codes) + i)
            steps.append(milliseconds(network.append_codes, [element]))
        results = {
            "ar_step_ms": statistics.median(steps),
            "ar_step_over_llama": statistics.median(steps) / statistics.median(bare),
        }
        before = pages()
        passes, bare = [], []
        rows = draw.standard_normal((n, network.model.nar.n_embd), dtype=np.float32)
        places, ids = np.arange(n, dtype=np.int32), np.zeros(n, np.int32)
        wanted = places >= n - N_FRAMES
        for level in range(1, 8):
            passes.append(milliseconds(network.pass_nar, text, prompt, frames[:, :level]))
            context = network._nar._context
            assert context is not None  # noqa: S101 - the pass made it
            if level > repeat:
                continue
            context.clear()
            bare.append(milliseconds(context.decode, rows, places, ids, wanted, causal=False))
        after = pages()

        cpu, clock = [], []
        for i in range(20 * repeat):
            start = time.perf_counter()
            cpu.append(milliseconds(network._switch, 1 + i % 7))
            clock.append(1000 * (time.perf_counter() - start))
        return results | {
            "nar_pass_ms": statistics.median(passes),
            "nar_pass_over_llama": statistics.median(passes) / statistics.median(bare),
            "switch_cpu_ms": statistics.median(cpu),
            "switch_clock_least_ms": min(clock),
            "switch_clock_median_ms": statistics.median(clock),
            "nar_mib": after[0] - before[0],
            "nar_own_mib": after[1] - before[1],
        }


def main(argv: Sequence[str] | None = None) -> None:
    with options(__doc__, argv, threads=1, repeat=5) as given:
        checkpoint, out = given.folder / "published.pt", given.folder / "f16.gguf"
        make_vallex(checkpoint, PUBLISHED)
        results = bench_conversion(checkpoint, out, given.repeat)
        results |= bench_session(out, given.threads, given.repeat)
    print_numbers(results)


if __name__ == "__main__":
    main()
