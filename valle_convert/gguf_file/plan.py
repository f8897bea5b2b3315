"""The plan of a GGUF file: every key, every tensor, where each row comes from.

A plan is made from names and shapes alone. It can be printed (`--dry-run`), compared and
tested without weights; writing only streams it, and verifying reads it backwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_VERSION, LlamaFileType

from valle_convert import __version__
from valle_convert.checkpoint import Checkpoint, TensorSpec
from valle_convert.errors import InputError
from valle_convert.files import valid_utf8
from valle_convert.gguf_file import keys as gguf_keys
from valle_convert.gguf_file.header import Key, TensorEntry, padded
from valle_convert.gguf_file.metadata import GeneralMetadata
from valle_convert.gguf_file.types import (
    BF16,
    F16,
    F32,
    GGML_TYPES,
    PLAIN_DTYPES,
    Q8_0,
    GgmlType,
)
from valle_convert.model.description import BiasBlock, Description
from valle_convert.model.families import describe
from valle_convert.model.spec import CODECS, Model, codec_named
from valle_convert.tokenizer.choose import TokenizerChoice, choose_tokenizer
from valle_convert.tokenizer.compiled import CompiledTokenizer

TOKEN_EMBEDDING = "token_embd.weight"  # noqa: S105 - a tensor
_MAX_JSON = 1 << 20
#: What `--outtype` takes; `auto` keeps the type of the checkpoint.
OUT_TYPES: dict[str, GgmlType | None] = {
    "auto": None,
    "f32": F32,
    "f16": F16,
    "bf16": BF16,
    "q8_0": Q8_0,
}
_TYPE_OF = {dtype: ggml_type for ggml_type, dtype in PLAIN_DTYPES.items()}
_FILE_TYPES = {
    F32: LlamaFileType.ALL_F32,
    F16: LlamaFileType.MOSTLY_F16,
    BF16: LlamaFileType.MOSTLY_BF16,
    Q8_0: LlamaFileType.MOSTLY_Q8_0,
    **{
        GGML_TYPES[name.removesuffix("_M")]: LlamaFileType[f"MOSTLY_{name}"]
        for name in "Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K_M Q4_K_M Q5_K_M Q6_K IQ4_NL IQ4_XS".split()
    },
}


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a planned tensor, from one source tensor.

    Attributes:
        label: the table, head or backbone tensor.
        source: the tensor in the checkpoint.
        first_row: in the planned tensor.
        n_rows: how many.
        gather: the source rows, where they are not simply the first `n_rows` in order.
    """

    label: str
    source: str
    first_row: int
    n_rows: int
    gather: tuple[int, ...] | None = None


