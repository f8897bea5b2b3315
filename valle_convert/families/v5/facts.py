"""Checkpoints of versions 5 and 6: the facts, from config keys to tensor names.

Read from top to bottom: the switches of the config, the sizes, the input tables, the
heads, the backbone, what is dropped, and `describe`, which puts them together.

What makes the model an ordinary `gemma` for llama.cpp:
* its input tables and heads are all rows of one tied token embedding (inputs are fed as
  sums of rows, and the logits of a head are a slice of all logits);
* the backbone is taken over under other names, unchanged: q and k are not permuted,
  since both sides rotate the halves of a head, and norm weights go in as they are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.plain_values import whole
from valle_convert.errors import InputError, UnsupportedModelError
from valle_convert.model.collector import Collector, count_numbered
from valle_convert.model.description import (
    BackboneTensor,
    BiasBlock,
    Contents,
    Description,
    Dropped,
    RowBlock,
)
from valle_convert.model.spec import (
    CODECS,
    LANGUAGES,
    LENGTH_STOP,
    TASKS,
    TONES,
    UNKNOWN_CODEC,
    Codec,
    Head,
    Model,
    ModelConfig,
    Table,
    names_in_order,
)
from valle_convert.wording import plural

#: The name of the only part.
PART = "model"
VERSIONS = (5, 6)
_SUPPORTED = "supported are " + " and ".join(map(str, VERSIONS))

# ------------------------------------------------------------------------- the config

#: Sizes by name: width, heads, layers.
_SIZES = {
    "full": (1024, 16, 12),
    "half": (512, 8, 12),
    "quarter": (256, 4, 12),
    "double": (1024, 16, 24),
    "extended": (1024, 16, 16),
}
_DEFAULT_SIZE = {"resp_levels": 8, "audio_tokens": 1024, "text_tokens": 8575}
_CAPABILITIES = ("ar", "nar", "len", "lang", "tone")
_DEFAULT_CONTEXT = 22_750  # what the training project writes unless a length is set
_DEFAULT_VERSION = 5
#: What the training project takes where its config does not say.
_DEFAULTS: dict[str, object] = {
    "capabilities": ["ar", "nar"],
    "audio_embedding_sums": False,
    "unified_position_ids": True,
    "noncausal_masks": False,
}

#: Switches of `experimental` that the forward pass of versions 5 and 6 does not read: they
#: steer training, or belong to version 7.
_WITHOUT_EFFECT = frozenset(
    """
    rvq_levels_p rvq_level_range masking_train_p masking_train_rvq_levels
    ignore_inputs_for_loss resp_parallel_training len_parallel_training len_loss_factor
    parallel_attention_mask_dropout layer_dropout_p codebook_dropout_p
    audio_level_loss_factors use_streamlined_calc_loss token_dropout_error
    token_dropout_rate token_dropout_rvq_levels cfg_cond_dropout_p cfg_text_dropout_p
    cfg_prom_dropout_p lang_cond_dropout_p use_raw_text_p layerskip layerskip_r
    layerskip_p_max layerskip_e_scale len_use_logits per_level_normalization
    use_audio_encoder_level_weights use_audio_encoder_ffn use_audio_encoder_norm
    audio_decoder_ffn_expansion_size audio_encoder_ffn_expansion_size masking_ratio
    """.split()
)

#: Switches that would change what is computed, with the values that leave it unchanged.
_MUST_BE: dict[str, tuple[object, ...]] = {
    "hf": (False, None),
    "interleave": (False, None),
    "audio_embedding_mode": (None, ""),
    "tie_classifier_to_embedding": (False, None),
    "causal_size": (1, None),
    "monolithic_audio_encoder": (False, None),
    "predict_causally": (False, None),
    "logit_normalization": (0, None, False),
    "use_segmented_attention_mask": (False, None),
    "use_sliding_attention_mask": (False, None),
}

#: Switches that `describe` reads.
_READ = frozenset(
    """
    split_classifiers classifiers_bias audio_embedding_sums unified_position_ids
    noncausal_masks max_position_embeddings kv_heads
    """.split()
)

#: Keys of the config itself and of `size` that the training project knows. It reads no others, so
#: that they change nothing.
_CONFIG_KEYS = frozenset(
    """
    name version size tasks langs tones experts arch_type capabilities experimental
    training teacher frozen_params attention dropout path loss_factors kwargs
    resp_levels lora rank alpha rvq_levels
    """.split()
)
_SIZE_KEYS = frozenset(
    """
    dim heads layers resp_levels audio_tokens text_tokens phoneme_tokens ffn label
    """.split()
)


@dataclass(frozen=True)
class _Switches:
    """The config, parsed; sizes are what it claims, to be checked against the tensors."""

    version: int
    capabilities: tuple[str, ...]
    dim: int
    heads: int
    layers: int
    kv_heads: int
    claims: Mapping[str, int]  # what, in words -> number, only where the config says it
    split: bool | None
    bias: bool | None
    sum_prompt: bool
    sum_response: bool
    unified: bool
    noncausal: bool
    context: int
    assumed: tuple[str, ...]


def _read_switches(checkpoint: Checkpoint) -> _Switches:
    config, where = checkpoint.config, f"{checkpoint.path} (config {checkpoint.config_source})"
    experimental = config.get("experimental")
    if experimental is not None and not isinstance(experimental, Mapping):
        raise InputError(
            f"{where}: experimental is {experimental!r}, where a dict is expected; give it with "
            "--config."
        )
    experimental = experimental or {}
    assumed = [f"version {_DEFAULT_VERSION}"] if config.get("version") is None else []
    _refuse_unsupported(config, experimental, where)
    faults: list[str] = []

    def said(mapping: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401 - of a config
        value = mapping.get(key)
        if value is None and key in _DEFAULTS:
            value = _DEFAULTS[key]
            assumed.append(f"{key} {json.dumps(value)}")
        return value

    def flag(key: str) -> bool:
        value = said(experimental, key)
        if not isinstance(value, bool):
            faults.append(f"experimental.{key} is {value!r}, where true or false is expected")
        return bool(value)

    def optional_flag(key: str) -> bool | None:
        return flag(key) if experimental.get(key) is not None else None

    def count(mapping: Mapping[str, Any], key: str, default: int) -> int:
        value = mapping.get(key, default)
        if value is None:
            return default
        n = whole(value)
        if n is None or not 0 <= n < 1 << 31:
            faults.append(f"{key} is {value!r}, where a whole number is expected")
            return default
        return n

    dim, heads, layers, claims = _read_size(config, count, faults)
    capabilities = said(config, "capabilities")
    if (
        not isinstance(capabilities, list)
        or not capabilities
        or not all(item in _CAPABILITIES for item in capabilities)
    ):
        faults.append(
            f"capabilities is {capabilities!r}, where a list of {', '.join(_CAPABILITIES)} is "
            "expected"
        )
        capabilities = []

    sums = said(experimental, "audio_embedding_sums")
    if not (isinstance(sums, bool) or sums in ("prom", "resp")):
        faults.append(
            f"experimental.audio_embedding_sums is {sums!r}, where true, false, 'prom' or 'resp' "
            "is expected"
        )
    switches = _Switches(
        version=whole(config.get("version")) or _DEFAULT_VERSION,
        capabilities=tuple(capabilities),
        dim=dim,
        heads=heads,
        layers=layers,
        kv_heads=count(experimental, "kv_heads", 0),
        claims=claims,
        split=optional_flag("split_classifiers"),
        bias=optional_flag("classifiers_bias"),
        sum_prompt=sums in (True, "prom"),
        sum_response=sums in (True, "resp"),
        unified=flag("unified_position_ids"),
        noncausal=flag("noncausal_masks"),
        context=count(experimental, "max_position_embeddings", _DEFAULT_CONTEXT),
        assumed=tuple(assumed),
    )
    if not switches.context:
        faults.append("experimental.max_position_embeddings is 0, where a length is expected")
    if heads < 1 or dim < 1 or dim % heads or (dim // heads) % 2:
        faults.append(
            f"{heads} heads do not divide the width {dim} into an even number of elements"
        )
    elif switches.kv_heads and (switches.kv_heads > heads or heads % switches.kv_heads):
        faults.append(f"experimental.kv_heads {switches.kv_heads} does not divide {heads} heads")
    if faults:
        raise InputError(f"{where}: {'; '.join(faults)}. Give the right values with --config.")
    return switches


def _read_size(
    config: Mapping[str, Any],
    count: Callable[[Mapping[str, Any], str, int], int],
    faults: list[str],
) -> tuple[int, int, int, dict[str, int]]:
    """Width, heads and layers, and every other number that the config claims, by its meaning."""
    size = config.get("size", "full")
    claims: dict[str, int] = {}
    details: Mapping[str, Any] = {}
    dim, heads, layers = _SIZES["full"]
    if isinstance(size, str) and size in _SIZES:
        dim, heads, layers = _SIZES[size]
    elif isinstance(size, int | float) and not isinstance(size, bool) and 0 < size <= 64:
        dim, heads = math.floor(1024 * size), math.floor(16 * size)
    elif isinstance(size, Mapping):
        details = size
        dim, heads = count(size, "dim", dim), count(size, "heads", heads)
        layers = count(size, "layers", layers)
    else:
        faults.append(
            f"size is {size!r}, where one of {', '.join(_SIZES)}, a factor or a dict is expected"
        )
    levels = {"resp_levels": config["resp_levels"]} if "resp_levels" in config else details
    claims["codebook levels"] = count(levels, "resp_levels", _DEFAULT_SIZE["resp_levels"])
    claims["codes a codebook"] = count(details, "audio_tokens", _DEFAULT_SIZE["audio_tokens"])
    claims["text tokens"] = count(details, "text_tokens", _DEFAULT_SIZE["text_tokens"])
    for words, mapping, key in (
        ("phonemes", details, "phoneme_tokens"),
        ("languages", config, "langs"),
        ("tasks", config, "tasks"),
        ("tones", config, "tones"),
    ):
        if mapping.get(key) is not None:
            claims[words] = count(mapping, key, 0)
    if "ffn" in details:
        claims["feed-forward width"] = count(details, "ffn", 4) * dim
    return dim, heads, layers, claims


def _refuse_unsupported(
    config: Mapping[str, Any], experimental: Mapping[str, Any], where: str
) -> None:
    """Refuse, in one message, every switch that would change the result in a way not supported."""
    refused: list[str] = []
    if config.get("arch_type", "llama") != "llama":
        refused.append(f"arch_type {config['arch_type']!r} (supported: 'llama')")
    if config.get("experts", 1) not in (0, 1, None):
        refused.append(f"experts {config['experts']!r} (supported: 1, no mixture of experts)")
    for key, neutral in _MUST_BE.items():
        value = experimental.get(key, neutral[0])
        value = whole(value) if isinstance(value, float) and value.is_integer() else value
        if not any(value == item and type(value) is type(item) for item in neutral):
            refused.append(f"experimental.{key} {value!r} (supported: {neutral[0]!r})")
    # An unknown switch may change the result, unless it is off.
    known = _READ | _WITHOUT_EFFECT | _MUST_BE.keys()
    refused += [
        f"experimental.{key} {value!r} (not known here)"
        for key, value in experimental.items()
        if key not in known and value not in (None, False, 0, "", [], {})
    ]
    if refused:
        raise UnsupportedModelError(
            f"{where}: {'; '.join(refused)}. What this would compute is not what a converted file "
            "computes; where a switch is known to have no effect, turn it off with --config."
        )


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
    """An input table: its name, the tensor it comes from, and the rows it must have.

    `rows` is None where the tensor itself is the authority; `needed` tells whether a model
    with these capabilities cannot do without it.
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
        # The first and the last response table have one row more: the stop and the mask code.
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


