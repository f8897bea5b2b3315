"""What is in a checkpoint, a GGUF file or a codec, as one frozen summary."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from valle_convert.checkpoint import Checkpoint, read_checkpoint
from valle_convert.checkpoint.hub import fetch_file, is_on_hub
from valle_convert.checkpoint.lora import LoraFile
from valle_convert.encodec.cpp_file import (
    F32_WARNING,
    is_cpp_codec,
    layout_problems,
    read_cpp_layout,
    spec_of_header,
)
from valle_convert.encodec.gguf_codec import is_gguf_codec, open_gguf_codec
from valle_convert.errors import InputError
from valle_convert.files import check_input_file
from valle_convert.gguf_file.keys import SOURCE_CONFIG_KEY, SOURCE_SYMMAP_KEY, is_converted
from valle_convert.gguf_file.old import is_old, why_wrong
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING
from valle_convert.gguf_file.read import GgufFile, is_gguf
from valle_convert.gguf_file.vallex import AR, LEVEL_KEY, PART_KEY, is_vallex_part, open_set
from valle_convert.model.families import describe
from valle_convert.model.spec import Model
from valle_convert.model.vallex import VallexModel, describe_vallex, is_vallex
from valle_convert.model.vallex_symbols import VALLEX_SYMBOLS
from valle_convert.network.converted import open_model
from valle_convert.progress import Progress, silent


@dataclass(frozen=True)
class ModelPart:
    """A table or a head: where it lies in the token embedding, and where it comes from."""

    kind: str
    name: str
    first_row: int
    n_rows: int
    source: str


@dataclass(frozen=True)
class WeightGroup:
    """Tensors of one purpose and one type."""

    name: str
    type: str
    n_tensors: int
    n_weights: int
    n_bytes: int


@dataclass(frozen=True)
class Summary:
    """What a file holds. Parts are empty for a GGUF file that is no converted checkpoint."""

    path: str
    kind: str
    n_bytes: int
    sizes: Mapping[str, Any]
    behaviour: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    provenance: Mapping[str, Any]
    parts: tuple[ModelPart, ...]
    groups: tuple[WeightGroup, ...]
    notes: tuple[str, ...]

    def sections(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The parts that are names and values, with titles."""
        yield "sizes", self.sizes
        yield "behaviour", self.behaviour
        yield "tokenizer", self.tokenizer
        yield "provenance", self.provenance

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def inspect_file(
    path: Path,
    *,
    config: Path | None = None,
    lora: Sequence[LoraFile] = (),
    lora_alpha: float | None = None,
    progress: Progress = silent,
) -> Summary:
    """Look into a checkpoint, a GGUF file or a codec of encodec.cpp, without reading weights.

    Of safetensors on the hub, nothing but the header is downloaded; of other files there, all.

    Raises:
        InputError: it is none of them, is damaged, or is a checkpoint that cannot be converted.
        EnvironmentFault: it is on the hub, which cannot be reached.
    """
    if is_on_hub(path) and path.suffix == ".gguf":
        return replace(inspect_file(fetch_file(path, progress)), path=str(path))
    if is_on_hub(path):
        with tempfile.TemporaryDirectory(prefix="valle-convert-") as folder:
            return _inspect_on_hub(path, config, lora, lora_alpha, progress, Path(folder))
    if not os.path.isdir(path):  # noqa: PTH112 - no exception for a folder that cannot be entered
        check_input_file(path)
    if is_cpp_codec(path):
        return _inspect_cpp_codec(path)
    if is_gguf(path):
        file = GgufFile(path, allow_part=True)
        return _inspect_gguf_codec(file) if is_gguf_codec(file) else _inspect_gguf(file)
    return _inspect_checkpoint(
        read_checkpoint(path, config=config, lora=lora, lora_alpha=lora_alpha, progress=progress)
    )


def _inspect_on_hub(
    path: Path,
    config: Path | None,
    lora: Sequence[LoraFile],
    lora_alpha: float | None,
    progress: Progress,
    folder: Path,
) -> Summary:
    """A checkpoint whose safetensors are headers in a folder that is gone afterwards."""
    try:
        return _inspect_checkpoint(
            read_checkpoint(
                path,
                config=config,
                lora=lora,
                lora_alpha=lora_alpha,
                progress=progress,
                headers_in=folder,
            )
        )
    except InputError as error:
        raise type(error)(str(error).replace(f"{folder}/", f"{path}: ")) from error


