"""Open EnCodec from a folder of transformers, the hub, or files of other programs.

transformers itself is not needed: a folder is a `config.json` and tensors in safetensors files or
older pickles, whole or in shards; nothing in a pickle is imported or called. A tensor with weight
norm is stored in two parts, under one of two names, and is folded when it is read:

    conv.weight_g, conv.weight_v                                    Meta, older transformers
    conv.parametrizations.weight.original0, .original1              transformers 5
    conv.weight                                                     folded already

Unknown and missing tensors are errors, except the training tensors listed here.
"""

import math
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np

from valle_convert.checkpoint.containers import read_container
from valle_convert.checkpoint.folder import HUB_PREFIX, Tree
from valle_convert.checkpoint.hub import HubTree, parse_location
from valle_convert.checkpoint.source import WEIGHT_DTYPES, TensorSource, TensorSpec
from valle_convert.encodec.architecture import (
    ELSEWHERE,
    MAX_CODEBOOKS,
    CodecTensor,
    EncodecSpec,
    codebook_name,
    spec_from_config,
    table_problems,
    tensor_table,
)
from valle_convert.encodec.cpp_file import open_cpp_file
from valle_convert.encodec.gguf_codec import open_gguf_codec
from valle_convert.encodec.weights import EncodecWeights, Tensor
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.files import (
    ZIP_MAGIC,
    check_input_file,
    first_bytes,
    read_json_object,
    read_small_file,
    stat_of,
)
from valle_convert.gguf_file.read import GgufFile, look_at
from valle_convert.wording import listing

ENCODEC_24KHZ = "facebook/encodec_24khz"

_CONFIG, _CARD = "config.json", "README.md"
#: In transformers' order; the index lists the shards.
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
_MAX_JSON_BYTES = 1 << 20

#: The two parts of a weight with weight norm: magnitude and direction.
_NORM_PARTS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
#: Tensors of training: initialization, usage and running sum of a codebook.
_LEFT_OUT = re.compile(
    r"quantizer\.(?:vq\.)?layers\.\d+\._?codebook\.(?:inited|cluster_size|embed_avg)"
)
_CODEBOOK = re.compile(r"quantizer\.(?:vq\.)?layers\.(\d+)\._?codebook\.embed")
_DTYPES = [str(dtype) for dtype in WEIGHT_DTYPES]


def open_encodec(source: str | Path = ENCODEC_24KHZ) -> EncodecWeights:
    """Open a codec without reading its weights."""
    path = Path(source)
    found = stat_of(path, f"The codec {path}")
    if found is not None and stat.S_ISDIR(found.st_mode):
        return _open_folder(Tree(), path, str(source))
    if found is not None:
        check_input_file(path, "codec")
        return _open_file(path, str(source))
    name = str(source).removeprefix(HUB_PREFIX)
    on_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)
    if not on_hub or path.suffix in (".gguf", ".bin", ".th"):
        raise InputError(
            f"There is no codec {source}; expected a folder with config.json and weights, a .th, "
            f".bin or .gguf file, or a name on the hub such as {ENCODEC_24KHZ}."
        )
    opened = _open_folder(_on_hub(name), PurePosixPath("."), name)
    return replace(opened, url=f"https://huggingface.co/{name}")


def _on_hub(name: str) -> Tree:
    """The files of a model on the hub at one commit; without a request if all are in the cache."""
    location = parse_location(f"{HUB_PREFIX}{name}")
    with suppress(EnvironmentFault):
        cached = HubTree(location, only_cached=True)
        names = cached.files(PurePosixPath("."))
        if _CONFIG in names and not {*_WEIGHT_FILES}.isdisjoint(names):
            return cached
    return HubTree(location)


# -------------------------------------------------------------------------------- files


def _open_file(path: Path, source: str) -> EncodecWeights:
    kind, file = look_at(path)
    if kind == "encodec.cpp codec":
        return open_cpp_file(path, source)
    if isinstance(file, GgufFile):
        return open_gguf_codec(file, source)
    head = first_bytes(path, 8)
    if head.startswith(ZIP_MAGIC) or head[:1] == b"\x80":
        return _open_meta(path, source)
    if len(head) == 8 and path.suffix == ".safetensors":
        raise InputError(
            f"The codec {path} has only weights; pass the folder {path.parent} with config.json."
        )
    found = "is empty" if not head else f"begins with {head[:4]!r}"
    raise InputError(
        f"{path} is not an EnCodec: it {found}; pass a folder with config.json, a .th, .bin or "
        f".gguf. {ELSEWHERE}"
    )


def _open_meta(path: Path, source: str) -> EncodecWeights:
    """Open Meta's `encodec_24khz-*.th`, a bare state dict."""
    tensors = read_container(path, Tree(), path).tensors
    spec = _spec_from_tensors(tensors.specs, path)
    reader = _FoldingReader(source, tensors, spec, [entry.name for entry in tensor_table(spec)])
    return EncodecWeights(
        spec,
        source,
        reader,
        (path,),
        url="https://github.com/facebookresearch/encodec",
        notes=("a .th file has no sample rate, padding or sizes of layers; EnCodec's are assumed",),
    )


