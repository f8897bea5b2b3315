"""Per-tensor sensitivity: the loss of each matrix in each type, and a choice of types.

llama.cpp makes every candidate type of the whole file once. Then one matrix after the other is
taken from it, with all others as in the checkpoint, and PyTorch measures the change of the
predictions: Kullback-Leibler divergence, mean over every head and task. To first order the
divergences of independent small errors add up, so the best mixture of a given size is found without
trying mixtures: starting from the smallest type everywhere, the upgrade that saves the most
divergence per byte comes first (the lower convex hull of each matrix, merged).
"""

import heapq
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.source import NamedTensors
from valle_convert.errors import InputError
from valle_convert.families.bundle import Plan
from valle_convert.gguf_file.plan import PlannedFile
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import GgmlType
from valle_convert.metrics import kl_divergence
from valle_convert.network.protocol import Computing
from valle_convert.network.weights import BundleTensors, ConvertedTensors
from valle_convert.progress import Progress
from valle_convert.quantize.examples import Examples
from valle_convert.quantize.imatrix import ImatrixInput
from valle_convert.quantize.matrices import Matrices
from valle_convert.quantize.options import MakeOptions, MeasureOptions, RunLog
from valle_convert.quantize.plan import arguments_of
from valle_convert.quantize.source import Scratch, SourceBundle, open_source
from valle_convert.quantize.tool import Quantizer, find_quantizer
from valle_convert.quantize.types import FILE_TYPES, FileType, ggml_type
from valle_convert.wording import plural

#: The types to try, smallest first: none of them needs an importance matrix.
SCANNED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
#: A mixture is chosen for slightly less than the allowed divergence: llama.cpp also rounds the
#: inputs of a matrix, which the scan does not see.
_ROOM = 0.9
_TRIES = 6
#: llama-quantize leaves tensors of other names as they are.
_MADE = "weight"
#: A matrix that keeps the conversion's type.
_KEPT = "F16"


@dataclass(frozen=True)
class Aim:
    """What a scan tries and chooses: the best mixture of `target_bits` per weight, the smallest
    within `max_kl` nats, or nothing. `types`: tensor types to try; empty for the usual ones.
    """

    types: tuple[str, ...] = ()
    target_bits: float | None = None
    max_kl: float | None = None


@dataclass(frozen=True)
class Sensitivity:
    """The mean divergence, in nats, with one matrix in one type. `kind` is the actual type;
    llama.cpp gives another one if rows do not divide.
    """

    tensor: str
    kind: str
    bits: float
    n_bytes: int
    kl: float


@dataclass(frozen=True)
class Mixture:
    """A type for each matrix; `bits` per weight are over all of these."""

    kinds: Mapping[str, str]
    bits: float
    predicted_kl: float

    @property
    def file_type(self) -> FileType:
        """The type that most matrices have, as the type of a file."""
        name, _ = Counter(self.kinds.values()).most_common(1)[0]
        return FILE_TYPES[name if name in FILE_TYPES else "F16"]

    @property
    def tensor_types(self) -> tuple[str, ...]:
        """The same as `pattern=type` for llama-quantize."""
        return tuple(_patterns(self.kinds))


@dataclass(frozen=True)
class ScanReport:
    source: str
    utterances: str
    sensitivities: tuple[Sensitivity, ...]
    mixture: Mixture | None

    def table(self) -> tuple[list[str], list[list[str]]]:
        kinds = sorted({(one.bits, one.kind) for one in self.sensitivities})
        by_tensor: dict[str, dict[str, float]] = {}
        for one in self.sensitivities:
            by_tensor.setdefault(one.tensor, {})[one.kind] = one.kl
        order = sorted(by_tensor, key=lambda name: -max(by_tensor[name].values()))
        chosen = self.mixture.kinds if self.mixture else {}
        rows = []
        for name in order:
            found = [by_tensor[name].get(kind) for _, kind in kinds]
            cells = ("" if kl is None else f"{kl:.2e}" for kl in found)
            rows.append([name, *cells, *([chosen[name]] if chosen else [])])
        return ["matrix", *(kind for _, kind in kinds), *(["chosen"] if chosen else [])], rows

    def verdict(self) -> str:
        found = f"{plural(len({one.tensor for one in self.sensitivities}), 'matrix', 'matrices')}"
        if self.mixture is None:
            return f"DONE: {found} scanned over {self.utterances}."
        return (
            f"CHOSEN: {self.mixture.bits:.2f} bits a weight over {found}, predicted KL "
            f"{self.mixture.predicted_kl:.2e} over {self.utterances}; quantize to "
            f"{self.mixture.file_type.name} with --tensor-types."
        )

    def to_json(self) -> dict[str, Any]:
        chosen = self.mixture
        return {
            "schema_version": 1,
            "verdict": self.verdict(),
            "source": self.source,
            "sequences": self.utterances,
            "scan": [
                {"tensor": one.tensor, "type": one.kind, "bits": one.bits, "kl": one.kl}
                for one in self.sensitivities
            ],
            "chosen": None
            if chosen is None
            else {
                "type": chosen.file_type.name,
                "bits_per_weight": chosen.bits,
                "predicted_kl": chosen.predicted_kl,
                "tensor_types": list(chosen.tensor_types),
            },
        }