def _inspect_checkpoint(checkpoint: Checkpoint) -> Summary:
    if is_vallex(checkpoint):
        return _inspect_vallex_checkpoint(checkpoint)
    description = describe(checkpoint)
    sources = {block.label: block.source for block in description.rows}
    single = sources.get("head.classifier", "")
    specs = checkpoint.tensors.specs
    return Summary(
        path=str(checkpoint.given or checkpoint.path),
        kind=f"checkpoint ({checkpoint.container})",
        n_bytes=sum(one.stat().st_size for one in checkpoint.weights),
        **_describe_model(description.model),
        tokenizer={
            "vocabulary": f"{len(checkpoint.symmap)} strings in the checkpoint"
            if checkpoint.symmap
            else "none in the checkpoint"
        },
        provenance={
            "name": checkpoint.config.get("name"),
            "config": checkpoint.config_source,
            "lora": checkpoint.lora,
            **(
                {"repository": checkpoint.hub.repository, "commit": checkpoint.hub.revision}
                if checkpoint.hub
                else {}
            ),
            **{key: checkpoint.stats[key] for key in sorted(checkpoint.stats)},
        },
        parts=tuple(_parts(description.model, sources, single)),
        groups=_group(
            (name, spec.dtype_name, spec.n_elements, spec.n_bytes) for name, spec in specs.items()
        ),
        notes=(
            *checkpoint.notes,
            *(
                f"assumed, since the file does not say: {words}"
                for words in (*checkpoint.assumed, *description.assumed)
            ),
            *(f"lost on the way to this file: {words}" for words in checkpoint.lost),
            *(f"left out when converted: {d.source} ({d.reason})" for d in description.dropped),
            *description.notes,
        ),
    )


def _inspect_vallex_checkpoint(checkpoint: Checkpoint) -> Summary:
    description = describe_vallex(checkpoint)
    sources = {
        (net, block.label): block.source
        for net, part in (("ar", description.ar), ("nar", description.nar))
        for block in part.rows
    }
    return Summary(
        path=str(checkpoint.path),
        kind=f"VALL-E X checkpoint ({checkpoint.container})",
        n_bytes=checkpoint.path.stat().st_size,
        **_describe_vallex(description.model),
        tokenizer={"vocabulary": f"the {len(VALLEX_SYMBOLS)} symbols of VALL-E X"},
        provenance={
            "config": checkpoint.config_source,
            **{key: checkpoint.stats[key] for key in sorted(checkpoint.stats)},
        },
        parts=tuple(_vallex_parts(description.model, sources)),
        groups=_group(
            (name, spec.dtype_name, spec.n_elements, spec.n_bytes)
            for name, spec in checkpoint.tensors.specs.items()
        ),
        notes=(
            *(f"left out when converted: {d.source} ({d.reason})" for d in description.dropped),
            *description.notes,
        ),
    )


def _inspect_vallex_part(file: GgufFile) -> Summary:
    """The whole set by its AR; of another part, what is in that file."""
    keys, part = file.keys, file.keys.get(PART_KEY)
    files = open_set(file.path) if part == AR else None
    held = files.files if files else (file,)
    level = f" {keys[LEVEL_KEY]}" if LEVEL_KEY in keys else ""
    empty: dict[str, Any] = {"sizes": {}, "behaviour": {}}
    note = "one part of a set: give the file of the AR to see the whole"
    return Summary(
        path=str(file.path),
        kind=f"GGUF, VALL-E X, {len(held)} files" if files else f"GGUF, VALL-E X: {part}{level}",
        n_bytes=sum(one.size for one in held),
        **(_describe_vallex(files.model) if files else empty),
        tokenizer={"model": keys.get("tokenizer.ggml.model")},
        provenance=_provenance(file),
        parts=tuple(_vallex_parts(files.model, {})) if files else (),
        groups=_group(
            (name, tensor.ggml_type.name, math.prod(tensor.shape), tensor.n_bytes)
            for one in held
            for name, tensor in one.tensors.items()
        ),
        notes=(f"its other files: {', '.join(one.path.name for one in held[1:])}",)
        if files
        else (note,),
    )


