"""Checkpoints of version 7, all codebooks at once: from config keys to tensor names.

A frame of audio is one element: an encoder makes one vector of its codes of all levels, and after
the backbone, one decoder per level gives the codes of that level. So it is an ordinary `gemma` for
llama.cpp between networks that no stock graph has. These are in a second file:

* `model` is the backbone with the tables that are looked up alone, phonemes first. If the decoders
  have their own norms, the backbone has no last one; its weights are ones.
* `audio` has the tables of codes, the encoders, the decoders, and every head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from valle_convert.checkpoint import Checkpoint, TensorSpec
from valle_convert.checkpoint.source import FLOAT32
from valle_convert.families.gemma import PART
from valle_convert.model.collector import Collector, count_numbered
from valle_convert.model.description import (
    BackboneTensor,
    BiasBlock,
    ComputedTensors,
    Contents,
    Description,
    RowBlocks,
)
from valle_convert.model.spec import GemmaConfig, GemmaModel, RowMap
from valle_convert.model.trainer import (
    DROPPED,
    OUTPUT_NORM,
    ConfigReader,
    backbone_tensors,
    gemma_config,
    names_of_rows,
    unread_notes,
)

#: The part beside the backbone.
AUDIO = "audio"
VERSION = 7
#: Digits of a duration, and the values of each, unless it is in seconds.
LENGTH_DIGITS, DIGITS = 5, 10
#: The encoders by their input, with their names in the checkpoint.
ENCODERS = {"prompt": "proms_emb", "response": "resps_emb"}

# ------------------------------------------------------------------------- the config

#: Switches that follow from the tensors, and may be in the config too.
_SWITCHES = (
    "use_audio_encoder_norm",
    "use_audio_encoder_ffn",
    "use_audio_encoder_level_weights",
    "per_level_normalization",
    "len_use_logits",
)


@dataclass(frozen=True)
class VersionSevenConfig(GemmaConfig):
    """Sizes and switches; those of the encoders and decoders come from tensors.

    Attributes:
        n_ff_encoder: width of the encoders' feed-forward; 0 if they have none.
        level_norm: whether each level's decoder has a LayerNorm, instead of the backbone's last
            norm.
    """

    encoder_norm: bool
    n_ff_encoder: int
    level_weights: bool
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
    """A model of version 7 without its weights.

    Attributes:
        audio: tables of codes and all heads, which are in the second file.
    """

    audio: RowMap

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


def audio_tensors(config: VersionSevenConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors of the second file other than its rows: name -> (source, shape)."""
    d, levels = config.n_embd, config.n_levels
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}

    def norm(target: str, source: str) -> None:
        for kind in ("weight", "bias"):
            tensors[f"{target}.{kind}"] = (f"{source}.{kind}", (d,))

    def linear(target: str, source: str, n_out: int, n_in: int) -> None:
        tensors[f"{target}.weight"] = (f"{source}.weight", (n_out, n_in))
        tensors[f"{target}.bias"] = (f"{source}.bias", (n_out,))

    for kind, source in ENCODERS.items():
        prefix = f"a.{kind}"
        tensors[f"{prefix}.position_embd"] = (f"{source}.pos_embedding", (levels, d))
        if config.encoder_norm:
            norm(f"{prefix}.norm", f"{source}.norm")
        if config.n_ff_encoder:
            linear(f"{prefix}.ffn_up", f"{source}.proj.0", config.n_ff_encoder, d)
            linear(f"{prefix}.ffn_down", f"{source}.proj.2", d, config.n_ff_encoder)
        if config.level_weights:
            tensors[f"{prefix}.level_weights"] = (f"{source}.level_weights", (levels,))
    for level in range(levels):
        prefix, source = f"a.level.{level}", f"audio_decoder.head.{level}"
        if config.level_norm:
            norm(f"{prefix}.norm", f"{source}.0")
        linear(f"{prefix}.ffn_up", f"{source}.1", config.n_ff_decoder, d)
        linear(f"{prefix}.ffn_down", f"{source}.3", d, config.n_ff_decoder)
    return tensors


# --------------------------------------------------------------------------- describe


