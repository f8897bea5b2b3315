"""`verify`: open both sides, run the requested levels, and collect one report."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.lora import LoraFile
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.families.bundle import Bundle, Plan, open_files
from valle_convert.families.bundle import plan as plan_bundle
from valle_convert.families.family import Choices
from valle_convert.gguf_file.read import GgufFile, is_gguf
from valle_convert.llama.library import INSTALL, find_library
from valle_convert.llama.probe import prove_library
from valle_convert.progress import Progress, silent
from valle_convert.tokenizer import corpus
from valle_convert.tokenizer.check import compare
from valle_convert.tokenizer.compiled import TRUE_IDS_KEY
from valle_convert.tokenizer.oracle import LlamaTokenizer
from valle_convert.verify.report import Check, Level, Report
from valle_convert.verify.structure import (
    check_source,
    check_structure,
    named,
    pairs_of,
    what_llama_must_not_see,
)
from valle_convert.verify.tensors import check_tensors
from valle_convert.wording import plural

LevelName = Literal["structure", "tensors", "tokenizer", "logits", "trace"]
#: All except the comparison layer by layer, which locates the cause of wrong logits.
LEVELS: tuple[LevelName, ...] = get_args(LevelName)[:-1]
#: The checks at the end of a conversion: everything except the networks.
QUICK: tuple[LevelName, ...] = ("structure", "tensors", "tokenizer")
N_TEXTS_QUICK = 2_000
NEEDS_LLAMA = f"llama-cpp-python is not installed, so llama.cpp was not tested; run {INSTALL}"


def verify(
    plan: Plan,
    bundle: Bundle,
    *,
    levels: Sequence[LevelName] = LEVELS,
    n_texts: int | None = None,
    n_utterances: int | None = None,
    seed: int = 0,
    adapters: Sequence[LoraFile] = (),
    progress: Progress = silent,
) -> Report:
    """Compare converted files, quantized or not, with the plan of their checkpoint."""
    if adapters:
        plan.family.ability("lora")
    with_llama = find_library() is not None
    texts = plan.family.n_texts if n_texts is None else n_texts
    utterances = plan.family.n_utterances if n_utterances is None else n_utterances
    stop = threading.Event()
    runners: dict[LevelName, Callable[[], Iterable[Check]]] = {
        "structure": lambda: check_structure(plan, bundle, with_llama=with_llama),
        "tensors": lambda: _tensors(plan, bundle, progress, stop),
        "tokenizer": lambda: [_tokenizer(plan, bundle, texts, seed, progress, stop)],
        "logits": lambda: _logits(plan, bundle, utterances, seed, adapters, progress),
        "trace": lambda: _trace(plan, bundle, seed, adapters, progress),
    }
    source = check_source(plan.checkpoint, bundle.main)
    if source is not None and not source.passed:
        return _judged_at_once(plan.checkpoint, bundle.path, source, main_type(bundle))
    danger = what_llama_must_not_see(plan, bundle)

    def run(name: LevelName) -> Level:
        start = time.perf_counter()
        checks: tuple[Check, ...] = ()
        skipped = None if with_llama or name == "tensors" else NEEDS_LLAMA
        if name == "structure":
            checks = (*([source] if source else []), *runners[name]())
        elif name == "tensors":
            checks = tuple(runners[name]())
        elif with_llama and danger:
            # llama.cpp aborts the whole process on some of these.
            checks = (Check(name, passed=False, summary=f"not run, since {danger}", values={}),)
        elif with_llama:
            checks = tuple(runners[name]())
        return Level(name, checks, time.perf_counter() - start, skipped)

    # Checks without the networks share the cores: llama.cpp, numpy and the tokenizers use one each.
    with ThreadPoolExecutor(max_workers=len(QUICK)) as pool:
        try:
            ahead = {name: pool.submit(run, name) for name in levels if name in QUICK}
            done = [ahead[name].result() if name in ahead else run(name) for name in levels]
        finally:
            stop.set()
    notes = (f"tokenizer: {plan.tokenizer.source} ({plan.tokenizer.reason})",)
    return Report(
        str(plan.checkpoint.path), str(bundle.path), main_type(bundle), tuple(done), notes
    )


def verify_path(
    checkpoint: Checkpoint,
    file: Path | GgufFile,
    *,
    given: Choices | None = None,
    levels: Sequence[LevelName] = LEVELS,
    seed: int = 0,
    adapters: Sequence[LoraFile] = (),
    progress: Progress = silent,
) -> Report:
    """Compare any files with a checkpoint, with the choices that they show.

    Every fault in the files is a failed check, however early it shows.
    """
    path = file.path if isinstance(file, GgufFile) else file
    try:
        bundle = open_files(file)
    except InputError as error:
        if not is_gguf(path):
            raise
        damage = Check("files", passed=False, summary=str(error), values={}, badness=math.inf)
        return _judged_at_once(checkpoint, path, damage, "none")
    source = check_source(checkpoint, bundle.main)
    if source is not None and not source.passed:
        return _judged_at_once(checkpoint, path, source, main_type(bundle))
    plan = plan_like(bundle, bundle.family.comparable(checkpoint, bundle), given or Choices())
    return verify(plan, bundle, levels=levels, seed=seed, adapters=adapters, progress=progress)


def plan_like(bundle: Bundle, checkpoint: Checkpoint, given: Choices) -> Plan:
    """Plan the conversion of a checkpoint with the choices that files show."""
    try:
        _ = bundle.model
    except InputError:  # the level `structure` reports it
        return plan_bundle(checkpoint, given)
    return plan_bundle(checkpoint, bundle.family.choices_of(bundle, checkpoint, given))


def _judged_at_once(checkpoint: Checkpoint, path: Path, check: Check, file_type: str) -> Report:
    """A report of one failed check that makes all others pointless."""
    return Report(str(checkpoint.path), str(path), file_type, (Level("structure", (check,), 0.0),))


def main_type(bundle: Bundle) -> str:
    """The type that most of the weights have, such as `Q4_K`."""
    sizes: dict[str, int] = {}
    for file in bundle.files.values():
        for tensor in file.tensors.values():
            name = tensor.ggml_type.name
            sizes[name] = sizes.get(name, 0) + tensor.n_elements
    return max(sizes, key=lambda name: sizes[name], default="none")


def _tensors(plan: Plan, bundle: Bundle, progress: Progress, stop: threading.Event) -> list[Check]:
    checks: list[Check] = []
    with progress("comparing tensors", plan.n_weights, "weights") as advance:
        for part, planned, file in pairs_of(plan, bundle):
            for check in check_tensors(planned, file, advance):
                checks.append(named(check, part, plan))
                if stop.is_set():  # another level failed with an exception
                    return checks
    return checks


def _tokenizer(
    plan: Plan, bundle: Bundle, n_texts: int, seed: int, progress: Progress, stop: threading.Event
) -> Check:
    source = plan.tokenizer.file
    true_ids = bundle.main.keys.get(TRUE_IDS_KEY)
    if not isinstance(true_ids, list) or not all(isinstance(i, int) for i in true_ids):
        words = f"{TRUE_IDS_KEY} is missing, or not a list of ids"
        return Check("tokenizer", passed=False, summary=words, values={})
    with progress("comparing tokenizers", n_texts, "texts") as advance:

        def counted() -> Iterable[str]:
            for text in corpus.texts(source.strings(), n_texts, seed=seed):
                if stop.is_set():  # another level failed with an exception
                    return
                advance(1)
                yield text

        prove_library()
        try:
            with LlamaTokenizer(bundle.path) as llama:
                report = compare(llama, source.oracle(), true_ids, counted())
        except (ValueError, InputError) as error:
            return Check("tokenizer", passed=False, summary=str(error), values={})
    shown = "; ".join(
        f"{difference.text!r:.60} gives {list(difference.found)[:12]}, "
        f"not {list(difference.expected)[:12]}"
        for difference in report.first[:3]
    )
    return Check(
        "tokenizer",
        passed=report.ok,
        summary=f"{plural(report.n_differences, 'difference')} over "
        f"{plural(report.n_texts, 'string')} under {plural(len(report.settings), 'setting')}"
        f"{f', such as {shown}' if shown else ''}",
        values={
            "texts": report.n_texts,
            "tokens": report.n_tokens,
            "settings": len(report.settings),
            "differences": report.n_differences,
        },
        limit="no difference",
        badness=float(report.n_differences),
    )


def _logits(
    plan: Plan,
    bundle: Bundle,
    n_utterances: int,
    seed: int,
    adapters: Sequence[LoraFile],
    progress: Progress,
) -> list[Check]:
    from valle_convert.verify.logits import Yardstick, check_logits, n_passes
    from valle_convert.verify.trace import trace

    opened = plan.family.open_adapters(adapters, bundle)
    prove_library()  # so that later failures are not this machine's llama.cpp
    total = n_passes(plan, n_utterances)
    with progress("comparing logits", total, "passes") as advance:
        try:
            yardstick = Yardstick(
                plan,
                bundle,
                n_utterances=n_utterances,
                seed=seed,
                adapters=opened,
                advance=advance,
            )
            network = plan.family.open(bundle, adapters=adapters)
        except (InputError, EnvironmentFault) as error:
            return [Check("logits", passed=False, summary=str(error), values={}, badness=math.inf)]
        with network:
            checks = list(check_logits(yardstick, network))
            worst = max((one for one in checks if not one.passed), key=_badness, default=None)
            if worst is None:
                return checks
            only = [worst.name.removeprefix("logits ")]
            # None if the file describes no such head.
            traced = next(trace(plan, bundle, network, seed=seed, adapters=opened, only=only), None)
    if traced is None:
        return checks
    right = "the layers are right, and the last norm or the head is off"
    words = right if traced.passed else traced.summary
    named_at = replace(worst, summary=f"{worst.summary}; {words}")
    return [named_at if check is worst else check for check in checks]


def _badness(check: Check) -> float:
    return check.badness


def _trace(
    plan: Plan, bundle: Bundle, seed: int, adapters: Sequence[LoraFile], progress: Progress
) -> list[Check]:
    from valle_convert.verify.trace import N_NETWORKS, trace, traced_cases

    opened = plan.family.open_adapters(adapters, bundle)
    prove_library()  # so that later failures are not this machine's llama.cpp
    total = N_NETWORKS * len(list(traced_cases(plan, plan.model, seed)))
    with progress("comparing layers", total, "passes") as advance:
        try:
            with plan.family.open(bundle, adapters=adapters) as network:
                return list(
                    trace(plan, bundle, network, seed=seed, adapters=opened, advance=advance)
                )
        except InputError as error:
            return [Check("trace", passed=False, summary=str(error), values={}, badness=math.inf)]
