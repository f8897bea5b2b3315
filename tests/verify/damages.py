"""Ways in which a converted file can be wrong, done to its bytes.

A file is taken apart by the gguf package, changed, and written again by it, so that nothing
in here depends on the code that has to notice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

EMBEDDING = "token_embd.weight"


@dataclass
class Tensor:
    """A tensor as bytes, [.., bytes of a row]."""

    shape: tuple[int, ...]  # rows first
    kind: GGMLQuantizationType
    data: np.ndarray[Any, np.dtype[np.uint8]]


@dataclass
class Parts:
    """A file, taken apart: key -> (value, type, type of its elements); tensors by name."""

    keys: dict[str, tuple[Any, GGUFValueType, GGUFValueType | None]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def set(self, name: str, value: Any) -> None:
        self.keys[name] = (value, *self.keys[name][1:])

    def table(self, kind: str, name: str) -> slice:
        """The rows of a table or a head."""
        names, firsts, counts = (
            self.keys[f"valle.{kind}.{column}"][0]
            for column in ("names", "first_rows", "row_counts")
        )
        i = names.index(name)
        return slice(firsts[i], firsts[i] + counts[i])

    def rows(self, kind: str, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes of the rows of a table or a head, to be changed in place."""
        return self.tensors[EMBEDDING].data[self.table(kind, name)]


def take_apart(path: Path) -> Parts:
    reader = GGUFReader(path)
    parts = Parts()
    for name, entry in reader.fields.items():
        if not name.startswith("GGUF."):
            inner = entry.types[-1] if len(entry.types) > 1 else None
            parts.keys[name] = (entry.contents(), entry.types[0], inner)
    for tensor in reader.tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        raw = np.array(tensor.data).view(np.uint8)
        parts.tensors[tensor.name] = Tensor(shape, tensor.tensor_type, raw.reshape(*shape[:-1], -1))
    return parts


def files_of(main: Path) -> dict[str, Path]:
    """The files of a model by part, which is what their names have behind that of the main one."""
    return {
        path.stem.removeprefix(main.stem).removeprefix("-"): path
        for path in sorted(main.parent.glob(f"{main.stem}*.gguf"))
        if path == main or path.stem.startswith(f"{main.stem}-")
    }


def put_together(parts: Parts, path: Path) -> None:
    writer = GGUFWriter(path, parts.keys["general.architecture"][0])
    for name, (value, kind, inner) in parts.keys.items():
        if name != "general.architecture":
            writer.add_key_value(name, value, kind, sub_type=inner)
    for name, tensor in parts.tensors.items():
        writer.add_tensor(name, tensor.data, raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permute_heads(parts: Parts, name: str) -> None:
    """Rows in the order of converters of LLaMA models: pairs of the halves of a head."""
    tensor = parts.tensors[name]
    n_head = parts.keys["gemma.attention.head_count"][0]
    halves = tensor.data.reshape(n_head, 2, -1, tensor.data.shape[-1])
    tensor.data = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(tensor.data.shape)


def scale(tensor: Tensor, factor: float) -> None:
    """Multiply all weights, through the scales of their blocks where they have some."""
    plain = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16)}.get(tensor.kind.name)
    if plain is not None:
        numbers = tensor.data.view(plain)
        numbers *= plain.type(factor)
    else:
        _, n_bytes = gguf.GGML_QUANT_SIZES[tensor.kind]
        blocks = tensor.data.reshape(-1, n_bytes)
        places = {"Q8_0": [0], "Q4_K": [0, 2], "Q6_K": [n_bytes - 2]}[tensor.kind.name]
        for place in places:
            scales = np.ascontiguousarray(blocks[:, place : place + 2]).view(np.float16)
            blocks[:, place : place + 2] = (scales * np.float16(factor)).view(np.uint8)


