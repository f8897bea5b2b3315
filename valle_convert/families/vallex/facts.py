"""VALL-E X: from tensor names to two networks that llama.cpp computes.

An AR network gives the codes of level 0, a NAR network those of the other levels, each with its own
text, language and audio tables. Both are ordinary pre-norm transformers with LayerNorm, biases and
ReLU, which llama.cpp's `mpt` graph computes:

* Input tables and heads are rows of one tied token embedding, and inputs are fed as sums of
  rows, as with versions 5 and 6. `mpt` does not scale them, and has no positions; the caller adds
  them.
* Its activation is GELU, with a divisor after it (`ffn.act.scales`). With k a power of two,
  gelu(k z) / k approaches max(z, 0) as k grows: `ffn_up` is multiplied by k, which costs no bit.
* The NAR's levels differ only in gain and shift of their norms, a linear function of the level's
  stage vector. Folded into the norms' weights, they are a small file for each level beside one
  body.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint import Checkpoint, TensorSpec
from valle_convert.checkpoint.source import FLOAT32
from valle_convert.errors import InputError
from valle_convert.families.vallex.relatives import refuse_relatives
from valle_convert.families.vallex.symbols import VALLEX_LANGUAGES, VALLEX_SYMBOLS
from valle_convert.model.description import (
    BackboneTensor,
    Collector,
    ComputedTensors,
    Contents,
    Description,
    Dropped,
    Recovered,
    RowBlock,
    RowBlocks,
    count_numbered,
)
from valle_convert.model.spec import Codec, Head, RowMap, choose_codec, names_in_order

#: The factor before GELU: normalized mean square error 6e-13 with the first, 9e-10 with the
#: second; the rounding of float16 costs 4e-7.
FACTOR_F32, FACTOR = 4096, 256
#: Below it GELU shows in the logits (6e-8 at 64).
_SMALLEST_FACTOR = 64
#: `ffn_up` times the factor must fit float16, in which some backends compute.
LARGEST_UP = 65504.0
_USUAL_HEAD_SIZE = 64


@dataclass(frozen=True)
class Net(RowMap):
    """One of the two networks, without its weights.

    Tables are `text`, `language`, then `audio`, or `audio.0` ..; heads are `ar`, or `nar.1` ..,
    whose rows may be those of a table.
    """

    name: str
    n_embd: int
    n_layer: int
    n_head: int
    n_ff: int
    text_scale: float
    audio_scale: float


@dataclass(frozen=True)
class VallexModel:
    """A VALL-E X without its weights."""

    ar: Net
    nar: Net
    n_levels: int
    codebook_size: int  # codes in a codebook, without stop and begin
    languages: tuple[str, ...]
    activation_factor: int
    codec: Codec

    @property
    def n_text(self) -> int:
        return self.ar.table("text").n_rows

    @property
    def begin_code(self) -> int:
        """The AR's first audio input; there is no output for it."""
        return self.codebook_size + 1


# ---------------------------------------------------------------------------- tensors

#: The divisor after the activation. The gguf package's table of names has a different one.
ACT_SCALES = "ffn.act.scales"
#: Source, target and shape of a layer's tensors, in units of the width and the feed-forward's.
_LAYER: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("self_attn.in_proj_weight", "attn_qkv.weight", ("3d", "d")),
    ("self_attn.in_proj_bias", "attn_qkv.bias", ("3d",)),
    ("self_attn.out_proj.weight", "attn_output.weight", ("d", "d")),
    ("self_attn.out_proj.bias", "attn_output.bias", ("d",)),
    ("linear1.weight", "ffn_up.weight", ("f", "d")),
    ("linear1.bias", "ffn_up.bias", ("f",)),
    ("linear2.weight", "ffn_down.weight", ("d", "f")),
    ("linear2.bias", "ffn_down.bias", ("d",)),
    (ACT_SCALES, ACT_SCALES, ("f",)),  # in no checkpoint
)
_SCALED = ("linear1.weight", "linear1.bias")


def layer_tensors(net: Net) -> Iterator[BackboneTensor]:
    """The tensors of the layers except norms, under the checkpoint's names."""
    dims = {"d": net.n_embd, "3d": 3 * net.n_embd, "f": net.n_ff}
    for i in range(net.n_layer):
        for source, target, shape in _LAYER:
            name = f"{net.name}_decoder.layers.{i}.{source}"
            yield BackboneTensor(name, f"blk.{i}.{target}", tuple(dims[one] for one in shape))


