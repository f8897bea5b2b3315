"""The codec: audio to codes [frames, levels], and back.

`valle_convert.encodec` has the network, and reads weights from a folder of transformers, the
Hugging Face hub, Meta's file or encodec.cpp's. Nothing in them is executed. To work offline,
download once and name the folder:

    hf download facebook/encodec_24khz --local-dir encodec_24khz
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from valle_convert.audio.codes import check_format
from valle_convert.audio.files import Audio
from valle_convert.encodec.sources import ENCODEC_24KHZ, open_encodec
from valle_convert.encodec.weights import EncodecWeights
from valle_convert.errors import InputError
from valle_convert.model.spec import Codec, CodeFormat, Codes
from valle_convert.wording import plural

if TYPE_CHECKING:
    from valle_convert.encodec.streaming import EncodecEncoder

#: EnCodec's name in converted files.
ENCODEC_NAME = "encodec-24khz"
#: Codebook size of the published model.
_PUBLISHED_CODES = 1024


class AudioCodec(Protocol):
    """The interface of a codec."""

    description: Codec  # name and rates
    n_levels: int
    codebook_size: int  # number of different codes of a level

    def encode(self, audio: Audio) -> Codes:
        """Audio to codes, [frames, levels]."""
        ...

    def decode(self, codes: Codes) -> Audio:
        """Codes [frames, levels or fewer] to audio."""
        ...


def check_codec_fits(codec: AudioCodec, config: CodeFormat) -> None:
    """Raise an `InputError` if a codec has other levels, codes or rates than a model."""
    found = (codec.n_levels, codec.codebook_size, codec.description)
    check_format("The codec", found, config, "give the model's codec with --codec")


#: By the name in converted files: whether a file is such a codec, and what opens it.
_registered: dict[str, tuple[Callable[[str | Path], bool], Callable[[str | Path], AudioCodec]]] = {}


def register_codec(
    name: str,
    recognises: Callable[[str | Path], bool],
    opens: Callable[[str | Path], AudioCodec],
) -> None:
    """Let `open_codec` open another kind of codec, of that name in converted files.

    `recognises` returns whether a file is such a codec; `opens` opens it.
    """
    _registered[name] = (recognises, opens)


def open_codec(source: str | Path | None, config: CodeFormat | None) -> AudioCodec:
    """The codec of a model, refused before it is loaded where the model has another.

    The source is that of `EncodecCodec`, or a file of a registered codec; None is the published 24
    kHz EnCodec from the hub. Without a `config`, any codec is opened, with the levels of published
    models.
    """
    for recognises, opens in _registered.values():
        if source is not None and recognises(source):
            codec = opens(source)
            if config is not None:
                check_codec_fits(codec, config)
            return codec
    if config is None:
        return EncodecCodec(ENCODEC_24KHZ if source is None else source)
    if config.codec.name in _registered:
        found = "no codec was given" if source is None else f"{source} is another file"
        raise InputError(
            f"The model uses the codec {config.codec.name}, but {found}; pass it with --codec."
        )
    if config.codec.name not in {ENCODEC_NAME, "unknown"}:
        raise InputError(
            f"The model uses the codec {config.codec.name}, and only {ENCODEC_NAME} is built in. "
            "Use voices as codes (.npz), and write codes with --save-codes."
        )
    if source is None and config.codebook_size != _PUBLISHED_CODES:
        raise InputError(
            f"The model was trained on {plural(config.n_levels, 'level')} of "
            f"{config.codebook_size} codes, and {ENCODEC_24KHZ} has {_PUBLISHED_CODES} per level. "
            "Pass the model's codec with --codec, or work with saved codes (.npz)."
        )
    encodec = EncodecCodec(ENCODEC_24KHZ if source is None else source, n_levels=config.n_levels)
    check_codec_fits(encodec, config)
    return encodec


class EncodecCodec:
    """A mono, causal EnCodec of any size.

    The source is a folder with `config.json` and weights, a codec file, a name on the hub, or the
    result of `open_encodec`. The decoder's weights are read at once, so that damage shows before
    anything is spoken; the encoder's on first use. 8 levels are 6 kbit/s of the published model.
    """

    def __init__(
        self, source: str | Path | EncodecWeights = ENCODEC_24KHZ, *, n_levels: int = 8
    ) -> None:
        from valle_convert.encodec.streaming import EncodecDecoder

        weights = source if isinstance(source, EncodecWeights) else open_encodec(source)
        spec = weights.spec
        if not 1 <= n_levels <= spec.n_codebooks:
            raise InputError(
                f"The codec {weights.source} has {spec.n_codebooks} levels, expected at least "
                f"{n_levels}; pass the model's codec with --codec."
            )
        self.weights, self.n_levels = weights, n_levels
        self.codebook_size = spec.codebook_size
        self.description = Codec(
            f"encodec-{spec.sampling_rate // 1000}khz", spec.sampling_rate, spec.frame_rate
        )
        self._decoder = EncodecDecoder(weights, n_levels)

    @cached_property
    def _encoder(self) -> EncodecEncoder:
        from valle_convert.encodec.streaming import EncodecEncoder

        return EncodecEncoder(self.weights, self.n_levels)

    def encode(self, audio: Audio) -> Codes:
        """Audio of the codec's rate to codes, [frames, levels]."""
        if audio.sample_rate != self.description.sample_rate:
            raise ValueError(f"{audio.sample_rate} Hz, not {self.description.sample_rate}")
        return self._encoder.encode(audio.samples)

    def decode(self, codes: Codes) -> Audio:
        """Codes [frames, levels or fewer] to audio; fewer levels sound rougher."""
        if codes.size and (codes.min() < 0 or codes.max() >= self.codebook_size):
            raise ValueError(f"codes from {codes.min()} to {codes.max()} of {self.codebook_size}")
        if codes.shape[1] > self.n_levels:
            raise ValueError(f"codes of {codes.shape[1]} levels, and the codec has {self.n_levels}")
        return Audio(self._decoder.decode(codes), self.description.sample_rate)
