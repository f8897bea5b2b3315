"""The plan of a GGUF file: every key, every tensor, and the source of each row.

A plan is made from names and shapes alone. It can be printed (`--dry-run`), compared and tested
without weights; the writer streams it, and the verifier reads it backwards.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from valle_convert import __version__
from valle_convert.checkpoint import Checkpoint, TensorSpec
from valle_convert.errors import InputError
from valle_convert.files import valid_utf8
from valle_convert.gguf_file import keys as gguf_keys
from valle_convert.gguf_file.header import Key, TensorEntry, pack_key, padded
from valle_convert.gguf_file.metadata import GeneralMetadata
from valle_convert.gguf_file.types import BF16, F16, F32, GGML_TYPES, PLAIN_DTYPES, Q8_0, GgmlType
from valle_convert.model.description import BiasBlock, Contents, RowBlock
from valle_convert.model.spec import CODECS, CodeFormat
from valle_convert.wording import listing, plural

TOKEN_EMBEDDING = "token_embd.weight"  # noqa: S105 - a tensor
#: The values of `--outtype`; `auto` keeps the type of the checkpoint.
OUT_TYPES: dict[str, GgmlType | None] = {
    "auto": None,
    "f32": F32,
    "f16": F16,
    "bf16": BF16,
    "q8_0": Q8_0,
}
_QUANTIZATION_VERSION = 2
_TYPE_OF = {dtype: ggml_type for ggml_type, dtype in PLAIN_DTYPES.items()}


@dataclass(frozen=True)
class PlannedTensor(TensorEntry):
    spans: tuple[RowBlock, ...]  # its rows in order, without gaps


@dataclass(frozen=True)
class FileKeys:
    architecture: str
    graph: Iterable[Key] = ()
    vocabulary: Iterable[Key] = ()
    model: Iterable[Key] = ()
    tail: Iterable[Key] = ()
    #: Rows of the first table that are copied after all rows, for the tokenizer.
    extra_rows: tuple[int, ...] = ()
    #: For `general.languages`; None for a file without general keys.
    languages: Sequence[str] | None = None


@dataclass(frozen=True)
class PlannedFile:
    checkpoint: Checkpoint
    keys: tuple[Key, ...]  # the metadata in file order, `general.architecture` first
    tensors: tuple[PlannedTensor, ...]
    biases: tuple[BiasBlock, ...] = ()  # the heads' biases, which are a key
    #: Hashed with the source to the id of the file's set; None for a file that stands alone.
    set_salt: tuple[str, str] | None = None

    def late_values(self, source_sha256: str) -> dict[str, Any]:
        """Values of deferred keys that follow from the digest of the source."""
        if self.set_salt is None:
            return {}
        family, salt = self.set_salt
        words = f"{family} {source_sha256} {salt}"
        return {gguf_keys.SET_ID_KEY: hashlib.sha256(words.encode()).hexdigest()}

    @cached_property
    def packed_keys(self) -> dict[str, bytes]:
        """The bytes of the keys; a header is made four times, and a vocabulary takes 20 ms."""
        return {key.name: pack_key(key) for key in self.keys}

    @property
    def n_weights(self) -> int:
        return sum(tensor.n_elements for tensor in self.tensors)

    @property
    def data_bytes(self) -> int:
        """Size of the tensor data, padding included."""
        last = self.tensors[-1]
        return padded(last.offset + last.n_bytes)


def lay_out(
    checkpoint: Checkpoint,
    contents: Contents,
    keys: FileKeys,
    *,
    forced: GgmlType | None,
    metadata: GeneralMetadata,
    set_salt: tuple[str, str] | None = None,
    assumed: tuple[str, ...] = (),
) -> PlannedFile:
    specs = checkpoint.tensors.specs
    wanted: list[tuple[str, tuple[int, ...], tuple[RowBlock, ...]]] = []
    if contents.rows:
        spans = list(contents.rows)
        n_rows = spans[-1].first_row + spans[-1].n_rows
        first = contents.rows[0].source
        if keys.extra_rows:
            extra = keys.extra_rows
            spans.append(RowBlock("tokenizer", first, n_rows, len(extra), extra))
        shape = (n_rows + len(keys.extra_rows), specs[first].shape[-1])
        wanted.append((TOKEN_EMBEDDING, shape, tuple(spans)))
    wanted += [
        (t.target, t.shape, (RowBlock(t.target, t.source, 0, t.shape[0]),))
        for t in contents.backbone
    ]
    tensors = place_tensors(wanted, specs, forced)
    laid = [Key("general.architecture", keys.architecture, "string")]
    if keys.languages is not None:
        n_weights = sum(tensor.n_elements for tensor in tensors)
        laid += metadata.keys(checkpoint, keys.languages, n_weights)
    laid += [
        Key(gguf_keys.FILE_TYPE_KEY, file_type_of(tensors), "u32"),
        Key("general.quantization_version", _QUANTIZATION_VERSION, "u32"),
        *keys.graph,
        *keys.vocabulary,
        *keys.model,
    ]
    if contents.biases:
        n_biases = sum(bias.n_rows for bias in contents.biases)
        laid.append(Key(gguf_keys.BIAS_KEY, [0.0] * n_biases, "[f32]", deferred=True))
    laid += source_keys(checkpoint, assumed)
    if set_salt is not None:
        laid.append(Key(gguf_keys.SET_ID_KEY, gguf_keys.NO_DIGEST, "string", deferred=True))
    laid += keys.tail
    laid += [
        Key(gguf_keys.DIGEST_TYPE_KEY, file_type_of(tensors), "u32"),
        Key(gguf_keys.DATA_DIGEST_KEY, gguf_keys.NO_DIGEST, "string", deferred=True),
        Key(gguf_keys.HEADER_DIGEST_KEY, gguf_keys.NO_DIGEST, "string", deferred=True),
    ]
    return PlannedFile(checkpoint, tuple(map(valid_key, laid)), tensors, contents.biases, set_salt)


def check_codec(name: str, model: CodeFormat) -> None:
    """Reject a codec whose codes cannot be the model's."""
    levels, codes = model.n_levels, model.codebook_size
    for (n_levels, n_codes), codec in CODECS.items():
        if codec.name == name and (levels > n_levels or codes != n_codes):
            raise InputError(
                f"The codec {name} has {plural(n_levels, 'level')} of {n_codes} codes, but the "
                f"model has {plural(levels, 'level')} of {codes}; leave "
                "--codec-name out, or give the codec of the training."
            )