# ----------------------------------------------------------------------- the backbone

#: Source, target, and shape in terms of the sizes, for every layer.
LAYER_TENSORS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("input_layernorm", "attn_norm", ("n_embd",)),
    ("self_attn.q_proj", "attn_q", ("n_embd", "n_embd")),
    ("self_attn.k_proj", "attn_k", ("n_embd_kv", "n_embd")),
    ("self_attn.v_proj", "attn_v", ("n_embd_kv", "n_embd")),
    ("self_attn.o_proj", "attn_output", ("n_embd", "n_embd")),
    ("post_attention_layernorm", "ffn_norm", ("n_embd",)),
    ("mlp.gate_proj", "ffn_gate", ("n_ff", "n_embd")),
    ("mlp.up_proj", "ffn_up", ("n_ff", "n_embd")),
    ("mlp.down_proj", "ffn_down", ("n_embd", "n_ff")),
)


def _backbone(n_layer: int, dims: Mapping[str, int]) -> list[BackboneTensor]:
    tensors = [
        BackboneTensor(
            source=f"model.layers.{layer}.{source}.weight",
            target=f"blk.{layer}.{target}.weight",
            shape=tuple(dims[dim] for dim in shape),
        )
        for layer in range(n_layer)
        for source, target, shape in LAYER_TENSORS
    ]
    tensors.append(BackboneTensor("model.norm.weight", "output_norm.weight", (dims["n_embd"],)))
    return tensors


