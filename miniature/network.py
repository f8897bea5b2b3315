"""The miniature's network for training: the layout that the converter reads, in batches.

What goes in is composed by `valle_convert.model.inputs`, the same code that feeds the converted
file, so that the two cannot disagree; the results are compared with the converter's own
`ReferenceNetwork` by a test.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from valle_convert.checkpoint import Checkpoint, TensorSpec
from valle_convert.checkpoint.source import FLOAT32
from valle_convert.families.v5.facts import describe
from valle_convert.families.v5.likelihood import TeacherForcedPass
from valle_convert.model.description import Description
from valle_convert.model.inputs import positions_of
from valle_convert.model.spec import Model

WIDTH, LAYERS, HEADS, FFN = 256, 4, 4, 2
LEVELS, CODES, PHONEMES = 4, 256, 256
#: In training, of the embeddings and of what each layer adds.
DROPOUT = 0.1
_RMS_EPSILON, _ROPE_BASE = 1e-6, 10_000.0

CONFIG: dict[str, Any] = {
    "name": "miniature",
    "version": 5,
    "size": {
        "dim": WIDTH,
        "heads": HEADS,
        "layers": LAYERS,
        "ffn": FFN,
        "audio_tokens": CODES,
        "resp_levels": LEVELS,
        "phoneme_tokens": PHONEMES,
    },
    "tasks": 9,
    "langs": 6,
    "tones": 1,
    "experts": 1,
    "arch_type": "llama",
    "capabilities": ["ar", "nar", "len", "lang"],
    "experimental": {
        "split_classifiers": True,
        "classifiers_bias": True,
        "audio_embedding_sums": True,
        "unified_position_ids": False,
        "noncausal_masks": True,
        "max_position_embeddings": 1024,
    },
}


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "text_emb.weight": (PHONEMES, WIDTH),
        "langs_emb.weight": (CONFIG["langs"], WIDTH),
        "tasks_emb.weight": (CONFIG["tasks"], WIDTH),
        "tones_emb.weight": (CONFIG["tones"], WIDTH),
        "rvq_l_emb.weight": (LEVELS, WIDTH),
        "len_emb.weight": (11, WIDTH),
        "sep": (WIDTH,),
        "model.norm.weight": (WIDTH,),
    }
    for i in range(LEVELS):
        found[f"proms_emb.embeddings.{i}.weight"] = (CODES, WIDTH)
    for i in range(LEVELS + 1):
        extra = i in {0, LEVELS}
        found[f"resps_emb.embeddings.{i}.weight"] = (CODES + extra, WIDTH)
    for i, rows in enumerate([CODES + 1, *[CODES] * LEVELS, PHONEMES, 11]):
        found[f"classifiers.proj.{i}.weight"] = (rows, WIDTH)
        found[f"classifiers.proj.{i}.bias"] = (rows,)
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        for name in "qkvo":
            found[f"{layer}self_attn.{name}_proj.weight"] = (WIDTH, WIDTH)
        for name in ("gate", "up"):
            found[f"{layer}mlp.{name}_proj.weight"] = (FFN * WIDTH, WIDTH)
        found[f"{layer}mlp.down_proj.weight"] = (WIDTH, FFN * WIDTH)
        for name in ("input", "post_attention"):
            found[f"{layer}{name}_layernorm.weight"] = (WIDTH,)
    return found


class Network(nn.Module):
    """The weights by their names in the checkpoint, and the forward pass."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.ParameterDict()
        for name, shape in shapes().items():
            if name.endswith("norm.weight"):
                value = torch.ones(shape)
            elif name.endswith(".bias"):
                value = torch.zeros(shape)
            else:
                value = torch.randn(shape, generator=generator) * _spread(name)
            self.weights[_key(name)] = nn.Parameter(value)
        self.description: Description[Model] = describe(_checkpoint())
        self.model = self.description.model
        half = torch.arange(0, WIDTH // HEADS, 2, dtype=torch.float32)
        self._frequencies = _ROPE_BASE ** (-half / (WIDTH // HEADS))

    def weight(self, name: str) -> Tensor:
        found: Tensor = self.weights[_key(name)]
        return found

    def named_weights(self) -> dict[str, Tensor]:
        return {name: self.weight(name).detach() for name in shapes()}

    def load(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name in shapes():
                self.weight(name).copy_(weights[name])

    def forward(self, examples: Sequence[TeacherForcedPass]) -> list[Tensor]:
        """Logits of each example's targets, [n targets, rows of its head]."""
        rows, positions, lengths = self._gather(examples)
        table = torch.cat(
            [
                *(
                    self.weight(block.source).reshape(-1, WIDTH)[: block.n_rows]
                    for block in self.description.blocks()
                    if not block.label.startswith("head.")
                ),
                torch.zeros(1, WIDTH),  # for elements of fewer terms
            ]
        )
        x = F.embedding(rows, table).sum(2)  # [batch, n, WIDTH]
        x = F.dropout(x, DROPOUT, self.training)
        n = x.shape[1]
        places = torch.arange(n)
        causal = torch.tensor([self.model.is_causal(one.head) for one in examples])
        seen = (places[None, :] <= places[:, None])[None] | ~causal[:, None, None]
        seen = seen & (places[None] < lengths[:, None])[:, None]
        mask = seen[:, None]  # [batch, 1, n, n]
        angles = positions[..., None] * self._frequencies
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        for i in range(LAYERS):
            mixed = self._attention(f"model.layers.{i}.", x, cos, sin, mask)
            x = x + F.dropout(mixed, DROPOUT, self.training)
            fed = self._feed_forward(f"model.layers.{i}.", x)
            x = x + F.dropout(fed, DROPOUT, self.training)
        x = _norm(x, self.weight("model.norm.weight"))
        return self._logits(x, lengths.tolist(), examples)

    def _gather(self, examples: Sequence[TeacherForcedPass]) -> tuple[Tensor, Tensor, Tensor]:
        model = self.model
        pieces: list[NDArray[np.int64]] = []
        places: list[NDArray[np.int32]] = []
        separator = model.table("separator").first_row
        nothing = max(table.first_row + table.n_rows for table in model.tables)
        for one in examples:
            count = sum(map(len, one.segments)) + len(one.segments) - 1
            rows = np.full((count, LEVELS), nothing, np.int64)
            at, counts = 0, []
            for i, segment in enumerate(one.segments):
                for term, name in enumerate(segment.tables):
                    first = model.table(name).first_row
                    rows[at : at + len(segment), term] = segment.rows[:, term] + first
                at += len(segment)
                if i < len(one.segments) - 1:
                    rows[at, 0] = separator
                    at += 1
                counts.append(len(segment) + (i < len(one.segments) - 1))
            pieces.append(rows)
            places.append(positions_of(model.config.positions, counts))
        longest = max(map(len, pieces))
        batch = np.full((len(pieces), longest, LEVELS), nothing, np.int64)
        positions = np.zeros((len(pieces), longest), np.float32)
        for i, (piece, where) in enumerate(zip(pieces, places, strict=True)):
            batch[i, : len(piece)] = piece
            positions[i, : len(piece)] = where
        lengths = torch.tensor([len(piece) for piece in pieces])
        return torch.from_numpy(batch), torch.from_numpy(positions), lengths

    def _attention(self, layer: str, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        normed = _norm(x, self.weight(f"{layer}input_layernorm.weight"))
        q, k, v = (
            F.linear(normed, self.weight(f"{layer}self_attn.{name}_proj.weight"))
            .reshape(*x.shape[:2], HEADS, -1)
            .transpose(1, 2)
            for name in "qkv"
        )
        mixed = F.scaled_dot_product_attention(
            _rotate(q, cos, sin), _rotate(k, cos, sin), v, attn_mask=mask
        )
        weight = self.weight(f"{layer}self_attn.o_proj.weight")
        return F.linear(mixed.transpose(1, 2).flatten(2), weight)

    def _feed_forward(self, layer: str, x: Tensor) -> Tensor:
        normed = _norm(x, self.weight(f"{layer}post_attention_layernorm.weight"))
        gate = F.gelu(F.linear(normed, self.weight(f"{layer}mlp.gate_proj.weight")))
        up = F.linear(normed, self.weight(f"{layer}mlp.up_proj.weight"))
        return F.linear(gate * up, self.weight(f"{layer}mlp.down_proj.weight"))

    def _logits(
        self, x: Tensor, lengths: Sequence[int], examples: Sequence[TeacherForcedPass]
    ) -> list[Tensor]:
        """Logits of all examples of one head."""
        by_head: dict[str, list[int]] = {}
        for i, one in enumerate(examples):
            by_head.setdefault(one.head, []).append(i)
        found: list[Tensor] = [x] * len(examples)
        for name, members in by_head.items():
            hidden = torch.cat(
                [
                    x[i, lengths[i] - examples[i].n_outputs : lengths[i]][examples[i].among]
                    for i in members
                ]
            )
            index = head_index(name)
            logits = F.linear(
                hidden,
                self.weight(f"classifiers.proj.{index}.weight"),
                self.weight(f"classifiers.proj.{index}.bias"),
            )
            split = torch.split(logits, [len(examples[i].targets) for i in members])
            for i, part in zip(members, split, strict=True):
                found[i] = part
        return found


def head_index(name: str) -> int:
    """The index of a head among the checkpoint's classifiers."""
    named = {"ar": 0, "mask": LEVELS, "stt": LEVELS + 1, "len": LEVELS + 2}
    return named[name] if name in named else int(name.rpartition(".")[2])


def export(network: Network, path: Path, symmap: dict[str, int], stats: dict[str, int]) -> None:
    """Write a float16 checkpoint as one safetensors file, like the training project."""
    from safetensors.torch import save

    from valle_convert.files import atomic_output

    metadata = {
        "config": json.dumps(CONFIG),
        "userdata": json.dumps({"symmap": symmap}, ensure_ascii=False),
        "stats": json.dumps(stats),
    }
    tensors = {name: value.half() for name, value in network.named_weights().items()}
    with atomic_output(path, force=True) as file:
        file.write(save(tensors, metadata=metadata))


class _Shapes:
    """Tensor specs without data, for `describe`."""

    def __init__(self) -> None:
        self.specs = {
            name: TensorSpec(name, FLOAT32, "F32", shape) for name, shape in shapes().items()
        }


def _checkpoint() -> Checkpoint:
    return Checkpoint(
        path=Path("miniature.sft"),
        container="safetensors",
        tensors=_Shapes(),  # type: ignore[arg-type]
        config=CONFIG,
        config_source="the trainer",
        symmap=None,
        stats={},
    )


def _spread(name: str) -> float:
    if "emb" in name or name == "sep":
        return 0.5
    deep = name.endswith(("o_proj.weight", "down_proj.weight"))
    fan_in = FFN * WIDTH if name.endswith("down_proj.weight") else WIDTH
    return float(fan_in**-0.5 / ((2 * LAYERS) ** 0.5 if deep else 1))


def _key(name: str) -> str:
    return name.replace(".", "/")


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (WIDTH,), weight, _RMS_EPSILON)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