def nan_in(tensor: Tensor) -> None:
    """The last number of the first row, or the scale of its block, becomes NaN."""
    row = tensor.data[0]
    place = {"Q8_0": -34, "Q4_K": -144}.get(tensor.kind.name, -2)
    row[place : place + 2 or None] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)


def swap(parts: Parts, a: str, b: str) -> None:
    parts.tensors[a], parts.tensors[b] = parts.tensors[b], parts.tensors[a]


def swap_rows(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> None:
    a[:], b[:] = b.copy(), a.copy()


def roll(rows: np.ndarray[Any, Any]) -> None:
    rows[:] = np.roll(rows, 1, axis=0)


def change_list(parts: Parts, name: str, at: int, value: Any) -> None:
    values = list(parts.keys[name][0])
    values[at] = value
    parts.set(name, values)


def swap_in_list(parts: Parts, name: str, a: int, b: int) -> None:
    values = list(parts.keys[name][0])
    values[a], values[b] = values[b], values[a]
    parts.set(name, values)


def add_tensor(parts: Parts) -> None:
    parts.tensors["blk.0.attn_q.bias"] = Tensor(
        (256,), GGMLQuantizationType.F32, np.zeros(1024, np.uint8)
    )


def reverse(parts: Parts, name: str) -> None:
    tensor = parts.tensors[name]
    tensor.data = np.ascontiguousarray(tensor.data[::-1])


def swap_tensors(parts: Mapping[str, Parts], one: str, other: str) -> None:
    """All tensors of a part, in the file of another."""
    parts[one].tensors, parts[other].tensors = parts[other].tensors, parts[one].tensors


def add_to(tensor: Tensor, number: float) -> None:
    numbers = tensor.data.view(np.float32)
    numbers += np.float32(number)


def roll_by(tensor: Tensor, n_rows: int) -> None:
    tensor.data = np.ascontiguousarray(np.roll(tensor.data, n_rows, axis=0))


Damage = Callable[[Parts], object]

#: What is wrong with the one file of a VALL-E -> how to do it.
DAMAGES: dict[str, Damage] = {
    "q permuted as for LLaMA": lambda p: permute_heads(p, "blk.0.attn_q.weight"),
    "k permuted as for LLaMA": lambda p: permute_heads(p, "blk.1.attn_k.weight"),
    "rows of attn_output reversed": lambda p: reverse(p, "blk.1.attn_output.weight"),
    "gate and up swapped": lambda p: swap(p, "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"),
    "two layers swapped": lambda p: swap(p, "blk.0.ffn_down.weight", "blk.1.ffn_down.weight"),
    "norms of two layers swapped": lambda p: swap(
        p, "blk.0.attn_norm.weight", "blk.1.attn_norm.weight"
    ),
    "a matrix 5 % too large": lambda p: scale(p.tensors["blk.1.ffn_up.weight"], 1.05),
    "the last norm 1 % too large": lambda p: scale(p.tensors["output_norm.weight"], 1.01),
    "NaN in a matrix": lambda p: nan_in(p.tensors["blk.0.attn_v.weight"]),
    "a tensor missing": lambda p: p.tensors.pop("blk.1.attn_v.weight"),
    "a tensor too many": add_tensor,
    "two tables swapped": lambda p: swap_rows(
        p.rows("table", "prompt.0"), p.rows("table", "prompt.1")
    ),
    "the separator zeroed": lambda p: p.rows("table", "separator").fill(0),
    "a small table zeroed": lambda p: p.rows("table", "language").fill(0),
    "one row of a table zeroed": lambda p: p.rows("table", "level")[1].fill(0),
    "a table one row off": lambda p: roll(p.rows("table", "response.mask")),
    "a head one row off": lambda p: roll(p.rows("head", "nar.1")),
    "two heads swapped": lambda p: swap_rows(p.rows("head", "nar.1"), p.rows("head", "nar.2")),
    "an alias of the tokenizer with another row": lambda p: swap_rows(
        p.tensors[EMBEDDING].data[-200:-199], p.tensors[EMBEDDING].data[:1]
    ),
    "one bias wrong": lambda p: change_list(p, "valle.head.bias", 7, 0.5),
    "heads' rows described one off": lambda p: change_list(
        p, "valle.head.first_rows", 1, p.keys["valle.head.first_rows"][0][1] + 1
    ),
    "positions": lambda p: p.set("valle.positions", "unified"),
    "NAR attention": lambda p: p.set("valle.nar_attention", "causal"),
    "sums of the response": lambda p: p.set("valle.sums.response", False),
    "epsilon 1e-5": lambda p: p.set("gemma.attention.layer_norm_rms_epsilon", 1e-5),
    "rotary base 500000": lambda p: p.set("gemma.rope.freq_base", 500_000.0),
    "number of attention heads": lambda p: p.set("gemma.attention.head_count", 8),
    "another architecture": lambda p: p.set("general.architecture", "llama"),
    "number of levels": lambda p: p.set("valle.codec.levels", 2),
    "a token's text": lambda p: change_list(p, "tokenizer.ggml.tokens", 20, "q8"),
    "a token's type": lambda p: change_list(p, "tokenizer.ggml.token_type", 20, 5),
    "two merges swapped": lambda p: swap_in_list(p, "tokenizer.ggml.merges", 200, 300),
    "a true id": lambda p: change_list(p, "valle.tokenizer.true_ids", 20, 21),
    "the id of bos": lambda p: p.set("tokenizer.ggml.bos_token_id", 3),
    "a stale key": lambda p: p.keys.update(
        {"valle.codec.stride": (320, GGUFValueType.UINT32, None)}
    ),
    "a key missing": lambda p: p.keys.pop("valle.tasks"),
    "made from another checkpoint": lambda p: p.set("valle.source.sha256", "0" * 64),
}

#: What is wrong with a VALL-E X -> how to do it to its parts, of which the main one has no name.
SET_DAMAGES: dict[str, Callable[[Mapping[str, Parts]], object]] = {
    "two rows of a head swapped": lambda p: swap_rows(
        p[""].rows("head", "ar")[3], p[""].rows("head", "ar")[7]
    ),
    "two rows of a table swapped": lambda p: swap_rows(
        # The keys of the body's rows stand in the levels' files.
        p["nar"].tensors[EMBEDDING].data[p["nar-1"].table("table", "language")][0],
        p["nar"].tensors[EMBEDDING].data[p["nar-1"].table("table", "language")][2],
    ),
    "norms of two levels swapped": lambda p: swap_tensors(p, "nar-2", "nar-3"),
    "query and key swapped": lambda p: roll_by(
        p[""].tensors["blk.1.attn_qkv.weight"], p[""].keys["mpt.embedding_length"][0]
    ),
    "a bias off by a half": lambda p: add_to(
        p["nar"].tensors["blk.0.ffn_up.bias"], p[""].keys["valle.activation_factor"][0] / 2
    ),
    "a divisor that is not the factor": lambda p: (
        p["nar"].tensors["blk.1.ffn.act.scales"].data.view(np.float32).fill(1)
    ),
    "scale of the text's positions": lambda p: p[""].set("valle.position_scale.text", 1.125),
    "scale of the audio's positions": lambda p: p["nar-1"].set("valle.position_scale.audio", 1.125),
    "epsilon of the AR": lambda p: p[""].set("mpt.attention.layer_norm_epsilon", 1.125),
    "epsilon of a level": lambda p: p["nar-3"].set("mpt.attention.layer_norm_epsilon", 1.125),
    "number of levels": lambda p: p[""].set("valle.codec.levels", 5),
    "another activation factor": lambda p: p[""].set("valle.activation_factor", 512),
    "a tensor missing in a part": lambda p: p["nar-4"].tensors.pop("blk.1.attn_norm.bias"),
    "the texts of two tokens swapped": lambda p: swap_in_list(
        p[""], "tokenizer.ggml.tokens", 20, 30
    ),
    "a part made from another checkpoint": lambda p: p["nar-5"].set(
        "valle.source.sha256", "0" * 64
    ),
}

#: What is wrong with a VALL-E of version 7 -> how to do it to its parts, `` and `audio`.
SEVEN_DAMAGES: dict[str, Callable[[Mapping[str, Parts]], object]] = {
    "q permuted as for LLaMA": lambda p: permute_heads(p[""], "blk.0.attn_q.weight"),
    "the marker of the duration zeroed": lambda p: p[""].rows("table", "length").fill(0),
    "NAR attention": lambda p: p[""].set("valle.nar_attention", "causal"),
    "encoders of prompt and response swapped": lambda p: swap(
        p["audio"], "a.prompt.ffn_up.weight", "a.response.ffn_up.weight"
    ),
    "an encoder's positions one level off": lambda p: roll_by(
        p["audio"].tensors["a.response.position_embd"], 1
    ),
    "an encoder's norm 1 % too large": lambda p: scale(
        p["audio"].tensors["a.prompt.norm.weight"], 1.01
    ),
    "level weights reversed": lambda p: reverse(p["audio"], "a.response.level_weights"),
    "an encoder's tensor missing": lambda p: p["audio"].tensors.pop("a.prompt.ffn_down.bias"),
    "encoders of another width": lambda p: p["audio"].set("valle.encoder.feed_forward_length", 256),
    "encoders without norms": lambda p: p["audio"].set("valle.encoder.norm", False),
    "a plain sum of levels": lambda p: p["audio"].set("valle.encoder.level_weights", False),
    "decoders of two levels swapped": lambda p: swap(
        p["audio"], "a.level.0.ffn_down.weight", "a.level.1.ffn_down.weight"
    ),
    "norms of two levels swapped": lambda p: swap(
        p["audio"], "a.level.0.norm.bias", "a.level.2.norm.bias"
    ),
    "a decoder's bias off by a half": lambda p: add_to(
        p["audio"].tensors["a.level.1.ffn_up.bias"], 0.5
    ),
    "decoders without norms": lambda p: p["audio"].set("valle.decoder.norm", False),
    "heads of two levels swapped": lambda p: swap_rows(
        p["audio"].rows("head", "level.0"), p["audio"].rows("head", "level.1")
    ),
    "two tables of codes swapped": lambda p: swap_rows(
        p["audio"].rows("table", "prompt.0"), p["audio"].rows("table", "prompt.1")
    ),
    "a table of codes one row off": lambda p: roll(p["audio"].rows("table", "response.2")),
    "the head of the duration zeroed": lambda p: p["audio"].rows("head", "length").fill(0),
    "one bias wrong": lambda p: change_list(p["audio"], "valle.head.bias", 7, 0.5),
    "number of levels": lambda p: p["audio"].set("valle.codec.levels", 2),
    "NaN in a decoder": lambda p: nan_in(p["audio"].tensors["a.level.2.ffn_up.weight"]),
    "a part made from another checkpoint": lambda p: p["audio"].set(
        "valle.source.sha256", "0" * 64
    ),
}


def cut(data: bytes) -> bytes:
    return data[: -len(data) // 3]


def wrong_magic_version(data: bytes) -> bytes:
    return data[:4] + (77).to_bytes(4, "little") + data[8:]


def key_count(data: bytes) -> bytes:
    return data[:16] + (2**40).to_bytes(8, "little") + data[24:]


def bytes_behind(data: bytes) -> bytes:
    return data + b"more than there should be" * 9


#: What is wrong with the bytes of the file.
BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "cut off": cut,
    "version 77 of the format": wrong_magic_version,
    "2^40 keys": key_count,
    "bytes behind the end": bytes_behind,
}