# -------------------------------------------------------------------- what is dropped

_DROPPED: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"metrics\..*"), "accuracy counters of training"),
    (re.compile(r"dropout_token"), "replaces tokens in training only"),
    (
        re.compile(r"(.*\.)?(rotary_emb\.)?((original_)?inv_freq|(cos|sin)_cached)"),
        "rotary frequencies follow from the head size",
    ),
)


# --------------------------------------------------------------------------- describe


def check_version(checkpoint: Checkpoint) -> None:
    """Refuse every version but 5 and 6.

    Raises:
        UnsupportedModelError: it is another version.
        InputError: the config does not say, or there is none.
    """
    if not any(key in _CONFIG_KEYS for key in checkpoint.config):
        raise InputError(
            f"{checkpoint.path} has no config, and no config.yaml lies with it; heads, positions "
            "and attention cannot be told from the weights: give them with --config config.yaml."
        )
    said = checkpoint.config.get("version", _DEFAULT_VERSION)
    version = whole(said)
    if version is None:
        raise InputError(
            f"{checkpoint.path}: the config ({checkpoint.config_source}) gives version {said!r},"
            f" where a whole number is expected ({_SUPPORTED}); add it with --config."
        )
    if version in VERSIONS:
        return
    if version == 7:
        kind = "version 7 (the nemo family, all codebooks at once)"
    elif version < min(VERSIONS):
        kind = f"version {version} (older than the layout with one head a level)"
    else:
        kind = f"version {version}, which is not known"
    raise UnsupportedModelError(f"{checkpoint.path} is a checkpoint of {kind}; {_SUPPORTED}.")