def describe(checkpoint: Checkpoint, codec: str | None = None) -> Description[VersionSevenModel]:
    reader = ConfigReader(checkpoint)
    said = reader.common()
    switches = {name: reader.optional_flag(name) for name in _SWITCHES}
    factors = {
        words: reader.number(f"audio_{words}_ffn_expansion_size", 0)
        for words in ("encoder", "decoder")
    }
    reader.finish()
    collector = Collector(checkpoint.tensors.specs)
    found = {
        "codebook levels": count_numbered(collector.specs, "proms_emb.embs.{}.weight"),
        "codes a codebook": collector.rows_of("proms_emb.embs.0.weight"),
        "phonemes": collector.rows_of("phn_emb.weight"),
        "text tokens": collector.rows_of("text_emb.weight"),
    }
    common, notes = gemma_config(collector, said, found, codec)
    config = VersionSevenConfig(
        **common,
        encoder_norm="proms_emb.norm.weight" in collector.specs,
        n_ff_encoder=collector.rows_of("proms_emb.proj.0.weight"),
        level_weights="proms_emb.level_weights" in collector.specs,
        level_norm="audio_decoder.head.0.0.weight" in collector.specs,
        n_ff_decoder=collector.rows_of("audio_decoder.head.0.1.weight"),
    )
    _check_switches(collector, config, switches, factors)
    rows = _rows(collector, config)
    audio_rows, biases = _audio_rows(collector, config)
    norm = "model.norm.weight"
    tensors = ComputedTensors(checkpoint.tensors)
    if config.level_norm:
        d = config.n_embd
        spec = TensorSpec("no last norm", FLOAT32, "", (d,))
        norm = tensors.add(spec, lambda: np.ones(d, np.float32))
    backbone = backbone_tensors(config, norm)
    for tensor in backbone:
        if not (config.level_norm and tensor.target == OUTPUT_NORM):
            collector.take(tensor.source, tensor.shape)
    audio = []
    for target, (source, shape) in audio_tensors(config).items():
        collector.take(source, (1, *shape) if source.endswith("pos_embedding") else shape)
        audio.append(BackboneTensor(source, target, shape))
    dropped = collector.finish(
        f"{checkpoint.path} does not fit its config ({checkpoint.config_source})",
        "Give the config that belongs to these weights with --config.",
        DROPPED,
    )
    model = VersionSevenModel(
        rows.tables,
        (),
        config,
        **names_of_rows(checkpoint),
        audio=RowMap(audio_rows.tables, audio_rows.heads),
    )
    return Description(
        model,
        tensors,
        {
            PART: Contents(tuple(rows), backbone),
            AUDIO: Contents(tuple(audio_rows), tuple(audio), biases),
        },
        tuple(dropped),
        (*notes, *unread_notes(checkpoint.config)),
        tuple(reader.assumed),
    )


def _check_switches(
    collector: Collector,
    config: VersionSevenConfig,
    switches: Mapping[str, bool | None],
    factors: Mapping[str, int],
) -> None:
    """Compare the config's values for encoders and decoders with the tensors."""
    length = collector.specs.get("len_decoder.head.weight")
    n_length = length.shape[0] if length and length.shape else 1
    found = {
        "use_audio_encoder_norm": config.encoder_norm,
        "use_audio_encoder_ffn": config.n_ff_encoder > 0,
        "use_audio_encoder_level_weights": config.level_weights,
        "per_level_normalization": config.level_norm,
        "len_use_logits": n_length > 1,
    }
    for name, value in found.items():
        if switches[name] not in (None, value):
            collector.faults.append(
                f"{name} is {switches[name]} in the config, but {value} by the weights"
            )
    for words, n_ff in (("encoder", config.n_ff_encoder), ("decoder", config.n_ff_decoder)):
        if factors[words] and n_ff:
            collector.compare(f"{words} width", factors[words] * config.n_embd, n_ff)
    if n_length not in (1, LENGTH_DIGITS * DIGITS):
        collector.faults.append(
            f"len_decoder.head.weight has {n_length} rows, expected 1 (seconds) or "
            f"{LENGTH_DIGITS * DIGITS} ({LENGTH_DIGITS} digits)"
        )


def _rows(collector: Collector, config: VersionSevenConfig) -> RowBlocks:
    rows = RowBlocks()
    for name, source in TABLES.items():
        if name in _OPTIONAL and source not in collector.specs:
            continue
        is_vector = name in _VECTORS
        n_rows = 1 if is_vector else max(1, collector.rows_of(source))
        collector.take(source, (config.n_embd,) if is_vector else (n_rows, config.n_embd))
        rows.add(name, source, n_rows)
    return rows


def _audio_rows(
    collector: Collector, config: VersionSevenConfig
) -> tuple[RowBlocks, tuple[BiasBlock, ...]]:
    """Tables of codes and heads, one after the other, and the heads' biases."""
    rows, codes = RowBlocks(), config.codebook_size
    # Responses have two more rows: the stop and the mask code.
    for kind, n_rows in (("prompt", codes), ("response", codes + 2)):
        for i in range(config.n_levels):
            rows.add(f"{kind}.{i}", f"{ENCODERS[kind]}.embs.{i}.weight", n_rows)
    biases: list[BiasBlock] = []
    for name, source in head_names(config.n_levels).items():
        weight = f"{source}.weight"
        if name in _OPTIONAL and weight not in collector.specs:
            continue
        n_rows = codes + 1
        if not name.startswith("level."):
            # For phonemes and text, as many as their tables have; for the length, all.
            table = "" if name == "length" else TABLES.get(name, "")
            n_rows = max(1, collector.rows_of(table if table in collector.specs else weight))
        rows.add(f"head.{name}", weight, n_rows)
        collector.take(f"{source}.bias", (n_rows,))
        biases.append(BiasBlock(name, f"{source}.bias", n_rows))
    for block in rows:
        collector.take(block.source, (block.n_rows, config.n_embd))
    return rows, tuple(biases)
