"""A codec as a GGUF file with `general.architecture` `encodec`.

The keys `encodec.*` are the fields of `EncodecSpec`. The tensors are those of `tensor_table` under
Meta's names, with weight norm folded: matrices in float16 or float32, biases and codebooks in
float32. docs/codec.md lists both. llama.cpp has no graph for it.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from valle_convert import __version__
from valle_convert.encodec.architecture import (
    CodecTensor,
    EncodecSpec,
    spec_from_config,
    table_problems,
    tensor_table,
)
from valle_convert.encodec.cpp_file import WrittenCodec, read_half
from valle_convert.encodec.weights import EncodecWeights, Tensor
from valle_convert.errors import InputError
from valle_convert.files import atomic_output, check_free_space, sha256_of
from valle_convert.gguf_file.encode import encode
from valle_convert.gguf_file.header import (
    Key,
    TensorEntry,
    pack_header,
    padded,
    tensor_entries,
    write_entries,
)
from valle_convert.gguf_file.keys import CODEC_ARCHITECTURE
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import F16, F32, GgmlType
from valle_convert.progress import Progress, silent

FORMAT_VERSION = 1
_PREFIX = f"{CODEC_ARCHITECTURE}."

CodecType = Literal["f16", "f32"]
_TYPES: Mapping[CodecType, GgmlType] = {"f16": F16, "f32": F32}

#: Fields of weight norm and of other codecs are not stored.
_LEFT_OUT = ("norm_type", "normalize", "chunk_length_s")
_KEY_TYPES: Mapping[str, str] = {
    **{one.name: "u32" for one in fields(EncodecSpec) if one.name not in _LEFT_OUT},
    "upsampling_ratios": "[u32]",
    "target_bandwidths": "[f64]",
    "use_causal_conv": "bool",
    "use_conv_shortcut": "bool",
    "pad_mode": "string",
    "trim_right_ratio": "f32",
}


# -------------------------------------------------------------------------------- writing


def plan_gguf_codec(
    codec: EncodecWeights,
    out_type: CodecType = "f16",
    *,
    license_: str | None = None,
    url: str | None = None,
) -> tuple[tuple[Key, ...], tuple[TensorEntry, ...]]:
    """Keys and tensors of a file; reads only the header of the source, and hashes it."""
    values = asdict(codec.spec)
    weights = max(codec.files, key=lambda path: path.stat().st_size)
    about = {
        "general.name": Path(codec.source).stem,
        "general.license": license_ or codec.license,
        "general.source.url": url or codec.url,
        f"{_PREFIX}source.name": weights.name,
        f"{_PREFIX}source.sha256": sha256_of(weights),
        f"{_PREFIX}converter.version": __version__,
    }
    matrices = _TYPES[out_type]
    keys = (
        Key("general.architecture", CODEC_ARCHITECTURE, "string"),
        Key("general.type", "model", "string"),
        *(Key(name, value, "string") for name, value in about.items() if value),
        Key("general.file_type", matrices.file_type, "u32"),
        Key(f"{_PREFIX}format_version", FORMAT_VERSION, "u32"),
        *(Key(_PREFIX + name, values[name], kind) for name, kind in _KEY_TYPES.items()),
    )
    tensors = tensor_entries(
        (entry.name, entry.shape, matrices if entry.is_weight else F32) for entry in codec.tensors
    )
    return keys, tuple(tensors)


def write_gguf_codec(
    codec: EncodecWeights,
    path: Path,
    *,
    out_type: CodecType = "f16",
    license_: str | None = None,
    url: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> WrittenCodec:
    """Write the file, or nothing. Memory holds one tensor at a time."""
    keys, tensors = plan_gguf_codec(codec, out_type, license_=license_, url=url)
    header = pack_header(keys, tensors)
    size = len(header) + sum(padded(tensor.n_bytes) for tensor in tensors)

    def data(tensor: TensorEntry) -> NDArray[Any]:
        is_half = tensor.ggml_type == F16
        values = read_half(codec, tensor.name) if is_half else codec.read(tensor.name)
        return encode(values, tensor.ggml_type, tensor.name)

    with (
        atomic_output(path, force=force, inputs=codec.files) as file,
        progress("writing", size, "B") as advance,
    ):
        check_free_space(path, size)
        write_entries(file, header, tensors, map(data, tensors), advance)
    notes = list(codec.notes)
    if not any(key.name == "general.license" for key in keys):
        notes.append("the source has no license; pass it with --license")
    return WrittenCodec(path, size, len(tensors), tuple(notes))


# -------------------------------------------------------------------------------- reading


def open_gguf_codec(file: GgufFile, source: str | None = None) -> EncodecWeights:
    """Open a codec in the format of `write_gguf_codec`."""
    file.refuse_part()
    where = source or str(file.path)
    architecture = file.keys.get("general.architecture")
    if architecture != CODEC_ARCHITECTURE:
        raise InputError(
            f"{where} has the architecture {architecture!r}, expected a "
            f"codec ({CODEC_ARCHITECTURE}). Write one with `valle-convert codec CODEC OUT.gguf`."
        )
    spec = _read_spec(file, where)
    names = [kind.name for kind in _TYPES.values()]
    problems = table_problems(
        {entry.name: (entry.shape, names) for entry in tensor_table(spec)},
        ((name, one.shape, one.ggml_type.name) for name, one in file.tensors.items()),
    )
    if problems:
        raise InputError(
            f"The codec {where} is damaged: {'; '.join(problems)}. Write it again with "
            "`valle-convert codec`."
        )

    def read(entry: CodecTensor) -> Tensor:
        return file.tensors[entry.name].rows().reshape(entry.shape)

    told = {name: file.keys.get(f"general.{name}") for name in ("license", "source.url")}
    text = {name: value if isinstance(value, str) else None for name, value in told.items()}
    return EncodecWeights(
        spec,
        where,
        read,
        (file.path,),
        license=text["license"],
        url=text["source.url"],
        halves=frozenset(name for name, one in file.tensors.items() if one.ggml_type == F16),
    )


def _read_spec(file: GgufFile, where: str) -> EncodecSpec:
    version = file.keys.get(f"{_PREFIX}format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{where} has version {version!r} of the format, expected {FORMAT_VERSION}; update "
            "valle-convert, or write the file again."
        )
    missing = [_PREFIX + name for name in _KEY_TYPES if _PREFIX + name not in file.keys]
    if missing:
        raise InputError(
            f"{where} lacks {', '.join(missing)}; write it again with `valle-convert codec`."
        )
    return spec_from_config({name: file.keys[_PREFIX + name] for name in _KEY_TYPES}, where)
