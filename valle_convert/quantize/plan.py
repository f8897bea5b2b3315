"""What quantizing will give, to the byte, before it runs.

The plan is not a model of llama.cpp's rules but llama.cpp's own: its dry run names the type
of every tensor and every tensor that had to be given another one. What a type takes follows
from its blocks, and the header is the input's with the keys that are added. Where a version of
llama.cpp says it in other words there is no prediction; the file is made all the same, and its
own header says what became of it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from valle_convert import __version__
from valle_convert.errors import InputError
from valle_convert.files import valid_utf8
from valle_convert.gguf_file.header import Key, TensorEntry
from valle_convert.gguf_file.keys import DIGEST_KEYS
from valle_convert.gguf_file.types import GGML_TYPES
from valle_convert.quantize.identity import convention_name
from valle_convert.quantize.imatrix import ImatrixInput, check_fits, stand_in
from valle_convert.quantize.options import AUTO, Options
from valle_convert.quantize.source import Scratch, Source
from valle_convert.quantize.tool import PROGRAM, Quantizer
from valle_convert.quantize.types import FileType, ggml_type, matches

PREFIX = "valle.quantize."
TENSOR_LINE = re.compile(
    r"^\[ *(?P<i>\d+)/ *(?P<n>\d+)\] +(?P<name>\S+) +- +\[[^\]]*\], +type = +(?P<old>\w+), "
    r"(?:size|converting).*?(?:\((?P<new>\w+)\))?$"
)
_FALLBACK_LINE = re.compile(
    r"^warning: (?P<name>\S+) +- ncols +(?P<columns>\d+) not divisible by +\d+ "
    r"\(required for type +(?P<wanted>\w+)\).*-> falling back to +(?P<given>\w+)"
)
_NEEDS_IMATRIX = "will require an imatrix"


@dataclass(frozen=True)
class Fallback:
    """A tensor that the type cannot hold.

    Attributes:
        tensor: its name.
        n_columns: the length of its rows.
        wanted: the type that its rows do not divide into.
        given: what llama.cpp gives it instead.
    """

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
    tensors = "1 tensor" if len(fallbacks) == 1 else f"{len(fallbacks)} tensors"
    return f"{tensors} (rows of {columns}) cannot be {wanted}: {became}"


@dataclass(frozen=True)
class FilePlan:
    """One file before it is made.

    Attributes:
        source: what is quantized.
        kind: the type asked for.
        options: what the user wants.
        imatrix: the importance matrix, if one is used.
        tensors: in the order of the file, with their new types; offsets are not set. None where
            the log of the dry run was not understood.
        fallbacks: the tensors that the type cannot hold, as far as they are known.
        needs_imatrix: whether it cannot be made without an importance matrix.
        tool_version: which build said so.
        n_bytes: the size of the file, exactly; None where it is not known.
    """

    source: Source
    kind: FileType
    options: Options
    imatrix: ImatrixInput | None
    tensors: tuple[TensorEntry, ...] | None
    fallbacks: tuple[Fallback, ...]
    needs_imatrix: bool
    tool_version: str
    n_bytes: int | None

    @property
    def most_bytes(self) -> int:
        """How much disk the file takes at most."""
        return self.source.n_bytes if self.n_bytes is None else self.n_bytes


def plan_file(
    quantizer: Quantizer,
    source: Source,
    kind: FileType,
    options: Options,
    imatrix: ImatrixInput | None = None,
) -> FilePlan:
    """Ask llama.cpp what it would do.

    Raises:
        InputError: the source is quantized already, and requantizing was not allowed.
        EnvironmentFault: the tool failed.
    """
    _check_source(source, kind, options)
    log = quantizer.run(
        arguments_of(
            kind, options, source.path, None, imatrix.path if imatrix else None, dry_run=True
        )
    )
    types = {
        match["name"]: match["new"] or match["old"]
        for match in map(TENSOR_LINE.match, log)
        if match
    }
    version = quantizer.version_in(log)
    tensors, n_bytes = None, None
    understood = types.keys() == source.header.tensors.keys() and all(
        name.upper() in GGML_TYPES for name in types.values()
    )
    if understood:
        tensors = tuple(
            TensorEntry(name, source.header.tensors[name].shape, ggml_type(new), 0)
            for name, new in types.items()
        )
        header = source.header.changed(
            keys_of(quantizer.kind, version, quantizer.sha256, source, kind, options, imatrix),
            drop=DIGEST_KEYS,
        )
        n_bytes = len(header) + sum(map(_stored, tensors))
    return FilePlan(
        source=source,
        kind=kind,
        options=options,
        imatrix=imatrix,
        tensors=tensors,
        fallbacks=fallbacks_of(log, source, kind, options, tensors or ()),
        needs_imatrix=any(_NEEDS_IMATRIX in line for line in log),
        tool_version=version,
        n_bytes=n_bytes,
    )


def plan_files(
    quantizer: Quantizer,
    sources: Sequence[Source],
    options: Options,
    given: Sequence[ImatrixInput],
    *,
    names: Sequence[str],
    calibration: str | None,
    scratch: Scratch,
) -> list[tuple[FilePlan, ...]]:
    """Plans of all types, each with one for each source, which belong together.

    An importance matrix that is still to be made has a stand-in.

    Args:
        quantizer: says what it would do.
        sources: the files of one model.
        options: what the user wants.
        given: the matrices that `options.imatrix` names, one for each source; else none.
        names: of those that are to be made.
        calibration: what they would be made of; None where they cannot be.
        scratch: takes the stand-ins.

    Raises:
        InputError: a type needs a matrix and there is none, a given one is of another model, or a
            tensor cannot have its type and must not have another.
        EnvironmentFault: the tool failed.
    """
    rows = [
        tuple(plan_file(quantizer, source, kind, options) for source in sources)
        for kind in options.types
    ]
    needing = {row[0].kind.name for row in rows if any(plan.needs_imatrix for plan in row)}
    if options.imatrix != AUTO:
        calibration = None
    matrices = list(given)
    if matrices:
        for matrix, source in zip(matrices, sources, strict=True):
            check_fits(matrix, source)
    elif calibration is not None and (needing or options.data):
        matrices = [
            stand_in(source, name, calibration, scratch)
            for source, name in zip(sources, names, strict=True)
        ]
    elif needing:
        raise InputError(
            f"{', '.join(k.name for k in options.types if k.name in needing)} cannot be made "
            "without an importance matrix; give --imatrix FILE, or --checkpoint so that one can "
            "be made."
        )
    everywhere = calibration is None or options.data is not None
    for i, row in enumerate(rows if matrices else []):
        kind = row[0].kind
        if kind.name in needing or (everywhere and kind.is_quantized):
            rows[i] = tuple(
                plan_file(quantizer, source, kind, options, matrix)
                for source, matrix in zip(sources, matrices, strict=True)
            )
    falling = {row[0].kind.name: [one for plan in row for one in plan.fallbacks] for row in rows}
    if any(falling.values()) and not options.allow_fallback:
        shown = "; ".join(
            f"{kind}: {describe_fallbacks(found)}" for kind, found in falling.items() if found
        )
        raise InputError(
            f"Not every tensor can have the type asked for, and --no-fallback was given: "
            f"{shown}. Choose types whose blocks the rows divide into (Q8_0, Q5_0, Q4_0: 32; "
            "K and IQ types: 256)."
        )
    return rows


def arguments_of(
    kind: FileType,
    options: Options,
    source: Path | str,
    target: Path | str | None,
    imatrix: Path | str | None,
    *,
    dry_run: bool = False,
) -> list[str]:
    """The arguments of llama-quantize."""
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


def shown_arguments(
    source: Source, kind: FileType, options: Options, imatrix: ImatrixInput | None
) -> tuple[str, ...]:
    """The whole command for metadata and reports: names in the place of paths, and no number of
    threads, which changes nothing in the file.
    """
    target = f"{Path(source.name).stem}-{kind.name}.gguf"
    options = replace(options, threads=0)
    shown = arguments_of(kind, options, source.name, target, imatrix.name if imatrix else None)
    return (PROGRAM, *map(valid_utf8, shown))


def file_name(source: Source, kind: str, options: Options) -> str:
    """What the file of a type is called in a folder."""
    if options.identity.naming == "convention":
        return f"{convention_name(source.header.keys, kind)}.gguf"
    return f"{source.stem}-{kind}.gguf"


def keys_of(
    tool: str,
    tool_version: str,
    tool_sha256: str,
    source: Source,
    kind: FileType,
    options: Options,
    imatrix: ImatrixInput | None,
    *,
    source_sha256: str = "0" * 64,
) -> list[Key]:
    """What a quantized file says of how it was made; no paths, no times.

    Every value but the names in it has a fixed size, so that a plan knows the header's size.
    """
    shown = shown_arguments(source, kind, options, imatrix)
    values: list[Key] = [
        Key("general.quantization_version", 2, "u32"),
        Key("general.file_type", _file_type_of(source, kind), "u32"),
        Key(f"{PREFIX}type", kind.name, "string"),
        Key(f"{PREFIX}tool", tool, "string"),
        Key(f"{PREFIX}tool_version", tool_version, "string"),
        Key(f"{PREFIX}tool_sha256", tool_sha256, "string"),
        Key(f"{PREFIX}arguments", list(shown), "[string]"),
        Key(f"{PREFIX}source_name", source.name, "string"),
        Key(f"{PREFIX}source_sha256", source_sha256, "string"),
        Key(f"{PREFIX}converter_version", __version__, "string"),
    ]
    values += options.identity.keys(source.header.keys)
    if imatrix is not None:
        values.append(Key(f"{PREFIX}imatrix_sha256", imatrix.sha256, "string"))
        values += imatrix.contents.keys(imatrix.name)
    return values


def _file_type_of(source: Source, kind: FileType) -> int:
    if kind.base is None:  # COPY keeps the input's
        value = source.header.keys.get("general.file_type", kind.number)
        return value if isinstance(value, int) else kind.number
    return kind.number


def _check_source(source: Source, kind: FileType, options: Options) -> None:
    quantized = [t for t in source.header.tensors.values() if t.ggml_type.block > 1]
    if quantized and kind.base is not None and not options.allow_requantize:
        raise InputError(
            f"{source.name} is quantized already ({len(quantized)} tensors, such as "
            f"{quantized[0].name} of type {quantized[0].ggml_type.name}), and quantizing again "
            "adds its errors to the new ones; take the F16, BF16 or F32 file, or give "
            "--allow-requantize."
        )


def fallbacks_of(
    log: Sequence[str],
    source: Source,
    kind: FileType,
    options: Options,
    tensors: Sequence[TensorEntry],
) -> tuple[Fallback, ...]:
    """Which tensors got another type: what llama.cpp says, and what it does without a word.

    Where the head is the token embedding it takes Q8_0 for one that its rule would make Q6_K or
    the type itself, if the rows do not divide; no warning comes of that.
    """
    found = {
        match["name"]: Fallback(
            match["name"],
            int(match["columns"]),
            match["wanted"].upper(),
            match["given"].upper(),
        )
        for match in map(_FALLBACK_LINE.match, log)
        if match
    }
    base = kind.base
    for tensor in tensors:
        if (
            base is not None
            and tensor.name not in found
            and tensor.ggml_type != source.header.tensors[tensor.name].ggml_type
            and tensor.shape[-1] % base.block
            and not any(matches(item, tensor.name) for item in options.tensor_types)
        ):
            found[tensor.name] = Fallback(
                tensor.name, tensor.shape[-1], base.name, tensor.ggml_type.name
            )
    return tuple(found[tensor.name] for tensor in tensors if tensor.name in found)


def _stored(tensor: TensorEntry) -> int:
    return math.ceil(tensor.n_bytes / 32) * 32
