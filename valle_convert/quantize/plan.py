"""The exact result of quantizing, before it runs.

The plan uses llama.cpp's own dry run instead of a model of its rules: it names the type of every
tensor and every tensor with a fallback. The size of a type follows from its blocks, and the header
is the input's with added keys. If a version of llama.cpp has another log, there is no prediction;
the file is made nevertheless, and its own header shows the types.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from valle_convert import __version__
from valle_convert.errors import InputError
from valle_convert.families.family import Unit
from valle_convert.files import valid_utf8
from valle_convert.gguf_file.header import Key, TensorEntry, pack_header, padded
from valle_convert.gguf_file.keys import DIGEST_KEYS
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import GGML_TYPES
from valle_convert.llama.cpu import usable_cores
from valle_convert.quantize.identity import convention_name
from valle_convert.quantize.imatrix import ImatrixInput
from valle_convert.quantize.manifest import ManifestFile
from valle_convert.quantize.matrices import Matrices
from valle_convert.quantize.options import NONE, MakeOptions
from valle_convert.quantize.source import Source, SourceBundle, keys_of_file
from valle_convert.quantize.tool import PROGRAM, Quantizer
from valle_convert.quantize.types import FileType, matches
from valle_convert.wording import plural

PREFIX = "valle.quantize."
#: As long as every digest: sizes are predicted while the source is still hashed.
_ANY_SHA256 = "0" * 64
TENSOR_LINE = re.compile(
    r"^\[ *(?P<i>\d+)/ *(?P<n>\d+)\] +(?P<name>\S+) +- +\[[^\]]*\], +type = +(?P<old>\w+), "
    r"(?:size|converting).*?(?:\((?P<new>\w+)\))?$"
)
_FALLBACK_LINE = re.compile(r"^warning: (\S+) .*\(required for type +(\w+)\)")
_NEEDS_IMATRIX = "will require an imatrix"


@dataclass(frozen=True)
class Fallback:
    """A tensor whose row length is not a multiple of the `wanted` type's block size."""

    tensor: str
    n_columns: int
    wanted: str
    given: str


def describe_fallbacks(fallbacks: Sequence[Fallback]) -> str:
    """All of them in one line: `13 tensors (rows of 64) cannot be Q4_K: 12 became Q5_0, 1 Q8_0`."""
    columns = ", ".join(str(n) for n in sorted({one.n_columns for one in fallbacks}))
    wanted = " or ".join(dict.fromkeys(one.wanted for one in fallbacks))
    given = Counter(one.given for one in fallbacks).most_common()
    became = ", ".join(f"{n} became {name}" for name, n in given)
    tensors = plural(len(fallbacks), "tensor")
    return f"{tensors} (rows of {columns}) cannot be {wanted}: {became}"


