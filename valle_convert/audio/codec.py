"""EnCodec through transformers: audio to codes [frames, levels], and back.

The weights come from a folder or from the Hugging Face hub. Nothing in them is executed:
safetensors files hold numbers only, and older `.bin` files are read by torch with
`weights_only`. To work without a network, download once and name the folder:

    hf download facebook/encodec_24khz --local-dir encodec_24khz
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from valle_convert.audio.files import Audio
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.extras import require
from valle_convert.model.spec import Codec, ModelConfig

Codes = NDArray[np.int32]

ENCODEC_24KHZ = "facebook/encodec_24khz"
#: Its name in converted files.
ENCODEC_NAME = "encodec-24khz"


class AudioCodec(Protocol):
    """What speaking needs of a codec."""

    @property
    def description(self) -> Codec:
        """Its name and rates."""
        ...

    @property
    def n_levels(self) -> int:
        """Codebooks a frame."""
        ...

    @property
    def codebook_size(self) -> int:
        """Codes a codebook."""
        ...

    def encode(self, audio: Audio) -> Codes:
        """Audio to codes, [frames, levels]."""
        ...

    def decode(self, codes: Codes) -> Audio:
        """Codes [frames, levels or fewer] to audio."""
        ...


def check_codec_fits(codec: AudioCodec, config: ModelConfig) -> None:
    """Refuse a codec whose codes are not the model's.

    Raises:
        InputError: levels, codebook size or rates differ.
    """
    found = (codec.n_levels, codec.codebook_size)
    expected = (config.n_levels, config.codebook_size)
    model = config.codec
    if found != expected:
        named = "" if model.name == "unknown" else f" ({model.name})"
        raise InputError(
            f"The codec has {found[0]} levels of {found[1]} codes, and the model was trained on "
            f"{expected[0]} levels of {expected[1]}{named}; give the model's codec with --codec."
        )
    rates = (codec.description.sample_rate, codec.description.frame_rate)
    if model.name != "unknown" and rates != (model.sample_rate, model.frame_rate):
        raise InputError(
            f"The codec works at {rates[0]} Hz and {rates[1]:g} frames a second, and the model was "
            f"trained on {model.name} with {model.sample_rate} Hz and {model.frame_rate:g}; give "
            "the model's codec with --codec."
        )


def open_codec(source: str | Path | None, config: ModelConfig) -> EncodecCodec:
    """The codec of a model, refused before it is loaded where the model has another.

    Args:
        source: a folder, or a name on the hub; None for the published 24 kHz EnCodec.
        config: of the model.

    Raises:
        InputError: the model's codec is not EnCodec; or as `EncodecCodec` and `check_codec_fits`.
        EnvironmentFault: as `EncodecCodec`.
    """
    if config.codec.name not in {ENCODEC_NAME, "unknown"}:
        raise InputError(
            f"The model speaks codes of {config.codec.name}, and this program can only sound those "
            f"of {ENCODEC_NAME}; give voices as codes (.npz), and write codes with --save-codes."
        )
    codec = EncodecCodec(ENCODEC_24KHZ if source is None else source, n_levels=config.n_levels)
    check_codec_fits(codec, config)
    return codec


class EncodecCodec:
    """EnCodec, of any size, as an `AudioCodec`.

    Args:
        source: a folder with `config.json` and weights, or a name on the hub.
        n_levels: how many codebooks to use; 8 are 6 kbit/s of the published model.

    Raises:
        InputError: it is no EnCodec, is damaged or incomplete, or has no such number of levels.
        EnvironmentFault: transformers is not installed, or the hub cannot be reached.
    """

    def __init__(self, source: str | Path = ENCODEC_24KHZ, *, n_levels: int = 8) -> None:
        self._model = _load(source)
        config = self._model.config
        if config.audio_channels != 1 or config.normalize or config.chunk_length_s is not None:
            raise InputError(
                f"The codec {source} is an EnCodec for stereo music in chunks; the 24 kHz one for "
                f"one channel is expected ({ENCODEC_24KHZ})."
            )
        self._bandwidth = _bandwidth_for(self._model, n_levels, source)
        rate, hop = int(config.sampling_rate), math.prod(config.upsampling_ratios)
        self._codec = Codec(f"encodec-{rate // 1000}khz", rate, rate / hop)
        self._n_levels = n_levels

    @property
    def description(self) -> Codec:
        """Its name and rates."""
        return self._codec

    @property
    def n_levels(self) -> int:
        """Codebooks a frame."""
        return self._n_levels

    @property
    def codebook_size(self) -> int:
        """Codes a codebook."""
        return int(self._model.config.codebook_size)

    def encode(self, audio: Audio) -> Codes:
        """Audio of the codec's rate to codes, [frames, levels]."""
        import torch

        if audio.sample_rate != self._codec.sample_rate:
            raise ValueError(f"{audio.sample_rate} Hz, not {self._codec.sample_rate}")
        samples = torch.from_numpy(np.array(audio.samples, np.float32))[None, None]
        with torch.inference_mode():
            encoded = self._model.encode(samples, bandwidth=self._bandwidth)
        codes: Codes = encoded.audio_codes[0, 0].T.numpy().astype(np.int32)
        return codes

    def decode(self, codes: Codes) -> Audio:
        """Codes [frames, levels or fewer] to audio; fewer levels sound rougher."""
        import torch

        if codes.shape[0] == 0:
            return Audio(np.zeros(0, np.float32), self._codec.sample_rate)
        if codes.min() < 0 or codes.max() >= self.codebook_size:
            raise ValueError(f"codes from {codes.min()} to {codes.max()} of {self.codebook_size}")
        # The axes are those of chunks, batch, levels and frames.
        tensor = torch.from_numpy(np.array(codes.T, np.int64))[None, None]
        with torch.inference_mode():
            decoded = self._model.decode(tensor, [None]).audio_values
        return Audio(decoded[0, 0].numpy().astype(np.float32), self._codec.sample_rate)


