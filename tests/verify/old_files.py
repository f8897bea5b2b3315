"""GGUF files as they were made the old way, of any checkpoint: the export, then a `llama` model.

Written from the description of the two, and held against the golden files by `test_repair.py`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from make_checkpoint import DTYPES, VOCABULARY
from safetensors import safe_open

from valle_convert.gguf_file.header import Key, TensorEntry, pack_header, padded
from valle_convert.gguf_file.types import F32, GGML_TYPES
from valle_convert.quantize.tool import find_quantizer

Weights = dict[str, np.ndarray[Any, Any]]
_LANGUAGES = ("en", "ja", "de", "fr", "zh", "ko")
_TASKS = ("tts", "tts-c", "ns", "sr", "tse", "soe", "mask", "eoe", "stt")
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def read_checkpoint_file(path: Path) -> tuple[Weights, dict[str, Any]]:
    """The tensors in float32, and the config."""
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118
        return weights, json.loads(file.metadata()["config"])


def matrices(weights: Weights, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """`embed_tokens`, `lm_head` (rows of no head are random) and the names of the rows."""
    levels = len(weights["rvq_l_emb.weight"])
    codes = len(weights["proms_emb.embeddings.0.weight"])
    with VOCABULARY.open(encoding="utf-8") as file:
        vocabulary = json.load(file)["model"]["vocab"]
    # Of strings that share an id, the converter kept the first.
    last = {id_: text for text, id_ in reversed(vocabulary.items())}
    tables = ["text_emb", "rvq_l_emb", "langs_emb", "tasks_emb", "len_emb", "tones_emb", "sep"]
    names = [last[i] for i in range(256)]
    names += [f"<|RVQ:{i}|>" for i in range(levels)]
    languages = [*_LANGUAGES, *(f"x{i}" for i in range(len(weights["langs_emb.weight"])))]
    names += [f"<|lang:{name}|>" for name in languages[: len(weights["langs_emb.weight"])]]
    names += [f"<|task:{name}|>" for name in _TASKS[: len(weights["tasks_emb.weight"])]]
    names += [f"<|len:{i}|>" for i in range(11)]
    names += ["<|tone:neutral|>", "<|sep|>"]
    tables += [f"proms_emb.embeddings.{i}" for i in range(levels)]
    names += [f"<|P|{i}|{code}|>" for i in range(levels) for code in range(codes)]
    kinds = ["AR|0:0", *(f"NAR|{i - 1}:{i}" for i in range(1, levels)), "NAR|0:0"]
    for i, kind in enumerate(kinds):
        tables.append(f"resps_emb.embeddings.{i}")
        names += [f"<|R|{kind}|{code}|>" for code in range(codes + (i in (0, levels)))]
    heads = {f"resps_emb.embeddings.{i}": i for i in range(levels + 1)}
    heads |= {"text_emb": levels + 1, "len_emb": levels + 2}
    rows: list[np.ndarray] = []
    out = np.random.default_rng(seed).standard_normal((len(names), weights["sep"].size))
    first = 0
    for table in tables:
        values = weights["sep"][None] if table == "sep" else weights[f"{table}.weight"]
        head = weights.get(f"classifiers.proj.{heads.get(table, -1)}.weight")
        if head is not None:
            out[first : first + len(head)] = head
        rows.append(values)
        first += len(values)
    embedding = np.concatenate(rows)
    return embedding, out.astype(embedding.dtype), names


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k in the order that a `llama` graph rotates."""
    n, columns = weight.shape
    halves = weight.reshape(heads, 2, n // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(n, columns)


def make_old(checkpoint: Path, target: Path, kind: str = "F16", *, seed: int = 0) -> Path:
    """Write the file that the old way made of a checkpoint.

    Args:
        checkpoint: an .sft file with split heads.
        target: the GGUF file.
        kind: F32, F16, BF16, or what llama-quantize knows, which makes it of F16 then.
        seed: of the rows that nobody set.
    """
    weights, config = read_checkpoint_file(checkpoint)
    embedding, heads, names = matrices(weights, seed)
    size, experimental = config["size"], config["experimental"]
    n_heads, n_kv = size["heads"], experimental["kv_heads"] or size["heads"]
    tensors = {"token_embd.weight": embedding}
    for layer in range(size["layers"]):
        for source, name in _LAYER.items():
            values = weights[f"model.layers.{layer}.{source}.weight"]
            if name in ("attn_q", "attn_k"):
                values = permuted(values, n_heads if name == "attn_q" else n_kv)
            tensors[f"blk.{layer}.{name}.weight"] = values
    tensors |= {"output_norm.weight": weights["model.norm.weight"], "output.weight": heads}
    with VOCABULARY.open(encoding="utf-8") as file:
        merges = json.load(file)["model"]["merges"]
    width = embedding.shape[1]
    keys = [
        Key("general.architecture", "llama", "string"),
        Key("general.name", "hf", "string"),
        Key("llama.block_count", size["layers"], "u32"),
        Key("llama.context_length", 22_500, "u32"),
        Key("llama.embedding_length", width, "u32"),
        Key("llama.feed_forward_length", tensors["blk.0.ffn_up.weight"].shape[0], "u32"),
        Key("llama.attention.head_count", n_heads, "u32"),
        Key("llama.attention.head_count_kv", n_kv, "u32"),
        Key("llama.rope.freq_base", 10_000.0, "f32"),
        Key("llama.attention.layer_norm_rms_epsilon", 1e-6, "f32"),
        Key("llama.vocab_size", len(names), "u32"),
        Key("llama.rope.dimension_count", width // n_heads, "u32"),
        Key("tokenizer.ggml.model", "gpt2", "string"),
        Key("tokenizer.ggml.pre", "default", "string"),
        Key("tokenizer.ggml.tokens", names, "[string]"),
        Key("tokenizer.ggml.token_type", [3] * 4 + [1] * (len(names) - 4), "[i32]"),
        Key("tokenizer.ggml.merges", merges, "[string]"),
        Key("tokenizer.ggml.bos_token_id", 1, "u32"),
        Key("tokenizer.ggml.eos_token_id", 2, "u32"),
        Key("tokenizer.ggml.unknown_token_id", 0, "u32"),
    ]
    plain = kind if kind in ("F32", "F16", "BF16") else "F16"
    dtype = DTYPES[plain.lower()][1]
    entries: list[TensorEntry] = []
    data = b""
    for name, values in tensors.items():
        is_vector = values.ndim == 1
        entries.append(
            TensorEntry(name, values.shape, F32 if is_vector else GGML_TYPES[plain], len(data))
        )
        stored = np.ascontiguousarray(values, np.float32 if is_vector else dtype).tobytes()
        data += stored.ljust(padded(len(stored)), b"\0")
    if plain == kind:
        target.write_bytes(pack_header(keys, entries) + data)
        return target
    unquantized = target.with_suffix(".f16")
    unquantized.write_bytes(pack_header(keys, entries) + data)
    find_quantizer("library").run([str(unquantized), str(target), kind])
    unquantized.unlink()
    return target