@dataclass(frozen=True)
class UnitPlan:
    """One run of llama-quantize: by what, from what, and what becomes of the tensors."""

    quantizer: Quantizer
    source: Source
    kind: FileType
    options: MakeOptions
    imatrix: ImatrixInput | None = None
    tool_version: str = "unknown"
    #: In the order of the file, with their new types; offsets are not set. None if the log of the
    #: dry run was not understood.
    tensors: tuple[TensorEntry, ...] | None = None
    needs_imatrix: bool = False  # whether it cannot be made without an importance matrix
    warned: Mapping[str, str] = field(default_factory=dict)  # the types that tensors cannot hold

    @property
    def tool(self) -> dict[str, str]:
        """The maker of the file, for manifest and report."""
        tool = self.quantizer
        return {"name": tool.kind, "version": self.tool_version, "sha256": tool.sha256}

    @property
    def arguments(self) -> tuple[str, ...]:
        """The whole command for metadata and reports: names instead of paths, and without the
        number of threads, which does not affect the file.
        """
        name, imatrix = self.source.name, self.imatrix.name if self.imatrix else None
        target = f"{Path(name).stem}-{self.kind.name}.gguf"
        options = replace(self.options, threads=0)
        shown = arguments_of(self.kind, options, name, target, imatrix)
        return (PROGRAM, *map(valid_utf8, shown))

    def fallbacks(self, tensors: Sequence[TensorEntry]) -> Iterator[Fallback]:
        """The tensors that got another type: llama.cpp's warnings, and its silent fallback.

        If the head is the token embedding and its rows do not divide, llama.cpp silently uses Q8_0
        instead of Q6_K or the type itself.
        """
        base, before = self.kind.base, self.source.header.tensors
        for one in tensors:
            columns, wanted = one.shape[-1], self.warned.get(one.name)
            is_chosen = any(matches(item, one.name) for item in self.options.tensor_types)
            is_new = one.ggml_type != before[one.name].ggml_type
            if base is not None and is_new and columns % base.block and not is_chosen:
                wanted = wanted or base.name
            if wanted is not None:
                yield Fallback(one.name, columns, wanted, one.ggml_type.name)

    @property
    def n_bytes(self) -> int | None:
        """The size of the file, exactly, or None."""
        if self.tensors is None:
            return None
        header = self.source.header.changed(self.keys(_ANY_SHA256), drop=DIGEST_KEYS)
        return len(header) + sum(padded(tensor.n_bytes) for tensor in self.tensors)

    def keys(self, source_sha256: str) -> list[Key]:
        """The file's record of how it was made, without paths and times."""
        source = self.source.header.keys
        values: list[Key] = [
            Key("general.quantization_version", 2, "u32"),
            Key("general.file_type", _file_type_of(source, self.kind), "u32"),
            Key(f"{PREFIX}type", self.kind.name, "string"),
            Key(f"{PREFIX}tool", self.quantizer.kind, "string"),
            Key(f"{PREFIX}tool_version", self.tool_version, "string"),
            Key(f"{PREFIX}tool_sha256", self.quantizer.sha256, "string"),
            Key(f"{PREFIX}arguments", list(self.arguments), "[string]"),
            Key(f"{PREFIX}source_name", self.source.name, "string"),
            Key(f"{PREFIX}source_sha256", source_sha256, "string"),
            Key(f"{PREFIX}converter_version", __version__, "string"),
            *self.options.identity.keys(source),
        ]
        if self.imatrix is not None:
            values.append(Key(f"{PREFIX}imatrix_sha256", self.imatrix.sha256, "string"))
            values += self.imatrix.contents.keys(self.imatrix.name)
        return values

    def part_keys(self, part: GgufFile, source_sha256: str) -> list[Key]:
        """The keys of a part that was joined for quantizing: its own, and how it was made."""
        made = self.keys(source_sha256)
        names = {key.name for key in made}
        return [*(key for key in keys_of_file(part) if key.name not in names), *made]


def plan_unit(
    quantizer: Quantizer,
    source: Source,
    kind: FileType,
    options: MakeOptions,
    imatrix: ImatrixInput | None = None,
) -> UnitPlan:
    _check_source(source, kind, options)
    matrix = imatrix.path if imatrix else None
    log = quantizer.run(arguments_of(kind, options, source.path, None, matrix, dry_run=True))
    found = [match for match in map(TENSOR_LINE.match, log) if match]
    types = {match["name"]: (match["new"] or match["old"]).upper() for match in found}
    before, tensors = source.header.tensors, None
    if types.keys() == before.keys() and GGML_TYPES.keys() >= set(types.values()):
        tensors = tuple(
            TensorEntry(name, before[name].shape, GGML_TYPES[new], 0) for name, new in types.items()
        )
    return UnitPlan(
        quantizer,
        source,
        kind,
        options,
        imatrix,
        tool_version=quantizer.version_in(log),
        tensors=tensors,
        needs_imatrix=any(_NEEDS_IMATRIX in line for line in log),
        warned={m[1]: m[2].upper() for m in map(_FALLBACK_LINE.match, log) if m},
    )


@dataclass(frozen=True)
class TypePlan:
    """The files of a model in one type, before they are made."""

    kind: FileType
    units: Mapping[Unit, UnitPlan]
    paths: Mapping[str, Path]  # of all new files, by part, the main one first
    n_bytes: int | None  # the size of all files, exactly, or None
    #: The manifest's entries of existing files that need not be made again.
    kept: tuple[ManifestFile, ...] = ()
    reason: str = ""  # why existing files are made again; empty if there are none

    @property
    def main(self) -> UnitPlan:
        return next(iter(self.units.values()))

    @property
    def path(self) -> Path:
        return next(iter(self.paths.values()))

    @property
    def tensors(self) -> tuple[TensorEntry, ...]:
        return tuple(tensor for plan in self.units.values() for tensor in plan.tensors or ())

    @property
    def fallbacks(self) -> tuple[Fallback, ...]:
        return tuple(
            one for plan in self.units.values() for one in plan.fallbacks(plan.tensors or ())
        )

    @property
    def imatrices(self) -> tuple[ImatrixInput, ...]:
        return tuple(plan.imatrix for plan in self.units.values() if plan.imatrix)

    def with_imatrices(self, real: Mapping[str, ImatrixInput]) -> Self:
        """The plan with real matrices, by part, instead of placeholders."""
        if not self.imatrices:
            return self
        units = {unit: replace(plan, imatrix=real[unit.part]) for unit, plan in self.units.items()}
        return replace(self, units=units)


