"""How good quantized files are: measured against the checkpoint, verified, and judged.

expected   what the reference computes and says, once
baseline   the F16 files that sizes and speeds stand beside
files      quality, speed, what is heard, the verdict on each
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from valle_convert.families.bundle import Bundle, open_files
from valle_convert.gguf_file.compare import signal_to_noise
from valle_convert.gguf_file.encode import can_decode
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING
from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.audience import Audience
from valle_convert.quantize.examples import Examples
from valle_convert.quantize.limits import Gates
from valle_convert.quantize.make import Made
from valle_convert.quantize.options import Options, RunLog
from valle_convert.quantize.plan import arguments_of
from valle_convert.quantize.quality import ALL
from valle_convert.quantize.report import FileReport, QuantizeReport, TensorReport
from valle_convert.quantize.source import Scratch, SourceBundle, split_off
from valle_convert.quantize.tool import Quantizer
from valle_convert.quantize.types import FILE_TYPES, bits_per_weight, describe_types
from valle_convert.wording import duration, plural

if TYPE_CHECKING:
    from valle_convert.listening.listen import Listened, ListeningTest
    from valle_convert.network.protocol import Computing
    from valle_convert.quantize.listening import Listening
    from valle_convert.quantize.quality import Expected, Measured
    from valle_convert.verify.report import Report


#: What an utterance takes on llama.cpp, and the verdict of a file, over what an utterance takes on
#: the reference: measured on small models, within a factor of two.
_MEASURING, _VERIFYING = 1.5, 12.0


@dataclass(frozen=True)
class Measuring:
    """What measuring the files of a run needs."""

    quantizer: Quantizer
    source: SourceBundle
    examples: Examples[Any]
    options: Options
    scratch: Scratch
    log: RunLog
    audience: Audience | None = None

    def measure(self, report: QuantizeReport, made: Sequence[Made]) -> QuantizeReport:
        """The report with quality, speed and verdict of every file."""
        expected = self._expected(len(made))
        base, base_kind = self._baseline()
        tensors = _quantized(base, self.source)
        measured, _ = self._measure(base, base_kind, expected)
        source = self.source
        stem = source.main.stem
        baseline = FileReport(
            name=source.name if base is source.bundle else f"{stem}-F16.gguf",
            kind=base_kind,
            status="input",
            n_bytes=base.n_bytes,
            bits_per_weight=bits_per_weight(tensors),
            weights=describe_types(tensors),
            measured=measured,
        )
        listening: Listening | None = None
        test: ListeningTest | None = None
        if self.audience is not None:
            listening, test = self.audience.listen_to_baseline(
                base, self.options, self.log.progress
            )
        files: list[FileReport] = []
        start = time.perf_counter()
        for one, file in zip(made, report.files, strict=True):
            if len(files) == 1:
                left = (time.perf_counter() - start) * (len(made) - 1)
                self.log.talk(f"{plural(len(made) - 1, 'file')} to go: about {duration(left)}")
            bundle, kind = open_files(one.plan.path), one.plan.kind.name
            measured, note = self._measure(bundle, kind, expected)
            if measured is not None:  # said at once: what comes after may break off
                total = measured.quality[ALL]
                self.log.talk(
                    f"measured {file.name}: KL mean {total.kl_mean:.2e}, best code kept in "
                    f"{total.best_code:.2%}"
                )
            if measured is not None and listening is not None and test is not None:
                listened = self._listen(bundle, kind, test)
                beyond = listening.beyond_noise(listened)
                file = replace(file, listened=listened, beyond_noise=beyond)  # noqa: PLW2901
            verified, why_not = self._verify(bundle)
            notes = "; ".join(filter(None, (file.note, note, why_not)))
            files.append(
                replace(
                    file,
                    measured=measured,
                    verified=verified,
                    note=notes,
                    tensors=tuple(tensor_reports(source, bundle)),
                )
            )
        return replace(
            report,
            reference=expected.name,
            utterances=self.examples.description,
            n_measured=self.examples.n_texts,
            baseline=baseline,
            files=tuple(files),
            listening=listening,
        )

    def _open(self, bundle: Bundle) -> Computing:
        """Files on llama.cpp, with the adapters that they are measured with."""
        network: Computing = bundle.family.open(
            bundle, n_threads=self.options.threads or None, adapters=self.options.adapters
        )
        return network

    def _listen(self, bundle: Bundle, kind: str, test: ListeningTest) -> Listened:
        with bundle.family.open(
            bundle, n_threads=self.options.threads or None, adapters=self.options.adapters
        ) as network:
            return test.listen(network, self.log.progress, f"listening to {kind}")

    def _verify(self, bundle: Bundle) -> tuple[Report | None, str]:
        """Whether files are right: the checkpoint's weights, and the logits that follow."""
        from valle_convert.verify.run import verify_path

        if self.source.reference is None:
            return None, ""
        types = {
            tensor.ggml_type for file in bundle.files.values() for tensor in file.tensors.values()
        }
        unknown = sorted(one.name for one in types if not can_decode(one))
        if unknown:
            return None, f"not verified: the gguf package cannot read {', '.join(unknown)} yet"
        report = verify_path(
            self.source.reference.checkpoint,
            bundle.path,
            levels=("structure", "tensors", "logits"),
            seed=self.options.seed,
            adapters=self.options.adapters,
            progress=self.log.progress,
        )
        return report, ""

    def _expected(self, n_files: int) -> Expected:
        from valle_convert.quantize.quality import run_reference

        examples, source = self.examples, self.source
        family = source.family

        def run(network: Computing, name: str) -> Expected:
            start, told = time.perf_counter(), False
            with self.log.progress("reference", examples.count, "utterances") as advance:

                def follow(n: int) -> None:
                    nonlocal told
                    advance(n)
                    if not told:
                        self._tell_how_long(time.perf_counter() - start, n_files)
                        told = True

                return run_reference(family, network, name, examples, follow)

        if source.reference is not None:
            checkpoint, description = source.reference.checkpoint, source.reference.description
            adapters = open_adapters(source, self.options)
            network = family.reference(description.tensors, description, adapters=adapters)
            names = "".join(f", with {one.path.name}" for one in self.options.adapters)
            return run(network, f"{checkpoint.path.name} in PyTorch, float32{names}")
        with self._open(source.bundle) as files:
            return run(files, f"{source.name} on llama.cpp (no checkpoint was given)")

    def _tell_how_long(self, seconds: float, n_files: int) -> None:
        """By what the first utterance took on the reference, until a file has been measured."""
        n = self.examples.count
        verifying = 0 if self.source.reference is None else _VERIFYING
        left = seconds * (n - 1 + _MEASURING * n + n_files * (_MEASURING * n + verifying))
        listening = "" if self.audience is None else ", and listening what the speech takes"
        self.log.talk(
            f"measuring {plural(n_files, 'file')} takes about {duration(left)}{listening} (fewer "
            "--utterances take less, --no-measure none)"
        )

    def _baseline(self) -> tuple[Bundle, str]:
        """The F16 files that sizes and speeds stand beside; made where the input is none."""
        source = self.source
        main = next(iter(describe_types(_quantized(source.bundle, source))))
        if main not in ("F32", "BF16"):
            return source.bundle, main
        kind, options = FILE_TYPES["F16"], Options(threads=self.options.threads)
        files = dict(source.bundle.files)
        for unit, one in source.units.items():
            _, path = self.scratch.new()
            self.quantizer.run(arguments_of(kind, options, one.path, path, None))
            files[unit.part] = split_off(source, unit, GgufFile(path), self.scratch)
        return Bundle(source.family, files), kind.name

    def _measure(
        self, bundle: Bundle, kind: str, expected: Expected
    ) -> tuple[Measured | None, str]:
        """Quality and speed, or why they could not be measured."""
        from valle_convert.quantize.quality import measure

        for file in bundle.files.values():
            table = file.tensors.get(TOKEN_EMBEDDING)
            if table is not None and not can_decode(table.ggml_type):
                name = table.ggml_type.name
                return None, f"not measured: the gguf package cannot read {name} yet"
        with (
            self._open(bundle) as network,
            self.log.progress(f"measuring {kind}", len(expected.cases), "passes") as advance,
        ):
            return measure(bundle.family, network, expected, advance), ""


