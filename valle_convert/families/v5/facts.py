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
)
from valle_convert.model.spec import LENGTH_STOP, Head, Model, ModelConfig, Table, choose_codec
from valle_convert.model.trainer import (
    DROPPED,
    SUPPORTED,
    ConfigReader,
    TrainerConfig,
    backbone_tensors,
    check_claims,
    count_layers,
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
class _Sizes:
    """Sizes read from the tensors' shapes."""

    n_embd: int
    n_levels: int
    codebook_size: int
    n_phonemes: int


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


def _table_rules(sizes: _Sizes, capabilities: tuple[str, ...]) -> list[_TableRule]:
    """The input tables in row order. Phonemes come first: a phoneme's row is its id."""
    n_levels, n_codes = sizes.n_levels, sizes.codebook_size
    return [
        _TableRule("phonemes", "text_emb.weight", None),
        _TableRule("text", "raw_text_emb.weight", None, needed=False),
        _TableRule("level", "rvq_l_emb.weight", n_levels),
        _TableRule("language", "langs_emb.weight", None, needed="lang" in capabilities),
        _TableRule("task", "tasks_emb.weight", None),
        _TableRule("length", "len_emb.weight", LENGTH_STOP + 1, needed="len" in capabilities),
        _TableRule("tone", "tones_emb.weight", None, needed="tone" in capabilities),
        _TableRule("separator", "sep", 1),
        *(
            _TableRule(f"prompt.{i}", f"proms_emb.embeddings.{i}.weight", n_codes)
            for i in range(n_levels)
        ),
        # The first and the last response table have one more row: the stop and the mask code.
        _TableRule("response.ar", "resps_emb.embeddings.0.weight", n_codes + 1),
        *(
            _TableRule(f"response.{i}", f"resps_emb.embeddings.{i}.weight", n_codes)
            for i in range(1, n_levels)
        ),
        _TableRule("response.mask", f"resps_emb.embeddings.{n_levels}.weight", n_codes + 1),
    ]


def _head_rows(
    sizes: _Sizes, version: int, capabilities: tuple[str, ...], text_rows: int, *, split: bool
) -> list[tuple[str, int]]:
    """The heads in the checkpoint's order, with their rows."""
    n_levels, n_codes = sizes.n_levels, sizes.codebook_size
    heads = [("ar", n_codes + 1)]
    heads += [(f"nar.{level}", n_codes) for level in range(1, n_levels)]
    heads += [("mask", n_codes), ("stt", sizes.n_phonemes)]
    if "len" in capabilities:
        heads.append(("len", LENGTH_STOP + 1))
    if version >= 6 and split and text_rows:
        heads.append(("text", text_rows))
    return heads


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
    common = switches.common
    specs = checkpoint.tensors.specs
    collector = Collector(specs)

    sizes = _Sizes(
        n_embd=common.dim,
        n_levels=count_numbered(specs, "proms_emb.embeddings.{}.weight"),
        codebook_size=collector.rows_of("proms_emb.embeddings.0.weight"),
        n_phonemes=collector.rows_of("text_emb.weight"),
    )
    n_layer, n_ff = count_layers(collector)
    n_head_kv = switches.kv_heads or common.heads
    found_sizes = {
        "codebook levels": sizes.n_levels,
        "codes a codebook": sizes.codebook_size,
        "phonemes": sizes.n_phonemes,
        "text tokens": collector.rows_of("raw_text_emb.weight"),
        "languages": collector.rows_of("langs_emb.weight"),
        "tasks": collector.rows_of("tasks_emb.weight"),
        "tones": collector.rows_of("tones_emb.weight"),
        "feed-forward width": n_ff,
    }
    check_claims(collector, common, n_layer, found_sizes)

    tables: list[Table] = []
    rows: list[RowBlock] = []
    next_row = 0
    for rule in _table_rules(sizes, common.capabilities):
        if not rule.needed and rule.source not in specs:
            continue
        n_rows = rule.rows if rule.rows is not None else max(1, collector.rows_of(rule.source))
        shape = (sizes.n_embd,) if rule.name == "separator" else (n_rows, sizes.n_embd)
        collector.take(rule.source, shape)
        tables.append(Table(rule.name, next_row, n_rows))
        rows.append(RowBlock(rule.name, rule.source, next_row, n_rows))
        next_row += n_rows

    split = _is_split(collector, switches)
    head_rows = _head_rows(
        sizes,
        common.version,
        common.capabilities,
        collector.rows_of("raw_text_emb.weight"),
        split=split,
    )
    heads, head_blocks, biases, dropped = _heads(
        collector, switches, head_rows, next_row, sizes.n_embd, split=split
    )
    rows += head_blocks

    dims = {
        "n_embd": sizes.n_embd,
        "n_embd_kv": sizes.n_embd // common.heads * n_head_kv,
        "n_ff": n_ff,
    }
    backbone = backbone_tensors(n_layer, dims)
    for tensor in backbone:
        collector.take(tensor.source, tensor.shape)
    dropped += collector.finish(
        f"{checkpoint.path} does not fit its config ({checkpoint.config_source})",
        "Give the config that belongs to these weights with --config.",
        DROPPED,
    )

    chosen, notes = choose_codec(codec, sizes.n_levels, sizes.codebook_size)
    config = ModelConfig(
        version=common.version,
        capabilities=common.capabilities,
        n_embd=sizes.n_embd,
        n_layer=n_layer,
        n_head=common.heads,
        n_head_kv=n_head_kv,
        n_ff=n_ff,
        n_ctx_train=common.context,
        n_levels=sizes.n_levels,
        codebook_size=sizes.codebook_size,
        positions="unified" if common.unified else "segment",
        nar_attention="bidirectional" if common.noncausal else "causal",
        sum_prompt=switches.sum_prompt,
        sum_response=switches.sum_response,
        codec=chosen,
    )
    languages, tasks, tones = names_of_rows(checkpoint)
    model = Model(
        config=config,
        tables=tuple(tables),
        heads=tuple(heads),
        languages=languages,
        tasks=tasks,
        tones=tones,
    )
    return Description(
        model,
        checkpoint.tensors,
        {PART: Contents(tuple(rows), tuple(backbone), tuple(biases))},
        tuple(dropped),
        (*notes, *unread_notes(checkpoint.config)),
        switches.assumed,
    )


def contents_of(model: Model) -> Contents:
    """The sources of a converted file's rows and tensors, from its model alone."""
    config = model.config
    sizes = _Sizes(
        n_embd=config.n_embd,
        n_levels=config.n_levels,
        codebook_size=config.codebook_size,
        n_phonemes=model.table("phonemes").n_rows,
    )
    sources = {rule.name: rule.source for rule in _table_rules(sizes, config.capabilities)}
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
    dims = {
        "n_embd": config.n_embd,
        "n_embd_kv": config.n_embd_head * config.n_head_kv,
        "n_ff": config.n_ff,
    }
    backbone = backbone_tensors(config.n_layer, dims)
    return Contents(tuple(rows), tuple(backbone), tuple(biases))


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
    head_rows: list[tuple[str, int]],
    first_row: int,
    n_embd: int,
    *,
    split: bool,
) -> tuple[list[Head], list[RowBlock], list[BiasBlock], list[Dropped]]:
    """Heads with their own rows, or sharing the first rows of the one classifier."""
    heads: list[Head] = []
    blocks: list[RowBlock] = []
    biases: list[BiasBlock] = []
    dropped: list[Dropped] = []
    if split:
        for k, (name, n_rows) in enumerate(head_rows):
            source = f"classifiers.proj.{k}"
            collector.take(f"{source}.weight", (n_rows, n_embd))
            heads.append(Head(name, first_row, n_rows))
            blocks.append(RowBlock(f"head.{name}", f"{source}.weight", first_row, n_rows))
            biases.append(BiasBlock(name, f"{source}.bias", n_rows))
            first_row += n_rows
        has_bias = "classifiers.proj.0.bias" in collector.specs
    else:
        spec = collector.specs["classifier.weight"]
        n_read = max(n_rows for _, n_rows in head_rows)
        n_there = spec.shape[0] if spec.shape else 0
        collector.take("classifier.weight", (max(n_there, n_read), n_embd))
        blocks.append(RowBlock("head.classifier", "classifier.weight", first_row, n_read))
        heads += [Head(name, first_row, n_rows) for name, n_rows in head_rows]
        biases += [BiasBlock(name, "classifier.bias", n_rows) for name, n_rows in head_rows]
        has_bias = "classifier.bias" in collector.specs
        if n_there > n_read:
            unread = f"rows {n_read} to {n_there - 1} are read by no head"
            dropped.append(Dropped("classifier.weight", unread))
            if has_bias:
                dropped.append(Dropped("classifier.bias", unread))
    if switches.bias is not None and switches.bias != has_bias:
        collector.faults.append(
            f"classifiers_bias is {switches.bias} in the config, but the weights have "
            f"{'biases' if has_bias else 'none'}"
        )
    if not has_bias:
        return heads, blocks, [], dropped
    for bias in biases:
        n_rows = bias.n_rows
        if not split:
            n_rows = collector.specs["classifier.weight"].shape[0]
        collector.take(bias.source, (n_rows,))
    return heads, blocks, biases, dropped
