"""The architecture of EnCodec: sizes in, layers and the table of tensors out.

The encoder reduces time and doubles channels from block to block (SEANet). The quantizer replaces
each frame by one code per level; every level encodes the residual of the levels before. The decoder
mirrors the encoder (Défossez et al., "High Fidelity Neural Audio Compression", 2022).

Tensors have the names of Meta's package, which encodec.cpp uses too. transformers has other names
with the same numbers:

    encoder.model.3.conv.conv.weight                encoder.layers.3.conv.weight
    decoder.model.3.convtr.convtr.weight            decoder.layers.3.conv.weight
    decoder.model.4.block.1.conv.conv.bias          decoder.layers.4.block.1.conv.bias
    encoder.model.13.lstm.weight_ih_l0              encoder.layers.13.lstm.weight_ih_l0
    quantizer.vq.layers.0._codebook.embed           quantizer.layers.0.codebook.embed
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_type_hints

import msgspec

from valle_convert.errors import InputError
from valle_convert.wording import listing

#: Numbers outside of these ranges mean a damaged config.
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
Layers = Annotated[int, msgspec.Meta(ge=1, le=64)]
Word = Annotated[str, msgspec.Meta(max_length=40)]
Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e6)]
Ratios = Annotated[
    tuple[Annotated[int, msgspec.Meta(ge=1, le=1024)], ...],
    msgspec.Meta(min_length=1, max_length=16),
]
Bandwidths = Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1)]
MAX_CODEBOOKS = 1024
#: Advice for other codecs, and other kinds of EnCodec.
ELSEWHERE = "For another codec, use codes (--save-codes, --voice CODES.npz)."


@dataclass(frozen=True, kw_only=True)
class EncodecSpec:
    """Sizes and switches of an EnCodec, under the names of transformers' `EncodecConfig`.

    The order is that of the keys in a GGUF file. The defaults are those of the published 24 kHz
    model and of missing keys in a config.
    """

    sampling_rate: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 24_000  # in Hz
    audio_channels: Size = 1
    upsampling_ratios: Ratios = (8, 5, 4, 2)
    n_codebooks: Annotated[int, msgspec.Meta(ge=1, le=MAX_CODEBOOKS)]
    codebook_size: Annotated[int, msgspec.Meta(ge=2, le=1 << 16)] = 1024
    codebook_dim: Size = 128
    target_bandwidths: Bandwidths = (1.5, 3.0, 6.0, 12.0, 24.0)
    hidden_size: Size = 128  # width of a frame between encoder and quantizer
    num_filters: Size = 32
    kernel_size: Size = 7  # of the first convolution of encoder and decoder
    last_kernel_size: Size = 7
    residual_kernel_size: Size = 3  # of the first convolution of a residual block
    num_residual_layers: Layers = 1
    dilation_growth_rate: Size = 2  # factor of the dilation from one residual block to the next
    compress: Size = 2  # factor by which a residual block narrows its channels
    num_lstm_layers: Layers = 2
    use_causal_conv: bool = True
    use_conv_shortcut: bool = True  # whether the shortcut of a residual block is a convolution
    pad_mode: Word = "reflect"
    trim_right_ratio: Positive = 1.0  # where a transposed convolution is trimmed; 1 is the end
    norm_type: Word = "weight_norm"  # `weight_norm`, or a norm with a layer of its own
    normalize: bool = False
    #: Length of chunks in seconds; None if audio is coded at once.
    chunk_length_s: Positive | None = None

    @property
    def hop_length(self) -> int:
        return math.prod(self.upsampling_ratios)

    @property
    def frame_rate(self) -> float:
        return self.sampling_rate / self.hop_length

    @property
    def widest(self) -> int:
        return self.num_filters << len(self.upsampling_ratios)

    def levels_at(self, bandwidth: float) -> int:
        """The number of levels at a bandwidth in kbit/s, at least one."""
        bits = math.log2(self.codebook_size) * math.ceil(self.frame_rate)
        return max(1, math.floor(bandwidth * 1000 / bits + 1e-9))


def spec_from_config(config: Mapping[str, Any], where: str) -> EncodecSpec:
    """The spec in a transformers `config.json` with `n_codebooks`.

    Every value is checked, and what the network would compute wrongly is rejected.
    """
    problems: list[str] = []
    known: dict[str, Any] = {}
    for name, kind in get_type_hints(EncodecSpec, include_extras=True).items():
        if config.get(name) is None:
            continue  # null means the default, as in transformers
        try:
            known[name] = msgspec.convert(config[name], kind)
        except (msgspec.ValidationError, UnicodeError) as error:  # half of a surrogate pair
            problems.append(f"{name} is {config[name]!r:.40}: {error}")
    if problems:
        raise InputError(
            f"{where} does not describe an EnCodec: {listing(problems, 2)}; download it again."
        )
    # As in transformers, codebook_dim defaults to the width of a frame.
    known.setdefault("codebook_dim", known.get("hidden_size", EncodecSpec.hidden_size))
    spec = EncodecSpec(**known)
    allowed: dict[str, Sequence[object]] = {
        "audio_channels": [1],
        "normalize": [False],
        "chunk_length_s": [None],
        "norm_type": ["weight_norm"],
        "use_causal_conv": [True],
        "trim_right_ratio": [1.0],
        "pad_mode": ("reflect", "constant", "replicate"),
        "codebook_dim": [spec.hidden_size],
    }
    if wrong := _differences(spec, allowed):
        raise InputError(f"{where} is not like facebook/encodec_24khz: {wrong}. {ELSEWHERE}")
    return replace(spec, target_bandwidths=tuple(sorted(spec.target_bandwidths)))


# -------------------------------------------------------------------------------- layers


@dataclass(frozen=True)
class Convolution:
    """A convolution over time; weight [n_out, n_in, kernel], bias [n_out]."""

    name: str
    n_in: int
    n_out: int
    kernel: int
    stride: int = 1
    dilation: int = 1


@dataclass(frozen=True)
class TransposedConvolution:
    """A transposed convolution over time; weight [n_in, n_out, kernel], bias [n_out]."""

    name: str
    n_in: int
    n_out: int
    kernel: int
    stride: int


@dataclass(frozen=True)
class Lstm:
    """An LSTM over time with a residual connection; gates in the order i, f, g, o."""

    name: str
    width: int
    n_layers: int


@dataclass(frozen=True)
class Elu:
    """The activation, ELU."""


@dataclass(frozen=True)
class ResidualBlock:
    """ELU, `first`, ELU, `second`, plus the shortcut (None: the input itself)."""

    first: Convolution
    second: Convolution
    shortcut: Convolution | None


Layer = Convolution | TransposedConvolution | Lstm | Elu | ResidualBlock


def encoder_layers(spec: EncodecSpec) -> tuple[Layer, ...]:
    """From audio [channels, samples] to frames [hidden_size, frames]."""
    made: list[Layer] = []
    width = spec.num_filters
    made.append(_convolution("encoder", 0, spec.audio_channels, width, spec.kernel_size))
    for ratio in reversed(spec.upsampling_ratios):
        for n in range(spec.num_residual_layers):
            made.append(_block(spec, "encoder", len(made), width, n))
        made.append(Elu())
        made.append(_convolution("encoder", len(made), width, 2 * width, 2 * ratio, stride=ratio))
        width *= 2
    made.append(Lstm(f"encoder.model.{len(made)}.lstm", width, spec.num_lstm_layers))
    made.append(Elu())
    made.append(_convolution("encoder", len(made), width, spec.hidden_size, spec.last_kernel_size))
    return tuple(made)


def decoder_layers(spec: EncodecSpec) -> tuple[Layer, ...]:
    """From frames [hidden_size, frames] to audio [channels, samples]."""
    made: list[Layer] = []
    width = spec.widest
    made.append(_convolution("decoder", 0, spec.hidden_size, width, spec.kernel_size))
    made.append(Lstm("decoder.model.1.lstm", width, spec.num_lstm_layers))
    for ratio in spec.upsampling_ratios:
        made.append(Elu())
        name = f"decoder.model.{len(made)}.convtr.convtr"
        made.append(TransposedConvolution(name, width, width // 2, 2 * ratio, ratio))
        width //= 2
        for n in range(spec.num_residual_layers):
            made.append(_block(spec, "decoder", len(made), width, n))
    made.append(Elu())
    made.append(
        _convolution("decoder", len(made), width, spec.audio_channels, spec.last_kernel_size)
    )
    return tuple(made)


def _convolution(
    stack: str, index: int, n_in: int, n_out: int, kernel: int, *, stride: int = 1
) -> Convolution:
    return Convolution(f"{stack}.model.{index}.conv.conv", n_in, n_out, kernel, stride)


def _block(spec: EncodecSpec, stack: str, index: int, width: int, n: int) -> ResidualBlock:
    name = f"{stack}.model.{index}"
    narrow = max(1, width // spec.compress)
    return ResidualBlock(
        Convolution(
            f"{name}.block.1.conv.conv",
            width,
            narrow,
            spec.residual_kernel_size,
            dilation=spec.dilation_growth_rate**n,
        ),
        Convolution(f"{name}.block.3.conv.conv", narrow, width, 1),
        Convolution(f"{name}.shortcut.conv.conv", width, width, 1)
        if spec.use_conv_shortcut
        else None,
    )


# ------------------------------------------------------------------------------- tensors


@dataclass(frozen=True)
class CodecTensor:
    name: str
    transformers_name: str
    shape: tuple[int, ...]  # as in torch, slowest dimension first

    @property
    def is_weight(self) -> bool:
        """Whether it is float16 in a float16 file; biases and codebooks are not."""
        return "weight" in self.name

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


def tensor_table(spec: EncodecSpec) -> tuple[CodecTensor, ...]:
    """Every tensor of the codec, in the order of encodec.cpp's own converter."""
    return (
        *_stack_tensors(encoder_layers(spec)),
        *(
            CodecTensor(
                codebook_name(n),
                f"quantizer.layers.{n}.codebook.embed",
                (spec.codebook_size, spec.codebook_dim),
            )
            for n in range(spec.n_codebooks)
        ),
        *_stack_tensors(decoder_layers(spec)),
    )