def _spec_from_tensors(specs: Mapping[str, TensorSpec], path: Path) -> EncodecSpec:
    """The published model with another width and other codebooks; every tensor is checked later."""
    names = [f"encoder.model.{layer}.conv.conv.bias" for layer in (0, 15)] + [codebook_name(0)]
    shapes = [specs[name].shape if name in specs else () for name in names]
    for name, shape, n_axes in zip(names, shapes, (1, 1, 2), strict=True):
        if len(shape) != n_axes:
            raise InputError(
                f"The codec {path} is not Meta's encodec_24khz-*.th: it lacks {name}. {ELSEWHERE}"
            )
    (filters,), (hidden,), (size, dim) = shapes
    config = {
        "n_codebooks": _count_codebooks(specs),
        "num_filters": filters,
        "hidden_size": hidden,
        "codebook_size": size,
        "codebook_dim": dim,
    }
    spec = spec_from_config(config, str(path))
    # The published bandwidths for which there are enough codebooks.
    usable = tuple(one for one in spec.target_bandwidths if spec.levels_at(one) <= spec.n_codebooks)
    everything = spec.n_codebooks * spec.frame_rate * math.log2(size) / 1000
    return replace(spec, target_bandwidths=usable or (everything,))


def _count_codebooks(names: Iterable[str]) -> int:
    """One more than the highest level with a codebook."""
    levels = [int(match[1]) for name in names if (match := _CODEBOOK.fullmatch(name))]
    return min(max(levels, default=-1) + 1, MAX_CODEBOOKS)


# ------------------------------------------------------------------------------- folders


def _open_folder(tree: Tree, folder: PurePath, source: str) -> EncodecWeights:
    names = tree.files(folder)
    config_file = tree.get(folder / _CONFIG)
    config = _read_config(config_file, source)
    weights = next((folder / name for name in _WEIGHT_FILES if name in names), None)
    if weights is None:
        raise InputError(
            f"The codec {source} has no weights, expected {' or '.join(_WEIGHT_FILES)}; "
            "download it again."
        )
    found = read_container(tree.get(weights), tree, weights)
    n_codebooks = max(1, _count_codebooks(found.tensors.specs))
    spec = spec_from_config({**config, "n_codebooks": n_codebooks}, str(config_file))
    # transformers makes as many codebooks as the highest bandwidth needs.
    n_expected = min(spec.levels_at(spec.target_bandwidths[-1]), MAX_CODEBOOKS)
    spec = replace(spec, n_codebooks=max(spec.n_codebooks, n_expected))
    stored = [entry.transformers_name for entry in tensor_table(spec)]
    reader = _FoldingReader(source, found.tensors, spec, stored)
    return EncodecWeights(
        spec,
        source,
        reader,
        (config_file, tree.get(weights), *found.shards),
        license=_license_in_card(tree.get(folder / _CARD)) if _CARD in names else None,
        notes=found.notes,
    )


def _read_config(path: Path, source: str) -> Mapping[str, Any]:
    config = read_json_object(path, "config of the codec", _MAX_JSON_BYTES)
    kind = config.get("model_type")
    if kind != "encodec":
        raise InputError(
            f"The codec {source} has the model_type {kind!r}, expected encodec; pass a folder of "
            f"{ENCODEC_24KHZ}. {ELSEWHERE}"
        )
    return config


def _license_in_card(card: Path) -> str | None:
    try:
        text = read_small_file(card, "model card", _MAX_JSON_BYTES).decode()
        from huggingface_hub import ModelCard  # slow, and most folders have no card

        found = ModelCard(text, ignore_metadata_errors=True).data.get("license")
    except Exception:  # untrusted text, and only a hint
        return None
    return found if isinstance(found, str) else None


# ----------------------------------------------------------------------------- the tensors


class _FoldingReader:
    """A `TensorReader` that folds weight norm."""

    def __init__(
        self, source: str, tensors: TensorSource, spec: EncodecSpec, names: Sequence[str]
    ) -> None:
        self._tensors = tensors
        #: Name in the table to the tensor, or to magnitude and direction.
        self._parts: dict[str, tuple[str, ...]] = {}
        expected: dict[str, tuple[tuple[int, ...], Sequence[str]]] = {}
        for entry, name in zip(tensor_table(spec), names, strict=True):
            parts = self._parts[entry.name] = self._find(name)
            magnitude = (entry.shape[0],) + (1,) * (len(entry.shape) - 1)
            shapes = (entry.shape,) if len(parts) == 1 else (magnitude, entry.shape)
            expected |= {part: (shape, _DTYPES) for part, shape in zip(parts, shapes, strict=True)}
        problems = table_problems(
            expected,
            (
                (name, found.shape, str(found.dtype or found.dtype_name))
                for name, found in tensors.specs.items()
                if not _LEFT_OUT.fullmatch(name)
            ),
        )
        if problems:
            raise InputError(
                f"The codec {source} is damaged or another model: "
                f"{listing(problems, separator='; ')}. Download it again, or pass {ENCODEC_24KHZ}."
            )

    def _find(self, name: str) -> tuple[str, ...]:
        """The names under which a tensor is stored; its own name if it is missing."""
        specs = self._tensors.specs
        if name not in specs and name.endswith(".weight"):
            base = name.removesuffix("weight")
            for magnitude, direction in _NORM_PARTS:
                if base + magnitude in specs or base + direction in specs:
                    return (base + magnitude, base + direction)
        return (name,)

    def __call__(self, entry: CodecTensor) -> Tensor:
        """One tensor in float32; v * g / norm(v) if split, with the norm over dims 1 and up."""
        parts = self._parts[entry.name]
        if len(parts) == 1:
            return np.ascontiguousarray(self._tensors.read(parts[0]), np.float32)
        import torch

        magnitude, direction = (
            torch.from_numpy(np.array(self._tensors.read(part), np.float32)) for part in parts
        )
        # Only this function gives the same float32 bits as torch.
        folded: Tensor = torch._weight_norm(direction, magnitude, 0).numpy()  # noqa: SLF001
        return folded