def describe(checkpoint: Checkpoint, codec: Codec | None = None) -> Description[Model]:
    """Understand a checkpoint of version 5 or 6.

    Args:
        checkpoint: an open checkpoint.
        codec: the audio codec, where the user gives it; else it follows from levels and codes.

    Raises:
        UnsupportedModelError: the version, architecture or a switch is refused by name.
        InputError: config and weights disagree, or tensors are missing or unexpected.
    """
    check_version(checkpoint)
    switches = _read_switches(checkpoint)
    specs = checkpoint.tensors.specs
    collector = Collector(specs)

    def rows_of(name: str) -> int:
        spec = specs.get(name)
        return spec.shape[0] if spec and spec.shape else 0

    sizes = _Sizes(
        n_embd=switches.dim,
        n_levels=count_numbered(specs, "proms_emb.embeddings.{}.weight"),
        codebook_size=rows_of("proms_emb.embeddings.0.weight"),
        n_phonemes=rows_of("text_emb.weight"),
    )
    n_layer = count_numbered(specs, "model.layers.{}.input_layernorm.weight")
    n_ff = rows_of("model.layers.0.mlp.gate_proj.weight")
    n_head_kv = switches.kv_heads or switches.heads
    _check_claims(collector, switches, sizes, n_layer, n_ff, rows_of)

    tables: list[Table] = []
    rows: list[RowBlock] = []
    next_row = 0
    for rule in _table_rules(sizes, switches.capabilities):
        if not rule.needed and rule.source not in specs:
            continue
        n_rows = rule.rows if rule.rows is not None else max(1, rows_of(rule.source))
        shape = (sizes.n_embd,) if rule.name == "separator" else (n_rows, sizes.n_embd)
        collector.take(rule.source, shape)
        tables.append(Table(rule.name, next_row, n_rows))
        rows.append(RowBlock(rule.name, rule.source, next_row, n_rows))
        next_row += n_rows

    split = _is_split(collector, switches)
    head_rows = _head_rows(
        sizes,
        switches.version,
        switches.capabilities,
        rows_of("raw_text_emb.weight"),
        split=split,
    )
    heads, head_blocks, biases, dropped = _heads(
        collector, switches, head_rows, next_row, sizes.n_embd, split=split
    )
    rows += head_blocks
    next_row = head_blocks[-1].first_row + head_blocks[-1].n_rows

    dims = {
        "n_embd": sizes.n_embd,
        "n_embd_kv": sizes.n_embd // switches.heads * n_head_kv,
        "n_ff": n_ff,
    }
    backbone = _backbone(n_layer, dims)
    for tensor in backbone:
        collector.take(tensor.source, tensor.shape)
    dropped += collector.finish(
        f"{checkpoint.path} does not fit its config ({checkpoint.config_source})",
        "Give the config that belongs to these weights with --config.",
        _DROPPED,
    )

    found = CODECS.get((sizes.n_levels, sizes.codebook_size), UNKNOWN_CODEC)
    notes: list[str] = []
    if codec is None and found is UNKNOWN_CODEC:
        notes.append(
            f"no known codec has {plural(sizes.n_levels, 'level')} of {sizes.codebook_size} codes; "
            "the file says `unknown` (give it with --codec-name)"
        )
    config = ModelConfig(
        version=switches.version,
        capabilities=switches.capabilities,
        n_embd=sizes.n_embd,
        n_layer=n_layer,
        n_head=switches.heads,
        n_head_kv=n_head_kv,
        n_ff=n_ff,
        n_ctx_train=switches.context,
        n_levels=sizes.n_levels,
        codebook_size=sizes.codebook_size,
        positions="unified" if switches.unified else "segment",
        nar_attention="bidirectional" if switches.noncausal else "causal",
        sum_prompt=switches.sum_prompt,
        sum_response=switches.sum_response,
        codec=codec or found,
    )
    model = Model(
        config=config,
        tables=tuple(tables),
        heads=tuple(heads),
        n_rows=next_row,
        languages=names_in_order(LANGUAGES, rows_of("langs_emb.weight")),
        tasks=names_in_order(TASKS, rows_of("tasks_emb.weight")),
        tones=names_in_order(TONES, rows_of("tones_emb.weight")),
    )
    _check_words(checkpoint, model)
    return Description(
        model,
        checkpoint.tensors,
        {PART: Contents(tuple(rows), tuple(backbone), tuple(biases))},
        tuple(dropped),
        (*notes, *_unread(checkpoint.config)),
        switches.assumed,
    )


