"""Checkpoints of versions 5 and 6: from config keys to tensor names.

Read from top to bottom: the switches of the config, the sizes, the input tables, the heads, the
backbone, dropped tensors, and `describe`, which combines them.

Two facts make the model an ordinary `gemma` for llama.cpp:
* its input tables and heads are all rows of one tied token embedding (inputs are fed as
  sums of rows, and the logits of a head are a slice of all logits);
* the backbone is unchanged except for names: q and k are not permuted, since both sides rotate
  the halves of a head, and norm weights are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import UnsupportedModelError
from valle_convert.families.gemma import PART
from valle_convert.model.collector import Collector, count_numbered
from valle_convert.model.description import (
    BiasBlock,
    Contents,
    Description,
    Dropped,
    RowBlock,
    RowBlocks,
)
from valle_convert.model.spec import LENGTH_STOP, Head, Model, ModelConfig
from valle_convert.model.trainer import (
    DROPPED,
    SUPPORTED,
    ConfigReader,
    TrainerConfig,
    backbone_tensors,
    gemma_config,
    names_of_rows,
    unread_notes,
    version_of,
)

VERSIONS = (5, 6)

# ------------------------------------------------------------------------- the config


@dataclass(frozen=True)
class _Switches:
    """The parsed config; its sizes are checked against the tensors."""

    common: TrainerConfig
    kv_heads: int
    split: bool | None
    bias: bool | None
    sum_prompt: bool
    sum_response: bool
    assumed: tuple[str, ...]


def _read_switches(checkpoint: Checkpoint) -> _Switches:
    reader = ConfigReader(checkpoint)
    common = reader.common()
    sums = reader.switch("audio_embedding_sums")
    if not (isinstance(sums, bool) or sums in ("prom", "resp")):
        reader.faults.append(
            f"experimental.audio_embedding_sums is {sums!r}, expected true, false, 'prom' or 'resp'"
        )
    kv_heads = reader.number("kv_heads", 0)
    if kv_heads and (kv_heads > common.heads or common.heads % kv_heads):
        reader.faults.append(
            f"experimental.kv_heads {kv_heads} does not divide {common.heads} heads"
        )
    switches = _Switches(
        common=common,
        kv_heads=kv_heads,
        split=reader.optional_flag("split_classifiers"),
        bias=reader.optional_flag("classifiers_bias"),
        sum_prompt=sums in (True, "prom"),
        sum_response=sums in (True, "resp"),
        assumed=tuple(reader.assumed),
    )
    reader.finish()
    return switches


# ------------------------------------------------------------------- tables and heads


@dataclass(frozen=True)
class _TableRule:
    """An input table: its name, its source tensor, and its number of rows.

    `rows` is None if the tensor itself decides; `needed` is true if a model with these capabilities
    requires the table.
    """

    name: str
    source: str
    rows: int | None
    needed: bool = True


def _table_rules(config: ModelConfig) -> list[_TableRule]:
    """The input tables in row order. Phonemes come first: a phoneme's row is its id."""
    levels, n_codes, capabilities = config.n_levels, config.codebook_size, config.capabilities
    return [
        _TableRule("phonemes", "text_emb.weight", None),
        _TableRule("text", "raw_text_emb.weight", None, needed=False),
        _TableRule("level", "rvq_l_emb.weight", levels),
        _TableRule("language", "langs_emb.weight", None, needed="lang" in capabilities),
        _TableRule("task", "tasks_emb.weight", None),
        _TableRule("length", "len_emb.weight", LENGTH_STOP + 1, needed="len" in capabilities),
        _TableRule("tone", "tones_emb.weight", None, needed="tone" in capabilities),
        _TableRule("separator", "sep", 1),
        *(
            _TableRule(f"prompt.{i}", f"proms_emb.embeddings.{i}.weight", n_codes)
            for i in range(levels)
        ),
        # The first and the last response table have one more row: the stop and the mask code.
        _TableRule("response.ar", "resps_emb.embeddings.0.weight", n_codes + 1),
        *(
            _TableRule(f"response.{i}", f"resps_emb.embeddings.{i}.weight", n_codes)
            for i in range(1, levels)
        ),
        _TableRule("response.mask", f"resps_emb.embeddings.{levels}.weight", n_codes + 1),
    ]


def _head_rows(config: ModelConfig, n_phonemes: int, n_text: int) -> dict[str, int]:
    """The heads in the checkpoint's order, with their rows; without `n_text` none for text."""
    rows = {"ar": config.codebook_size + 1}
    rows |= {f"nar.{level}": config.codebook_size for level in range(1, config.n_levels)}
    rows |= {"mask": config.codebook_size, "stt": n_phonemes}
    if "len" in config.capabilities:
        rows["len"] = LENGTH_STOP + 1
    if config.version >= 6 and n_text:
        rows["text"] = n_text
    return rows


# --------------------------------------------------------------------------- describe


def check_version(checkpoint: Checkpoint) -> None:
    """Reject every version except 5 and 6."""
    version = version_of(checkpoint)
    if version in VERSIONS:
        return
    if version < min(VERSIONS):
        kind = f"version {version} (older than the layout with one head a level)"
    else:
        kind = f"version {version}, which is unknown"
    raise UnsupportedModelError(
        f"{checkpoint.path} is a checkpoint of {kind}; supported are {SUPPORTED}."
    )


