"""The contents of a checkpoint, a GGUF file or a codec, as one frozen summary."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from valle_convert.checkpoint import Checkpoint, read_checkpoint
from valle_convert.checkpoint.folder import (
    INDEX_SUFFIX,
    LATEST,
    SAFETENSORS_SUFFIXES,
    TORCH_SUFFIXES,
    Tree,
    is_on_hub,
)
from valle_convert.checkpoint.lora import LoraFile
from valle_convert.checkpoint.safetensors_file import WeightsNeededError
from valle_convert.encodec.cpp_file import F32_WARNING, open_cpp_file
from valle_convert.encodec.gguf_codec import open_gguf_codec
from valle_convert.encodec.weights import EncodecWeights
from valle_convert.errors import InputError
from valle_convert.families import family_of, family_of_file
from valle_convert.families.bundle import Bundle, fetched, open_files, part_of
from valle_convert.families.family import AnyFamily, Choices
from valle_convert.files import check_input_file
from valle_convert.gguf_file.keys import SOURCE_CONFIG_KEY, SOURCE_SYMMAP_KEY, is_converted
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING
from valle_convert.gguf_file.read import GgufFile, look_at
from valle_convert.model.description import Description
from valle_convert.tokenizer.compiled import TOKENIZER_SHA256_KEY, TOKENS_KEY
from valle_convert.wording import plural


@dataclass(frozen=True)
class RowsOf:
    kind: str
    name: str
    first_row: int
    n_rows: int
    source: str


@dataclass(frozen=True)
class WeightGroup:
    name: str
    type: str
    n_tensors: int
    n_weights: int
    n_bytes: int


@dataclass(frozen=True)
class Summary:
    """The contents of a file. Sizes and rows are empty for a GGUF file of another kind."""

    path: str
    kind: str
    n_bytes: int
    sizes: Mapping[str, Any]
    behaviour: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    provenance: Mapping[str, Any]
    rows: tuple[RowsOf, ...]
    groups: tuple[WeightGroup, ...]
    notes: tuple[str, ...]


def inspect_file(
    path: Path, *, config: Path | None = None, lora: Sequence[LoraFile] = ()
) -> Summary:
    """Inspect a checkpoint, a GGUF file or a codec of encodec.cpp, without reading weights.

    On the hub, only the header of safetensors is downloaded, unless weights decide the family;
    other files are downloaded completely.
    """
    if is_on_hub(path) and path.suffix == ".gguf":
        return replace(inspect_file(fetched(path), config=config, lora=lora), path=str(path))
    read = partial(read_checkpoint, path, config=config, lora=lora)
    if is_on_hub(path):
        try:
            return _inspect_checkpoint(read(headers_only=True))
        except WeightsNeededError:
            return _inspect_checkpoint(read())
    if not os.path.isdir(path):  # noqa: PTH112 - no exception for a closed folder
        check_input_file(path)
    kind, file = look_at(path)
    if kind == "other":
        return _inspect_checkpoint(read())
    if config or lora:
        raise InputError(
            f"--config and --lora are only for checkpoints; leave them out for {path}."
        )
    if not isinstance(file, GgufFile):
        return _inspect_codec(open_cpp_file(path), {})
    if kind == "codec":
        return _inspect_codec(open_gguf_codec(file), file.keys)
    return _inspect_gguf(file)


def models_in(folder: Path) -> list[Path]:
    """The GGUF files of a folder, only the main one of a set; none if it may hold a checkpoint."""
    names = Tree().files(folder)
    weights = (*SAFETENSORS_SUFFIXES, *TORCH_SUFFIXES, INDEX_SUFFIX)
    if any(name.endswith(weights) or name == LATEST for name in names):
        return []
    files = [GgufFile(folder / name, allow_part=True) for name in names if name.endswith(".gguf")]
    return [one.path for one in files if not (is_converted(one.keys) and part_of(one))]


def _inspect_checkpoint(checkpoint: Checkpoint) -> Summary:
    family = family_of(checkpoint)
    description = family.describe(checkpoint, Choices())
    sizes, behaviour = _words(family, description.model)
    return Summary(
        path=str(checkpoint.given or checkpoint.path),
        kind=f"{family.title} checkpoint ({checkpoint.container})",
        n_bytes=checkpoint.n_bytes,
        sizes=sizes,
        behaviour=behaviour,
        tokenizer={
            "vocabulary": f"{plural(len(checkpoint.symmap), 'string')} in the checkpoint"
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
        rows=tuple(_rows(family, description.model, description)),
        groups=_group(
            (name, spec.dtype_name, spec.n_elements, spec.n_bytes)
            for name, spec in checkpoint.tensors.specs.items()
        ),
        notes=(
            *checkpoint.notes,
            *(
                f"assumed, since the file lacks it: {words}"
                for words in (*checkpoint.assumed, *description.assumed)
            ),
            *(f"lost in this file: {words}" for words in checkpoint.lost),
            *(f"left out when converted: {d.source} ({d.reason})" for d in description.dropped),
            *description.notes,
        ),
    )


def _words(family: AnyFamily, model: Any) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: ANN401
    sizes, behaviour = family.summary(model)
    codec = model.codec
    return (
        {**sizes, "codebook levels": model.n_levels, "codebook size": model.codebook_size},
        {
            **behaviour,
            "codec": codec.name,
            "sample rate (Hz)": codec.sample_rate or None,
            "frame rate (1/s)": round(codec.frame_rate, 3) or None,
        },
    )


def _rows(
    family: AnyFamily,
    model: Any,  # noqa: ANN401 - the family's own
    description: Description[Any] | None = None,
) -> Iterator[RowsOf]:
    """Tables and heads of every part; the source is the checkpoint's tensor, if known."""
    parts = list(family.tables_and_heads(model))
    for part, tables, heads in parts:
        blocks = description.contents[part].rows if description else ()
        sources = {block.first_row: block.source for block in blocks}
        label = f"{part}: " if len(parts) > 1 else ""
        twins = {table.first_row: table.name for table in tables}
        for kind, entries in (("table", tables), ("head", heads)):
            for one in entries:
                source = sources.get(one.first_row, TOKEN_EMBEDDING)
                if kind == "head" and one.first_row in twins:
                    source = f"the rows of {twins[one.first_row]}"
                yield RowsOf(kind, f"{label}{one.name}", one.first_row, one.n_rows, source)