def norm_tensors(net: Net) -> Iterator[BackboneTensor]:
    """The norms, under the names of the AR's; those of the NAR are folded, see `fold_norm`."""
    names = {}
    for i in range(net.n_layer):
        names[f"layers.{i}.norm1"] = f"blk.{i}.attn_norm"
        names[f"layers.{i}.norm2"] = f"blk.{i}.ffn_norm"
    for source, target in (names | {"norm": "output_norm"}).items():
        for kind in ("weight", "bias"):
            name = f"{net.name}_decoder.{source}.{kind}"
            yield BackboneTensor(name, f"{target}.{kind}", (net.n_embd,))


def fold_norm(read: Callable[[str], NDArray[Any]], norm: str, level: int) -> NDArray[np.float32]:
    """The norm of the NAR for one level with its stage folded in: weight and bias, [2, n_embd].

    The network normalizes to n, computes n * w + b, and then gain * that + shift; gain and shift
    are a linear function of the stage vector.
    """
    stage, weight, bias, matrix, offset = (
        read(name).astype(np.float32, copy=False)
        for name in (
            f"nar_stage_embeddings.{level - 1}.word_embeddings.weight",
            f"{norm}.norm.weight",
            f"{norm}.norm.bias",
            f"{norm}.project_layer.weight",
            f"{norm}.project_layer.bias",
        )
    )
    # Not a matrix product: its order depends on the CPU, and `verify` on another CPU would see
    # different last bits.
    products = np.multiply(matrix, stage.reshape(-1), dtype=np.float64)
    gain, shift = np.split(products.sum(axis=1) + offset, 2)
    return np.stack([gain * weight, gain * bias + shift]).astype(np.float32)


# --------------------------------------------------------------------------- describe


def describe(
    checkpoint: Checkpoint, codec: str | None = None, *, factor: int = FACTOR
) -> Description[VallexModel]:
    """Understand a checkpoint of VALL-E X.

    Reads a few weights: the factors on positions, heads and tables that may be the same, and
    `linear1`, whose largest value bounds the activation factor.
    """
    refuse_relatives(checkpoint)
    specs = checkpoint.tensors.specs
    collector = Collector(specs)
    n_levels = max(
        count_numbered(specs, "nar_audio_embeddings.{}.word_embeddings.weight"),
        count_numbered(specs, "nar_predict_layers.{}.weight") + 1,
    )
    n_codes = max(1, collector.rows_of("ar_predict_layer.weight") - 1)
    n_text = max(1, collector.rows_of(table_source("ar", "text")))
    n_languages = max(1, collector.rows_of(table_source("ar", "language")))
    if n_levels < 2:
        collector.faults.append("it has no NAR, since there is no nar_predict_layers.0.weight")
    if n_text < len(VALLEX_SYMBOLS):
        collector.sizes.append(f"{n_text} rows of text, expected {len(VALLEX_SYMBOLS)} symbols")
    ar = _take_net(collector, "ar", n_text, n_languages, {"audio": n_codes + 2})
    audio = {f"audio.{i}": n_codes + (i == 0) for i in range(n_levels)}
    nar = _take_net(collector, "nar", n_text, n_languages, audio)
    collector.take("ar_predict_layer.weight", (n_codes + 1, ar.n_embd))
    for level in range(1, n_levels):
        collector.take(f"nar_predict_layers.{level - 1}.weight", (n_codes, nar.n_embd))
        collector.take(f"nar_stage_embeddings.{level - 1}.word_embeddings.weight", (1, nar.n_embd))
    dropped = collector.finish(
        f"{checkpoint.path} is not laid out like VALL-E X",
        "Give the checkpoint as the project publishes it.",
        (),
    )
    nets = _with_heads(checkpoint, ar), _with_heads(checkpoint, nar)
    tensors = ComputedTensors(checkpoint.tensors)
    read = checkpoint.tensors.read
    notes: list[str] = []
    largest = _largest_up(checkpoint, nets)
    wanted = factor
    while factor >= _SMALLEST_FACTOR and factor * largest >= LARGEST_UP:
        factor //= 2
    if factor < _SMALLEST_FACTOR:
        raise InputError(
            f"{checkpoint.path}: a weight of linear1 is {largest:g}, expected at most "
            f"{LARGEST_UP / _SMALLEST_FACTOR:.0f}, so that llama.cpp's GELU can replace ReLU; the "
            "checkpoint is damaged or its training diverged: take an earlier one."
        )
    if factor < wanted:
        notes.append(
            f"the activation factor is {factor}, not {wanted}, since a weight of linear1 is "
            f"{largest:g} and their product must stay below {LARGEST_UP:g}"
        )
    (ar, ar_rows, _), (nar, nar_rows, same) = (_rows(net, read) for net in nets)
    recovered = {source: Recovered(table) for source, table in same.items()}
    dropped += [Dropped(source, f"the same as {table}") for source, table in same.items()]
    chosen, of_codec = choose_codec(codec, n_levels, n_codes)
    notes += of_codec
    model = VallexModel(
        ar=ar,
        nar=nar,
        n_levels=n_levels,
        codebook_size=n_codes,
        languages=names_in_order(VALLEX_LANGUAGES, n_languages),
        activation_factor=factor,
        codec=chosen,
    )
    contents = {
        "ar": Contents(
            ar_rows, (*_layers(tensors, recovered, read, ar, factor), *norm_tensors(ar))
        ),
        "nar": Contents(nar_rows, tuple(_layers(tensors, recovered, read, nar, factor))),
        **_levels(tensors, read, nar, n_levels),
    }
    return Description(
        model,
        tensors,
        contents,
        tuple(dropped),
        tuple(notes),
        recovered=recovered,
        salt=str(factor),
    )