def describe(checkpoint: Checkpoint, codec: str | None = None) -> Description[Model]:
    """Understand a checkpoint of version 5 or 6."""
    check_version(checkpoint)
    switches = _read_switches(checkpoint)
    collector = Collector(checkpoint.tensors.specs)
    n_phonemes, n_text = map(collector.rows_of, ("text_emb.weight", "raw_text_emb.weight"))
    found = {
        "codebook levels": count_numbered(collector.specs, "proms_emb.embeddings.{}.weight"),
        "codes a codebook": collector.rows_of("proms_emb.embeddings.0.weight"),
        "phonemes": n_phonemes,
        "text tokens": n_text,
    }
    common, notes = gemma_config(collector, switches.common, found, codec, switches.kv_heads)
    config = ModelConfig(
        **common, sum_prompt=switches.sum_prompt, sum_response=switches.sum_response
    )
    rows = RowBlocks()
    for rule in _table_rules(config):
        if rule.needed or rule.source in collector.specs:
            there = max(1, collector.rows_of(rule.source))
            n_rows = there if rule.rows is None else rule.rows
            is_vector = rule.name == "separator"
            shape = (config.n_embd,) if is_vector else (n_rows, config.n_embd)
            collector.take(rule.source, shape)
            rows.add(rule.name, rule.source, n_rows)
    tables = rows.tables
    split = _is_split(collector, switches)
    head_rows = _head_rows(config, n_phonemes, n_text if split else 0)
    heads, biases, dropped = _heads(collector, switches, head_rows, rows, config, split=split)
    backbone = backbone_tensors(config)
    for tensor in backbone:
        collector.take(tensor.source, tensor.shape)
    dropped += collector.finish(
        f"{checkpoint.path} does not fit its config ({checkpoint.config_source})",
        "Give the config that belongs to these weights with --config.",
        DROPPED,
    )
    return Description(
        Model(tables, heads, config, **names_of_rows(checkpoint)),
        checkpoint.tensors,
        {PART: Contents(tuple(rows), backbone, biases)},
        tuple(dropped),
        (*notes, *unread_notes(checkpoint.config)),
        switches.assumed,
    )


def contents_of(model: Model) -> Contents:
    """The sources of a converted file's rows and tensors, from its model alone."""
    sources = {rule.name: rule.source for rule in _table_rules(model.config)}
    rows = [RowBlock(t.name, sources[t.name], t.first_row, t.n_rows) for t in model.tables]
    biases: list[BiasBlock] = []
    split = len({head.first_row for head in model.heads}) == len(model.heads)
    for k, head in enumerate(model.heads):
        source = f"classifiers.proj.{k}" if split else "classifier"
        if split:
            name = f"head.{head.name}"
            rows.append(RowBlock(name, f"{source}.weight", head.first_row, head.n_rows))
        if head.bias is not None:
            biases.append(BiasBlock(head.name, f"{source}.bias", head.n_rows))
    if not split:
        first = model.heads[0].first_row
        n_rows = max(head.n_rows for head in model.heads)
        rows.append(RowBlock("head.classifier", "classifier.weight", first, n_rows))
    return Contents(tuple(rows), backbone_tensors(model.config), tuple(biases))


def _is_split(collector: Collector, switches: _Switches) -> bool:
    single = "classifier.weight" in collector.specs
    split = "classifiers.proj.0.weight" in collector.specs
    if switches.split is not None and single != split and switches.split is not split:
        collector.faults.append(
            f"split_classifiers is {switches.split} in the config, but the weights have "
            f"{'classifiers.proj.*' if split else 'one classifier'}"
        )
    return split or not single


def _heads(
    collector: Collector,
    switches: _Switches,
    head_rows: dict[str, int],
    rows: RowBlocks,
    config: ModelConfig,
    *,
    split: bool,
) -> tuple[tuple[Head, ...], tuple[BiasBlock, ...], list[Dropped]]:
    """Heads with their own rows, or sharing the first rows of the one classifier."""
    dropped: list[Dropped] = []
    if split:
        sources = {name: f"classifiers.proj.{k}" for k, name in enumerate(head_rows)}
        for name, source in sources.items():
            collector.take(f"{source}.weight", (head_rows[name], config.n_embd))
            rows.add(f"head.{name}", f"{source}.weight", head_rows[name])
        heads = rows.heads
        has_bias = "classifiers.proj.0.bias" in collector.specs
    else:
        sources = dict.fromkeys(head_rows, "classifier")
        n_read, n_there = max(head_rows.values()), collector.rows_of("classifier.weight")
        collector.take("classifier.weight", (max(n_there, n_read), config.n_embd))
        heads = tuple(Head(name, rows.n_rows, n_rows) for name, n_rows in head_rows.items())
        rows.add("head.classifier", "classifier.weight", n_read)
        has_bias = "classifier.bias" in collector.specs
        if n_there > n_read:
            unread = f"rows {n_read} to {n_there - 1} are read by no head"
            dropped += [
                Dropped(f"classifier.{kind}", unread) for kind in ("weight", "bias")[: 1 + has_bias]
            ]
    if switches.bias is not None and switches.bias != has_bias:
        collector.faults.append(
            f"classifiers_bias is {switches.bias} in the config, but the weights have "
            f"{'biases' if has_bias else 'none'}"
        )
    if not has_bias:
        return heads, (), dropped
    for name, source in sources.items():
        n_rows = head_rows[name] if split else collector.rows_of("classifier.weight")
        collector.take(f"{source}.bias", (n_rows,))
    biases = (BiasBlock(name, f"{sources[name]}.bias", n) for name, n in head_rows.items())
    return heads, tuple(biases), dropped
