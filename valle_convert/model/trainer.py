"""Shared by all checkpoints of one training project (e-c-k-e-r/vall-e), of any version.

Their config, read strictly; their backbone, a LLaMA with a GELU gate; their names for rows.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.plain_values import whole
from valle_convert.errors import InputError, UnsupportedModelError
from valle_convert.model.description import BackboneTensor, Collector, count_numbered
from valle_convert.model.spec import (
    LANGUAGES,
    TASKS,
    TONES,
    GemmaConfig,
    choose_codec,
    names_in_order,
)
from valle_convert.wording import listing

# ------------------------------------------------------------------------- the config

#: Sizes by name: width, heads, layers.
_SIZES = {
    "full": (1024, 16, 12),
    "half": (512, 8, 12),
    "quarter": (256, 4, 12),
    "double": (1024, 16, 24),
    "extended": (1024, 16, 16),
}
DEFAULT_SIZE = {"resp_levels": 8, "audio_tokens": 1024, "text_tokens": 8575}
_CAPABILITIES = ("ar", "nar", "len", "lang", "tone")
_DEFAULT_CONTEXT = 22_750  # the training project's default
_DEFAULT_VERSION = 5
#: For messages about every other version.
SUPPORTED = "versions 5, 6 and 7 of e-c-k-e-r/vall-e"
#: The training project's defaults.
_DEFAULTS: dict[str, object] = {
    "capabilities": ["ar", "nar"],
    "audio_embedding_sums": False,
    "unified_position_ids": True,
    "noncausal_masks": False,
}

#: Tables whose rows have names, with the names.
_NAMED = {
    "languages": ("langs_emb.weight", LANGUAGES),
    "tasks": ("tasks_emb.weight", TASKS),
    "tones": ("tones_emb.weight", TONES),
}

#: Switches of `experimental` that affect training only.
_OF_TRAINING = frozenset(
    """
    rvq_levels_p rvq_level_range masking_train_p masking_train_rvq_levels masking_ratio
    ignore_inputs_for_loss resp_parallel_training len_parallel_training len_loss_factor
    parallel_attention_mask_dropout layer_dropout_p codebook_dropout_p
    audio_level_loss_factors use_streamlined_calc_loss token_dropout_error
    token_dropout_rate token_dropout_rvq_levels cfg_cond_dropout_p cfg_text_dropout_p
    cfg_prom_dropout_p lang_cond_dropout_p use_raw_text_p layerskip layerskip_r
    layerskip_p_max layerskip_e_scale
    """.split()
)

#: Switches that would change the computation, with the values that leave it unchanged.
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
#: Switches that some versions read, without effect in the others.
_READ = frozenset(
    """
    unified_position_ids noncausal_masks max_position_embeddings
    split_classifiers classifiers_bias audio_embedding_sums kv_heads
    use_audio_encoder_norm use_audio_encoder_ffn use_audio_encoder_level_weights
    per_level_normalization len_use_logits audio_encoder_ffn_expansion_size
    audio_decoder_ffn_expansion_size
    """.split()
)

#: Keys of the config itself and of `size` that the training project knows. It ignores others.
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


class ConfigReader:
    """Reads a checkpoint's config; `finish` raises all faults at once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._config = checkpoint.config
        self._where = f"{checkpoint.path} (config {checkpoint.config_source})"
        switches = self._config.get("experimental")
        if switches is not None and not isinstance(switches, Mapping):
            raise InputError(
                f"{self._where}: experimental is {switches!r:.60}, expected a dict; give it "
                "with --config."
            )
        self._switches: Mapping[str, Any] = switches or {}
        _refuse_unsupported(self._config, self._switches, self._where)
        self.faults: list[str] = []
        self.assumed: list[str] = []
        if self._config.get("version") is None:
            self.assumed.append(f"version {_DEFAULT_VERSION}")

    def switch(self, key: str) -> Any:  # noqa: ANN401 - of a config
        """A switch of any type, or its default."""
        return self._said(self._switches, key)

    def _said(self, mapping: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401 - of a config
        value = mapping.get(key)
        if value is None and key in _DEFAULTS:
            value = _DEFAULTS[key]
            self.assumed.append(f"{key} {json.dumps(value)}")
        return value

    def flag(self, key: str) -> bool:
        value = self.switch(key)
        if not isinstance(value, bool):
            self.faults.append(f"experimental.{key} is {value!r}, expected true or false")
        return bool(value)

    def optional_flag(self, key: str) -> bool | None:
        """A switch; None if missing."""
        return self.flag(key) if self._switches.get(key) is not None else None

    def number(self, key: str, default: int) -> int:
        """A switch that is a whole number from 0 on."""
        return self._count(self._switches, key, default)

    def _count(self, mapping: Mapping[str, Any], key: str, default: int) -> int:
        value = mapping.get(key, default)
        if value is None:
            return default
        n = whole(value)
        if n is None or not 0 <= n < 1 << 31:
            self.faults.append(f"{key} is {value!r}, expected a whole number")
            return default
        return n

    def common(self) -> tuple[dict[str, Any], dict[str, int]]:
        """The values of a `GemmaConfig` that the config decides; and every other number.

        The others are by meaning, if the config has them or a default, to compare with the tensors.
        """
        dim, heads, claims = self._size()
        capabilities = self._said(self._config, "capabilities")
        if (
            not isinstance(capabilities, list)
            or not capabilities
            or not all(item in _CAPABILITIES for item in capabilities)
        ):
            self.faults.append(
                f"capabilities is {capabilities!r:.60}, "
                f"expected a list of {', '.join(_CAPABILITIES)}"
            )
            capabilities = []
        context = self.number("max_position_embeddings", _DEFAULT_CONTEXT)
        if not context:
            self.faults.append("experimental.max_position_embeddings is 0, expected a length")
        if heads < 1 or dim < 1 or dim % heads or (dim // heads) % 2:
            self.faults.append(
                f"{heads} heads do not divide the width {dim} into an even number of elements"
            )
        values = {
            "version": whole(self._config.get("version")) or _DEFAULT_VERSION,
            "capabilities": tuple(capabilities),
            "n_embd": dim,
            "n_head": heads,
            "n_head_kv": heads,
            "n_ctx_train": context,
            "positions": "unified" if self.flag("unified_position_ids") else "segment",
            "nar_attention": "bidirectional" if self.flag("noncausal_masks") else "causal",
        }
        return values, claims

    def finish(self) -> None:
        if self.faults:
            raise InputError(
                f"{self._where}: {listing(self.faults, separator='; ')}. "
                "Give the right values with --config."
            )

    def _size(self) -> tuple[int, int, dict[str, int]]:
        """Width and heads, and every other number, by its meaning."""
        config, count = self._config, self._count
        size = config.get("size", {})
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
            if size.get("heads") is None:
                self.assumed.append(f"heads {heads}")
        else:
            self.faults.append(
                f"size is {size!r}, expected one of {', '.join(_SIZES)}, a factor or a dict"
            )
        levels = {"resp_levels": config["resp_levels"]} if "resp_levels" in config else details
        claims = {
            "layers": layers,
            "codebook levels": count(levels, "resp_levels", DEFAULT_SIZE["resp_levels"]),
            "codebook size": count(details, "audio_tokens", DEFAULT_SIZE["audio_tokens"]),
            "text tokens": count(details, "text_tokens", DEFAULT_SIZE["text_tokens"]),
        }
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
        return dim, heads, claims


def version_of(checkpoint: Checkpoint) -> int:
    if not any(key in _CONFIG_KEYS for key in checkpoint.config):
        raise InputError(
            f"{checkpoint.path} has no config, nor a config.yaml beside it; heads, positions and "
            "attention do not follow from the weights: give them with --config config.yaml."
        )
    said = checkpoint.config.get("version", _DEFAULT_VERSION)
    version = whole(said)
    if version is None:
        raise InputError(
            f"{checkpoint.path}: the config ({checkpoint.config_source}) has version {said!r:.40},"
            f" expected a whole number (supported are {SUPPORTED}); add it with --config."
        )
    return version


def _refuse_unsupported(
    config: Mapping[str, Any], experimental: Mapping[str, Any], where: str
) -> None:
    """Reject, in one message, every unsupported switch that would change the result."""
    switches = _READ | _OF_TRAINING | _MUST_BE.keys()
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
    refused += [
        f"experimental.{key} {value!r} (unknown)"
        for key, value in experimental.items()
        if key not in switches and value not in (None, False, 0, "", [], {})
    ]
    if refused:
        raise UnsupportedModelError(
            f"{where}: {listing(refused, separator='; ')}. A converted file would compute "
            "something else; if a switch has no effect, turn it off with --config."
        )


def unread_notes(config: Mapping[str, Any]) -> list[str]:
    """Notes on keys of the config that nothing reads."""
    size = config.get("size")
    sizes = size if isinstance(size, Mapping) else ()
    keys = [key for key in config if key not in _CONFIG_KEYS]
    keys += [f"size.{key}" for key in sizes if key not in _SIZE_KEYS]
    return [f"keys of the config that nothing reads: {listing(keys, 10)}"] if keys else []


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
OUTPUT_NORM = "output_norm.weight"


def backbone_tensors(config: GemmaConfig) -> tuple[BackboneTensor, ...]:
    dims = {
        "n_embd": config.n_embd,
        "n_embd_kv": config.n_embd_head * config.n_head_kv,
        "n_ff": config.n_ff,
    }
    layers = [
        BackboneTensor(
            source=f"model.layers.{layer}.{source}.weight",
            target=f"blk.{layer}.{target}.weight",
            shape=tuple(dims[dim] for dim in shape),
        )
        for layer in range(config.n_layer)
        for source, target, shape in LAYER_TENSORS
    ]
    return (*layers, BackboneTensor("model.norm.weight", OUTPUT_NORM, (config.n_embd,)))


def gemma_config(
    collector: Collector, claims: Mapping[str, int], found: Mapping[str, int], codec: str | None
) -> tuple[dict[str, Any], list[str]]:
    """The values of a `GemmaConfig` that the tensors decide; and notes.

    Every number that the config claims is compared with `found`.
    """
    gate = collector.specs.get("model.layers.0.mlp.gate_proj.weight")
    n_ff = gate.shape[0] if gate and gate.shape else 0
    n_layer = count_numbered(collector.specs, "model.layers.{}.input_layernorm.weight")
    found = {**found, "layers": n_layer, "feed-forward width": n_ff}
    found |= {words: collector.rows_of(table) for words, (table, _) in _NAMED.items()}
    for words, claimed in claims.items():
        # A missing table contradicts nothing: if it is needed, it is reported as missing.
        if found[words] or words == "layers":
            collector.compare(words, claimed, found[words])
    n_levels, n_codes = found["codebook levels"], found["codebook size"]
    chosen, notes = choose_codec(codec, n_levels, n_codes)
    values = {
        "n_layer": n_layer,
        "n_ff": n_ff,
        "n_levels": n_levels,
        "codebook_size": n_codes,
        "codec": chosen,
    }
    return values, notes


#: Tensors that no pass reads, with the reason.
DROPPED: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"metrics\..*"), "accuracy counters of training"),
    (re.compile(r"dropout_token"), "replaces tokens in training only"),
    (
        re.compile(r"(.*\.)?(rotary_emb\.)?((original_)?inv_freq|(cos|sin)_cached)"),
        "rotary frequencies follow from the head size",
    ),
)

# ------------------------------------------------------------------ the names of rows


def names_of_rows(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """The names of languages, tasks and tones in id order, possibly from the checkpoint."""
    named = {}
    for words, (table, order) in _NAMED.items():
        spec = checkpoint.tensors.specs.get(table)
        known = names_in_order(order, spec.shape[0] if spec and spec.shape else 0)
        said = checkpoint.row_names.get(table, known)
        for row, (word, expected) in enumerate(zip(said, known, strict=False)):
            if word != expected and not expected.startswith("unnamed-"):
                raise InputError(
                    f"{checkpoint.path}: row {row} of {table} is called {word!r:.40}, expected "
                    f"{expected!r}; a model with another numbering cannot be converted."
                )
        named[words] = known
    return named