def scan(
    path: Path,
    checkpoint: Checkpoint | None,
    aim: Aim,
    making: MakeOptions,
    measuring: MeasureOptions,
    *,
    log: RunLog | None = None,
) -> ScanReport:
    """Measure every matrix in every type, and choose a mixture if there is an aim."""
    log = log or RunLog()
    kinds = tuple(map(ggml_type, aim.types or SCANNED))
    quantizer = find_quantizer(making.tool)
    with Scratch(Path(tempfile.gettempdir())) as scratch:
        source = open_source(path, checkpoint, scratch)
        if source.conversion is None:
            raise InputError("A scan replaces matrices of the checkpoint; give --checkpoint.")
        examples = Examples.choose(
            source.family, source.model, measuring.data, measuring.n_utterances
        )
        matrices = Matrices.of(source, None, making)
        for note in matrices.notes():
            log.message(f"note: {note}")
        source.complete(log.progress)
        given, n_threads = matrices.given, making.threads
        one = Scan(quantizer, source, source.conversion, examples, n_threads, given, scratch)
        found = one.run(kinds, log.progress)
        mixture = None
        if aim.target_bits is not None:
            mixture = choose_mixture(found, target_bits=aim.target_bits)
        elif aim.max_kl is not None:
            mixture = mixture_within(one, found, aim.max_kl)
    return ScanReport(source.name, examples.description, tuple(found), mixture)


@dataclass(eq=False)
class Scan:
    """A checkpoint whose matrices can be replaced one by one.

    The networks of a model share names of matrices, and llama-quantize's patterns cannot tell them
    apart, so matrices of one name are replaced together.
    """

    quantizer: Quantizer
    source: SourceBundle
    plan: Plan
    examples: Examples
    threads: int
    imatrices: Mapping[str, ImatrixInput]
    scratch: Scratch

    def __post_init__(self) -> None:
        plan = self.plan
        written: dict[str, list[str]] = defaultdict(list)
        for name, way in plan.description.recovered.items():
            written[way.source].append(name)
        self._sources: dict[str, list[str]] = defaultdict(list)
        for unit in self.source.units:
            for tensor in plan.files[unit.part].tensors:
                if len(tensor.shape) == 2 and tensor.name.endswith(_MADE):
                    names = [span.source for span in tensor.spans]
                    self._sources[tensor.name] += [
                        *names,
                        *(other for name in names for other in written[name]),
                    ]
        self._files: dict[str, list[GgufFile]] = {}
        self._made: dict[tuple[str, str], NamedTensors] = {}
        base = self._network({})
        self._expected = [
            (case, case.run(base))
            for example in self.examples
            for case in plan.family.trials.cases(plan.model, example)
            if not case.repeats
        ]

    def run(self, kinds: Sequence[GgmlType], progress: Progress) -> list[Sensitivity]:
        for kind in kinds:
            self._make(kind, progress)
        found: dict[tuple[str, str], Sensitivity] = {}
        with progress("scanning", len(self._sources) * len(self._files), "matrices") as advance:
            for name in self._sources:
                for files in self._files.values():
                    tensors = [file.tensors[name] for file in files if name in file.tensors]
                    kind = tensors[0].ggml_type
                    key = name, kind.name
                    if key not in found:  # fallback types are tried anyway
                        kl = self.divergence({name: kind.name})
                        n_bytes = sum(tensor.n_bytes for tensor in tensors)
                        found[key] = Sensitivity(*key, kind.bits, n_bytes, kl)
                    advance(1)
        return list(found.values())

    def divergence(self, kinds: Mapping[str, str]) -> float:
        """The mean divergence with these matrices in these types, in nats."""
        network = self._network(kinds)
        total = [kl_divergence(expected, case.run(network)) for case, expected in self._expected]
        return float(np.concatenate(total).mean())

    def _make(self, kind: GgmlType, progress: Progress) -> None:
        options = MakeOptions(threads=self.threads, tensor_types=(f"weight={kind.name.lower()}",))
        of_file = FILE_TYPES[kind.name if kind.name in FILE_TYPES else "Q8_0"]
        made: list[tuple[PlannedFile, GgufFile]] = []
        with progress(f"making {kind.name}", len(self.source.units), "files") as advance:
            for unit, source in self.source.units.items():
                _, path = self.scratch.new()
                imatrix = self.imatrices.get(unit.part)
                given = None if imatrix is None else imatrix.path
                self.quantizer.run(arguments_of(of_file, options, source.path, path, given))
                made.append((self.plan.files[unit.part], GgufFile(path)))
                advance(1)
        self._files[kind.name] = [file for _, file in made]
        weights = BundleTensors(made, self.plan.description.recovered, ConvertedTensors)
        for name in self._sources:
            one = next(file for _, file in made if name in file.tensors)
            self._made.setdefault((name, one.tensors[name].ggml_type.name), weights)

    def _network(self, kinds: Mapping[str, str]) -> Computing:
        exchanged = {
            source: self._made[name, kind]
            for name, kind in kinds.items()
            for source in self._sources[name]
            if kind != _KEPT
        }
        description = self.plan.description
        tensors = _Exchanged(description.tensors, exchanged)
        network: Computing = self.plan.family.reference(tensors, description)
        return network


