"""A converted file back to what it was made of: a `.sft`, or the Hugging Face layout.

The keys tell which rows were which tensor, so the way back needs no checkpoint. Numbers keep their
type; quantized ones become float32, which holds them exactly. The file carries its checkpoint's
config and phoneme strings, and where an earlier version did not write them, they follow from the
other keys and from the tokenizer.

    fp32.sft                                   safetensors; config, symmap, stats as metadata
    model.safetensors, config.json,            the layout of `checkpoint.exported`
    tokenizer.json, tokenizer_config.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint import Checkpoint, TensorSpec
from valle_convert.checkpoint.exported import EMBEDDINGS, HEADS, ExportRows, layout_of_export
from valle_convert.checkpoint.source import BFLOAT16, FLOAT16, FLOAT32
from valle_convert.errors import InputError, UnsupportedModelError
from valle_convert.files import atomic_outputs, check_free_space, check_outputs, made_folder
from valle_convert.gguf_file.keys import (
    BIAS_KEY,
    SOURCE_CONFIG_KEY,
    SOURCE_SYMMAP_KEY,
    read_model,
)
from valle_convert.gguf_file.old import is_old, why_wrong
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import PLAIN_DTYPES
from valle_convert.model.families import describe
from valle_convert.model.spec import Model
from valle_convert.model.v5 import config_of, description_of
from valle_convert.progress import Progress, silent
from valle_convert.tokenizer.bpe import PhonemeBpe
from valle_convert.tokenizer.recorded import recorded_tokenizer

ExportFormat = Literal["sft", "hf"]
#: What `--dtype` takes; `auto` keeps the file's own.
DTYPES: Mapping[str, np.dtype[Any] | None] = {
    "auto": None,
    "f32": FLOAT32,
    "f16": FLOAT16,
    "bf16": BFLOAT16,
}
SFT_NAME = "fp32.sft"
_HF_NAMES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
_DTYPE_NAMES = {FLOAT32: "F32", FLOAT16: "F16", BFLOAT16: "BF16"}
_TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_PIECE_ROWS = 4096


@dataclass(frozen=True)
class _Place:
    """Where a tensor of the checkpoint lies in the file; a bias has no tensor."""

    tensor: str | None
    first: int
    stop: int


class BackTensors:
    """A `TensorSource` of the checkpoint that a converted file was made of.

    Args:
        file: the converted file.
        model: as its keys describe it.
        dtype: of all tensors; None for the type that the file has, float32 where it is quantized.
    """

    def __init__(self, file: GgufFile, model: Model, dtype: np.dtype[Any] | None = None) -> None:
        self._file = file
        self._places: dict[str, _Place] = {}
        description = description_of(model)
        specs: dict[str, TensorSpec] = {}

        def add(name: str, shape: tuple[int, ...], place: _Place, found: np.dtype[Any]) -> None:
            chosen = found if dtype is None else dtype
            specs[name] = TensorSpec(name, chosen, _DTYPE_NAMES[chosen], shape)
            self._places[name] = place

        embedding = file.tensors[TOKEN_EMBEDDING]
        matrices = PLAIN_DTYPES.get(embedding.ggml_type, FLOAT32)
        for block in description.rows:
            place = _Place(TOKEN_EMBEDDING, block.first_row, block.first_row + block.n_rows)
            is_vector = block.source == "sep"
            shape = (*([] if is_vector else [block.n_rows]), model.config.n_embd)
            add(block.source, shape, place, matrices)
        for tensor in description.backbone:
            stored = file.tensors.get(tensor.target)
            if stored is None or stored.shape != tensor.shape:
                raise InputError(
                    f"{file.path}: {tensor.target} of shape {list(tensor.shape)} is expected, and "
                    f"{'it is missing' if stored is None else f'it is {list(stored.shape)}'}; "
                    "convert the checkpoint again."
                )
            kind = PLAIN_DTYPES.get(stored.ggml_type, FLOAT32)
            place = _Place(tensor.target, 0, tensor.shape[0])
            if len(tensor.shape) == 1:  # a file has norms in float32, whatever they were
                kind = _narrow(stored.rows(), matrices)
            add(tensor.source, tensor.shape, place, kind)
        start = 0
        self._biases = np.array(file.keys.get(BIAS_KEY, []), np.float32)
        for bias in description.biases:
            stop = start + bias.n_rows
            known = self._places.get(bias.source)
            if known is None or bias.n_rows > known.stop - known.first:
                kind = _narrow(self._biases[start:stop], matrices)
                add(bias.source, (bias.n_rows,), _Place(None, start, stop), kind)
            start = stop
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)

    def read(self, name: str) -> NDArray[Any]:
        """One tensor, of the shape and type of its spec."""
        spec = self.specs[name]
        pieces = list(self.pieces(name))
        return np.concatenate(pieces).reshape(spec.shape)

    def pieces(self, name: str) -> Iterator[NDArray[Any]]:
        """The same, some thousand rows at a time."""
        spec, place = self.specs[name], self._places[name]
        if place.tensor is None:
            yield self._cast(self._biases[place.first : place.stop], spec)
            return
        stored = self._file.tensors[place.tensor]
        if len(stored.shape) == 1:
            yield self._cast(stored.rows(), spec)
            return
        plain = PLAIN_DTYPES.get(stored.ggml_type)
        for start in range(place.first, place.stop, _PIECE_ROWS):
            rows = slice(start, min(start + _PIECE_ROWS, place.stop))
            if plain is not None and plain == spec.dtype:
                yield np.ascontiguousarray(stored.data[rows]).view(plain)
            else:
                yield self._cast(stored.rows(rows), spec)

    def _cast(self, values: NDArray[np.float32], spec: TensorSpec) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            cast = values.astype(spec.dtype)
        if not np.isfinite(cast.astype(np.float32)).all():
            raise InputError(
                f"{self._file.path}: {spec.name} holds a number that {spec.dtype_name} cannot, or "
                "that is none; give --dtype f32, or convert the checkpoint again."
            )
        return cast


def _narrow(values: NDArray[np.float32], dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type of the matrices where it holds these values exactly, else float32."""
    with np.errstate(over="ignore"):
        same = values.astype(dtype).astype(np.float32)
    return dtype if np.array_equal(same, values) else FLOAT32


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: the paths with their sizes in bytes.
        notes: what was made up, or is not in the result, in words.
    """

    files: Mapping[Path, int]
    notes: tuple[str, ...]


def export_file(
    path: Path,
    folder: Path,
    *,
    format_: ExportFormat = "sft",
    dtype: str = "auto",
    tokenizer: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Exported:
    """Write a converted file back as a checkpoint, or leave nothing.

    Args:
        path: the file, quantized or not.
        folder: takes the files; it is made where it is not there.
        format_: "sft", the training project's own, or "hf", its Hugging Face layout.
        dtype: a key of `DTYPES`.
        tokenizer: the one that the file was converted with, where it is not the built-in one.
        force: whether existing files may be replaced.
        progress: shows the bytes written.

    Raises:
        InputError: it is no converted file, its config contradicts its tensors, or a target must
            not be written.
        UnsupportedModelError: the layout cannot hold the model.
        EnvironmentFault: the disk is full, or the folder is not writable.
    """
    file = GgufFile(path)
    if is_old(file):
        raise InputError(why_wrong(path))
    embedding = file.tensors.get(TOKEN_EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise InputError(
            f"{path} has no matrix {TOKEN_EMBEDDING}, so it is no converted checkpoint; "
            "convert one with `valle-convert CHECKPOINT OUT.gguf`."
        )
    model = read_model(file.keys, embedding.shape[0], path)
    tensors = BackTensors(file, model, DTYPES[dtype])
    if format_ == "sft":
        documents, notes = _sft_metadata(file, model, tensors, tokenizer)
        contents = [_safetensors(tensors, list(tensors.specs.items()), documents)]
        names: Sequence[str] = (SFT_NAME,)
    else:
        contents, notes = _hf_files(file, model, tensors, tokenizer)
        names = _HF_NAMES
    targets = [folder / name for name in names]
    inputs = [path, *([tokenizer] if tokenizer else [])]
    with made_folder(folder, "give another name."):
        check_outputs(targets, force=force, inputs=inputs)
        check_free_space(targets[0], sum(size for size, _ in contents))
        _write(contents, targets, inputs, force=force, progress=progress)
    sizes = {target: size for target, (size, _) in zip(targets, contents, strict=True)}
    return Exported(sizes, tuple(notes))


def _write(
    contents: Sequence[tuple[int, _WriteTo]],
    targets: Sequence[Path],
    inputs: Sequence[Path],
    *,
    force: bool,
    progress: Progress,
) -> None:
    with (
        atomic_outputs(targets, force=force, sources=inputs) as opened,
        progress("writing", sum(size for size, _ in contents), "B") as advance,
    ):
        for stream, (_, write) in zip(opened, contents, strict=True):
            write(stream, advance)


_WriteTo = Callable[[BinaryIO, Callable[[int], object]], None]


def _safetensors(
    tensors: BackTensors,
    entries: Sequence[tuple[str, TensorSpec]],
    metadata: Mapping[str, str],
    pieces: Callable[[str], Iterator[NDArray[Any]]] | None = None,
) -> tuple[int, _WriteTo]:
    """The size of a safetensors file, and what writes it, a few megabytes at a time."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, spec in entries:
        header[name] = {
            "dtype": spec.dtype_name,
            "shape": list(spec.shape),
            "data_offsets": [end, end + spec.n_bytes],
        }
        end += spec.n_bytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    read = pieces or tensors.pieces

    def write(stream: BinaryIO, advance: Callable[[int], object]) -> None:
        advance(stream.write(len(text).to_bytes(8, "little") + text))
        for name, _ in entries:
            for piece in read(name):
                advance(stream.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data))

    return 8 + len(text) + end, write