def _unread(config: Mapping[str, Any]) -> list[str]:
    """What is said of keys of the config that nothing reads."""
    size = config.get("size")
    keys = [key for key in config if key not in _CONFIG_KEYS]
    keys += [
        f"size.{key}"
        for key in (size if isinstance(size, Mapping) else ())
        if key not in _SIZE_KEYS
    ]
    return [f"keys of the config that nothing reads: {', '.join(keys[:10])}"] if keys else []


def _check_words(checkpoint: Checkpoint, model: Model) -> None:
    """Where rows have names of their own, compare them with those that go by the numbers."""
    for table, known in (
        ("langs_emb.weight", model.languages),
        ("tasks_emb.weight", model.tasks),
        ("tones_emb.weight", model.tones),
    ):
        words = checkpoint.words.get(table, known)
        for row, (word, expected) in enumerate(zip(words, known, strict=False)):
            if word != expected and not expected.startswith("unnamed-"):
                raise InputError(
                    f"{checkpoint.path}: row {row} of {table} is called {word!r:.40}, where "
                    f"{expected!r} is expected; a model with another numbering cannot be converted."
                )


def contents_of(model: Model) -> Contents:
    """Where the rows and tensors of a converted file came from, told by its model alone.

    Args:
        model: as read from the file's keys.
    """
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
    backbone = _backbone(config.n_layer, dims)
    return Contents(tuple(rows), tuple(backbone), tuple(biases))


