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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from valle_convert import __version__
from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.lora import LoraFile
from valle_convert.errors import InputError
from valle_convert.files import valid_utf8
from valle_convert.gguf_file.header import Key, TensorEntry
from valle_convert.gguf_file.keys import DIGEST_KEYS
from valle_convert.gguf_file.types import GGML_TYPES, GgmlType
from valle_convert.progress import Progress, silent
from valle_convert.quantize.identity import Identity, convention_name
from valle_convert.quantize.imatrix import ImatrixInput, check_fits, stand_in
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


AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class Options:
    """What the user wants.

    Attributes:
        types: which files to make.
        tool: a path of llama-quantize, "library", or None to search.
        tensor_types: pattern=type, checked; the first that matches wins.
        tensor_types_file: that some of them were read from.
        allow_requantize: whether quantized tensors may be quantized again.
        pure: whether mixtures are switched off.
        threads: for llama-quantize and for measuring; 0 for their own choice.
        imatrix: "auto", "none", or the path of a file. "auto" makes one of the checkpoint: with
            given utterances for every type, else for those that cannot be made without.
        data: a folder of utterances; None for seeded ones.
        measure: whether quality and speed are measured.
        n_utterances: how many are measured, at most; None for all that are given, or for two
            seeded ones.
        n_imatrix: seeded utterances that an importance matrix is made of; given ones all count.
        seed: of seeded utterances.
        identity: what files are called, and say of themselves.
        adapters: LoRAs kept apart, with which files are measured and checked.
        max_kl, min_agreement: limits by type, as `limits.parse_limits` gives them.
        listen: whether files speak, and what they say is measured.
        sentences: texts to speak, one a line; None for the given utterances.
        voice: whose voice the texts are spoken in; None leaves it to the model.
        prompt_seconds: how much of the voice is used.
        codec: as `audio.codec.open_codec`.
        asr: the command of a recogniser; None for none.
        listen_temperature: of the AR where codes are drawn.
        max_nll, min_retrieval, max_wer: limits of what is said, by type.
        no_worse_than: the JSON report of an earlier run.
        margin: by what factor this one may be worse.
        allow_fallback: whether a tensor that the type cannot hold may get another one.
        resume: keep files that are there and were made in the same way.
        prune: after a verdict that passed, remove the files of the same source that the folder's
            manifest lists and that are not of this run.
        force: whether existing files may be replaced.
        scan: whether every matrix is tried in every type of `scan_types`.
        scan_types: names of tensor types; empty for the usual ones.
        target_bits: a weight, of the mixture that a scan chooses where `types` is empty; None for
            the smallest one within the limit of divergence.
        dry_run: plan only.
        command: that all of this was given in, for the report.
    """

    types: tuple[FileType, ...] = ()
    tool: str | None = None
    tensor_types: tuple[str, ...] = ()
    tensor_types_file: Path | None = None
    allow_requantize: bool = False
    pure: bool = False
    threads: int = 0
    imatrix: str = AUTO
    data: Path | None = None
    measure: bool = True
    n_utterances: int | None = None
    n_imatrix: int = 32
    seed: int = 0
    adapters: tuple[LoraFile, ...] = ()
    identity: Identity = field(default_factory=Identity)
    max_kl: Mapping[str, float] = field(default_factory=dict)
    min_agreement: Mapping[str, float] = field(default_factory=dict)
    listen: bool = False
    sentences: Path | None = None
    voice: Path | None = None
    prompt_seconds: float = 3.0
    codec: str | None = None
    asr: str | None = None
    listen_temperature: float = 0.6
    max_nll: Mapping[str, float] = field(default_factory=dict)
    min_retrieval: Mapping[str, float] = field(default_factory=dict)
    max_wer: Mapping[str, float] = field(default_factory=dict)
    no_worse_than: Path | None = None
    margin: float = 1.1
    allow_fallback: bool = True
    resume: bool = False
    prune: bool = False
    force: bool = False
    scan: bool = False
    scan_types: tuple[str, ...] = ()
    target_bits: float | None = None
    dry_run: bool = False
    command: str = ""


def inputs_of(path: Path, checkpoint: Checkpoint | None, options: Options) -> Iterator[Path]:
    """Every file that a run reads, which nothing that it writes may replace.

    Args:
        path: the file that is quantized.
        checkpoint: what it is measured against.
        options: everything else.
    """
    yield path
    yield from checkpoint.inputs if checkpoint is not None else ()
    yield from (one.path for one in options.adapters)
    yield from options.data.glob("*.npz") if options.data is not None else ()
    if options.imatrix not in (AUTO, NONE):
        yield Path(options.imatrix)
    more = (
        *(options.tensor_types_file, options.no_worse_than),
        *(options.sentences, options.voice, options.codec),
    )
    yield from (Path(one) for one in more if one is not None)


@dataclass(frozen=True)
class Listener:
    """Where a run reports: its progress, sentences, and the log of each run of llama-quantize."""

    progress: Progress = silent
    talk: Callable[[str], object] = lambda _text: None
    keep_log: Callable[[list[str]], object] = lambda _lines: None


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


def bits_per_weight(tensors: Sequence[TensorEntry]) -> float:
    """Bits a weight over all tensors, as llama-quantize counts them."""
    n_weights = sum(tensor.n_elements for tensor in tensors)
    return 8 * sum(tensor.n_bytes for tensor in tensors) / n_weights


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


def describe_types(tensors: Sequence[TensorEntry]) -> dict[str, int]:
    """How many weights have which type, most first."""
    counts: dict[GgmlType, int] = {}
    for tensor in tensors:
        counts[tensor.ggml_type] = counts.get(tensor.ggml_type, 0) + tensor.n_elements
    return {kind.name: n for kind, n in sorted(counts.items(), key=lambda item: -item[1])}