def _take_net(
    collector: Collector, name: str, n_text: int, n_languages: int, audio: Mapping[str, int]
) -> Net:
    """Take the tensors of one network except its heads; heads and factors follow later."""
    specs = collector.specs
    table = specs.get(table_source(name, "text"))
    d = table.shape[-1] if table is not None and table.shape else 1
    layers = [f"{name}_decoder.layers.{{}}.{source}" for source, *_ in _LAYER]
    n_layer = max(count_numbered(specs, layer) for layer in layers)
    up = specs.get(f"{name}_decoder.layers.0.linear1.weight")
    n_ff = up.shape[0] if up is not None and up.shape else 1
    if n_layer < 1:
        collector.faults.append(f"{name}_decoder has no layers")
    if d % 2:
        collector.sizes.append(f"the width {d} of {name}_decoder is odd")
    rows = RowBlocks()
    for label, n_rows in {"text": n_text, "language": n_languages, **audio}.items():
        collector.take(table_source(name, label), (n_rows, d))
        rows.add(label, table_source(name, label), n_rows)
    for kind in ("text", "audio"):
        collector.take(f"{name}_{kind}_position.alpha", (1,))
    net = Net(rows.tables, (), name, d, n_layer, 0, n_ff, 1.0, 1.0)
    for one in layer_tensors(net):
        if not one.source.endswith(ACT_SCALES):
            collector.take(one.source, one.shape)
    for one in norm_tensors(net):
        norm, _, kind = one.source.rpartition(".")
        collector.take(f"{norm}.norm.{kind}" if name == "nar" else one.source, one.shape)
        if name == "nar":
            collector.take(
                f"{norm}.project_layer.{kind}", (2 * d, d) if kind == "weight" else (2 * d,)
            )
    return net


def table_source(net: str, table: str) -> str:
    """The checkpoint's name of a table, such as `audio.3` of `nar`."""
    kind, _, number = table.partition(".")
    if number:
        return f"{net}_{kind}_embeddings.{number}.word_embeddings.weight"
    return f"{net}_{kind}_embedding.word_embeddings.weight"


def _with_heads(checkpoint: Checkpoint, net: Net) -> Net:
    """With the number of attention heads, which only some containers have."""
    config = checkpoint.config
    told = config.get("nhead")
    advice = "give the number of attention heads with --config, as a file with the line nhead: N"
    if told is None:
        if net.n_embd % _USUAL_HEAD_SIZE:
            raise InputError(
                f"{checkpoint.path} lacks the number of attention heads (nhead), and its "
                f"width {net.n_embd} is not a multiple of {_USUAL_HEAD_SIZE}; {advice}."
            )
        return replace(net, n_head=net.n_embd // _USUAL_HEAD_SIZE)
    width = config.get("decoder_dim", net.n_embd)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in (told, width))
    # A NAR of another width (scale_factor) has heads of the same size.
    n_head = told * net.n_embd // width if whole else 0
    if not n_head or net.n_embd % n_head or n_head * width != told * net.n_embd:
        raise InputError(
            f"{checkpoint.path}: nhead is {told!r}, which does not divide the width "
            f"{net.n_embd} of {net.name}_decoder; {advice}."
        )
    return replace(net, n_head=n_head)