@dataclass(frozen=True)
class PlannedTensor(TensorEntry):
    """One tensor of the file.

    Attributes:
        parts: what it is made of, in row order, without gaps.
    """

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class PlannedFile:
    """A GGUF file of any family before it is written.

    Attributes:
        checkpoint: the source of the weights.
        keys: the metadata in file order, `general.architecture` first.
        tensors: in file order.
    """

    checkpoint: Checkpoint
    keys: tuple[Key, ...]
    tensors: tuple[PlannedTensor, ...]

    @property
    def biases(self) -> tuple[BiasBlock, ...]:
        """The heads' biases, which are a key; most families have none."""
        return ()

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file that was read, which no output may replace."""
        return self.checkpoint.inputs

    def late_values(self, source_sha256: str) -> dict[str, Any]:
        """Values of deferred keys that follow from the digest of the source, if there are any."""
        del source_sha256
        return {}

    @property
    def n_weights(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.n_elements for tensor in self.tensors)

    @property
    def data_bytes(self) -> int:
        """Size of the tensor data, padding included."""
        last = self.tensors[-1]
        return padded(last.offset + last.n_bytes)


@dataclass(frozen=True)
class GgufPlan(PlannedFile):
    """The one file of a checkpoint of versions 5 and 6.

    Attributes:
        description: what its family said of it: model, biases, dropped tensors, notes.
        tokenizer: the choice of tokenizer that its vocabulary was compiled from.
    """

    description: Description
    tokenizer: TokenizerChoice

    @property
    def model(self) -> Model:
        """What the file describes."""
        return self.description.model

    @property
    def biases(self) -> tuple[BiasBlock, ...]:
        """The heads' biases."""
        return self.description.biases

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file that was read, which no output may replace."""
        return (*self.checkpoint.inputs, self.tokenizer.file.path)


def plan_gguf(
    checkpoint: Checkpoint,
    *,
    out_type: str = "auto",
    tokenizer: Path | None = None,
    codec: str | None = None,
    metadata: GeneralMetadata | None = None,
) -> GgufPlan:
    """Decide everything about the GGUF file of a checkpoint, without reading weights.

    Args:
        checkpoint: the source.
        out_type: a key of `OUT_TYPES`, in capitals or not.
        tokenizer: a tokenizer.json or SentencePiece .model; None chooses one, and says why.
        codec: name of the audio codec; None tells it by levels and codes.
        metadata: values for the `general.*` keys.

    Raises:
        InputError: the checkpoint, its config or its tokenizer cannot be converted exactly.
    """
    description = describe(checkpoint, codec=None if codec is None else codec_named(codec))
    config = description.model.config
    if codec is not None:
        check_codec(codec, config.n_levels, config.codebook_size)
    choice = choose_tokenizer(
        tokenizer,
        checkpoint.path,
        checkpoint.symmap,
        description.model.table("phonemes").n_rows,
        carried=checkpoint.vocabulary,
    )
    return lay_out(
        checkpoint,
        description,
        choice,
        out_type=out_type,
        metadata=metadata or GeneralMetadata(),
    )


def lay_out(
    checkpoint: Checkpoint,
    description: Description,
    tokenizer: TokenizerChoice,
    *,
    out_type: str = "auto",
    metadata: GeneralMetadata,
) -> GgufPlan:
    """Lay out the file, without reading weights.

    Args:
        checkpoint: the source.
        description: what its family said of it.
        tokenizer: the chosen tokenizer; its extra rows follow the model's own.
        out_type: a key of `OUT_TYPES`, in capitals or not.
        metadata: the `general.*` values that the user gave.

    Raises:
        InputError: there is no such type, or it cannot hold the rows of some tensors (all are
            named); the tokenizer has other ids for <unk>, <bos> or </eos> than the network.
    """
    model = description.model
    compiled = tokenizer.compile(placeholder_names(description))
    _check_special_ids(compiled, tokenizer)
    parts = [Part(b.label, b.source, b.first_row, b.n_rows) for b in description.rows]
    if compiled.extra_rows:
        parts.append(
            Part(
                label="tokenizer",
                source=description.rows[0].source,
                first_row=model.n_rows,
                n_rows=len(compiled.extra_rows),
                gather=compiled.extra_rows,
            )
        )
    wanted: list[tuple[str, tuple[int, ...], tuple[Part, ...]]] = [
        (TOKEN_EMBEDDING, (len(compiled.tokens), model.config.n_embd), tuple(parts))
    ]
    wanted += [
        (t.target, t.shape, (Part(t.target, t.source, 0, t.shape[0]),))
        for t in description.backbone
    ]
    tensors = place_tensors(wanted, checkpoint.tensors.specs, out_type_named(out_type))
    keys = [
        Key("general.architecture", gguf_keys.ARCHITECTURE, "string"),
        *metadata.keys(checkpoint, model.languages, sum(tensor.n_elements for tensor in tensors)),
        Key(gguf_keys.FILE_TYPE_KEY, int(file_type_of(tensors)), "u32"),
        Key("general.quantization_version", GGML_QUANT_VERSION, "u32"),
        *gguf_keys.architecture_keys(model.config),
        *(Key(name, value, kind) for name, value, kind in compiled.metadata()),
        Key("valle.tokenizer.source", tokenizer.source, "string"),
        Key("valle.tokenizer.reason", tokenizer.reason, "string"),
        Key("valle.tokenizer.sha256", tokenizer.sha256, "string"),
        *gguf_keys.model_keys(model),
    ]
    if description.biases:
        n_biases = sum(bias.n_rows for bias in description.biases)
        keys.append(Key(gguf_keys.BIAS_KEY, [0.0] * n_biases, "[f32]", deferred=True))
    keys += source_keys(checkpoint, description.assumed)
    for name, said in (
        (gguf_keys.SOURCE_CONFIG_KEY, checkpoint.config),
        (gguf_keys.SOURCE_SYMMAP_KEY, checkpoint.symmap),
    ):
        text = _json_of(said)
        if text is not None:
            keys.append(Key(name, text, "string"))
    keys += digest_keys(tensors)
    return GgufPlan(
        checkpoint=checkpoint,
        description=description,
        tokenizer=tokenizer,
        keys=tuple(valid_key(key) for key in keys),
        tensors=tensors,
    )


def _check_special_ids(compiled: CompiledTokenizer, tokenizer: TokenizerChoice) -> None:
    found = {name: value for name, value, _ in compiled.metadata() if name in gguf_keys.SPECIAL_IDS}
    if found != gguf_keys.SPECIAL_IDS:
        unknown, bos, eos = (found[name] for name in gguf_keys.SPECIAL_IDS)
        expected = "{}, {} and {}".format(*gguf_keys.SPECIAL_IDS.values())
        raise InputError(
            f"The tokenizer {tokenizer.file.path} gives the unknown token and the tokens that "
            f"begin and end a text the ids {unknown}, {bos} and {eos}, where {expected} are "
            "expected: the network reads the marks around phonemes, the null condition of guidance "
            "and the end of a transcript at these rows. Give the tokenizer that the checkpoint was "
            "trained with; one with other ids cannot be converted."
        )


def check_codec(name: str, levels: int, codes: int) -> None:
    """Refuse a codec by name whose codes cannot be those of a model with so many."""
    for (n_levels, n_codes), codec in CODECS.items():
        if codec.name == name and (levels > n_levels or codes != n_codes):
            raise InputError(
                f"The codec {name} has {n_levels} levels of {n_codes} codes, and the model was "
                f"trained on {levels} levels of {codes}; leave --codec "
                "out, or give the codec of the training."
            )


def valid_key(key: Key) -> Key:
    """The key with nothing in it that is no UTF-8, as names of files may have."""
    if key.type == "string":
        return replace(key, value=valid_utf8(key.value))
    if key.type == "[string]":
        return replace(key, value=[valid_utf8(text) for text in key.value])
    return key


def placeholder_names(description: Description) -> list[str]:
    """A token text for every row after the phonemes, such as `<prompt.3:17>`; all different."""
    return [
        f"<{block.label}:{row}>" for block in description.rows[1:] for row in range(block.n_rows)
    ]


def out_type_named(name: str) -> GgmlType | None:
    """The type that is asked for, in capitals or not; None for the checkpoint's own."""
    if name.lower() not in OUT_TYPES:
        raise InputError(f"There is no output type {name!r}; there are {', '.join(OUT_TYPES)}.")
    return OUT_TYPES[name.lower()]


