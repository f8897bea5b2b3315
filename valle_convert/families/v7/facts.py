"""Checkpoints of version 7, all codebooks at once: from config keys to tensor names.

A frame of audio is one element: an encoder makes one vector of its codes of all levels, and after
the backbone, one decoder per level gives the codes of that level. So it is an ordinary `gemma` for
llama.cpp between networks that no stock graph has. These are in a second file:

* `model` is the backbone with the tables that are looked up alone, phonemes first. If the decoders
  have their own norms, the backbone has no last one; its weights are ones.
* `audio` has the tables of codes, the encoders, the decoders, and every head.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from valle_convert.checkpoint import Checkpoint, TensorSpec
from valle_convert.checkpoint.source import FLOAT32
from valle_convert.families.gemma import PART, described
from valle_convert.model.description import (
    BackboneTensor,
    BiasBlock,
    Collector,
    ComputedTensors,
    Contents,
    Description,
    RowBlocks,
    blocks_of,
    count_numbered,
)
from valle_convert.model.spec import GemmaConfig, GemmaModel, RowMap
from valle_convert.model.trainer import (
    OUTPUT_NORM,
    ConfigReader,
    backbone_tensors,
    gemma_config,
    names_of_rows,
)

#: The part beside the backbone.
AUDIO = "audio"
VERSION = 7
#: Digits of a duration, and the values of each, unless it is in seconds.
LENGTH_DIGITS, DIGITS = 5, 10
#: The encoders by their input, with their names in the checkpoint.
ENCODERS = {"prompt": "proms_emb", "response": "resps_emb"}

# ------------------------------------------------------------------------- the config


@dataclass(frozen=True)
class VersionSevenConfig(GemmaConfig):
    """Sizes and switches; those of the encoders and decoders come from tensors."""

    encoder_norm: bool
    n_ff_encoder: int  # width of the encoders' feed-forward; 0 if they have none
    level_weights: bool
    #: Whether each level's decoder has a LayerNorm, instead of the backbone's last norm.
    level_norm: bool
    n_ff_decoder: int

    @property
    def stop_code(self) -> int:
        """The code after the last; heads have it too."""
        return self.codebook_size

    @property
    def mask_code(self) -> int:
        """The placeholder of an unknown code; only responses have it."""
        return self.codebook_size + 1


@dataclass(frozen=True)
class VersionSevenModel(GemmaModel[VersionSevenConfig]):
    """A model of version 7 without its weights."""

    audio: RowMap  # tables of codes and all heads, which are in the second file

    def is_causal(self, head: str) -> bool:
        """Whether a pass for that head attends only to earlier elements."""
        return self.config.nar_attention == "causal" or head in ("phonemes", "text")


# ------------------------------------------------------------------- tables and heads


#: The tables that are looked up alone, with their sources, in row order.
TABLES = {
    "phonemes": "phn_emb.weight",
    "text": "text_emb.weight",
    "language": "langs_emb.weight",
    "task": "tasks_emb.weight",
    "tone": "tones_emb.weight",
    "length": "len_emb",
    "separator": "sep",
}
#: Tables and heads that a model may lack.
_OPTIONAL = ("text", "language", "task", "tone")
_VECTORS = ("length", "separator")


def head_names(n_levels: int) -> dict[str, str]:
    """The heads with the prefixes of their names in the checkpoint, in row order."""
    levels = {f"level.{i}": f"audio_decoder.head.{i}.4" for i in range(n_levels)}
    others = {"length": "len_decoder", "phonemes": "phn_decoder", "text": "text_decoder"}
    return levels | {name: f"{decoder}.head" for name, decoder in others.items()}


def audio_sources(n_levels: int) -> dict[str, str]:
    """The rows of the second file, tables of codes and heads, with their sources, in row order."""
    tables = {
        f"{kind}.{i}": f"{source}.embs.{i}.weight"
        for kind, source in ENCODERS.items()
        for i in range(n_levels)
    }
    names = head_names(n_levels).items()
    return tables | {f"head.{name}": f"{source}.weight" for name, source in names}


def audio_tensors(config: VersionSevenConfig) -> tuple[BackboneTensor, ...]:
    """The tensors of the second file other than its rows."""
    d, levels = config.n_embd, config.n_levels
    tensors: list[BackboneTensor] = []

    def add(target: str, source: str, **shapes: tuple[int, ...]) -> None:
        tensors.extend(
            BackboneTensor(f"{source}.{kind}", f"{target}.{kind}", shape)
            for kind, shape in shapes.items()
        )

    def norm(target: str, source: str) -> None:
        add(target, source, weight=(d,), bias=(d,))

    def linear(target: str, source: str, n_out: int, n_in: int) -> None:
        add(target, source, weight=(n_out, n_in), bias=(n_out,))

    for kind, source in ENCODERS.items():
        prefix, shape = f"a.{kind}", (levels, d)
        position = f"{source}.pos_embedding"
        tensors.append(BackboneTensor(position, f"{prefix}.position_embd", shape, (1, *shape)))
        if config.encoder_norm:
            norm(f"{prefix}.norm", f"{source}.norm")
        if config.n_ff_encoder:
            linear(f"{prefix}.ffn_up", f"{source}.proj.0", config.n_ff_encoder, d)
            linear(f"{prefix}.ffn_down", f"{source}.proj.2", d, config.n_ff_encoder)
        if config.level_weights:
            add(prefix, source, level_weights=(levels,))
    for level in range(levels):
        prefix, source = f"a.level.{level}", f"audio_decoder.head.{level}"
        if config.level_norm:
            norm(f"{prefix}.norm", f"{source}.0")
        linear(f"{prefix}.ffn_up", f"{source}.1", config.n_ff_decoder, d)
        linear(f"{prefix}.ffn_down", f"{source}.3", d, config.n_ff_decoder)
    return tuple(tensors)


def contents_of(model: VersionSevenModel) -> dict[str, Contents]:
    """The sources of everything in the files, except ones instead of a missing last norm."""
    config, names = model.config, head_names(model.n_levels)
    backbone = backbone_tensors(config)
    rows = blocks_of(model.audio, audio_sources(config.n_levels))
    biases = (BiasBlock(h.name, f"{names[h.name]}.bias", h.n_rows) for h in model.audio.heads)
    return {
        PART: Contents(blocks_of(model, TABLES), backbone[: -1 if config.level_norm else None]),
        AUDIO: Contents(rows, audio_tensors(config), tuple(biases)),
    }


# --------------------------------------------------------------------------- describe


def describe(checkpoint: Checkpoint, codec: str | None = None) -> Description[VersionSevenModel]:
    reader = ConfigReader(checkpoint)
    common, claims = reader.common()
    collector = Collector(checkpoint.tensors.specs)
    found = {
        "codebook levels": count_numbered(collector.specs, "proms_emb.embs.{}.weight"),
        "codebook size": collector.rows_of("proms_emb.embs.0.weight"),
        "phonemes": collector.rows_of("phn_emb.weight"),
        "text tokens": collector.rows_of("text_emb.weight"),
    }
    values, notes = gemma_config(collector, claims, found, codec)
    config = VersionSevenConfig(
        **common,
        **values,
        encoder_norm="proms_emb.norm.weight" in collector.specs,
        n_ff_encoder=collector.rows_of("proms_emb.proj.0.weight"),
        level_weights="proms_emb.level_weights" in collector.specs,
        level_norm="audio_decoder.head.0.0.weight" in collector.specs,
        n_ff_decoder=collector.rows_of("audio_decoder.head.0.1.weight"),
    )
    _check_switches(reader, collector, config)
    rows = _rows(collector, TABLES, config)
    audio = _rows(collector, audio_sources(config.n_levels), config)
    model = VersionSevenModel(
        rows.tables,
        (),
        config,
        **names_of_rows(checkpoint),
        audio=RowMap(audio.tables, audio.heads),
    )
    description = described(checkpoint, reader, collector, model, contents_of(model), notes)
    if not config.level_norm:
        return description
    d, tensors = config.n_embd, ComputedTensors(checkpoint.tensors)
    spec = TensorSpec("no last norm", FLOAT32, "", (d,))
    ones = BackboneTensor(tensors.add(spec, lambda: np.ones(d, np.float32)), OUTPUT_NORM, (d,))
    main = description.contents[PART]
    contents = {**description.contents, PART: replace(main, backbone=(*main.backbone, ones))}
    return replace(description, tensors=tensors, contents=contents)


def _check_switches(reader: ConfigReader, collector: Collector, config: VersionSevenConfig) -> None:
    """Compare the config's values for encoders and decoders with the tensors."""
    length = collector.specs.get("len_decoder.head.weight")
    n_length = length.shape[0] if length and length.shape else 1
    for name, found in {
        "use_audio_encoder_norm": config.encoder_norm,
        "use_audio_encoder_ffn": config.n_ff_encoder > 0,
        "use_audio_encoder_level_weights": config.level_weights,
        "per_level_normalization": config.level_norm,
        "len_use_logits": n_length > 1,
    }.items():
        collector.agree(name, reader.optional_flag(name), found)
    for words, n_ff in (("encoder", config.n_ff_encoder), ("decoder", config.n_ff_decoder)):
        factor = reader.number(f"audio_{words}_ffn_expansion_size", 0)
        if factor and n_ff:
            collector.compare(f"{words} width", factor * config.n_embd, n_ff)
    reader.finish()
    if n_length not in (1, LENGTH_DIGITS * DIGITS):
        collector.faults.append(
            f"len_decoder.head.weight has {n_length} rows, expected 1 (seconds) or "
            f"{LENGTH_DIGITS * DIGITS} ({LENGTH_DIGITS} digits)"
        )


def _rows(
    collector: Collector, sources: Mapping[str, str], config: VersionSevenConfig
) -> RowBlocks:
    """The rows of one file; their number is the codec's, or the tensors'."""
    rows, codes = RowBlocks(), config.codebook_size
    # Responses have two more rows: the stop and the mask code.
    known = {"prompt": codes, "response": codes + 2, "head.level": codes + 1}
    known |= dict.fromkeys(_VECTORS, 1)
    for label, source in sources.items():
        table = label.removeprefix("head.")
        if table in _OPTIONAL and source not in collector.specs:
            continue
        # The heads of phonemes and text have as many rows as their tables.
        counted = source if table in _VECTORS else TABLES.get(table, source)
        there = collector.rows_of(counted if counted in collector.specs else source)
        n_rows = known.get(label.rstrip(".0123456789"))
        rows.add(label, source, max(1, there) if n_rows is None else n_rows)
    return rows