def _largest_up(checkpoint: Checkpoint, nets: tuple[Net, ...]) -> float:
    """The largest value of all `linear1`; the writer rejects NaN and infinity."""
    largest = 0.0
    for net in nets:
        for one in layer_tensors(net):
            if one.source.endswith(_SCALED):
                values = checkpoint.tensors.read(one.source)
                peak = max(float(values.max()), -float(values.min()))
                largest = max(largest, peak if np.isfinite(peak) else 0.0)
    return largest


def _rows(
    net: Net, read: Callable[[str], NDArray[Any]]
) -> tuple[Net, tuple[RowBlock, ...], dict[str, str]]:
    """The rows of tables and heads; and the heads that equal tables and are not written twice."""
    rows = RowBlocks()
    for table in net.tables:
        rows.add(table.name, table_source(net.name, table.name), table.n_rows)
    heads: list[Head] = []
    same: dict[str, str] = {}
    sources = {"ar": "ar_predict_layer.weight"}
    if net.name == "nar":
        n_levels = sum(table.name.startswith("audio.") for table in net.tables)
        sources = {f"nar.{i}": f"nar_predict_layers.{i - 1}.weight" for i in range(1, n_levels)}
    for i, (name, source) in enumerate(sources.items(), start=2):
        weights = read(source)
        twin = next((t for t in net.tables if t.name == f"audio.{i}"), None)
        if twin is not None and np.array_equal(weights, read(table_source("nar", twin.name))):
            heads.append(Head(name, twin.first_row, twin.n_rows))
            same[source] = table_source("nar", twin.name)
            continue
        rows.add(f"head.{name}", source, len(weights))
        heads.append(rows.heads[-1])
    text, audio = (
        float(read(f"{net.name}_{kind}_position.alpha").astype(np.float32)[0])
        for kind in ("text", "audio")
    )
    whole = replace(net, heads=tuple(heads), text_scale=text, audio_scale=audio)
    return whole, tuple(rows), same


def _layers(
    tensors: ComputedTensors,
    recovered: dict[str, Recovered],
    read: Callable[[str], NDArray[Any]],
    net: Net,
    factor: int,
) -> Iterator[BackboneTensor]:
    """The layers without their norms; `ffn_up` multiplied, with the divisor after it."""

    def divided(values: NDArray[Any]) -> NDArray[Any]:  # by a power of two: no bit is lost
        quotient: NDArray[Any] = values / np.float32(factor)
        return quotient

    def multiplied(name: str) -> NDArray[np.float32]:
        values = read(name).astype(np.float32, copy=False)
        product: NDArray[np.float32] = values * np.float32(factor)
        return product

    for one in layer_tensors(net):
        name = one.source
        if name.endswith(_SCALED):
            scaled = replace(tensors.specs[name], name=f"{name} x {factor}")
            tensors.add(scaled, partial(multiplied, name))
            recovered[name] = Recovered(scaled.name, divided)
            name = scaled.name
        elif name.endswith(ACT_SCALES):
            divisor = partial(np.full, net.n_ff, factor, np.float32)
            tensors.add(TensorSpec(name, FLOAT32, "", one.shape), divisor)
        yield replace(one, source=name)


def _levels(
    tensors: ComputedTensors, read: Callable[[str], NDArray[Any]], net: Net, n_levels: int
) -> dict[str, Contents]:
    """The first part of each level: its norms."""

    @cache
    def folded(norm: str) -> list[NDArray[np.float32]]:  # 1.4 MB in total for 12 x 1024
        once = cache(read)  # so that a norm's matrix is read only once for all levels
        return [fold_norm(once, norm, level) for level in range(1, n_levels)]

    def computed(source: str, level: int) -> NDArray[np.float32]:
        norm, _, kind = source.rpartition(".")
        values: NDArray[np.float32] = folded(norm)[level - 1][("weight", "bias").index(kind)]
        return values

    contents = {}
    for level in range(1, n_levels):
        norms = []
        for one in norm_tensors(net):
            spec = TensorSpec(f"{one.source} at level {level}", FLOAT32, "", one.shape)
            name = tensors.add(spec, partial(computed, one.source, level))
            norms.append(replace(one, source=name))
        contents[f"nar-{level}"] = Contents(backbone=tuple(norms))
    return contents