def open_adapters(source: SourceBundle, options: Options) -> Sequence[Any]:
    """The LoRAs that are kept apart, opened."""
    if source.conversion is not None and source.reference is not None:
        # The header of a file that is converted on the way has no digest of its checkpoint.
        return source.family.open_adapters(options.adapters, source.reference.checkpoint)
    return source.family.open_adapters(options.adapters, source.bundle)


def judge(report: QuantizeReport, gates: Gates, options: Options) -> QuantizeReport:
    """The report with the user's limits, and what is beyond them."""
    files: list[FileReport] = []
    for kind, file in zip(options.types, report.files, strict=True):
        limits = gates.limits_of(kind)
        failures = limits.failures(file.measured) if limits and file.measured else ()
        if limits and file.listened and report.listening:
            failures += limits.failures_of_speech(file.listened, report.listening.baseline)
        files.append(replace(file, limits=limits, failures=failures))
    return replace(report, files=tuple(files))


def _quantized(bundle: Bundle, source: SourceBundle) -> tuple[Any, ...]:
    """The tensors of the parts that llama-quantize makes."""
    return tuple(
        tensor for unit in source.units for tensor in bundle.files[unit.part].tensors.values()
    )


def tensor_reports(source: SourceBundle, bundle: Bundle) -> Iterator[TensorReport]:
    """Every matrix that llama-quantize made, with its type and what that changed."""
    several = len(source.units) > 1
    for unit in source.units:
        before = source.bundle.files[unit.part].tensors
        yield from _reports_of(before, bundle.files[unit.part], f"{unit.part}: " if several else "")


def _reports_of(before: Mapping[str, Any], file: GgufFile, label: str) -> Iterator[TensorReport]:
    for name, tensor in file.tensors.items():
        if len(tensor.shape) == 2:
            noise = signal_to_noise(before[name], tensor)
            kind = tensor.ggml_type
            yield TensorReport(f"{label}{name}", kind.name, kind.bits, noise)