def _provenance(file: GgufFile) -> dict[str, Any]:
    ours = ("source", "converter", "quantize", "adapter")
    kept = ("general.", "split.", "adapter.", *(f"valle.{name}." for name in ours))
    long = (SOURCE_CONFIG_KEY, SOURCE_SYMMAP_KEY)
    names = [name for name in file.keys if name.startswith(kept) and name not in long]
    return {name: file.keys[name] for name in names}


def _inspect_gguf(file: GgufFile) -> Summary:
    """A complete model from its main file; the contents of any other file."""
    keys, family = file.keys, family_of_file(file)
    bundle = open_files(file) if is_converted(keys) and not part_of(file) else None
    sizes, behaviour = _words(family, bundle.model) if bundle else ({}, {})
    held = tuple(bundle.files.values()) if bundle else (file,)
    tokens = keys.get(TOKENS_KEY)
    merges = keys.get("tokenizer.ggml.merges")
    others = ", ".join(one.path.name for one in held[1:])
    return Summary(
        path=str(file.path),
        kind=_kind_of(file, bundle),
        n_bytes=sum(one.size for one in held),
        sizes=sizes,
        behaviour=behaviour,
        tokenizer={
            "model": keys.get("tokenizer.ggml.model"),
            "pre": keys.get("tokenizer.ggml.pre"),
            "tokens": len(tokens) if isinstance(tokens, list) else None,
            "merges": len(merges) if isinstance(merges, list) else None,
            "source": keys.get("valle.tokenizer.source"),
            "reason": keys.get("valle.tokenizer.reason"),
            "sha256": keys.get(TOKENIZER_SHA256_KEY),
        },
        provenance=_provenance(file),
        rows=tuple(_rows(family, bundle.model)) if bundle else (),
        groups=_group(
            (name, tensor.ggml_type.name, tensor.n_elements, tensor.n_bytes)
            for one in held
            for name, tensor in one.tensors.items()
        ),
        notes=(*([f"its other files: {others}"] if others else []), *_notes(file)),
    )


def _kind_of(file: GgufFile, bundle: Bundle | None) -> str:
    family = family_of_file(file)
    if bundle is not None:
        files = f", {len(bundle.files)} files" if len(bundle.files) > 1 else ""
        return f"GGUF, {family.title}{files}"
    if is_converted(file.keys):
        level = file.keys.get("valle.level", "")
        return f"GGUF, {family.title}: {part_of(file)} {level}".rstrip()
    if family.refusal(file):
        return f"GGUF, {family.title}, made by another converter"
    if file.keys.get("general.type") == "adapter":
        return "GGUF, LoRA adapter"
    return "GGUF, not made from a VALL-E checkpoint"


def _notes(file: GgufFile) -> Iterator[str]:
    """Notes on a file from somebody else."""
    refusal = family_of_file(file).refusal(file)
    if refusal:
        yield refusal
    if is_converted(file.keys) and part_of(file):
        yield "one part of a set: give its main file to see the whole"
    elif file.is_part:
        yield "one part of a split model: only inspect accepts it"
    for name in file.keys:
        if name.startswith("tokenizer.chat_template"):
            yield f"{name}: a program that other programs may run, {len(file.raw(name)):,} bytes"


def _inspect_codec(codec: EncodecWeights, keys: Mapping[str, Any]) -> Summary:
    spec = codec.spec
    return Summary(
        path=str(codec.files[0]),
        kind="EnCodec, as encodec.cpp loads it" if codec.is_cpp else "EnCodec, as GGUF",
        n_bytes=codec.files[0].stat().st_size,
        sizes={**asdict(spec), "tensors": len(codec.tensors)},
        behaviour={
            "samples a frame": spec.hop_length,
            "frame rate (1/s)": spec.frame_rate,
            "levels at its bandwidth": spec.levels_at(spec.target_bandwidths[-1]),
        },
        tokenizer={},
        provenance={
            name: keys[name]
            for name in keys
            if name.startswith(("general.", "encodec.source.", "encodec.converter."))
        },
        rows=(),
        groups=_group(
            (
                (entry.name, "F16", entry.n_elements, 2 * entry.n_elements)
                if entry.name in codec.halves
                else (entry.name, "F32", entry.n_elements, 4 * entry.n_elements)
                for entry in codec.tensors
            ),
            lambda name: name.partition(".")[0],
        ),
        notes=(F32_WARNING,) if codec.is_cpp and not codec.halves else (),
    )


def _purpose(name: str) -> str:
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


def _group(
    tensors: Iterable[tuple[str, str, int, int]], purpose_of: Callable[[str], str] = _purpose
) -> tuple[WeightGroup, ...]:
    """One group for each purpose and type, in the order of the tensors."""
    groups: dict[tuple[str, str], list[int]] = {}
    for name, kind, n_weights, n_bytes in tensors:
        sums = groups.setdefault((purpose_of(name), kind), [0, 0, 0])
        for i, n in enumerate((1, n_weights, n_bytes)):
            sums[i] += n
    return tuple(WeightGroup(name, kind, *sums) for (name, kind), sums in groups.items())
