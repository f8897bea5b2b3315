"""Measure quantized files against their checkpoint, or against a file in F16.

reference  the expected results, computed once
baseline   the F16 files, for sizes and speeds
files      quality, speed, speech and the verdict of `verify`
"""

import hashlib
import importlib.metadata
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import structs
from numpy.typing import NDArray
from safetensors.numpy import save

from valle_convert import __version__
from valle_convert.checkpoint.safetensors_file import SafetensorsFile
from valle_convert.errors import InputError
from valle_convert.families.bundle import Bundle
from valle_convert.files import atomic_output, sha256_of, valid_utf8
from valle_convert.gguf_file.compare import signal_to_noise
from valle_convert.gguf_file.header import weights_by_type
from valle_convert.gguf_file.read import GgufFile
from valle_convert.listening.listen import LISTENING, ListeningTest
from valle_convert.llama.context import EXACT, Settings
from valle_convert.network.protocol import AnyNetwork
from valle_convert.quantize.examples import Examples
from valle_convert.quantize.listening import Audience, FileSpeech, Listening
from valle_convert.quantize.manifest import Sha256
from valle_convert.quantize.measurements import (
    Compared,
    Evaluated,
    TensorReport,
    Verified,
    key_of,
    unmeasured,
)
from valle_convert.quantize.options import MakeOptions, MeasureOptions, RunLog
from valle_convert.quantize.plan import arguments_of
from valle_convert.quantize.quality import ALL, Expected, Measured, measure, run_reference
from valle_convert.quantize.source import Scratch, SourceBundle, quantized_tensors, split_off
from valle_convert.quantize.tool import find_quantizer
from valle_convert.quantize.types import FILE_TYPES
from valle_convert.verify.report import Report
from valle_convert.verify.run import verify
from valle_convert.verify.tensors import rounding_decibels
from valle_convert.wording import duration, plural

#: Time of an utterance on llama.cpp and of verifying a file, in utterances of the reference;
#: measured on small models, within a factor of two.
_MEASURING, _VERIFYING = 1.5, 12.0