def _describe_vallex(model: VallexModel) -> dict[str, Any]:
    sizes = {
        words: " and ".join(dict.fromkeys(str(getattr(net, key)) for net in (model.ar, model.nar)))
        for words, key in (
            ("width", "n_embd"),
            ("layers", "n_layer"),
            ("heads", "n_head"),
            ("feed-forward width", "n_ff"),
        )
    }
    return {
        "sizes": {
            **sizes,
            "codebook levels": model.n_levels,
            "codes a codebook": model.codebook_size,
            "text rows": model.n_text,
        },
        "behaviour": {
            "attention": "AR: text in both directions, audio causally; NAR: in both directions",
            "activation": f"ReLU, as GELU with the factor {model.activation_factor}",
            "languages": list(model.languages),
            "codec": model.codec.name,
            "sample rate (Hz)": model.codec.sample_rate or None,
            "frame rate (1/s)": round(model.codec.frame_rate, 3) or None,
        },
    }


def _vallex_parts(
    model: VallexModel, sources: Mapping[tuple[str, str], str]
) -> Iterator[ModelPart]:
    for net in (model.ar, model.nar):
        for table in net.tables:
            source = sources.get((net.name, table.name), TOKEN_EMBEDDING)
            name = f"{net.name}: {table.name}"
            yield ModelPart("table", name, table.first_row, table.n_rows, source)
        for head in net.heads:
            twins = [table.name for table in net.tables if table.first_row == head.first_row]
            source = sources.get((net.name, f"head.{head.name}"), TOKEN_EMBEDDING)
            source = f"the rows of {twins[0]}" if twins else source
            name = f"{net.name}: {head.name}"
            yield ModelPart("head", name, head.first_row, head.n_rows, source)


def _provenance(file: GgufFile) -> dict[str, Any]:
    ours = ("source", "converter", "quantize", "adapter")
    kept = ("general.", "split.", "adapter.", *(f"valle.{name}." for name in ours))
    long = (SOURCE_CONFIG_KEY, SOURCE_SYMMAP_KEY)
    names = [name for name in file.keys if name.startswith(kept) and name not in long]
    return {name: file.keys[name] for name in names}


def _inspect_gguf(file: GgufFile) -> Summary:
    keys = file.keys
    if is_vallex_part(keys):
        return _inspect_vallex_part(file)
    converted = is_converted(keys)
    empty: dict[str, Any] = {"sizes": {}, "behaviour": {}}
    model = open_model(file) if converted else None
    tokens = keys.get("tokenizer.ggml.tokens")
    merges = keys.get("tokenizer.ggml.merges")
    return Summary(
        path=str(file.path),
        kind="GGUF" if converted else _kind_of_foreign(file),
        n_bytes=file.size,
        **(_describe_model(model) if model else empty),
        tokenizer={
            "model": keys.get("tokenizer.ggml.model"),
            "pre": keys.get("tokenizer.ggml.pre"),
            "tokens": len(tokens) if isinstance(tokens, list) else None,
            "merges": len(merges) if isinstance(merges, list) else None,
            "source": keys.get("valle.tokenizer.source"),
            "reason": keys.get("valle.tokenizer.reason"),
            "sha256": keys.get("valle.tokenizer.sha256"),
        },
        provenance=_provenance(file),
        parts=tuple(_parts(model, {}, TOKEN_EMBEDDING)) if model else (),
        groups=_group(
            (name, tensor.ggml_type.name, math.prod(tensor.shape), tensor.n_bytes)
            for name, tensor in file.tensors.items()
        ),
        notes=tuple(_notes(file)),
    )


def _kind_of_foreign(file: GgufFile) -> str:
    if is_old(file):
        return "GGUF of a VALL-E, made the old way"
    if file.keys.get("general.type") == "adapter":
        return "GGUF, a LoRA kept apart"
    return "GGUF, not made from a VALL-E checkpoint"


def _notes(file: GgufFile) -> Iterator[str]:
    """What a user should know of a file that somebody else made."""
    if is_old(file):
        yield why_wrong(file.path)
    if file.is_part:
        yield "one part of a split model: nothing but inspect takes it"
    for name in file.keys:
        if name.startswith("tokenizer.chat_template"):
            yield f"{name}: a program that other programs may run, {len(file.raw(name)):,} bytes"