@dataclass(frozen=True)
class _Exchanged:
    """A checkpoint's tensors, some of them replaced; a `NamedTensors`."""

    base: NamedTensors
    others: Mapping[str, NamedTensors]

    def read(self, name: str) -> NDArray[Any]:
        whole = self.base.read(name)
        if name not in self.others:
            return whole
        found = self.others[name].read(name)
        if found.shape == whole.shape:
            return found
        # A file has no rows that nothing reads.
        flat = whole.astype(np.float32).reshape(-1, whole.shape[-1])
        flat[: len(found.reshape(-1, whole.shape[-1]))] = found.reshape(-1, whole.shape[-1])
        result: NDArray[Any] = flat.reshape(whole.shape)
        return result


def choose_mixture(
    sensitivities: Sequence[Sensitivity],
    *,
    target_bits: float | None = None,
    max_kl: float | None = None,
) -> Mixture:
    """The mixture with the least divergence for a size, or the smallest within `max_kl` nats."""
    by_tensor: dict[str, list[Sensitivity]] = defaultdict(list)
    for one in sensitivities:
        by_tensor[one.tensor].append(one)
    weights = {name: round(8 * one.n_bytes / one.bits) for name, (one, *_) in by_tensor.items()}
    steps = {
        name: _hull([*found, Sensitivity(name, _KEPT, 16.0, 2 * weights[name], 0.0)])
        for name, found in by_tensor.items()
    }
    at = dict.fromkeys(steps, 0)
    n_bytes = sum(hull[0].n_bytes for hull in steps.values())
    kl = sum(hull[0].kl for hull in steps.values())
    n_weights = sum(weights.values())
    budget = float("inf") if target_bits is None else target_bits * n_weights / 8
    if n_bytes > budget:
        raise InputError(
            f"--target-bits is {target_bits:g}, but the smallest types to try take "
            f"{8 * n_bytes / n_weights:.2f} bits per weight; give more bits, or smaller types."
        )
    queue = [_upgrade(name, hull, 0) for name, hull in steps.items() if len(hull) > 1]
    heapq.heapify(queue)
    while queue and (max_kl is None or kl > max_kl):
        _, name = heapq.heappop(queue)
        now, then = steps[name][at[name]], steps[name][at[name] + 1]
        if n_bytes + then.n_bytes - now.n_bytes > budget:
            continue  # a smaller matrix may still fit
        at[name] += 1
        n_bytes += then.n_bytes - now.n_bytes
        kl += then.kl - now.kl
        if at[name] + 1 < len(steps[name]):
            heapq.heappush(queue, _upgrade(name, steps[name], at[name]))
    kinds = {name: hull[at[name]].kind for name, hull in steps.items()}
    return Mixture(kinds, 8 * n_bytes / n_weights, max(kl, 0.0))


def mixture_within(scan: Scan, sensitivities: Sequence[Sensitivity], max_kl: float) -> Mixture:
    """The smallest mixture whose divergence, computed and not only summed up, is within a limit."""
    aim = _ROOM * max_kl
    for _ in range(_TRIES):
        mixture = choose_mixture(sensitivities, max_kl=aim)
        found = scan.divergence(mixture.kinds)
        if found <= _ROOM * max_kl:
            return replace(mixture, predicted_kl=found)
        aim *= _ROOM * _ROOM * max_kl / found
    raise InputError(
        f"No mixture of these types has a KL below {max_kl:g}; give a higher --max-kl."
    )


def _upgrade(name: str, hull: Sequence[Sensitivity], i: int) -> tuple[float, str]:
    """The saving of the next larger type, per byte; the largest comes first."""
    now, then = hull[i], hull[i + 1]
    return (then.kl - now.kl) / (then.n_bytes - now.n_bytes), name


def _hull(found: Sequence[Sensitivity]) -> list[Sensitivity]:
    """The types, by size, that are better than any mixture of their neighbours."""
    hull: list[Sensitivity] = []
    for one in sorted(found, key=lambda one: (one.n_bytes, one.kl)):
        if hull and one.kl >= hull[-1].kl:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], one):
            hull.pop()
        hull.append(one)
    return hull


def _slope(a: Sensitivity, b: Sensitivity) -> float:
    return (b.kl - a.kl) / (b.n_bytes - a.n_bytes)


def _patterns(kinds: Mapping[str, str]) -> Iterator[str]:
    """`pattern=type` for llama-quantize; layers of one kind and type share a pattern."""
    layers: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, kind in kinds.items():
        block, dot, rest = name.removeprefix("blk.").partition(".")
        if name.startswith("blk.") and dot and block.isdigit():
            layers[rest, kind].append(block)
        else:
            yield f"{re.escape(name)}={kind.lower()}"
    for (rest, kind), blocks in layers.items():
        numbers = "|".join(blocks)
        yield f"blk\\.({numbers})\\.{re.escape(rest)}={kind.lower()}"