@dataclass
class Measurer:
    """Measures files of one model. The reference is computed on first use."""

    source: SourceBundle
    examples: Examples
    options: MeasureOptions
    scratch: Scratch
    log: RunLog
    n_left: int  # files to measure
    audience: Audience | None = None

    @cached_property
    def checkpoint(self) -> dict[str, str] | None:
        """Its name and digest; None without one."""
        if self.source.conversion is None:
            return None
        checkpoint = self.source.conversion.checkpoint
        return {"name": valid_utf8(checkpoint.path.name), "sha256": checkpoint.sha256()}

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Digests of everything that predictions depend on."""
        plan = self.source.conversion
        checkpoint = key_of(*(sha256_of(path) for path in self.source.paths))
        if plan is not None:
            checkpoint = key_of(plan.checkpoint.sha256(), plan.checkpoint.lora, repr(plan.model))
        adapters = [(sha256_of(one.path), one.factor) for one in self.options.adapters]
        return {
            "checkpoint": checkpoint,
            "LoRAs": key_of(*adapters),
            "data": self.examples.digest,
            "version": f"{__version__}, llama.cpp {importlib.metadata.version('llama-cpp-python')}",
            "GPU layers": str(self.options.gpu_layers),
        }

    @cached_property
    def speech_key(self) -> str:
        return key_of(self.inputs, *(self.audience.key if self.audience else ()))

    def measure(self, bundle: Bundle, file: Evaluated) -> Evaluated:
        (expected, compared), start = self.reference, time.perf_counter()
        report = self._verify(bundle)
        verified = measured = None
        if report is not None:
            verified = Verified("passed" if report.passed else "failed", report.verdict())
        if report is not None and any(one.failed for one in report.levels[:1]):
            self.log.message(f"{file.name} is not measured because its structure is wrong")
        else:
            measured = self._measure(bundle, file.name, expected)
            total = measured.quality[ALL]
            self.log.message(
                f"measured {file.name}: KL mean {total.kl_mean:.2e}, top-1 agreement "
                f"{total.best_code:.2%}"
            )
        self.n_left -= 1
        if self.n_left:
            needed = duration((time.perf_counter() - start) * self.n_left)
            self.log.message(f"{plural(self.n_left, 'file')} to go: about {needed}")
        return structs.replace(
            file,
            compared=compared,
            measured=measured,
            verified=verified,
            tensors=tuple(self._tensors(bundle, report)),
        )

    def listen(self, bundle: Bundle, name: str) -> FileSpeech:
        listening, test = self._listening
        network: Any
        with self._open(bundle, LISTENING) as network:
            listened = test.listen(network, self.log.progress, f"listening to {name}")
        return FileSpeech(self.speech_key, listened, listening, listening.beyond_noise(listened))

    def _tensors(self, bundle: Bundle, report: Report | None) -> Iterator[TensorReport]:
        """The type and error of every matrix; `verify` has measured those of quantized ones."""
        checks = [check for level in report.levels for check in level.checks] if report else []
        noise = {check.name: check.values.get("snr_db") for check in checks}
        conversion, units = self.source.conversion, bundle.family.units([*bundle.files])
        several = len(units) > 1
        for unit in units:
            plan = conversion.files[unit.part] if conversion else None
            given = {} if plan else self.source.bundle.files[unit.part].tensors
            shapes = {one.name: one.shape for one in (plan.tensors if plan else given.values())}
            prefix = f"{unit.part}: " if len(bundle.files) > 1 else ""
            for name, tensor in bundle.files[unit.part].tensors.items():
                if len(tensor.shape) == 2 and shapes.get(name) == tensor.shape:
                    found = noise.get(f"{prefix}tensor {name}")
                    if plan is None:
                        found = signal_to_noise(given[name], tensor)
                    elif found is None:
                        found = rounding_decibels(plan, name, tensor)
                    known = None if found is None or math.isinf(found) else found
                    kind, part = tensor.ggml_type, unit.part if several else ""
                    yield TensorReport(name, kind.name, kind.bits, known, part)

    def _open(self, bundle: Bundle, settings: Settings = EXACT) -> AnyNetwork:
        how = replace(
            settings,
            n_threads=self.options.threads or None,
            n_gpu_layers=self.options.gpu_layers,
        )
        network: AnyNetwork = bundle.family.open(
            bundle, settings=how, adapters=self.options.adapters
        )
        return network

    def _verify(self, bundle: Bundle) -> Report | None:
        if self.source.conversion is None:
            return None
        report = verify(
            self.source.conversion,
            bundle,
            levels=("structure", "tensors", "logits"),
            settings=Settings(n_gpu_layers=self.options.gpu_layers),
            adapters=self.options.adapters,
            progress=self.log.progress,
        )
        names = (self.source.conversion.checkpoint.path.name, bundle.path.name)
        checkpoint, file = map(valid_utf8, names)
        return replace(report, checkpoint=checkpoint, file=file)

    @cached_property
    def reference(self) -> tuple[Expected, Compared]:
        """The reference: read from a `--save-reference` file, or computed."""
        if self.options.reference is not None:
            return read_reference(self.options.reference, self.inputs, self.examples)
        expected = self._expected
        compared = Compared(
            inputs=self.inputs,
            source=self.source.name,
            checkpoint=self.checkpoint,
            reference=expected.name,
            sequences=self.examples.description,
            different_texts=self.examples.n_texts,
            baseline=self._baseline,
        )
        if self.options.save_reference is not None:
            save_reference(self.options.save_reference, expected, compared)
            self.log.message(f"wrote {self.options.save_reference}")
        return expected, compared

    @cached_property
    def _expected(self) -> Expected:
        examples, source, options = self.examples, self.source, self.options

        def run(network: AnyNetwork, name: str) -> Expected:
            start, done = time.perf_counter(), count()
            with self.log.progress("reference", examples.count, "utterances") as advance:

                def follow(n: int) -> None:
                    advance(n)
                    if next(done) == 0:
                        self._tell_how_long(time.perf_counter() - start)

                return run_reference(source.family, network, name, examples, follow)

        plan = source.conversion
        if plan is None:
            with self._open(source.bundle) as files:
                return run(files, f"{source.name} on llama.cpp (no checkpoint was given)")
        adapters = open_adapters(source, options)
        network = source.family.reference(
            plan.description.tensors, plan.description, adapters=adapters
        )
        names = "".join(f", with {one.path.name}" for one in options.adapters)
        return run(network, f"{plan.checkpoint.path.name} in PyTorch, float32{names}")

    def _tell_how_long(self, seconds: float) -> None:
        """Estimate the time from the first utterance on the reference."""
        n, n_files = self.examples.count, self.n_left
        verifying = 0 if self.source.conversion is None else _VERIFYING
        left = seconds * (n - 1 + _MEASURING * n + n_files * (_MEASURING * n + verifying))
        listening = "" if self.audience is None else ", without listening"
        self.log.message(
            f"measuring {plural(n_files, 'file')} takes about {duration(left)}{listening}; fewer "
            "--utterances take less"
        )

    @cached_property
    def _baseline(self) -> Evaluated:
        bundle, kind = self._baseline_files
        is_source = bundle is self.source.bundle
        name = self.source.name if is_source else f"{self.source.stem}-F16.gguf"
        measured = self._measure(bundle, kind, self._expected)
        return structs.replace(unmeasured(bundle), name=name, kind=kind, measured=measured)

    @cached_property
    def _listening(self) -> tuple[Listening, ListeningTest]:
        if self.audience is None:
            raise AssertionError("--listen was not given")
        bundle, _ = self._baseline_files
        return self.audience.listen_to_baseline(bundle, self.log.progress)

    @cached_property
    def _baseline_files(self) -> tuple[Bundle, str]:
        """The F16 files: the source, or made from it."""
        source = self.source
        most, _ = weights_by_type(quantized_tensors(source.bundle)).most_common(1)[0]
        if most.name not in ("F32", "BF16"):
            return source.bundle, most.name
        kind, options = FILE_TYPES["F16"], MakeOptions(threads=self.options.threads)
        quantizer = find_quantizer()
        files = dict(source.bundle.files)
        for unit, one in source.units.items():
            _, path = self.scratch.new()
            quantizer.run(arguments_of(kind, options, one.path, path, None))
            files[unit.part] = split_off(source, unit, GgufFile(path))
        return Bundle(source.family, files), kind.name

    def _measure(self, bundle: Bundle, kind: str, expected: Expected) -> Measured:
        with (
            self._open(bundle) as network,
            self.log.progress(f"measuring {kind}", len(expected.cases), "passes") as advance,
        ):
            return measure(bundle.family, network, expected, advance)


def open_adapters(source: SourceBundle, options: MeasureOptions) -> Sequence[Any]:
    """Open the LoRAs that are not merged."""
    given = source.given
    base = given if isinstance(given, Bundle) else given.checkpoint
    return source.family.open_adapters(options.adapters, base)


# ------------------------------------------------------------- the file of --save-reference
#
#   metadata    valle-convert: JSON of a `Compared` and a digest
#   logits.N    of each case, in the order of `trials.cases` over all utterances
#   spoken.N    the codes of each utterance
#
# It is a safetensors file because it consists almost entirely of arrays.

_KEY = "valle-convert"


class _Header(msgspec.Struct, frozen=True):
    schema_version: Literal[2]
    compared: Compared
    sha256: Sha256


def save_reference(path: Path, expected: Expected, compared: Compared) -> None:
    """Write the file. The command has already checked that it may be overwritten."""
    arrays = {f"logits.{i:06}": logits for i, (_, logits) in enumerate(expected.cases)}
    arrays |= {f"spoken.{i:06}": np.asarray(one, np.int64) for i, one in enumerate(expected.spoken)}
    header = _Header(2, compared, _digest(arrays))
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_output(path, force=True) as file:
        file.write(save(plain, {_KEY: msgspec.json.encode(header).decode()}))


def read_reference(
    path: Path, inputs: Mapping[str, str], examples: Examples
) -> tuple[Expected, Compared]:
    """Read the untrusted file, made with these inputs."""
    file = SafetensorsFile(path)
    try:
        header = msgspec.json.decode(file.metadata.get(_KEY, ""), type=_Header)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InputError(
            f"{path} is not a reference file; make one with evaluate --save-reference."
        ) from error
    if other := [
        name for name, value in inputs.items() if header.compared.inputs.get(name) != value
    ]:
        raise InputError(
            f"{path} differs in its inputs ({', '.join(other)}); give the same options, or "
            "make a new file with --save-reference."
        )
    arrays = {name: file.read(name) for name in sorted(file.specs)}
    given = tuple(examples)
    cases = [case for one in given for case in examples.family.trials.cases(examples.model, one)]
    logits = [array for name, array in arrays.items() if name.startswith("logits.")]
    spoken = [array for name, array in arrays.items() if name.startswith("spoken.")]
    size, n_levels = examples.model.codebook_size, examples.model.n_levels
    whole = (
        _digest(arrays) == header.sha256
        and (len(logits), len(spoken)) == (len(cases), len(given))
        and all(one.ndim == 2 and one.dtype == np.float32 for one in logits)
        and all(one.dtype == np.int64 and one.shape[1:] == (n_levels,) for one in spoken)
        and all(((one >= 0) & (one <= size)).all() for one in spoken)  # or the stop code
    )
    if not whole:
        raise InputError(f"{path} is damaged; make it again with evaluate --save-reference.")
    paired = tuple(zip(cases, logits, strict=True))
    compared = header.compared
    return Expected(compared.reference, paired, given, tuple(spoken)), compared


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