def config_of(model: Model, name: str) -> dict[str, Any]:
    """A config that says of a checkpoint what the keys of a converted file say."""
    config = model.config
    rows = {table.name: table.n_rows for table in model.tables}
    size = {
        "dim": config.n_embd,
        "heads": config.n_head,
        "layers": config.n_layer,
        "resp_levels": config.n_levels,
        "audio_tokens": config.codebook_size,
        "text_tokens": rows.get("text", _DEFAULT_SIZE["text_tokens"]),
        "phoneme_tokens": rows["phonemes"],
    }
    sums = {(True, True): True, (False, False): False, (True, False): "prom"}
    return {
        "name": name,
        "version": config.version,
        "size": size,
        "tasks": rows["task"],
        "langs": rows.get("language", 0),
        "tones": rows.get("tone", 0),
        "experts": 1,
        "arch_type": "llama",
        "capabilities": list(config.capabilities),
        "experimental": {
            "split_classifiers": len({head.first_row for head in model.heads}) == len(model.heads),
            "classifiers_bias": model.heads[0].bias is not None,
            "audio_embedding_sums": sums.get((config.sum_prompt, config.sum_response), "resp"),
            "unified_position_ids": config.positions == "unified",
            "noncausal_masks": config.nar_attention == "bidirectional",
            "kv_heads": 0 if config.n_head_kv == config.n_head else config.n_head_kv,
            "max_position_embeddings": config.n_ctx_train,
        },
    }


def _check_claims(
    collector: Collector,
    switches: _Switches,
    sizes: _Sizes,
    n_layer: int,
    n_ff: int,
    rows_of: Callable[[str], int],
) -> None:
    """Compare every number of the config with the tensor that knows it."""
    found = {
        "codebook levels": sizes.n_levels,
        "codes a codebook": sizes.codebook_size,
        "phonemes": sizes.n_phonemes,
        "text tokens": rows_of("raw_text_emb.weight"),
        "languages": rows_of("langs_emb.weight"),
        "tasks": rows_of("tasks_emb.weight"),
        "tones": rows_of("tones_emb.weight"),
        "feed-forward width": n_ff,
    }
    collector.compare("layers", switches.layers, n_layer)
    for words, claimed in switches.claims.items():
        # A table that is not there contradicts nothing: where it is needed, it is missing.
        if found[words]:
            collector.compare(words, claimed, found[words])


def _is_split(collector: Collector, switches: _Switches) -> bool:
    single = "classifier.weight" in collector.specs
    split = "classifiers.proj.0.weight" in collector.specs
    if switches.split is not None and single != split and switches.split is not split:
        collector.faults.append(
            f"split_classifiers is {switches.split} in the config, and the weights have "
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
    """Heads with rows of their own, or sharing the first rows of the one classifier."""
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
            f"classifiers_bias is {switches.bias} in the config, and the weights have "
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
