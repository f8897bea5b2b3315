"""Passes and steps of each type with each of llama.cpp's settings: docs/settings.csv.

    python benchmarks/bench_speak.py [--types F16,Q8_0] [--rounds 3] [--folder DIR] [--write]

On the production-size random model (12 x 1024): a NAR pass of 701 positions with 300 outputs,
embedding and sorting included, and an AR step after 400 positions, sampling included. Compared with
bare llama.cpp, its C functions and nothing else, and for the pass with PyTorch in float32. All rows
of a file take turns, so that they meet the same noise; the times are the best of all rounds.
`--write` writes docs/settings.csv. `--folder` keeps the files for the next run. With BUSY=1 in
the environment, for a machine with other work: the processor time of one thread, and no search.
"""

# ruff: noqa: ANN401 - the binding has no types.

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from shared import DOCS, in_own_process, make_file, make_source, options, print_rows

from valle_convert import plan_conversion
from valle_convert.closing import Closing
from valle_convert.decode.ar import decode_ar
from valle_convert.decode.options import Callbacks, DecodeOptions
from valle_convert.families.bundle import open_bundle
from valle_convert.llama.context import EXACT, Settings
from valle_convert.llama.cpu import cpu_features, cpu_name, usable_cores
from valle_convert.llama.library import load_library
from valle_convert.llama.tuning import CACHES, settings_words
from valle_convert.model.inputs import Condition, Inputs, assemble, speech_segments
from valle_convert.model.spec import Model
from valle_convert.network.protocol import Network

