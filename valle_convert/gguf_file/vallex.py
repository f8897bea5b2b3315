"""The set of GGUF files of a VALL-E X: planned, named, and read back.

    out.gguf         the AR, a complete `mpt` model with the vocabulary of symbols
    out-nar.gguf     the body of the NAR: all that its levels share
    out-nar-1.gguf   the first part of level 1: every key, and the norms; likewise 2, 3, ...

A level is loaded from its first part and the body (`llama_model_load_from_splits`), which is
mapped once for all of them. Every file carries the same `valle.set.id`, made of the
checkpoint's digest and the activation factor, so that parts of two conversions are told.
docs/gguf-keys.md lists the keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_VERSION

from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import InputError
from valle_convert.files import check_input_file
from valle_convert.gguf_file import keys as gguf_keys
from valle_convert.gguf_file.header import Key
from valle_convert.gguf_file.keys import KeyReader
from valle_convert.gguf_file.loadable import vocabulary_dangers
from valle_convert.gguf_file.metadata import GeneralMetadata
from valle_convert.gguf_file.plan import (
    TOKEN_EMBEDDING,
    Part,
    PlannedFile,
    check_codec,
    digest_keys,
    file_type_of,
    out_type_named,
    place_tensors,
    source_keys,
    valid_key,
)
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import F32
from valle_convert.model.description import BackboneTensor, RowBlock
from valle_convert.model.spec import Codec, Head, Table, codec_named
from valle_convert.model.vallex import (
    ACT_SCALES,
    FACTOR,
    FACTOR_F32,
    Net,
    NetDescription,
    VallexDescription,
    VallexModel,
    describe_vallex,
    net_shapes,
)
from valle_convert.model.vallex_symbols import N_SPECIAL_SYMBOLS, VALLEX_SYMBOLS
from valle_convert.tokenizer.bpe import AddedToken, PhonemeBpe
from valle_convert.tokenizer.compile import compile_bpe
from valle_convert.tokenizer.compiled import CompiledTokenizer

VALLEX_ARCHITECTURE = "mpt"
VALLEX_FAMILY = "vall-e-x"
PART_KEY, LEVEL_KEY, SET_ID_KEY = "valle.part", "valle.level", "valle.set.id"
FACTOR_KEY = "valle.activation_factor"
AR, BODY, LEVEL = "ar", "nar.body", "nar.level"
#: Of every LayerNorm; PyTorch's default, which no config of these checkpoints has.
_NORM_EPSILON = 1e-5
#: What the original's table of positions has at first; it grows, and so may a context.
_CONTEXT = 4000
_ATTENTION = {"ar": "text-bidirectional", "nar": "bidirectional"}
_MPT_KEYS = {
    "context_length": "u32",
    "embedding_length": "u32",
    "block_count": "u32",
    "feed_forward_length": "u32",
    "attention.head_count": "u32",
    "attention.layer_norm_epsilon": "f32",
    "vocab_size": "u32",
}
_TOKENIZER, _NO_VOCABULARY = "tokenizer.ggml.model", "no_vocab"
_SHOWN = 5


# ------------------------------------------------------------------------------ the plan


@dataclass(frozen=True)
class PlannedPart(PlannedFile):
    """One file of a set.

    Attributes:
        part: `ar`, `nar.body` or `nar.level`.
        factor: the activation factor, which is part of the set's id.
    """

    part: str
    factor: int

    def late_values(self, source_sha256: str) -> dict[str, Any]:
        """The id of the set."""
        return {SET_ID_KEY: set_id(source_sha256, self.factor)}


@dataclass(frozen=True)
class SetPlan:
    """All files of a checkpoint before they are written.

    Attributes:
        description: what the family said of the checkpoint.
        ar, body: their plans.
        levels: those of the first parts, level 1 first.
    """

    description: VallexDescription
    ar: PlannedPart
    body: PlannedPart
    levels: tuple[PlannedPart, ...]

    def files(self, target: Path) -> dict[Path, PlannedPart]:
        """Every file by its path, the AR, which gives the set its name, first."""
        paths = set_paths(target, len(self.levels))
        return dict(zip(paths, (self.ar, self.body, *self.levels), strict=True))


def set_paths(ar: Path, n_parts: int) -> list[Path]:
    """Where the files of a set lie: AR, body, and the first part of each level above 0."""
    stem, suffix = (ar.name[:-5], ar.name[-5:]) if ar.suffix.lower() == ".gguf" else (ar.name, "")
    names = [f"{stem}-nar", *(f"{stem}-nar-{level}" for level in range(1, n_parts + 1))]
    return [ar, *(ar.with_name(f"{name}{suffix or '.gguf'}") for name in names)]


def set_id(source_sha256: str, factor: int) -> str:
    """What ties the files of a conversion together, whatever they are quantized to later."""
    return hashlib.sha256(f"{VALLEX_FAMILY} {source_sha256} {factor}".encode()).hexdigest()


def plan_vallex(
    checkpoint: Checkpoint,
    *,
    out_type: str = "auto",
    codec: str | None = None,
    metadata: GeneralMetadata | None = None,
) -> SetPlan:
    """Decide everything about the files of a VALL-E X.

    Args:
        checkpoint: one for which `is_vallex` holds.
        out_type: a key of `OUT_TYPES`, in capitals or not.
        codec: name of the audio codec; None tells it by levels and codes.
        metadata: values for the `general.*` keys.

    Raises:
        InputError: the checkpoint cannot be converted exactly; `describe_vallex` says what is read.
    """
    forced = out_type_named(out_type)
    specs = checkpoint.tensors.specs.values()
    exact = forced == F32 or (forced is None and any(one.dtype_name in _FLOAT32 for one in specs))
    description = describe_vallex(
        checkpoint,
        None if codec is None else codec_named(codec),
        factor=FACTOR_F32 if exact else FACTOR,
    )
    model = description.model
    if codec is not None:
        check_codec(codec, model.n_levels, model.codebook_size)
    general = metadata or GeneralMetadata()

    def part(
        kind: str,
        rows: tuple[RowBlock, ...],
        backbone: tuple[BackboneTensor, ...],
        *,
        level: int = 0,
        tokenizer: CompiledTokenizer | None = None,
    ) -> PlannedPart:
        net = model.ar if kind == AR else model.nar
        wanted: list[tuple[str, tuple[int, ...], tuple[Part, ...]]] = []
        if rows:
            parts = [Part(b.label, b.source, b.first_row, b.n_rows) for b in rows]
            extra = () if tokenizer is None else tokenizer.extra_rows
            if extra:
                parts.append(Part("tokenizer", rows[0].source, net.n_rows, len(extra), extra))
            wanted.append((TOKEN_EMBEDDING, (net.n_rows + len(extra), net.n_embd), tuple(parts)))
        wanted += [
            (t.target, t.shape, (Part(t.target, t.source, 0, t.shape[0]),)) for t in backbone
        ]
        source = description.checkpoint
        tensors = place_tensors(wanted, source.tensors.specs, forced)
        keys = [Key("general.architecture", VALLEX_ARCHITECTURE, "string")]
        if kind != BODY:
            n_weights = sum(tensor.n_elements for tensor in tensors)
            keys += general.keys(checkpoint, model.languages, n_weights)
        keys += [
            Key(gguf_keys.FILE_TYPE_KEY, int(file_type_of(tensors)), "u32"),
            Key("general.quantization_version", GGML_QUANT_VERSION, "u32"),
        ]
        if kind != BODY:
            n_tokens = net.n_rows if tokenizer is None else len(tokenizer.tokens)
            keys += _architecture_keys(net, n_tokens)
            keys += _tokenizer_keys(tokenizer)
        keys += _part_keys(kind, level)
        if kind != BODY:
            keys += _net_keys(model, net)
        keys += source_keys(checkpoint)
        keys.append(Key(SET_ID_KEY, gguf_keys.NO_DIGEST, "string", deferred=True))
        if kind != AR:
            keys += _split_keys(0 if kind == LEVEL else 1, description.nar)
        keys += digest_keys(tensors)
        return PlannedPart(
            source, tuple(valid_key(key) for key in keys), tensors, kind, model.activation_factor
        )

    tokenizer = symbol_tokenizer(model.ar)
    return SetPlan(
        description,
        ar=part(AR, description.ar.rows, description.ar.backbone, tokenizer=tokenizer),
        body=part(BODY, description.nar.rows, description.nar.backbone),
        levels=tuple(
            part(LEVEL, (), norms, level=i + 1) for i, norms in enumerate(description.nar.levels)
        ),
    )


_FLOAT32 = ("float32", "F32")


def symbol_tokenizer_json() -> bytes:
    """The symbols as a tokenizer.json of Hugging Face, in the form of the project's `bpe_69`."""
    vocab = {symbol: i for i, symbol in enumerate(VALLEX_SYMBOLS)}
    special = VALLEX_SYMBOLS[:N_SPECIAL_SYMBOLS]
    document = {
        "version": "1.0",
        "added_tokens": [
            {"id": vocab[name], "content": name, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for name in special
        ],
        "model": {"type": "BPE", "unk_token": "[UNK]", "vocab": vocab, "merges": []},
    }
    return json.dumps(document).encode()


@cache
def symbol_tokenizer(net: Net) -> CompiledTokenizer:
    """The symbols as a vocabulary of llama.cpp: one token a character, [UNK] for every other."""
    vocab = {symbol: i for i, symbol in enumerate(VALLEX_SYMBOLS)}
    special = [AddedToken(vocab[name], name, True) for name in VALLEX_SYMBOLS[:N_SPECIAL_SYMBOLS]]
    bpe = PhonemeBpe(
        vocab=vocab,
        merges=(),
        strings=tuple((symbol,) for symbol in VALLEX_SYMBOLS),
        added_tokens=tuple(special),
        unk_id=vocab["[UNK]"],
        # Nothing is put around a text; llama.cpp wants to know tokens of this kind all the same.
        bos_id=vocab["[CLS]"],
        eos_id=vocab["[SEP]"],
        add_bos=False,
        add_eos=False,
    )
    text, *others = net.tables
    names = [f"<text:{row}>" for row in range(len(VALLEX_SYMBOLS), text.n_rows)]
    for table in others:
        names += [f"<{table.name}:{row}>" for row in range(table.n_rows)]
    for head in net.heads:
        names += [f"<head.{head.name}:{row}>" for row in range(head.n_rows)]
    return compile_bpe(bpe, names)


def _architecture_keys(net: Net, n_tokens: int) -> Iterator[Key]:
    """What llama.cpp reads to build the graph: no ALiBi, no clamping, no position table."""
    values: dict[str, int | float] = {
        "context_length": _CONTEXT,
        "embedding_length": net.n_embd,
        "block_count": net.n_layer,
        "feed_forward_length": net.n_ff,
        "attention.head_count": net.n_head,
        "attention.layer_norm_epsilon": _NORM_EPSILON,
        "vocab_size": n_tokens,
    }
    for name, kind in _MPT_KEYS.items():
        yield Key(f"{VALLEX_ARCHITECTURE}.{name}", values[name], kind)


def _tokenizer_keys(tokenizer: CompiledTokenizer | None) -> Iterator[Key]:
    if tokenizer is None:
        yield Key(_TOKENIZER, _NO_VOCABULARY, "string")
        return
    yield from (Key(name, value, kind) for name, value, kind in tokenizer.metadata())


def _part_keys(kind: str, level: int) -> Iterator[Key]:
    yield Key("valle.format_version", gguf_keys.FORMAT_VERSION, "u32")
    yield Key(gguf_keys.FAMILY_KEY, VALLEX_FAMILY, "string")
    yield Key(PART_KEY, kind, "string")
    if kind == LEVEL:
        yield Key(LEVEL_KEY, level, "u32")


def _net_keys(model: VallexModel, net: Net) -> Iterator[Key]:
    yield Key("valle.codec.name", model.codec.name, "string")
    yield Key("valle.codec.sample_rate", model.codec.sample_rate, "u32")
    yield Key("valle.codec.levels", model.n_levels, "u32")
    yield Key("valle.codec.codebook_size", model.codebook_size, "u32")
    yield Key("valle.codec.frame_rate", model.codec.frame_rate, "f32")
    yield Key("valle.languages", list(model.languages), "[string]")
    yield Key("valle.attention", _ATTENTION[net.name], "string")
    yield Key("valle.position_scale.text", net.text_scale, "f32")
    yield Key("valle.position_scale.audio", net.audio_scale, "f32")
    yield Key(FACTOR_KEY, model.activation_factor, "u32")
    yield from gguf_keys.row_keys(net.tables, net.heads)


def _split_keys(number: int, nar: NetDescription) -> Iterator[Key]:
    yield Key("split.no", number, "u16")
    yield Key("split.count", 2, "u16")
    n_tensors = 1 + len(nar.backbone) + len(nar.levels[0])
    yield Key("split.tensors.count", n_tensors, "i32")


# ------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class VallexSet:
    """The files of a converted VALL-E X, opened and held against each other.

    Attributes:
        model: what their keys say.
        ar, body: the files.
        levels: the first parts, level 1 first.
    """

    model: VallexModel
    ar: GgufFile
    body: GgufFile
    levels: tuple[GgufFile, ...]

    @property
    def files(self) -> tuple[GgufFile, ...]:
        """All of them, the AR first."""
        return (self.ar, self.body, *self.levels)


def is_vallex_part(keys: Mapping[str, Any]) -> bool:
    """Whether the keys of a file say that it belongs to such a set."""
    return keys.get(gguf_keys.FAMILY_KEY) == VALLEX_FAMILY


def is_vallex_ar(keys: Mapping[str, Any]) -> bool:
    """Whether they say that it is the file which a set is named by."""
    return is_vallex_part(keys) and keys.get(PART_KEY) == AR


def open_if_vallex(path: Path) -> VallexSet | None:
    """The set that a file belongs to, as `open_set`; None where it is of no VALL-E X.

    Raises:
        InputError: it is no GGUF file, or as `open_set`.
    """
    return open_set(path) if is_vallex_part(GgufFile(path, allow_part=True).keys) else None


def open_set(path: Path) -> VallexSet:
    """Open the set that an AR's file names, with all that llama.cpp relies on checked.

    Args:
        path: of the AR, such as out.gguf; the others lie beside it.

    Raises:
        InputError: a file is missing, damaged or of another kind, or two belong to different sets.
    """
    ar = GgufFile(path, allow_part=True)
    if not is_vallex_part(ar.keys):
        raise InputError(f"{path} is no file of a VALL-E X; `valle-convert inspect` tells more.")
    _check_kind(ar, AR, 0)
    parts: list[GgufFile] = []
    for i, beside in enumerate(set_paths(path, n_parts_of(ar))[1:]):
        check_input_file(beside, f"part of {path.name}")
        part = GgufFile(beside, allow_part=True)
        _check_kind(part, LEVEL if i else BODY, i)
        if part.keys.get(SET_ID_KEY) != ar.keys.get(SET_ID_KEY):
            raise InputError(
                f"{beside} belongs to another set than {path} (their {SET_ID_KEY} differ): it was "
                "made of another checkpoint, or in another number format; convert again, and keep "
                "the files of a set together."
            )
        parts.append(part)
    body, *levels = parts
    model = _read_model(ar, body, levels)
    return VallexSet(model, ar, body, tuple(levels))


def n_parts_of(ar: GgufFile) -> int:
    """How many first parts belong to an AR's file.

    Raises:
        InputError: it does not say, or says what cannot be.
    """
    n_levels = KeyReader(ar.keys).number("valle.codec.levels")
    if not 2 <= n_levels <= 64:
        raise InputError(
            f"{ar.path}: valle.codec.levels is {n_levels}; convert the checkpoint again."
        )
    return n_levels - 1


def _check_kind(file: GgufFile, kind: str, level: int) -> None:
    found = file.keys.get(PART_KEY)
    if not is_vallex_part(file.keys) or found != kind or file.keys.get(LEVEL_KEY, 0) != level:
        number = file.keys.get(LEVEL_KEY)
        said = f"{found!r:.40}" + ("" if number is None else f" {number!r:.20}")
        wanted = f"{kind!r}" + (f" {level}" if level else "")
        raise InputError(
            f"{file.path} is the part {said} of a VALL-E X, where {wanted} is expected; give the "
            "file of the AR (such as out.gguf), and keep the names of the others."
        )
    if file.keys.get("valle.format_version") != gguf_keys.FORMAT_VERSION:
        raise InputError(
            f"{file.path} is of format version {file.keys.get('valle.format_version')!r:.20}, and "
            f"this program reads {gguf_keys.FORMAT_VERSION}; use a newer valle-convert."
        )


def _read_model(ar: GgufFile, body: GgufFile, levels: list[GgufFile]) -> VallexModel:
    model = _model_of(ar, body, levels[0])
    for file in levels[1:]:
        other = _model_of(ar, body, file)
        # All levels are computed by the graph that one of them describes.
        if other != model or _graph_keys(file) != _graph_keys(levels[0]):
            raise InputError(
                f"{file.path} describes another model than {levels[0].path}; convert the "
                "checkpoint again."
            )
    return model


def _graph_keys(file: GgufFile) -> dict[str, Any]:
    prefix = f"{VALLEX_ARCHITECTURE}."
    return {key: value for key, value in file.keys.items() if key.startswith(prefix)}


def _model_of(ar: GgufFile, body: GgufFile, level: GgufFile) -> VallexModel:
    """What the AR and one level's files say, all of it checked."""
    nets = [
        _read_net("ar", ar, [ar], [ar]),
        _read_net("nar", level, [body], [level]),
    ]
    readers = [KeyReader(file.keys) for file in (ar, level)]
    models = [
        VallexModel(
            ar=nets[0],
            nar=nets[1],
            n_levels=reader.number("valle.codec.levels"),
            codebook_size=reader.number("valle.codec.codebook_size"),
            languages=reader.words("valle.languages"),
            activation_factor=reader.number(FACTOR_KEY),
            codec=Codec(
                reader.text("valle.codec.name"),
                reader.number("valle.codec.sample_rate"),
                reader.real("valle.codec.frame_rate"),
            ),
        )
        for reader in readers
    ]
    model, codes = models[0], models[0].codebook_size
    faults = [fault for reader in readers for fault in reader.faults]
    if not all(net.tables and net.heads for net in nets):
        faults.append("there are no tables or no heads")
    if not faults and models[0] != models[1]:
        faults.append("AR and NAR are of different models")
    n_text = nets[0].tables[0].n_rows if nets[0].tables else 0
    common = {"text": n_text, "language": len(model.languages)}
    audio = {f"audio.{i}": codes + (i == 0) for i in range(model.n_levels)}
    heads = {f"nar.{i}": codes for i in range(1, model.n_levels)}
    for net, tables, wanted in (
        (nets[0], common | {"audio": codes + 2}, {"ar": codes + 1}),
        (nets[1], common | audio, heads),
    ):
        if {t.name: t.n_rows for t in net.tables} != tables:
            faults.append(f"the tables of the {net.name} are not {', '.join(tables)}")
        if {h.name: h.n_rows for h in net.heads} != wanted:
            faults.append(f"the heads of the {net.name} are not {', '.join(wanted)}")
    factor = model.activation_factor
    if factor < 1 or factor & (factor - 1):
        faults.append(f"{FACTOR_KEY} is {factor}, where a power of two is expected")
    for net, file in ((nets[0], ar), (nets[1], body)):
        for layer in range(net.n_layer):
            name = f"blk.{layer}.{ACT_SCALES}"
            if not (file.tensors[name].rows() == factor).all():
                faults.append(f"{name} of {file.path.name} is not {factor} throughout")
    if faults:
        raise InputError(
            f"{ar.path} and {level.path}: {'; '.join(faults[:_SHOWN])}. Convert the checkpoint "
            "again."
        )
    return model


def _read_net(name: str, keys: GgufFile, shared: list[GgufFile], norms: list[GgufFile]) -> Net:
    """One network, with everything checked that llama.cpp would abort or compute wrongly on."""
    reader = KeyReader(keys.keys)
    prefix = f"{VALLEX_ARCHITECTURE}."
    embedding = shared[0].tensors.get(TOKEN_EMBEDDING)
    n_rows = embedding.shape[0] if embedding is not None else 0
    tables = tuple(Table(*row) for row in reader.ranges("table", n_rows))
    heads = tuple(Head(*row) for row in reader.ranges("head", n_rows))
    net = Net(
        name=name,
        n_embd=reader.number(f"{prefix}embedding_length"),
        n_layer=reader.number(f"{prefix}block_count"),
        n_head=reader.number(f"{prefix}attention.head_count"),
        n_ff=reader.number(f"{prefix}feed_forward_length"),
        tables=tables,
        heads=heads,
        n_rows=max(
            [t.first_row + t.n_rows for t in tables] + [h.first_row + h.n_rows for h in heads],
            default=0,
        ),
        text_scale=reader.real("valle.position_scale.text"),
        audio_scale=reader.real("valle.position_scale.audio"),
    )
    faults = reader.faults
    unknown = [key for key in keys.keys if key.startswith(prefix) and key[4:] not in _MPT_KEYS]
    if keys.keys.get("general.architecture") != VALLEX_ARCHITECTURE:
        faults.append(f"general.architecture is not {VALLEX_ARCHITECTURE!r}")
    if unknown:
        faults.append(f"{', '.join(unknown[:_SHOWN])} would make another graph")
    reader.expect(f"{prefix}vocab_size", n_rows)
    # NaN is not larger than 0; any other value is seen when logits are compared.
    if not reader.real(f"{prefix}attention.layer_norm_epsilon") > 0:
        faults.append("the epsilon is no number above 0")
    if name == "ar":
        faults += vocabulary_dangers(keys)
    elif [key for key in keys.keys if key.startswith("tokenizer.")] != [_TOKENIZER] or (
        keys.keys[_TOKENIZER] != _NO_VOCABULARY
    ):
        faults.append("it has a vocabulary, where none is expected")
    if keys.keys.get("valle.attention") != _ATTENTION[name]:
        faults.append(f"valle.attention is not {_ATTENTION[name]!r}")
    if not 1 <= net.n_layer <= 512 or net.n_head < 1 or net.n_embd < 2 or net.n_embd % net.n_head:
        faults.append(f"{net.n_layer} layers, {net.n_head} heads, {net.n_embd} wide")
    if not faults:
        faults += _tensor_faults(net, n_rows, shared, norms)
    if faults:
        raise InputError(
            f"{keys.path} cannot be run: {'; '.join(faults[:_SHOWN])}. Convert the checkpoint "
            "again."
        )
    return net


def _tensor_faults(
    net: Net, n_rows: int, shared: list[GgufFile], norms: list[GgufFile]
) -> Iterator[str]:
    expected_shared, expected_norms = net_shapes(net, n_rows)
    if shared == norms:
        yield from _differences(shared[0], expected_shared | expected_norms)
    else:
        yield from _differences(shared[0], expected_shared)
        yield from _differences(norms[0], expected_norms)


def _differences(file: GgufFile, expected: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for name in [*expected, *(name for name in file.tensors if name not in expected)]:
        found, shape = file.tensors.get(name), expected.get(name)
        if found is None or found.shape != shape:
            there = "missing" if found is None else f"{list(found.shape)}"
            wanted = "unexpected" if shape is None else f"expected {list(shape)}"
            yield f"{name} of {file.path.name} is {there}, {wanted}"
        elif len(found.shape) == 1 and found.ggml_type != F32:
            yield f"{name} of {file.path.name} is {found.ggml_type.name}, expected F32"
        elif found.ggml_type.name in ("I8", "I16", "I32", "I64", "F64"):
            yield f"{name} of {file.path.name} is {found.ggml_type.name}, which has no kernels"