def digest_keys(tensors: tuple[PlannedTensor, ...]) -> list[Key]:
    """By which a file is checked without its checkpoint; the digests are known when written."""
    return [
        Key(gguf_keys.DIGEST_TYPE_KEY, int(file_type_of(tensors)), "u32"),
        Key(gguf_keys.DATA_DIGEST_KEY, gguf_keys.NO_DIGEST, "string", deferred=True),
        Key(gguf_keys.HEADER_DIGEST_KEY, gguf_keys.NO_DIGEST, "string", deferred=True),
    ]


def _json_of(value: Mapping[str, Any] | None) -> str | None:
    """A mapping as JSON; None where there is none, or JSON has no words for it."""
    if value is None:
        return None
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
    return text if len(text) <= _MAX_JSON else None


def source_keys(checkpoint: Checkpoint, assumed: tuple[str, ...] = ()) -> list[Key]:
    """Where the weights come from, and what converted them."""
    keys = [
        Key("valle.source.name", checkpoint.path.name, "string"),
        Key(gguf_keys.SOURCE_SHA256_KEY, gguf_keys.NO_DIGEST, "string", deferred=True),
    ]
    step = checkpoint.stats.get("global_step")
    if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 1 << 64:
        keys.append(Key("valle.source.global_step", step, "u64"))
    if checkpoint.lora is not None:
        keys.append(Key(gguf_keys.SOURCE_LORA_KEY, checkpoint.lora, "string"))
    if checkpoint.assumed or assumed:
        words = [*checkpoint.assumed, *assumed]
        keys.append(Key(gguf_keys.SOURCE_ASSUMED_KEY, words, "[string]"))
    if checkpoint.lost:
        keys.append(Key(gguf_keys.SOURCE_LOST_KEY, list(checkpoint.lost), "[string]"))
    for name, said in checkpoint.origin.items():
        value = said if isinstance(said, str) else list(said)
        kind = "string" if isinstance(said, str) else "[string]"
        keys.append(Key(f"{gguf_keys.SOURCE_PREFIX}{name}", value, kind))
    keys.append(Key(gguf_keys.CONVERTER_KEY, __version__, "string"))
    return keys


