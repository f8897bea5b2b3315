"""Checkpoints of versions 5 and 6: from config keys to tensor names.

Two facts make the model an ordinary `gemma` for llama.cpp:
* its input tables and heads are all rows of one tied token embedding (inputs are fed as
  sums of rows, and the logits of a head are a slice of all logits);
* the backbone is unchanged except for names: q and k are not permuted, since both sides rotate
  the halves of a head, and norm weights are the same.
"""

from dataclasses import replace

from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import UnsupportedModelError
from valle_convert.families.gemma import PART, described
from valle_convert.model.description import (
    BiasBlock,
    Collector,
    Contents,
    Description,
    Dropped,
    RowBlocks,
    blocks_of,
    count_numbered,
    source_shapes,
)
from valle_convert.model.spec import LENGTH_STOP, Head, Model, ModelConfig, RowMap
from valle_convert.model.trainer import (
    SUPPORTED,
    ConfigReader,
    backbone_tensors,
    gemma_config,
    names_of_rows,
    version_of,
)

VERSIONS = (5, 6)

# ------------------------------------------------------------------- tables and heads


def _table_sources(n_levels: int) -> dict[str, str]:
    """The input tables in row order, with their tensors. A phoneme's row is its id."""
    levels = range(n_levels)
    return {
        "phonemes": "text_emb.weight",
        "text": "raw_text_emb.weight",
        "level": "rvq_l_emb.weight",
        "language": "langs_emb.weight",
        "task": "tasks_emb.weight",
        "length": "len_emb.weight",
        "tone": "tones_emb.weight",
        "separator": "sep",
        **{f"prompt.{i}": f"proms_emb.embeddings.{i}.weight" for i in levels},
        "response.ar": "resps_emb.embeddings.0.weight",
        **{f"response.{i}": f"resps_emb.embeddings.{i}.weight" for i in levels[1:]},
        "response.mask": f"resps_emb.embeddings.{n_levels}.weight",
    }


def rows_of_tables(config: ModelConfig) -> dict[str, int | None]:
    """The tables that a model needs, with their rows; None if the tensor itself decides."""
    levels, codes = range(config.n_levels), config.codebook_size
    rows: dict[str, int | None] = {"phonemes": None, "level": config.n_levels, "task": None}
    rows |= {"separator": 1} | {f"prompt.{i}": codes for i in levels}
    # The first and the last response table have one more row: the stop and the mask code.
    rows |= {"response.ar": codes + 1, "response.mask": codes + 1}
    rows |= {f"response.{i}": codes for i in levels[1:]}
    if "lang" in config.capabilities:
        rows["language"] = None
    if "len" in config.capabilities:
        rows["length"] = LENGTH_STOP + 1
    if "tone" in config.capabilities:
        rows["tone"] = None
    return rows


def rows_of_heads(config: ModelConfig, n_phonemes: int, n_text: int = 0) -> dict[str, int]:
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
    version = version_of(checkpoint)
    if version not in VERSIONS:
        raise UnsupportedModelError(
            f"{checkpoint.path} is a checkpoint of version {version}; supported are {SUPPORTED}."
        )


def describe(checkpoint: Checkpoint, codec: str | None = None) -> Description[Model]:
    check_version(checkpoint)
    reader = ConfigReader(checkpoint)
    common, claims = reader.common()
    n_head = common["n_head"]
    sums = reader.switch("audio_embedding_sums")
    if not (isinstance(sums, bool) or sums in ("prom", "resp")):
        reader.faults.append(
            f"experimental.audio_embedding_sums is {sums!r}, expected true, false, 'prom' or 'resp'"
        )
    kv_heads = reader.number("kv_heads", 0)
    if kv_heads and (kv_heads > n_head or n_head % kv_heads):
        reader.faults.append(f"experimental.kv_heads {kv_heads} does not divide {n_head} heads")
    said = {key: reader.optional_flag(key) for key in ("split_classifiers", "classifiers_bias")}
    reader.finish()
    collector = Collector(checkpoint.tensors.specs)
    n_phonemes, n_text = map(collector.rows_of, ("text_emb.weight", "raw_text_emb.weight"))
    found = {
        "codebook levels": count_numbered(collector.specs, "proms_emb.embeddings.{}.weight"),
        "codebook size": collector.rows_of("proms_emb.embeddings.0.weight"),
        "phonemes": n_phonemes,
        "text tokens": n_text,
    }
    values, notes = gemma_config(collector, claims, found, codec)
    config = ModelConfig(
        **{**common, **values, "n_head_kv": kv_heads or n_head},
        sum_prompt=sums in (True, "prom"),
        sum_response=sums in (True, "resp"),
    )
    rows = RowBlocks()
    needed = rows_of_tables(config)
    for name, source in _table_sources(config.n_levels).items():
        if name in needed or source in collector.specs:
            known = needed.get(name, LENGTH_STOP + 1 if name == "length" else None)
            rows.add(name, source, known or max(1, collector.rows_of(source)))
    split = (
        "classifiers.proj.0.weight" in collector.specs or "classifier.weight" not in collector.specs
    )
    has_biases = f"{'classifiers.proj.0' if split else 'classifier'}.bias" in collector.specs
    collector.agree("split_classifiers", said["split_classifiers"], split)
    collector.agree("classifiers_bias", said["classifiers_bias"], has_biases)
    wanted = rows_of_heads(config, n_phonemes, n_text if split else 0)
    heads, first = [], rows.n_rows
    for name, n_rows in wanted.items():
        heads.append(Head(name, first, n_rows))
        first += n_rows if split else 0
    model = Model(rows.tables, tuple(heads), config, **names_of_rows(checkpoint))
    contents = contents_of(model, has_biases=has_biases)
    dropped = []
    n_read, n_there = max(wanted.values()), collector.rows_of("classifier.weight")
    for source, (_, *columns) in source_shapes(contents, config.n_embd).items():
        if n_there > n_read and source.startswith("classifier."):
            collector.take(source, (n_there, *columns))
            dropped.append(Dropped(source, f"rows {n_read} to {n_there - 1} are read by no head"))
    return described(checkpoint, reader, collector, model, {PART: contents}, notes, dropped)


def contents_of(model: Model, *, has_biases: bool) -> Contents:
    """The sources of a converted file's rows and tensors."""
    rows: RowMap = model
    heads = {head.name: f"classifiers.proj.{k}" for k, head in enumerate(model.heads)}
    sources = _table_sources(model.n_levels)
    sources |= {f"head.{name}": f"{source}.weight" for name, source in heads.items()}
    if len({head.first_row for head in model.heads}) < len(model.heads):
        # Heads that share the first rows of the one classifier.
        heads = dict.fromkeys(heads, "classifier")
        whole = max(model.heads, key=lambda head: head.n_rows)
        rows = RowMap(model.tables, (replace(whole, name="classifier"),))
        sources["head.classifier"] = "classifier.weight"
    biases = [BiasBlock(one.name, f"{heads[one.name]}.bias", one.n_rows) for one in model.heads]
    blocks = blocks_of(rows, sources)
    return Contents(blocks, backbone_tensors(model.config), tuple(biases if has_biases else ()))
