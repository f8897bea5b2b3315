"""Proof that a set of files is its VALL-E X checkpoint; the levels are those of `verify`.

Everything is planned anew from the checkpoint. Logits are held against the PyTorch reference:
AR in one batch, code by code, and without a prompt; every level of the NAR, and without a
prompt; each symbol in a language of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.source import NamedTensors
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.gguf_file.keys import SOURCE_SHA256_KEY, TRUE_IDS_KEY
from valle_convert.gguf_file.plan import PlannedFile
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.vallex import (
    SetPlan,
    VallexSet,
    open_set,
    plan_vallex,
    symbol_tokenizer_json,
)
from valle_convert.llama.library import find_library
from valle_convert.llama.probe import prove_library
from valle_convert.metrics import Logits
from valle_convert.model.vallex import FACTOR, VallexModel, table_source
from valle_convert.model.vallex_symbols import VALLEX_SYMBOLS
from valle_convert.network.emulation import gelu_from_table, input_rounding
from valle_convert.network.vallex import ComposedNetwork
from valle_convert.network.vallex_protocol import VallexText
from valle_convert.network.weights import ConvertedTensors, RoundedTensors
from valle_convert.progress import Progress, silent
from valle_convert.tokenizer import corpus
from valle_convert.tokenizer.check import compare
from valle_convert.tokenizer.oracle import HuggingFaceOracle, LlamaTokenizer
from valle_convert.verify.logits import judge_logits
from valle_convert.verify.report import Check, Level, Report
from valle_convert.verify.run import LEVELS, NEEDS_LLAMA, LevelName, main_type
from valle_convert.verify.structure import check_keys, check_source, check_tensor_table
from valle_convert.verify.tensors import check_tensors

N_UTTERANCES = 2
#: Texts for the tokenizer, which has no merges to go wrong.
N_TEXTS = 10_000
_N_SYMBOLS, _N_PROMPT_FRAMES, _N_FRAMES = 40, 30, 40
_N_STEPS = 8  # codes that go in one by one, at the end


def verify_set(
    plan: SetPlan,
    path: Path,
    *,
    levels: Sequence[LevelName] = LEVELS,
    n_texts: int = N_TEXTS,
    n_utterances: int = N_UTTERANCES,
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """Hold the files of a set, quantized or not, against the plan of their checkpoint.

    Args:
        plan: made anew from the checkpoint, with the activation factor that the files should have.
        path: of the AR.
        levels: which levels to run.
        n_texts: strings for the tokenizer.
        n_utterances: seeded inputs for each case of the logits.
        seed: of texts and inputs.
        progress: shows the long levels.

    Raises:
        EnvironmentFault: llama.cpp is there, and does not work on this machine.
    """
    checkpoint = plan.ar.checkpoint
    try:
        files = open_set(path)
    except InputError as error:
        damage = Check("files", passed=False, summary=str(error), values={}, badness=math.inf)
        return Report(str(checkpoint.path), str(path), "none", (Level("structure", (damage,), 0),))
    source = check_source(checkpoint, files.ar)
    if source is not None and not source.passed:
        level = Level("structure", (source,), 0.0)
        return Report(str(checkpoint.path), str(path), main_type(files.ar), (level,))
    with_llama = find_library() is not None
    first = () if source is None else (source,)
    runners: dict[LevelName, Callable[[], Iterable[Check]]] = {
        "structure": lambda: (*first, *_structure(plan, files, with_llama=with_llama)),
        "tensors": lambda: _tensors(plan, files, progress),
        "tokenizer": lambda: [_tokenizer(files.ar, n_texts, seed, progress)],
        "logits": lambda: _logits(plan, files, n_utterances, seed, progress),
    }
    done: list[Level] = []
    for name in levels:
        start = time.perf_counter()
        skipped = None if with_llama or name == "tensors" else NEEDS_LLAMA
        runs = with_llama or name in ("structure", "tensors")
        checks = tuple(runners[name]()) if runs else ()
        done.append(Level(name, checks, time.perf_counter() - start, skipped))
    return Report(
        str(checkpoint.path),
        str(path),
        main_type(files.body),
        tuple(done),
        (f"a set of {len(files.files)} files, activation factor {files.model.activation_factor}",),
    )


def verify_vallex_path(
    checkpoint: Checkpoint,
    path: Path,
    *,
    codec: str | None = None,
    levels: Sequence[LevelName] = LEVELS,
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """Hold a set that may be anything against a checkpoint, with the choices that it shows.

    Raises:
        InputError: the checkpoint cannot be converted.
        EnvironmentFault: llama.cpp is there, and does not work on this machine.
    """
    exact, recorded = False, None
    try:
        model = open_set(path).model
        exact, recorded = model.activation_factor > FACTOR, model.codec.name
    except InputError:
        pass  # `verify_set` says it
    # Tensors are compared in the types that the file has; the plan's own decides the factor.
    out_type = "f32" if exact else "bf16"
    plan = plan_vallex(checkpoint, out_type=out_type, codec=codec)
    if codec is None and plan.description.model.codec.name == "unknown" != recorded:
        with suppress(InputError):  # no codec of ours: the comparison of the keys says it
            plan = plan_vallex(checkpoint, out_type=out_type, codec=recorded)
    return verify_set(plan, path, levels=levels, seed=seed, progress=progress)


def _parts(plan: SetPlan, files: VallexSet) -> Iterator[tuple[str, PlannedFile, GgufFile]]:
    yield "ar", plan.ar, files.ar
    yield "body", plan.body, files.body
    for i, (part, file) in enumerate(zip(plan.levels, files.levels, strict=True)):
        yield f"level {i + 1}", part, file


def _structure(plan: SetPlan, files: VallexSet, *, with_llama: bool) -> Iterator[Check]:
    expected, found = plan.description.model, files.model
    same = expected == found
    yield Check(
        "model description",
        passed=same,
        summary=f"{len(files.files)} files of one set, {'as' if same else 'not as'} the checkpoint"
        f" (activation factor {found.activation_factor}, expected {expected.activation_factor})",
        values={"files": len(files.files), "activation_factor": found.activation_factor},
    )
    if len(plan.levels) != len(files.levels):
        return
    digest = plan.ar.checkpoint.sha256()
    for name, part, file in _parts(plan, files):
        yield _named(check_keys(part, file, part.late_values(digest)), name)
        yield _named(check_tensor_table(part, file), name)
        if file.keys.get(SOURCE_SHA256_KEY) not in (None, digest):
            words = f"{file.path.name} was made of another checkpoint"
            yield Check(f"{name}: source", passed=False, summary=words, values={})
    if with_llama:
        yield _loads(files)


def _named(check: Check, part: str) -> Check:
    return replace(check, name=f"{part}: {check.name}")


def _loads(files: VallexSet) -> Check:
    from valle_convert.network.vallex_converted import VallexGguf

    prove_library()
    try:
        with VallexGguf(files) as network:
            found = network.count_weights()
    except (InputError, EnvironmentFault) as error:  # the machine was found to work
        return Check("llama.cpp", passed=False, summary=str(error), values={}, badness=math.inf)
    levels = len(files.levels)
    expected = [
        sum(tensor.n_elements for file in group for tensor in file.tensors.values())
        for group in ([files.ar], *([level, files.body] for level in files.levels))
    ]
    return Check(
        "llama.cpp",
        passed=found == expected,
        summary=f"loads the AR ({found[0]:,} weights) and {levels} levels ({found[1]:,}); inputs "
        "are not scaled, text is seen in both directions, and GELU with its factor is ReLU"
        if found == expected
        else f"counts {found} weights, not {expected}",
        values={"weights": found},
    )


def _tensors(plan: SetPlan, files: VallexSet, progress: Progress) -> list[Check]:
    total = sum(part.n_weights for _, part, _ in _parts(plan, files))
    with progress("comparing tensors", total, "weights") as advance:
        return [
            _named(check, name)
            for name, part, file in _parts(plan, files)
            for check in check_tensors(part, file, advance)
        ]


def _tokenizer(ar: GgufFile, n_texts: int, seed: int, progress: Progress) -> Check:
    true_ids = ar.keys.get(TRUE_IDS_KEY)
    if not isinstance(true_ids, list) or not all(isinstance(i, int) for i in true_ids):
        words = f"{TRUE_IDS_KEY} is missing, or no list of ids"
        return Check("tokenizer", passed=False, summary=words, values={})
    with (
        LlamaTokenizer(ar.path) as llama,
        progress("comparing tokenizers", n_texts, "texts") as advance,
    ):

        def counted() -> Iterable[str]:
            for text in corpus.texts(list(VALLEX_SYMBOLS), n_texts, seed=seed):
                advance(1)
                yield text

        try:
            report = compare(llama, HuggingFaceOracle(symbol_tokenizer_json()), true_ids, counted())
        except ValueError as error:
            return Check("tokenizer", passed=False, summary=str(error), values={})
    return Check(
        "tokenizer",
        passed=report.ok,
        summary=f"{report.n_differences} differences over {report.n_texts:,} strings",
        values={"texts": report.n_texts, "differences": report.n_differences},
        limit="no difference",
        badness=float(report.n_differences),
    )


# -------------------------------------------------------------------------------- logits


@dataclass(frozen=True)
class VallexUtterance:
    """One seeded example; every symbol has a language of its own.

    Attributes:
        prompt: [frames, levels].
        codes: [frames, levels].
    """

    text: VallexText
    prompt: NDArray[np.int32]
    codes: NDArray[np.int32]


def vallex_utterances(model: VallexModel, n: int, *, seed: int = 0) -> Iterator[VallexUtterance]:
    """`n` different utterances, the same for the same seed."""
    for i in range(n):
        draw = np.random.default_rng([seed, i])
        n_symbols = _N_SYMBOLS + 9 * i
        n_prompt, n_codes = _N_PROMPT_FRAMES + 5 * i, _N_FRAMES + 7 * i
        codes = draw.integers(
            0, model.codebook_size, (n_prompt + n_codes, model.n_levels), dtype=np.int32
        )
        yield VallexUtterance(
            VallexText(
                draw.integers(5, len(VALLEX_SYMBOLS), n_symbols, dtype=np.int32),
                draw.integers(0, len(model.languages), n_symbols, dtype=np.int32),
            ),
            codes[:n_prompt],
            codes[n_prompt:],
        )


def run_vallex_cases(
    network: ComposedNetwork, given: VallexUtterance
) -> Iterator[tuple[str, Logits]]:
    """Every case's name and its logits, [predictions, codes of the head]."""
    text, level_0 = given.text, given.codes[:, 0]
    for name, prompt in (("", given.prompt), (" without prompt", given.prompt[:0])):
        yield f"ar{name}", network.continued(text, prompt[:, 0], level_0)
        for level in range(1, network.n_levels):
            if prompt.size or level in (1, network.n_levels - 1):
                yield (
                    f"nar.{level}{name}",
                    network.pass_nar(text, prompt, given.codes[:, :level]),
                )
    # In two copies, one code a step, the second copy one behind.
    before = np.concatenate([given.prompt[:, 0], level_0[:-_N_STEPS]])
    steps = [network.begin_ar(text, before, room=_N_STEPS, n_copies=2)]
    steps.append(network.step_ar([1], level_0[-_N_STEPS:][:1]))
    for a, b in zip(level_0[-_N_STEPS:-1], level_0[-_N_STEPS + 1 :], strict=True):
        steps.append(network.step_ar([0, 1], np.array([a, b], np.int32)))
    yield "ar one code a step", np.concatenate(steps)


