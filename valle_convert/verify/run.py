"""`verify`: open both sides, run the requested levels, and collect one report."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.lora import LoraFile
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.families.bundle import Bundle, Plan, open_files, plan_bundle
from valle_convert.families.family import Choices
from valle_convert.gguf_file.header import weights_by_type
from valle_convert.gguf_file.read import GgufFile, look_at
from valle_convert.gguf_file.types import PLAIN_DTYPES
from valle_convert.llama.context import EXACT, Settings
from valle_convert.llama.library import INSTALL, find_library, load_library
from valle_convert.llama.probe import prove_library
from valle_convert.network.protocol import OnLlama
from valle_convert.network.weights import rounded_types
from valle_convert.progress import Progress, silent
from valle_convert.tokenizer import corpus
from valle_convert.tokenizer.check import TokenizerReport, compare
from valle_convert.tokenizer.compiled import TRUE_IDS_KEY
from valle_convert.tokenizer.oracle import LlamaTokenizer
from valle_convert.verify.report import Check, Level, Report
from valle_convert.verify.structure import (
    check_source,
    check_structure,
    named,
    pairs_of,
    why_llama_would_abort,
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
    seed: int = 0,
    settings: Settings = EXACT,
    adapters: Sequence[LoraFile] = (),
    progress: Progress = silent,
) -> Report:
    """Compare converted files, quantized or not, with the plan of their checkpoint."""
    if adapters:
        plan.family.ability("lora")
    check = check_source(plan.checkpoint, bundle.main)
    if check is not None and not check.passed:
        return Report.of_one(
            plan.checkpoint.path, bundle.path, check, "structure", main_type(bundle)
        )
    with_llama = find_library() is not None
    danger = why_llama_would_abort(plan, bundle)
    run = _Run(plan, bundle, n_texts or plan.family.n_texts, seed, settings, adapters, progress)
    for name in levels:
        start = time.perf_counter()
        checks: Iterable[Check] = ()
        if name == "structure":
            checks = [*([check] if check else []), *check_structure(plan, bundle, with_llama)]
        elif name == "tensors":
            checks = run.tensors()
        elif with_llama and danger:
            # llama.cpp aborts the whole process on some of these.
            checks = [Check.failure(name, f"not run, since {danger}")]
        elif with_llama:
            checks = {"tokenizer": run.tokenizer, "logits": run.logits, "trace": run.trace}[name]()
        skipped = None if with_llama or name == "tensors" else NEEDS_LLAMA
        run.done.append(Level(name, tuple(checks), time.perf_counter() - start, skipped))
    notes = (f"tokenizer: {plan.tokenizer.source} ({plan.tokenizer.reason})",)
    return Report(
        str(plan.checkpoint.path), str(bundle.path), main_type(bundle), tuple(run.done), notes
    )


def verify_path(
    checkpoint: Checkpoint,
    file: Path | GgufFile,
    given: Choices | None = None,
    run: Callable[[Plan, Bundle], Report] = verify,
) -> Report:
    """Compare any files with a checkpoint, with the choices that they show.

    Every fault in the files is a failed check, however early it shows.
    """
    path = file.path if isinstance(file, GgufFile) else file
    try:
        bundle = open_files(file)
    except InputError as error:
        if look_at(path, strict=False)[0] == "other":
            raise
        return Report.of_one(checkpoint.path, path, Check.failure("files", str(error)), "structure")
    check = check_source(checkpoint, bundle.main)
    if check is not None and not check.passed:
        return Report.of_one(checkpoint.path, path, check, "structure", main_type(bundle))
    plan = plan_like(bundle, bundle.family.comparable(checkpoint, bundle), given or Choices())
    return run(plan, bundle)


def plan_like(bundle: Bundle, checkpoint: Checkpoint, given: Choices) -> Plan:
    """Plan the conversion of a checkpoint with the choices that files show."""
    try:
        _ = bundle.model
    except InputError:  # the level `structure` reports it
        return plan_bundle(checkpoint, given)
    return plan_bundle(checkpoint, bundle.family.choices_of(bundle, checkpoint, given))


def main_type(bundle: Bundle) -> str:
    """The type that most of the weights have, such as `Q4_K`."""
    tensors = (tensor for file in bundle.files.values() for tensor in file.tensors.values())
    return next((kind.name for kind, _ in weights_by_type(tensors).most_common(1)), "none")


@dataclass
class _Run:
    plan: Plan
    bundle: Bundle
    n_texts: int
    seed: int
    settings: Settings
    adapters: Sequence[LoraFile]
    progress: Progress
    done: list[Level] = field(default_factory=list)

    def tensors(self) -> list[Check]:
        with self.progress("comparing tensors", self.plan.n_weights, "weights") as advance:
            return [
                named(check, part, self.plan)
                for part, planned, file in pairs_of(self.plan, self.bundle)
                for check in check_tensors(planned, file, advance)
            ]

    def tokenizer(self) -> list[Check]:
        tokenizer = self.plan.tokenizer.file
        true_ids = self.bundle.main.keys.get(TRUE_IDS_KEY)
        if not isinstance(true_ids, list) or not all(isinstance(i, int) for i in true_ids):
            words = f"{TRUE_IDS_KEY} is missing, or not a list of ids"
            return [Check.failure("tokenizer", words)]
        with self.progress("comparing tokenizers", self.n_texts, "texts") as advance:

            def counted() -> Iterable[str]:
                for text in corpus.texts(tokenizer.strings(), self.n_texts, seed=self.seed):
                    advance(1)
                    yield text

            try:
                with LlamaTokenizer(self.bundle.path) as llama:
                    report = compare(llama, tokenizer.oracle(), true_ids, counted())
            except (ValueError, InputError) as error:
                return [Check.failure("tokenizer", str(error))]
        return [_check_tokenizer(report)]

    def logits(self) -> list[Check]:
        from valle_convert.verify.logits import N_NETWORKS, Yardstick, cases_of, check_logits
        from valle_convert.verify.trace import trace

        plan, bundle, seed, opened = self.plan, self.bundle, self.seed, self._open_adapters()
        is_rounded = self._is_rounded()
        total = (N_NETWORKS - is_rounded) * len(cases_of(plan, plan.model))
        with self.progress("comparing logits", total, "passes") as advance:
            try:
                yardstick = Yardstick(
                    plan, bundle, seed=seed, adapters=opened, is_rounded=is_rounded, advance=advance
                )
                network = self._open()
            except (InputError, EnvironmentFault) as error:
                return [Check.failure("logits", str(error))]
            with network:
                checks = list(check_logits(yardstick, network))
                failed = [check for check in checks if not check.passed]
                if not failed:
                    return checks
                worst = max(failed, key=attrgetter("badness"))
                only = [worst.name.removeprefix("logits ")]
                found = trace(plan, bundle, network, seed=seed, adapters=opened, only=only)
                traced = next(found, None)
        if traced is None:  # the file describes no such head
            return checks
        right = "the layers are right, and the last norm or the head is off"
        words = right if traced.passed else traced.summary
        named_at = replace(worst, summary=f"{worst.summary}; {words}")
        return [named_at if check is worst else check for check in checks]

    def _open_adapters(self) -> Sequence[Any]:
        """The adapters; llama.cpp is proved, so that later failures are the file's."""
        opened = self.plan.family.open_adapters(self.adapters, self.bundle)
        prove_library()
        load_library().check_gpu(self.settings.n_gpu_layers)
        return opened

    def _open(self) -> OnLlama:
        network: OnLlama = self.plan.family.open(
            self.bundle, settings=self.settings, adapters=self.adapters
        )
        return network

    def _is_rounded(self) -> bool:
        """Whether the files are known to hold the checkpoint's weights, exactly rounded.

        Folded values are never known: they are computed again from the checkpoint.
        """
        right = {level.name for level in self.done if level.passed}
        is_right = right >= {"structure", "tensors"} and not self.plan.family.folds
        return is_right and all(
            kind in PLAIN_DTYPES
            for _, planned, file in pairs_of(self.plan, self.bundle)
            for kind in rounded_types(planned, file).values()
        )

    def trace(self) -> list[Check]:
        from valle_convert.verify.logits import N_NETWORKS
        from valle_convert.verify.trace import trace, traced_cases

        plan, bundle, seed, opened = self.plan, self.bundle, self.seed, self._open_adapters()
        total = N_NETWORKS * len(list(traced_cases(plan, plan.model, seed)))
        with self.progress("comparing layers", total, "passes") as advance:
            try:
                with self._open() as network:
                    return list(
                        trace(plan, bundle, network, seed=seed, adapters=opened, advance=advance)
                    )
            except InputError as error:
                return [Check.failure("trace", str(error))]


def _check_tokenizer(report: TokenizerReport) -> Check:
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