def plan_types(
    quantizer: Quantizer,
    source: SourceBundle,
    targets: Sequence[Mapping[str, Path]],
    options: MakeOptions,
    matrices: Matrices,
) -> list[TypePlan]:
    """Plans of all types, with placeholders for importance matrices that are not made yet."""

    def planned(
        kind: FileType, given: Mapping[str, ImatrixInput] = MappingProxyType({})
    ) -> dict[Unit, UnitPlan]:
        return {
            unit: plan_unit(quantizer, file, kind, options, given.get(unit.part))
            for unit, file in source.units.items()
        }

    with ThreadPoolExecutor(usable_cores()) as pool:  # a dry run takes one core
        found = list(pool.map(planned, options.types))
    needing = {plan.kind.name for units in found for plan in units.values() if plan.needs_imatrix}
    given = matrices.planned() if needing or matrices.for_all else {}
    if needing and not given:
        kinds = ", ".join(k.name for k in options.types if k.name in needing)
        mixed = " ".join(one for one in options.tensor_types if "=iq" in one)
        of = f" with {mixed}" if mixed else ""
        ways = (
            "leave out --imatrix none, or give a file"
            if options.imatrix == NONE
            else "give --imatrix FILE, or --checkpoint so that one can be made"
        )
        raise InputError(f"{kinds}{of} cannot be made without an importance matrix; {ways}.")
    plans = []
    for kind, first, paths in zip(options.types, found, targets, strict=True):
        again = given and (kind.name in needing or (matrices.for_all and kind.is_quantized))
        units = planned(kind, given) if again else first
        sizes = [_bytes_of(unit, plan, source) for unit, plan in units.items()]
        copied = sum(file.size for file in source.copied.values())
        known = None if None in sizes else sum(filter(None, sizes)) + copied
        plans.append(TypePlan(kind, units, paths, known))
    falling = {plan.kind.name: plan.fallbacks for plan in plans if plan.fallbacks}
    if falling and not options.allow_fallback:
        name, fallbacks = next(iter(falling.items()))
        raise InputError(
            f"--no-fallback was given, but for {name} {describe_fallbacks(fallbacks)}. Choose a "
            "type whose blocks (32 for Q8_0, Q5_0 and Q4_0, else 256) divide the rows."
        )
    return plans


def _bytes_of(unit: Unit, plan: UnitPlan, source: SourceBundle) -> int | None:
    """The size of the file of a unit's part; of a joined one, only its own tensors count."""
    if unit.first is None or plan.tensors is None:
        return plan.n_bytes
    part = source.bundle.files[unit.part]
    own = [tensor for tensor in plan.tensors if tensor.name in part.tensors]
    header = pack_header(plan.part_keys(part, _ANY_SHA256), own)
    return len(header) + sum(padded(one.n_bytes) for one in own)


def arguments_of(
    kind: FileType,
    options: MakeOptions,
    source: Path | str,
    target: Path | str | None,
    imatrix: Path | str | None,
    *,
    dry_run: bool = False,
) -> list[str]:
    arguments = ["--dry-run"] if dry_run else []
    if options.allow_requantize:
        arguments.append("--allow-requantize")
    if options.pure:
        arguments.append("--pure")
    for item in options.tensor_types:
        arguments += ["--tensor-type", item]
    if imatrix is not None:
        arguments += ["--imatrix", str(imatrix)]
    arguments.append(str(source))
    if target is not None:
        arguments.append(str(target))
    arguments.append(kind.name)
    if options.threads:
        arguments.append(str(options.threads))
    return arguments


def file_name(source: SourceBundle, kind: str, options: MakeOptions) -> str:
    if options.identity.naming == "convention":
        return f"{convention_name(source.keys, kind)}.gguf"
    return f"{source.stem}-{kind}.gguf"


def _file_type_of(source: Mapping[str, Any], kind: FileType) -> int:
    given = source.get("general.file_type") if kind.base is None else None  # COPY keeps it
    return given if isinstance(given, int) else kind.number


def _check_source(source: Source, kind: FileType, options: MakeOptions) -> None:
    quantized = [t for t in source.header.tensors.values() if t.ggml_type.block > 1]
    if quantized and kind.base is not None and not options.allow_requantize:
        raise InputError(
            f"{source.name} is already quantized ({plural(len(quantized), 'tensor')}, such as "
            f"{quantized[0].name} of type {quantized[0].ggml_type.name}), and its errors would "
            "add up; give the F16, BF16 or F32 file, or --allow-requantize."
        )