def _document(value: object) -> tuple[int, _WriteTo]:
    data = (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()

    def write(stream: BinaryIO, advance: Callable[[int], object]) -> None:
        advance(stream.write(data))

    return len(data), write


def _json_key(file: GgufFile, key: str) -> dict[str, Any] | None:
    text = file.keys.get(key)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{file.path}: {key} is no JSON object; convert the checkpoint again.")
    return value


def _sft_metadata(
    file: GgufFile, model: Model, tensors: BackTensors, tokenizer: Path | None
) -> tuple[dict[str, str], list[str]]:
    """The entries of the header, each a JSON string, and what has to be said of them."""
    notes: list[str] = []
    config = _json_key(file, SOURCE_CONFIG_KEY)
    symmap = _json_key(file, SOURCE_SYMMAP_KEY)
    if config is None:
        config = config_of(model, str(file.keys.get("general.name", file.path.stem)))
        notes.append(
            "the file does not carry its checkpoint's config; one that says the same was made"
        )
        symmap = _strings(file, tokenizer, notes)
    found = describe(
        Checkpoint(file.path, "gguf", tensors, config, f"in {file.path.name}", None, {}),
        codec=model.config.codec,
    ).model
    if (found.config, found.tables) != (model.config, model.tables):
        raise InputError(
            f"{file.path}: the config that it carries is not that of its tensors and keys; "
            "convert the checkpoint again."
        )
    notes.append("not in the file: what only training reads (dropout_token, metrics)")
    entries = {"config": json.dumps(config, ensure_ascii=False)}
    if symmap is not None:
        entries["userdata"] = json.dumps({"symmap": symmap}, ensure_ascii=False)
    step = file.keys.get("valle.source.global_step")
    if isinstance(step, int):
        entries["stats"] = json.dumps({"global_step": step})
    return entries, notes


def _strings(file: GgufFile, tokenizer: Path | None, notes: list[str]) -> dict[str, int] | None:
    """The strings and ids of the tokenizer that the file was compiled from, if it is at hand."""
    try:
        found = recorded_tokenizer(file.keys, file.path, tokenizer).tokenizer
    except InputError:
        if tokenizer is not None:
            raise
        notes.append("its tokenizer is not at hand (--tokenizer), so there is no symmap")
        return None
    return dict(found.vocab) if isinstance(found, PhonemeBpe) else None


# ------------------------------------------------------------------------ Hugging Face


def _hf_files(
    file: GgufFile, model: Model, tensors: BackTensors, tokenizer: Path | None
) -> tuple[list[tuple[int, _WriteTo]], list[str]]:
    """The four files, and what the layout loses."""
    if "classifier.weight" in tensors.specs:
        raise UnsupportedModelError(
            f"{file.path} has one classifier for all levels, for which the Hugging Face layout has "
            "no place; export it with --format sft."
        )
    found = recorded_tokenizer(file.keys, file.path, tokenizer)
    if not isinstance(found.tokenizer, PhonemeBpe):
        raise UnsupportedModelError(
            f"{file.path} has a tokenizer of SentencePiece, for which the Hugging Face layout has "
            "no place; export it with --format sft."
        )
    config = model.config
    lost = [
        "version, positions, attention, sums and capabilities, which config.json has no keys for"
    ]
    if model.heads[0].bias is not None:
        lost.append("the biases of the heads: the logits are the model's less them")
    if model.has_table("text") or model.has_head("text"):
        lost.append("the table and the head of raw text")
    counts = {
        name: spec.n_elements // config.n_embd
        for name, spec in tensors.specs.items()
        if name == "sep" or "_emb." in name
    }
    words = {
        "langs_emb.weight": model.languages,
        "tasks_emb.weight": model.tasks,
        "tones_emb.weight": model.tones,
    }
    rows, names = layout_of_export(counts, words, with_length=model.has_head("len"))
    document = json.loads(found.data)
    n_phonemes = counts["text_emb.weight"]
    document["model"]["vocab"] |= {name: n_phonemes + i for i, name in enumerate(names)}
    n_rows = n_phonemes + len(names)
    kind = tensors.specs["text_emb.weight"]
    matrix = TensorSpec("", kind.dtype, kind.dtype_name, (n_rows, config.n_embd))
    backbone = {n: s for n, s in tensors.specs.items() if n.startswith("model.")}
    entries = sorted({EMBEDDINGS: matrix, HEADS: matrix, **backbone}.items())

    def pieces(name: str) -> Iterator[NDArray[Any]]:
        if name not in (EMBEDDINGS, HEADS):
            yield from tensors.pieces(name)
            return
        yield from _matrix(name, rows, tensors, matrix)

    special = document.get("added_tokens", [])
    about = {
        "architectures": ["LLaMAForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_size": config.n_embd,
        "initializer_range": 0.02,
        "intermediate_size": config.n_ff,
        "max_position_embeddings": config.n_ctx_train,
        "model_type": "llama",
        "num_attention_heads": config.n_head,
        "num_hidden_layers": config.n_layer,
        "num_key_value_heads": config.n_head_kv,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "torch_dtype": _TORCH_NAMES[kind.dtype_name],
        "use_cache": False,
        "vocab_size": n_rows,
    }
    about_tokenizer = {
        "added_tokens": special,
        "bos_token": "<bos>",
        "eos_token": "</eos>",
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    files = [
        _safetensors(tensors, entries, {"format": "pt"}, pieces),
        _document(about),
        _document(document),
        _document(about_tokenizer),
    ]
    return files, [f"the layout loses {one}" for one in lost]


def _matrix(
    name: str, rows: Mapping[str, ExportRows], tensors: BackTensors, matrix: TensorSpec
) -> Iterator[NDArray[Any]]:
    """One of the two matrices, table by table or head by head; rows of no head are zeros."""
    at = 0
    mine = [(one.first_row, source, one) for source, one in rows.items() if one.matrix == name]
    for first, source, one in sorted(mine):
        if first > at:
            yield np.zeros((first - at, matrix.shape[1]), matrix.dtype)
        if source in tensors.specs:
            yield from tensors.pieces(source)
        else:
            yield np.zeros((one.n_rows, matrix.shape[1]), matrix.dtype)
        at = first + one.n_rows
    if at < matrix.shape[0]:
        yield np.zeros((matrix.shape[0] - at, matrix.shape[1]), matrix.dtype)
