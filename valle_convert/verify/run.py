"""`verify`: open both sides, run the levels asked for, gather one report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

from valle_convert.errors import InputError
from valle_convert.gguf_file.plan import GgufPlan
from valle_convert.gguf_file.read import GgufFile
from valle_convert.llama.library import find_library
from valle_convert.progress import Progress, silent
from valle_convert.tokenizer import corpus
from valle_convert.tokenizer.check import compare
from valle_convert.tokenizer.oracle import LlamaTokenizer
from valle_convert.verify.logits import check_logits, limits_for, n_cases
from valle_convert.verify.report import Check, Level, Report
from valle_convert.verify.structure import check_structure
from valle_convert.verify.tensors import check_tensors

LevelName = Literal["structure", "tensors", "tokenizer", "logits"]
LEVELS: tuple[LevelName, ...] = get_args(LevelName)
#: What a conversion runs when it ends: everything but the networks.
QUICK: tuple[LevelName, ...] = ("structure", "tensors", "tokenizer")

#: The espeak-ng lines, all pairs of the published vocabulary's strings, and as many random texts
#: as make it round.
N_TEXTS = 100_000
N_TEXTS_QUICK = 2_000
N_UTTERANCES = 3
_NEEDS_LLAMA = (
    "llama-cpp-python is not installed (pip install 'valle-convert[llama]'), so stock llama.cpp "
    "could not be asked"
)


def verify(
    plan: GgufPlan,
    file: GgufFile,
    *,
    levels: Sequence[LevelName] = LEVELS,
    n_texts: int = N_TEXTS,
    n_utterances: int = N_UTTERANCES,
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """Hold a converted file against the plan of its checkpoint.

    Args:
        plan: made anew from the checkpoint, with the tokenizer the file should have.
        file: the file to judge; quantized or not.
        levels: which levels to run.
        n_texts: strings for the tokenizer.
        n_utterances: seeded inputs for each head and task.
        seed: of texts and inputs.
        progress: shows the long levels.

    Raises:
        EnvironmentFault: llama.cpp is there, and does not work on this machine.
    """
    with_llama = find_library() is not None
    runners: dict[LevelName, Callable[[], Iterable[Check]]] = {
        "structure": lambda: check_structure(plan, file, with_llama=with_llama),
        "tensors": lambda: _tensors(plan, file, progress),
        "tokenizer": lambda: _tokenizer(plan, file, n_texts, seed, progress),
        "logits": lambda: _logits(plan, file, n_utterances, seed, progress),
    }
    done: list[Level] = []
    for name in levels:
        start = time.perf_counter()
        checks: tuple[Check, ...] = ()
        skipped = None
        if name in ("tokenizer", "logits") and not with_llama:
            skipped = _NEEDS_LLAMA
        elif name in ("tokenizer", "logits") and any(not level.passed for level in done[:1]):
            skipped = "the structure is wrong, so llama.cpp is not asked to run the file"
        else:
            checks = tuple(runners[name]())
        done.append(Level(name, checks, time.perf_counter() - start, skipped))
    file_type, _ = limits_for(file)
    notes = [f"tokenizer: {plan.tokenizer.source} ({plan.tokenizer.reason})"]
    if not with_llama:
        notes.append(_NEEDS_LLAMA)
    return Report(str(plan.checkpoint.path), str(file.path), file_type, tuple(done), tuple(notes))


def _tensors(plan: GgufPlan, file: GgufFile, progress: Progress) -> list[Check]:
    with progress("comparing tensors", plan.n_weights, "weights") as advance:
        return list(check_tensors(plan, file, advance))


def _tokenizer(
    plan: GgufPlan, file: GgufFile, n_texts: int, seed: int, progress: Progress
) -> list[Check]:
    source = plan.tokenizer.file
    true_ids = file.keys["valle.tokenizer.true_ids"]
    with (
        LlamaTokenizer(file.path) as llama,
        progress("comparing tokenizers", n_texts, "texts") as advance,
    ):

        def counted() -> Iterable[str]:
            for text in corpus.texts(source.strings(), n_texts, seed=seed):
                advance(1)
                yield text

        try:
            report = compare(llama, source.oracle(), true_ids, counted())
        except ValueError as error:
            return [Check("tokenizer", passed=False, summary=str(error), values={})]
    shown = "; ".join(
        f"{difference.text!r:.60} gives {list(difference.found)[:12]}, "
        f"not {list(difference.expected)[:12]}"
        for difference in report.first[:3]
    )
    return [
        Check(
            "tokenizer",
            passed=report.ok,
            summary=f"{report.n_differences} differences over {report.n_texts:,} strings under "
            f"{len(report.settings)} settings{f', such as {shown}' if shown else ''}",
            values={
                "texts": report.n_texts,
                "tokens": report.n_tokens,
                "settings": len(report.settings),
                "differences": report.n_differences,
            },
            limit="no difference",
            badness=float(report.n_differences),
        )
    ]


def _logits(
    plan: GgufPlan,
    file: GgufFile,
    n_utterances: int,
    seed: int,
    progress: Progress,
) -> list[Check]:
    from valle_convert.network.converted import GgufNetwork
    from valle_convert.network.reference import ReferenceNetwork

    reference = ReferenceNetwork(plan.checkpoint, plan.description)
    _, limits = limits_for(file)
    try:
        network = GgufNetwork(file)
    except InputError as error:
        return [Check("logits", passed=False, summary=str(error), values={})]
    with (
        network,
        progress("comparing logits", n_cases(reference, n_utterances), "passes") as advance,
    ):
        return list(
            check_logits(
                reference,
                network,
                limits,
                n_utterances=n_utterances,
                seed=seed,
                advance=advance,
            )
        )