def _inspect_cpp_codec(path: Path) -> Summary:
    header, tensors, form = read_cpp_layout(path)
    spec = spec_of_header(header, [tensor.name for tensor in tensors], path)
    problems = [*form, *layout_problems(header, tensors, spec)]
    held = sum(tensor.name.startswith("quantizer.") for tensor in tensors)
    return Summary(
        path=str(path),
        kind="EnCodec, as encodec.cpp loads it",
        n_bytes=path.stat().st_size,
        sizes={**vars(header), "tensors": len(tensors), "codebooks": held},
        behaviour={
            "samples a frame": spec.hop_length,
            "frame rate (1/s)": spec.frame_rate,
            "levels at its bandwidth": header.n_levels,
        },
        tokenizer={},
        provenance={},
        parts=(),
        groups=_sum_up(
            (
                tensor.name.partition(".")[0],
                "F16" if tensor.ftype else "F32",
                math.prod(tensor.dims),
                tensor.n_bytes,
            )
            for tensor in tensors
        ),
        notes=(
            *(f"the file is damaged: {problem}" for problem in problems),
            *((F32_WARNING,) if header.ftype == 0 else ()),
        ),
    )


def _inspect_gguf_codec(file: GgufFile) -> Summary:
    codec = open_gguf_codec(file.path)
    spec = codec.spec
    return Summary(
        path=str(file.path),
        kind="EnCodec, as GGUF",
        n_bytes=file.size,
        sizes={**asdict(spec), "tensors": len(codec.tensors)},
        behaviour={"samples a frame": spec.hop_length, "frame rate (1/s)": spec.frame_rate},
        tokenizer={},
        provenance={
            name: file.keys[name]
            for name in file.keys
            if name.startswith(("general.", "encodec.source.", "encodec.converter."))
        },
        parts=(),
        groups=_sum_up(
            (name.partition(".")[0], tensor.ggml_type.name, tensor.n_elements, tensor.n_bytes)
            for name, tensor in file.tensors.items()
        ),
        notes=(),
    )


def _describe_model(model: Model) -> dict[str, Any]:
    config = model.config
    return {
        "sizes": {
            "width": config.n_embd,
            "layers": config.n_layer,
            "heads": config.n_head,
            "key/value heads": config.n_head_kv,
            "feed-forward width": config.n_ff,
            "context": config.n_ctx_train,
            "codebook levels": config.n_levels,
            "codes a codebook": config.codebook_size,
        },
        "behaviour": {
            "checkpoint version": config.version,
            "capabilities": list(config.capabilities),
            "positions": config.positions,
            "NAR attention": config.nar_attention,
            "prompt levels summed": config.sum_prompt,
            "response levels summed": config.sum_response,
            "codec": config.codec.name,
            "sample rate (Hz)": config.codec.sample_rate or None,
            "frame rate (1/s)": round(config.codec.frame_rate, 3) or None,
            "languages": list(model.languages),
            "tasks": list(model.tasks),
            "tones": list(model.tones),
        },
    }


def _parts(model: Model, sources: Mapping[str, str], fallback: str) -> Iterator[ModelPart]:
    for table in model.tables:
        source = sources.get(table.name, fallback)
        yield ModelPart("table", table.name, table.first_row, table.n_rows, source)
    for head in model.heads:
        source = sources.get(f"head.{head.name}", fallback)
        yield ModelPart("head", head.name, head.first_row, head.n_rows, source)


def _group(tensors: Iterable[tuple[str, str, int, int]]) -> tuple[WeightGroup, ...]:
    """Sum tensors up by purpose and type."""
    return _sum_up((_purpose(name), kind, weights, size) for name, kind, weights, size in tensors)


def _sum_up(tensors: Iterable[tuple[str, str, int, int]]) -> tuple[WeightGroup, ...]:
    """One group for each purpose and type, in the order that they come."""
    groups: dict[tuple[str, str], list[int]] = {}
    for purpose, kind, n_weights, n_bytes in tensors:
        sums = groups.setdefault((purpose, kind), [0, 0, 0])
        for i, n in enumerate((1, n_weights, n_bytes)):
            sums[i] += n
    return tuple(WeightGroup(name, kind, *sums) for (name, kind), sums in groups.items())


def _purpose(name: str) -> str:
    """What a tensor of either kind of file is for."""
    for purpose, marks in (
        ("norms", ("norm",)),
        ("attention", ("attn", "self_attn")),
        ("feed-forward", ("ffn", "mlp", "linear1", "linear2")),
        ("heads", ("classifier", "predict_layer")),
        ("prompt tables", ("proms_emb",)),
        ("response tables", ("resps_emb",)),
        ("tables and heads", (TOKEN_EMBEDDING,)),
        ("other tables", ("_emb.", "embedding", "sep")),
    ):
        if any(mark in name for mark in marks):
            return purpose
    return "other"