def _bandwidth_for(model: Any, n_levels: int, source: str | Path) -> float:  # noqa: ANN401
    """The bandwidth, in kbit/s, of which so many codebooks come."""
    levels = {
        float(bandwidth): int(model.quantizer.get_num_quantizers_for_bandwidth(bandwidth))
        for bandwidth in model.config.target_bandwidths
    }
    for bandwidth, found in levels.items():
        if found == n_levels:
            return bandwidth
    offered = ", ".join(str(found) for found in levels.values())
    raise InputError(
        f"The codec {source} has bandwidths of {offered} levels, and {n_levels} are needed; give "
        "the model's codec with --codec."
    )


def _load(source: str | Path) -> Any:  # noqa: ANN401 - transformers has its own types
    folder = Path(source)
    if folder.is_dir():
        _check_folder(folder)
    elif folder.exists():
        raise InputError(
            f"The codec {source} is a file; give the folder with its config.json and weights."
        )
    elif str(source).count("/") != 1 or str(source).startswith((".", "/")):
        raise InputError(
            f"There is no codec folder {source}; give a folder with config.json and weights, or "
            f"a name on the hub such as {ENCODEC_24KHZ}."
        )
    transformers = require("transformers", "Turning audio into codes")
    try:
        with _quiet(transformers):
            model, report = transformers.EncodecModel.from_pretrained(
                str(source), output_loading_info=True
            )
    except OSError as error:
        if folder.is_dir():
            raise _damaged(source, error) from error
        raise EnvironmentFault(
            f"The codec {source} cannot be had from the Hugging Face hub "
            f"({_first_line(error)}). Where there is a network, download it once with: "
            f"hf download {source} --local-dir encodec; then give --codec encodec."
        ) from error
    except Exception as error:
        # Damaged and hostile files fail in torch, safetensors, json and transformers, each with
        # exceptions of its own; none of them is ours.
        raise _damaged(source, error) from error
    absent = [*report["missing_keys"], *(str(one) for one in report["mismatched_keys"])]
    if absent:
        # transformers would fill them with random numbers.
        raise InputError(
            f"The codec {source} has no fitting weights for {len(absent)} tensors, "
            f"{min(absent)} among them; download it again."
        )
    return model.eval()


def _check_folder(folder: Path) -> None:
    """Refuse a folder of another model before transformers tries to make an EnCodec of it."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"The codec folder {folder} has no readable config.json of a model "
            f"({_first_line(error)}); download it again."
        ) from error
    if kind != "encodec":
        raise InputError(
            f"The folder {folder} holds a model of the type {kind!r}, where encodec is expected."
        )


def _damaged(source: str | Path, error: Exception) -> InputError:
    return InputError(
        f"The codec {source} cannot be loaded ({type(error).__name__}: {_first_line(error)}); "
        "download it again."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:  # noqa: ANN401 - a module
    """Keep transformers from drawing bars and printing advice; errors still come as exceptions."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