def valid_key(key: Key) -> Key:
    """The key with bytes that are not UTF-8 replaced, as file names may have them."""
    if key.type not in ("string", "[string]"):
        return key
    texts = [key.value] if key.type == "string" else key.value
    whole = "".join(texts)
    if valid_utf8(whole) == whole:  # 20 ms faster than one by one
        return key
    valid = list(map(valid_utf8, texts))
    return replace(key, value=valid[0] if key.type == "string" else valid)


def out_type_named(name: str) -> GgmlType | None:
    """The requested type, in any case; None for the checkpoint's own."""
    if name.lower() not in OUT_TYPES:
        raise InputError(f"There is no output type {name!r}; there are {', '.join(OUT_TYPES)}.")
    return OUT_TYPES[name.lower()]


def source_keys(checkpoint: Checkpoint, assumed: tuple[str, ...] = ()) -> list[Key]:
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
    wanted: list[tuple[str, tuple[int, ...], tuple[RowBlock, ...]]],
    specs: Mapping[str, TensorSpec],
    forced: GgmlType | None,
) -> tuple[PlannedTensor, ...]:
    tensors: list[PlannedTensor] = []
    faults: list[str] = []
    offset = 0
    for name, shape, spans in wanted:
        if len(shape) == 1:
            ggml_type = F32  # norms; llama.cpp multiplies by them in float32
        elif forced is not None:
            ggml_type = forced
        else:
            ggml_type = _common_type([specs[span.source] for span in spans])
        try:
            tensor = PlannedTensor(name, shape, ggml_type, offset, spans)
            offset += padded(tensor.n_bytes)
        except ValueError as error:
            faults.append(f"{name}: {error}")
            continue
        tensors.append(tensor)
    if faults:
        name = "auto" if forced is None else forced.name.lower()
        raise InputError(
            f"The type {name} cannot hold these tensors: "
            f"{listing(faults, separator='; ')}; use --outtype f16."
        )
    return tuple(tensors)


def _common_type(specs: list[TensorSpec]) -> GgmlType:
    """The type that holds all of them without loss; float16 for several quantized ones."""
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


def file_type_of(tensors: tuple[PlannedTensor, ...]) -> int:
    """llama.cpp's file type: the type that most of its bytes have."""
    sizes: dict[GgmlType, int] = {}
    for tensor in tensors:
        sizes[tensor.ggml_type] = sizes.get(tensor.ggml_type, 0) + tensor.n_bytes
    return max(sizes, key=lambda ggml_type: sizes[ggml_type]).file_type
