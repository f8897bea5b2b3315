"""How fast converted files speak, against bare llama.cpp and against PyTorch.

    python benchmarks/bench_speak.py [--quick] [--threads N] [--folder DIR] [--json FILE]

On the production-size random model, each file in a process of its own:

* an AR step of `decode_ar` (sampling included), every one followed by a bare `llama_decode` of
  one token at the same depth, so that both meet the same noise;
* a NAR pass (about 700 positions, 300 outputs; embedding and sorting included), in the same way;
* the same NAR batch on bare llama.cpp with other settings, to see what would be faster;
* the largest memory of the process after loading, the steps and the passes;
* both computed by the PyTorch reference in float32, where a step runs the whole sequence again.

Prints Markdown tables, then the numbers as JSON. Needs 3 GB of disk; --quick takes the fewest
repetitions and leaves out the other settings.
"""

# ruff: noqa: ANN401 - the binding has no types.

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Self

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures"))

from make_checkpoint import PRODUCTION, make_checkpoint

from valle_convert import open_network, plan_conversion, write_gguf
from valle_convert.decode import ArOptions, Guidance, decode_ar
from valle_convert.families.family import Choices
from valle_convert.model.inputs import Condition, Inputs, assemble, speech_segments
from valle_convert.model.spec import Model
from valle_convert.network.protocol import Network
from valle_convert.wording import markdown_table

#: What is converted, and what llama-quantize makes of it.
CONVERTED, QUANTIZED = ("F16",), ("Q8_0", "Q4_K_M")
#: Types that only the NAR pass is tried with.
MORE_CONVERTED, MORE_QUANTIZED = ("BF16",), ("Q4_0",)
MAX_AR, MAX_NAR, MIN_SPEEDUP = 1.15, 1.1, 40.0

N_PHONEMES, N_PROMPT, N_FRAMES, LEVEL = 170, 225, 300, 4
#: The stop code of random weights comes at random; this keeps it away.
LENGTH_PENALTY = 3.0


@dataclass(frozen=True)
class Plan:
    """How often everything is measured."""

    ar_steps: int
    nar_passes: int
    setting_passes: int
    reference_passes: int