def n_vallex_cases(model: VallexModel) -> int:
    """How many cases an utterance has."""
    above = model.n_levels - 1
    return 3 + above + len({1, above})


class SetTensors:
    """A `NamedTensors` of a set: its weights under the names that they had in the checkpoint.

    Args:
        plan: of the checkpoint.
        files: of the set.
        kind: `ConvertedTensors` for what the files hold, `RoundedTensors` for what their types
            should leave of the checkpoint.
    """

    def __init__(
        self,
        plan: SetPlan,
        files: VallexSet,
        kind: Callable[[PlannedFile, GgufFile], NamedTensors],
    ) -> None:
        model = plan.description.model
        self._factor = model.activation_factor
        self._readers: dict[str, NamedTensors] = {}
        for _, part, file in _parts(plan, files):
            reader = kind(part, file)
            for tensor in part.tensors:
                for one in tensor.parts:
                    self._readers.setdefault(one.source, reader)
        self._same: dict[str, str] = {}
        for i, head in enumerate(model.nar.heads):
            for table in model.nar.tables:
                if table.first_row == head.first_row:
                    self._same[f"nar_predict_layers.{i}.weight"] = table_source("nar", table.name)

    def read(self, name: str) -> NDArray[Any]:
        """One tensor as float32."""
        name = self._same.get(name, name)
        scaled = f"{name} x {self._factor}"
        if scaled in self._readers:
            # A power of two: no bit is lost.
            return self._readers[scaled].read(scaled) / np.float32(self._factor)
        return self._readers[name].read(name)