def place_tensors(
    wanted: list[tuple[str, tuple[int, ...], tuple[Part, ...]]],
    specs: Mapping[str, TensorSpec],
    forced: GgmlType | None,
) -> tuple[PlannedTensor, ...]:
    """Give every tensor its type and its place.

    Args:
        wanted: name, shape and parts of each, in file order.
        specs: of every source that a part names.
        forced: the type of all matrices; None for the sources' own. Vectors are F32.

    Raises:
        InputError: the type cannot hold the rows of some tensors; all are named.
    """
    tensors: list[PlannedTensor] = []
    faults: list[str] = []
    offset = 0
    for name, shape, parts in wanted:
        if len(shape) == 1:
            ggml_type = F32  # norms; llama.cpp multiplies by them in float32
        elif forced is not None:
            ggml_type = forced
        else:
            ggml_type = _common_type([specs[part.source] for part in parts])
        try:
            tensor = PlannedTensor(name, shape, ggml_type, offset, parts)
            offset += padded(tensor.n_bytes)
        except ValueError as error:
            faults.append(f"{name}: {error}")
            continue
        tensors.append(tensor)
    if faults:
        name = "auto" if forced is None else forced.name.lower()
        raise InputError(
            f"The type {name} cannot hold these tensors: "
            f"{'; '.join(faults[:5])}{' ...' if len(faults) > 5 else ''}; use --outtype f16."
        )
    return tuple(tensors)


def _common_type(specs: list[TensorSpec]) -> GgmlType:
    """The type that holds all of them without loss; float16 where they are of several quantized."""
    types = {stored_type(spec) for spec in specs}
    if len(types) == 1:
        return types.pop()
    return F32 if types <= PLAIN_DTYPES.keys() else F16


def stored_type(spec: TensorSpec) -> GgmlType:
    """The type of a source tensor in its own container."""
    quantized = GGML_TYPES.get(spec.dtype_name)
    if quantized is not None and quantized not in PLAIN_DTYPES:
        return quantized
    return F32 if spec.dtype is None else _TYPE_OF.get(spec.dtype, F32)


def file_type_of(tensors: tuple[PlannedTensor, ...]) -> LlamaFileType:
    """llama.cpp's word for the file: the type that most of its bytes have."""
    sizes: dict[GgmlType, int] = {}
    for tensor in tensors:
        sizes[tensor.ggml_type] = sizes.get(tensor.ggml_type, 0) + tensor.n_bytes
    most = max(sizes, key=lambda ggml_type: sizes[ggml_type])
    return _FILE_TYPES.get(most, LlamaFileType.GUESSED)