FULL = Plan(ar_steps=60, nar_passes=3, setting_passes=3, reference_passes=3)
QUICK = Plan(ar_steps=15, nar_passes=1, setting_passes=0, reference_passes=1)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the numbers."""
    arguments = _parse(argv)
    plan = QUICK if arguments.quick else FULL
    if arguments.measure is not None:
        measured = measure_file(arguments.measure, arguments.threads, plan, arguments.nar_only)
        print(json.dumps(measured))
        return measured
    if arguments.reference is not None:
        measured = measure_reference(arguments.reference, arguments.threads, plan)
        print(json.dumps(measured))
        return measured
    begin = time.perf_counter()
    results: dict[str, Any] = {"machine": machine(), "threads": arguments.threads}
    results["load_at_start"] = os.getloadavg()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        checkpoint, f16 = make_source(folder)
        common = ["--threads", str(arguments.threads), *(["--quick"] if arguments.quick else [])]
        results["reference"] = _child("--reference", checkpoint, *common)
        results["files"] = {}
        for kind in (*CONVERTED, *QUANTIZED):
            path = f16 if kind == "F16" else make_file(checkpoint, f16, kind)
            results["files"][kind] = _child("--measure", path, *common)
        results["more"] = {}
        for kind in () if arguments.quick else (*MORE_CONVERTED, *MORE_QUANTIZED):
            path = make_file(checkpoint, f16, kind)
            results["more"][kind] = _child("--measure", path, "--nar-only", *common)
            path.unlink()
    results["load_at_end"] = os.getloadavg()
    results["seconds"] = round(time.perf_counter() - begin)
    print(tables(results))
    text = json.dumps(results, indent=1)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    print(text)
    return results


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repetitions, no other settings")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="where the files go; else a temporary one")
    parser.add_argument("--json", type=Path, help="also write the numbers into this file")
    # For the child processes.
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--reference", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--nar-only", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _child(*arguments: object) -> dict[str, Any]:
    """A measurement in a process of its own, so that its memory is its own."""
    command = [sys.executable, str(Path(__file__).resolve()), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    last = done.stdout.splitlines()[-1]
    print(f"{arguments[0]} {Path(str(arguments[1])).name}: {last}", file=sys.stderr, flush=True)
    measured: dict[str, Any] = json.loads(last)
    return measured


# ------------------------------------------------------------------------------ the files


def make_source(folder: Path) -> tuple[Path, Path]:
    """The production-size checkpoint, and the file converted from it, both in float16."""
    checkpoint = folder / "production.sft"
    make_checkpoint(checkpoint, PRODUCTION, dtype="f16")
    f16 = folder / "production-F16.gguf"
    write_gguf(plan_conversion(checkpoint), f16)
    return checkpoint, f16


def make_file(checkpoint: Path, f16: Path, kind: str) -> Path:
    """A file of another type, converted or quantized."""
    path = f16.with_name(f"production-{kind}.gguf")
    if kind in ("F32", *MORE_CONVERTED):
        write_gguf(plan_conversion(checkpoint, Choices(kind.lower())), path)
    else:
        command = [sys.executable, "-m", "valle_convert", "quantize", f16, path, kind]
        subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return path


def condition_of(model: Model) -> Condition:
    """A sentence and a voice of usual lengths."""
    rng = np.random.default_rng(0)
    config = model.config
    return Condition(
        phonemes=rng.integers(3, 256, N_PHONEMES),
        language=0,
        prompt=rng.integers(0, config.codebook_size, (N_PROMPT, config.n_levels)),
    )


def nar_inputs(network: Network) -> Inputs:
    """What one NAR level is computed from."""
    model = network.model
    rng = np.random.default_rng(1)
    response = rng.integers(0, model.config.codebook_size, (N_FRAMES, LEVEL))
    segments = speech_segments(model, condition_of(model), LEVEL, response)
    return assemble(model, segments, network.look_up)


# ------------------------------------------------------------------------ on llama.cpp


def measure_file(path: Path, n_threads: int, plan: Plan, nar_only: bool) -> dict[str, Any]:
    """One file: ours beside bare llama.cpp, and the latter with other settings."""
    from valle_convert.llama.library import load_library

    results: dict[str, Any] = {"bytes": path.stat().st_size}
    api = load_library().api
    with open_network(path, n_threads=n_threads) as network:
        if not nar_only:
            results["loaded_mb"] = _peak_mb()
            nar_pass(network)
            decode_ar(network, condition_of(network.model), _ar(2), np.random.default_rng(0))
            results["peak_mb"] = _peak_mb()
            results |= measure_ar(network, api, path, n_threads, plan)
        inputs = nar_inputs(network)
        results["positions"] = len(inputs)
        base = Setting(n_threads=n_threads)
        with Bare(api, path, base) as bare:
            batch = bare.batch(inputs, base.outputs)
            ours, theirs = in_turn(
                lambda: nar_pass(network), lambda: bare.run_nar(batch), plan.nar_passes
            )
        results |= {"nar_ms": ours, "nar_bare_ms": theirs}
    tried = {} if nar_only or not plan.setting_passes else settings(n_threads)
    results["settings"] = measure_settings(api, path, inputs, tried, plan.setting_passes)
    return results


def measure_settings(
    api: Any, path: Path, inputs: Inputs, tried: Mapping[str, Setting], n: int
) -> dict[str, float]:
    """The best of some passes with each setting, in turn so that all meet the same noise."""
    with ExitStack() as stack:
        runs: dict[str, Callable[[], None]] = {}
        for name, setting in tried.items():
            bare = stack.enter_context(Bare(api, path, setting))
            runs[name] = partial(bare.run_nar, bare.batch(inputs, setting.outputs))
        rounds = [{name: _timed(run) * 1e3 for name, run in runs.items()} for _ in range(n)]
    return {name: min(one[name] for one in rounds) for name in tried}


def nar_pass(network: Network) -> None:
    """One pass, as `decode_nar` does it."""
    inputs = nar_inputs(network)
    network.step(
        inputs.embeddings,
        inputs.positions,
        head=f"nar.{LEVEL}",
        outputs=slice(inputs.last, None),
    )


def _ar(n_frames: int, guidance: float = 0.0) -> ArOptions:
    return ArOptions(
        guidance=Guidance(guidance), max_frames=n_frames, length_penalty=LENGTH_PENALTY
    )


def measure_ar(
    network: Network, api: Any, path: Path, n_threads: int, plan: Plan
) -> dict[str, float]:
    """Steps of `decode_ar`, each followed by a bare one at the same depth."""
    condition = condition_of(network.model)
    depth = N_PHONEMES + N_PROMPT + 6
    ours: list[float] = []
    theirs: dict[str, list[float]] = {"ar_bare_ms": [], "ar_default_ms": []}
    with (
        Bare(api, path, Setting(n_threads=n_threads)) as same,
        Bare(api, path, Setting(n_threads=n_threads, defaults=True)) as default,
    ):
        for bare in (same, default):
            bare.prefill(depth)
        left = time.perf_counter()

        def between_steps() -> bool:
            nonlocal left
            ours.append(time.perf_counter() - left)
            for bare, times in zip((same, default), theirs.values(), strict=True):
                times.append(_timed(bare.run_token))
            left = time.perf_counter()
            return False

        decode_ar(
            network,
            condition,
            _ar(plan.ar_steps),
            np.random.default_rng(0),
            should_stop=between_steps,
        )
    # The first is what came before the prompt, the second the prompt.
    taken = {"ar_ms": ours, **theirs}
    results = {name: median(times[2:]) * 1e3 for name, times in taken.items()}
    results |= {f"{name}_best": min(times[2:]) * 1e3 for name, times in taken.items()}
    marks: list[float] = []

    def mark() -> bool:
        marks.append(time.perf_counter())
        return False

    n_guided = max(plan.ar_steps // 4, 5)
    decode_ar(network, condition, _ar(n_guided, 2.0), np.random.default_rng(0), should_stop=mark)
    results["ar_guided_ms"] = median(np.diff(marks)[1:]) * 1e3
    return results


@dataclass(frozen=True)
class Setting:
    """How bare llama.cpp is set up; as ours where nothing else is said."""

    n_threads: int
    flash: bool = False
    f16_cache: bool = False
    n_ubatch: int = 1024
    outputs: int = N_FRAMES
    repack: bool = True
    causal: bool = False
    defaults: bool = False


def settings(n_threads: int) -> Mapping[str, Setting]:
    """What might be faster than ours."""

    def but(**changes: Any) -> Setting:
        return Setting(**{"n_threads": n_threads, **changes})

    return {
        "as ours": but(),
        "flash attention, f16 cache": but(flash=True, f16_cache=True),
        "f16 cache": but(f16_cache=True),
        "outputs at all positions": but(outputs=10_000),
        "causal, n_ubatch 256": but(causal=True, n_ubatch=256),
        "weights not repacked": but(repack=False),
        "twice the threads": but(n_threads=2 * n_threads),
    }


class Bare:
    """llama.cpp through its C functions and nothing else."""

    def __init__(self, api: Any, path: Path, setting: Setting) -> None:
        self._api = api
        self._setting = setting
        parameters = api.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.use_extra_bufts = setting.repack
        self._model = api.llama_model_load_from_file(str(path).encode(), parameters)
        context = api.llama_context_default_params()
        context.n_ctx = context.n_batch = 1024
        context.n_threads = context.n_threads_batch = setting.n_threads
        if not setting.defaults:
            context.n_ubatch = setting.n_ubatch
            context.flash_attn_type = (
                api.LLAMA_FLASH_ATTN_TYPE_ENABLED
                if setting.flash
                else api.LLAMA_FLASH_ATTN_TYPE_DISABLED
            )
            cache = api.GGML_TYPE_F16 if setting.f16_cache else api.GGML_TYPE_F32
            context.type_k = context.type_v = cache
        self._context = api.llama_init_from_model(self._model, context)
        self._memory = api.llama_get_memory(self._context)
        self._n_embd = api.llama_model_n_embd(self._model)
        self._token = (ctypes.c_int32 * 1)(5)
        self._keep: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)

    def prefill(self, depth: int) -> None:
        """Decode some tokens first."""
        tokens = (ctypes.c_int32 * depth)(*range(depth))
        self._decode(self._api.llama_batch_get_one(tokens, depth))

    def run_token(self) -> None:
        """Decode one token more, and wait for its logits."""
        self._decode(self._api.llama_batch_get_one(self._token, 1))

    def batch(self, inputs: Inputs, n_outputs: int) -> Any:
        """A batch of embeddings, sorted by position as attention in both directions needs it."""
        n = len(inputs)
        order = np.argsort(inputs.positions, kind="stable")
        positions = inputs.positions[order].astype(np.int32)
        if self._setting.causal:
            positions = np.arange(n, dtype=np.int32)
        data = np.ascontiguousarray(inputs.embeddings[order] / np.float32(self._n_embd**0.5))
        wanted = (order >= n - n_outputs).astype(np.int8)
        counts, ids = np.ones(n, np.int32), np.zeros(n, np.int32)
        pointers = (ctypes.POINTER(ctypes.c_int32) * n)(
            *[ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))] * n
        )
        self._keep = [positions, data, wanted, counts, ids, pointers]
        batch = self._api.llama_batch()
        batch.n_tokens = n
        batch.embd = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        batch.pos = positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.n_seq_id = counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.seq_id = pointers
        batch.logits = wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        return batch

    def run_nar(self, batch: Any) -> None:
        """Decode it into an empty cache, and wait for its logits."""
        self._api.llama_memory_clear(self._memory, False)
        self._api.llama_set_causal_attn(self._context, self._setting.causal)
        self._decode(batch)

    def _decode(self, batch: Any) -> None:
        code = self._api.llama_decode(self._context, batch)
        if code != 0:
            raise SystemExit(f"llama_decode returned {code} with {self._setting}")
        self._api.llama_get_logits(self._context)


# -------------------------------------------------------------------------- on PyTorch


def measure_reference(checkpoint: Path, n_threads: int, plan: Plan) -> dict[str, Any]:
    """The whole sequence again for one code more, and a NAR pass, in float32."""
    plan_of = plan_conversion(checkpoint)
    network = plan_of.family.reference(plan_of.description.tensors, plan_of.description)

    import torch

    torch.set_num_threads(n_threads)
    model = network.model
    results: dict[str, Any] = {"ar_whole_ms": {}}
    for n_frames in (1, 50, 400):
        segments = speech_segments(model, condition_of(model), 0, np.zeros(n_frames, np.int64))
        inputs = assemble(model, segments, network.look_up)

        def whole(inputs: Inputs = inputs) -> None:
            network.step(inputs.embeddings, inputs.positions, head="ar", outputs=[len(inputs) - 1])
            network.forget(0)

        whole()
        times = [_timed(whole) for _ in range(plan.reference_passes)]
        results["ar_whole_ms"][str(n_frames)] = min(times) * 1e3
    nar_pass(network)
    results["nar_ms"] = min(_timed(lambda: nar_pass(network)) for _ in times) * 1e3
    results["peak_mb"] = _peak_mb()
    return results


# ----------------------------------------------------------------------------- measuring


def in_turn(one: Callable[[], None], other: Callable[[], None], n: int) -> tuple[float, float]:
    """Medians in milliseconds of two things that are run in turn, after a run of each."""
    one()
    other()
    pairs = [(_timed(one), _timed(other)) for _ in range(n)]
    return median(a for a, _ in pairs) * 1e3, median(b for _, b in pairs) * 1e3


def _timed(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def machine() -> dict[str, Any]:
    """What kind of machine this is."""
    words: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            words.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    flags = words.get("flags", "").split()
    return {
        "cpu": words.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "features": [one for one in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if one in flags],
    }


# ------------------------------------------------------------------------------- showing


def tables(results: Mapping[str, Any]) -> str:
    """Everything, as Markdown."""
    reference, files = results["reference"], results["files"]
    everything = {**files, **results["more"]}
    whole = reference["ar_whole_ms"]
    known = results["machine"]
    loads = [f"{results[at][0]:.1f}" for at in ("load_at_start", "load_at_end")]
    after = ", ".join(f"{ms:.0f} ms after {n} frames" for n, ms in whole.items())
    lines = [
        f"{known['cpu']}, {known['cores']} cores ({', '.join(known['features'])}).",
        f"{results['threads']} threads, {results['seconds']} s in all.",
        f"Load average {loads[0]} at the start, {loads[1]} at the end.",
        "",
        markdown_table(
            (
                *("file", "MB", "AR step", "bare llama.cpp", "ratio", "its defaults"),
                *("guided step", "times PyTorch", "peak MB"),
            ),
            [
                (
                    kind,
                    f"{one['bytes'] / 1e6:.0f}",
                    *(
                        f"{one[name]:.1f} ({one[f'{name}_best']:.1f})"
                        for name in ("ar_ms", "ar_bare_ms")
                    ),
                    f"{one['ar_ms'] / one['ar_bare_ms']:.2f}",
                    f"{one['ar_default_ms']:.1f} ({one['ar_default_ms_best']:.1f})",
                    f"{one['ar_guided_ms']:.1f}",
                    f"{whole['50'] / one['ar_ms_best']:.0f}",
                    f"{one['peak_mb']:.0f}",
                )
                for kind, one in files.items()
            ],
        ),
        "",
        "Milliseconds: medians, and in brackets the best, which is what other processes disturb",
        "least. PyTorch runs the whole sequence again for a step; best, like the step it is",
        f"divided by: {after}; {reference['peak_mb']:.0f} MB.",
        f"Allowed: a ratio of {MAX_AR}, and at least {MIN_SPEEDUP:.0f} times PyTorch.",
        "",
        markdown_table(
            ("file", "NAR pass, ms", "bare llama.cpp", "ratio", "PyTorch float32"),
            [
                (
                    kind,
                    f"{one['nar_ms']:.0f}",
                    f"{one['nar_bare_ms']:.0f}",
                    f"{one['nar_ms'] / one['nar_bare_ms']:.2f}",
                    f"{reference['nar_ms']:.0f}",
                )
                for kind, one in everything.items()
            ],
        ),
        "",
        f"Allowed: a ratio of {MAX_NAR}.",
    ]
    if names := next(iter(files.values()))["settings"]:
        rows = [
            (name, *(f"{one['settings'][name]:.0f}" for one in files.values())) for name in names
        ]
        lines += ["", markdown_table(("NAR pass on bare llama.cpp, best, ms", *files), rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