CSV = DOCS / "settings.csv"
TYPES = ("F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
BARE, WHOLE_HEAD, TUNED = "bare llama.cpp", "exact, whole head", "tuned"

N_PHONEMES, N_PROMPT, N_FRAMES, LEVEL = 170, 225, 300, 4
DEPTH = N_PHONEMES + N_PROMPT + 6
STEPS = 15
BUSY = bool(os.environ.get("BUSY"))
clock = time.thread_time if BUSY else time.perf_counter
N_THREADS = 1 if BUSY else usable_cores()
#: The stop code of random weights comes at random; this keeps it away.
LENGTH_PENALTY = 3.0


def main(argv: Sequence[str] | None = None) -> None:
    load, files = os.getloadavg()[0], {}
    with options(__doc__, argv, types=",".join(TYPES), rounds=3, write=False) as given:
        checkpoint, f16 = make_source(given.folder)
        pytorch = pytorch_pass_ms(checkpoint, given.rounds)
        for kind in given.types.split(","):
            path = make_file(checkpoint, f16, kind)
            files[kind] = in_own_process(measure, path, given.rounds)
            print(kind, files[kind], file=sys.stderr, flush=True)
    print(machine(load), f"PyTorch in float32: {pytorch:.0f} ms a pass", sep="\n")
    print_rows(table(files), CSV if given.write else None)


def machine(load: float) -> str:
    features = [one for one in ("avx2", "avx512f", "avx512_vnni") if one in cpu_features()]
    return f"{cpu_name()} ({', '.join(features)}), {usable_cores()} cores, " + (
        "processor time of one thread" if BUSY else f"load {load:.1f} at the start"
    )


def table(files: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Passes and steps by settings, a column for each type."""
    yield ("measured", "settings", *files)
    for which, title, unit in ((0, "NAR pass, ms", ".0f"), (1, "AR step, ms", ".1f")):
        for name in next(iter(files.values())):
            yield (title, name, *(f"{one[name][which]:{unit}}" for one in files.values()))


def condition_of(model: Model, n_prompt: int = N_PROMPT) -> Condition:
    """A sentence and a voice, of usual lengths."""
    rng = np.random.default_rng(0)
    config = model.config
    return Condition(
        phonemes=rng.integers(3, 256, N_PHONEMES),
        language=0,
        prompt=rng.integers(0, config.codebook_size, (n_prompt, config.n_levels)),
    )


def nar_inputs(network: Network, n_frames: int = N_FRAMES) -> Inputs:
    model = network.model
    rng = np.random.default_rng(1)
    response = rng.integers(0, model.config.codebook_size, (n_frames, LEVEL))
    segments = speech_segments(model, condition_of(model), LEVEL, response)
    return assemble(model, segments, network.look_up)


# ------------------------------------------------------------------------------- measuring


def measure(path: Path, rounds: int) -> dict[str, tuple[float, ...]]:
    """Milliseconds of a pass and of a step by settings; `tuned` are those of the search."""
    bundle = open_bundle(path)
    runs: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {}
    with ExitStack() as held:

        def add(name: str, settings: Settings) -> Network:
            how = replace(settings, n_threads=1 if BUSY else None)
            network: Network = held.enter_context(bundle.family.open(bundle, settings=how))
            runs[name] = (lambda: pass_ms(network), lambda: step_ms(network))
            return network

        if not BUSY:
            add(TUNED, Settings(tune="again"))
        network = add(WHOLE_HEAD, EXACT)
        for repack, (cache, flash) in product((True, False), CACHES):
            settings = Settings(
                cache_type=cache, flash_attention=flash, repack=repack, own_head=True
            )
            add(settings_words(settings), settings)
        bare = held.enter_context(Bare(path))
        inputs = nar_inputs(network)
        runs[BARE] = (lambda: bare.pass_ms(inputs), bare.step_ms)
        found = [
            {name: (a_pass(), a_step()) for name, (a_pass, a_step) in runs.items()}
            for _ in range(rounds)
        ]
    names = sorted(runs, key=lambda name: (name != BARE, name == TUNED))
    return {
        name: (min(one[name][0] for one in found), min(one[name][1] for one in found))
        for name in names
    }


def pass_ms(network: Network, n_frames: int = N_FRAMES) -> float:
    """A NAR pass, as `decode_nar` does it."""
    begin = clock()
    inputs = nar_inputs(network, n_frames)
    network.step(
        inputs.embeddings,
        inputs.positions,
        head=f"nar.{LEVEL}",
        outputs=slice(inputs.last, None),
    )
    return (clock() - begin) * 1e3


def step_ms(network: Network, n_prompt: int = N_PROMPT) -> float:
    """The fastest of some steps of `decode_ar`."""
    marks: list[float] = []

    def mark() -> bool:
        marks.append(clock())
        return False

    options = DecodeOptions(length_penalty=LENGTH_PENALTY)
    condition = condition_of(network.model, n_prompt)
    rng, watch = np.random.default_rng(0), Callbacks(should_stop=mark)
    decode_ar(network, condition, options, rng, max_frames=STEPS, watch=watch)
    return float(np.diff(marks)[1:].min()) * 1e3  # the first is the prompt


def pytorch_pass_ms(checkpoint: Path, rounds: int) -> float:
    """The same pass in PyTorch, in float32."""
    plan = plan_conversion(checkpoint)
    network = plan.family.reference(plan.description.tensors, plan.description)

    import torch

    torch.set_num_threads(N_THREADS)
    return min(pass_ms(network) for _ in range(rounds + 1))


class Bare(Closing):
    """llama.cpp through its C functions and nothing else, with f32 caches."""

    def __init__(self, path: Path, n_sequences: int = 1, n_threads: int = N_THREADS) -> None:
        self._api: Any = load_library().api
        api = self._api
        self._model = api.llama_model_load_from_file(
            str(path).encode(), api.llama_model_default_params()
        )
        context = api.llama_context_default_params()
        context.n_batch = context.n_ubatch = 1024
        context.n_ctx, context.n_seq_max = 1024 * n_sequences, n_sequences
        context.kv_unified = False
        context.n_threads = context.n_threads_batch = n_threads
        context.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context.type_k = context.type_v = api.GGML_TYPE_F32
        self._context = api.llama_init_from_model(self._model, context)

    def close(self) -> None:
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)

    def pass_ms(self, inputs: Inputs) -> float:
        """A batch of embeddings in both directions, sorted by position."""
        n = len(inputs)
        order = np.argsort(inputs.positions, kind="stable")
        positions = inputs.positions[order].astype(np.int32)
        data = np.ascontiguousarray(inputs.embeddings[order] / np.float32(32))
        wanted = (order >= n - N_FRAMES).astype(np.int8)
        counts, ids = np.ones(n, np.int32), np.zeros(n, np.int32)
        pointer = ctypes.POINTER(ctypes.c_int32)
        batch = self._api.llama_batch()
        batch.n_tokens = n
        batch.embd = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        batch.pos, batch.n_seq_id = (one.ctypes.data_as(pointer) for one in (positions, counts))
        batch.seq_id = (pointer * n)(*[ids.ctypes.data_as(pointer)] * n)
        batch.logits = wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        self._clear(causal=False)
        return self._decode(batch)

    def step_ms(self) -> float:
        """The fastest of some decodes of one token."""
        self._clear(causal=True)
        self._decode(self._tokens(DEPTH))
        return min(self._decode(self._tokens(1)) for _ in range(STEPS))

    def _tokens(self, n: int) -> Any:
        self._given = (ctypes.c_int32 * n)(*range(n))  # the batch has its address only
        return self._api.llama_batch_get_one(self._given, n)

    def _clear(self, *, causal: bool) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)
        self._api.llama_set_causal_attn(self._context, causal)

    def _decode(self, batch: Any) -> float:
        begin = clock()
        if self._api.llama_decode(self._context, batch) != 0:
            raise SystemExit("llama_decode failed")
        self._api.llama_get_logits(self._context)
        return (clock() - begin) * 1e3


if __name__ == "__main__":
    main()