def _logits(
    plan: SetPlan, files: VallexSet, n_utterances: int, seed: int, progress: Progress
) -> list[Check]:
    from valle_convert.network.vallex_converted import VallexGguf

    prove_library()  # so that what fails from here on is not this machine's llama.cpp
    total = (3 * n_utterances + 2) * n_vallex_cases(plan.description.model)
    with progress("comparing logits", total, "passes") as advance:
        try:
            yardstick = VallexYardstick(
                plan, files, n_utterances=n_utterances, seed=seed, advance=advance
            )
            network = VallexGguf(files)
        except (InputError, EnvironmentFault) as error:
            return [Check("logits", passed=False, summary=str(error), values={}, badness=math.inf)]
        with network:
            return list(check_vallex_logits(yardstick, network))


class VallexYardstick:
    """What right files give: the logits of every case, [predictions, codes of the head].

    Args:
        plan: of the checkpoint that the files were made from.
        files: the set.
        n_utterances: seeded inputs for each case.
        seed: of the inputs.
        advance: called with the number of passes done.

    Attributes:
        exact, emulated, meant, degraded: as those of `verify.logits.Yardstick`.

    Raises:
        InputError: a weight of a file is not finite.
    """

    def __init__(
        self,
        plan: SetPlan,
        files: VallexSet,
        *,
        n_utterances: int,
        seed: int = 0,
        advance: Callable[[int], object] = lambda _n: None,
    ) -> None:
        import torch

        from valle_convert.network.vallex_reference import Arithmetic, VallexReference

        model = plan.description.model
        self._utterances = tuple(vallex_utterances(model, n_utterances, seed=seed))
        self._advance = advance
        factor = model.activation_factor
        types = {
            net: {name: tensor.ggml_type.name for name, tensor in file.tensors.items()}
            for net, file in (("ar", files.ar), ("nar", files.body))
        }
        rounding = {net: input_rounding(of_net) for net, of_net in types.items()}

        def reference(tensors: NamedTensors, **options: Any) -> VallexReference:  # noqa: ANN401
            def norm_of(name: str, level: int) -> tuple[torch.Tensor, torch.Tensor]:
                weight, bias = (
                    torch.from_numpy(np.array(tensors.read(f"{name}.{kind} at level {level}")))
                    for kind in ("weight", "bias")
                )
                return weight, bias

            return VallexReference(tensors, model, norm_of=norm_of, **options)

        stored = SetTensors(plan, files, ConvertedTensors)
        self.exact = self.run(reference(stored))
        self.emulated = self.run(
            reference(
                stored,
                arithmetic=Arithmetic(
                    activation=lambda x: gelu_from_table(x * factor) / factor,
                    round_inputs=lambda net, name, x: rounding[net](name, x),
                ),
            )
        )
        # Of what the number format costs, one utterance tells enough, in less time.
        checkpoint = plan.description.checkpoint
        self.meant = self.run(VallexReference(checkpoint.tensors, model), first_only=True)
        self.degraded = self.run(
            reference(SetTensors(plan, files, RoundedTensors)), first_only=True
        )

    def run(self, network: ComposedNetwork, *, first_only: bool = False) -> dict[str, Logits]:
        """The logits of every case."""
        found: dict[str, list[Logits]] = {}
        for utterance in self._utterances[: 1 if first_only else None]:
            for name, logits in run_vallex_cases(network, utterance):
                found.setdefault(name, []).append(logits)
                self._advance(1)
        return {name: np.concatenate(parts) for name, parts in found.items()}


def check_vallex_logits(yardstick: VallexYardstick, network: ComposedNetwork) -> Iterator[Check]:
    """One check for each case.

    Args:
        yardstick: what the files should give.
        network: the files on llama.cpp.
    """
    found = yardstick.run(network)
    for name, exact in yardstick.exact.items():
        yield judge_logits(
            name,
            exact,
            yardstick.emulated[name],
            found[name],
            yardstick.meant[name],
            yardstick.degraded[name],
        )