#: Name, shape and number format of tensors in a file, and what is expected.
Shapes = Iterable[tuple[str, tuple[int, ...], str]]
Expected = Mapping[str, tuple[tuple[int, ...], Sequence[str]]]


def table_problems(expected: Expected, found: Shapes) -> list[str]:
    """Problems with the tensors of a file; empty if they are exactly the expected ones."""
    seen: set[str] = set()
    unknown, twice, wrong = [], [], []
    for name, shape, dtype in found:
        if name not in expected:
            unknown.append(f"{name!r:.80}")
        elif name in seen:
            twice.append(name)
        else:
            wanted, dtypes = expected[name]
            if shape != wanted:
                wrong.append(f"{name} is {list(shape)}, expected {list(wanted)}")
            elif dtype not in dtypes:
                wrong.append(f"{name} is {dtype}, expected {' or '.join(dtypes)}")
        seen.add(name)
    missing = [name for name in expected if name not in seen]
    kinds = {
        "missing": missing,
        "unknown": unknown,
        "duplicated": twice,
        "of another shape or type": wrong,
    }
    return [
        f"{len(names)} of {len(expected)} tensors {words}: {listing(names, 1)}"
        for words, names in kinds.items()
        if names
    ]


def codebook_name(level: int) -> str:
    """The tensor of a level's codebook, [codebook_size, codebook_dim]."""
    return f"quantizer.vq.layers.{level}._codebook.embed"


def _stack_tensors(layers: tuple[Layer, ...]) -> Iterator[CodecTensor]:
    for layer in layers:
        match layer:
            case Convolution():
                yield from _with_bias(layer, (layer.n_out, layer.n_in, layer.kernel))
            case TransposedConvolution():
                yield from _with_bias(layer, (layer.n_in, layer.n_out, layer.kernel))
            case ResidualBlock():
                parts = (layer.first, layer.second, layer.shortcut)
                yield from _stack_tensors(tuple(part for part in parts if part is not None))
            case Lstm():
                for n in range(layer.n_layers):
                    for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                        name = f"{layer.name}.{part}_l{n}"
                        width = (layer.width,) if part.startswith("weight") else ()
                        yield CodecTensor(
                            name, name.replace(".model.", ".layers."), (4 * layer.width, *width)
                        )
            case Elu():
                pass


def _with_bias(
    layer: Convolution | TransposedConvolution, shape: tuple[int, ...]
) -> Iterator[CodecTensor]:
    other = (
        layer.name.replace(".model.", ".layers.")
        .removesuffix(".conv")
        .replace(".convtr.convtr", ".conv")
    )
    yield CodecTensor(f"{layer.name}.bias", f"{other}.bias", (layer.n_out,))
    yield CodecTensor(f"{layer.name}.weight", f"{other}.weight", shape)


# -------------------------------------------------------------------- what can be computed

CPP_MAX_CODEBOOKS = 32


def check_runs_on_encodec_cpp(spec: EncodecSpec, where: str) -> None:
    """Reject what encodec.cpp, which checks none of this, would compute wrongly or crash on."""
    allowed: dict[str, Sequence[object]] = {
        "sampling_rate": [24_000],
        "upsampling_ratios": [(8, 5, 4, 2)],
        "last_kernel_size": [spec.kernel_size],
        "compress": [2],
        "num_residual_layers": [1],
        "num_lstm_layers": [2],
        "pad_mode": ["reflect"],
        "use_conv_shortcut": [True],
        "n_codebooks": range(1, CPP_MAX_CODEBOOKS + 1),
    }
    if wrong := _differences(spec, allowed):
        raise InputError(
            f"The codec {where} cannot be made a file for encodec.cpp: {wrong}. "
            "Write a .gguf for this program instead, or take facebook/encodec_24khz."
        )


def _differences(spec: EncodecSpec, allowed: Mapping[str, Sequence[object]]) -> str:
    """The fields with other values, in words; empty if there are none."""
    wrong = []
    for name, values in allowed.items():
        value = getattr(spec, name)
        if value not in values:
            each = " or ".join(map(json.dumps, values))
            expected = f"{values[0]} to {values[-1]}" if isinstance(values, range) else each
            wrong.append(f"{name} is {json.dumps(value)}, expected {expected}")
    return listing(wrong, 2)
