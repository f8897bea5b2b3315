"""Small valid files of every kind, from which the mutations start; made once a process."""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
import safetensors.torch
import soundfile
import torch
from numpy.lib import format as npy

from fuzz.formats import sentencepiece_bytes, zip_of
from valle_convert import plan_conversion, write_gguf
from valle_convert.api import write_lora
from valle_convert.encodec.architecture import EncodecSpec
from valle_convert.encodec.cpp_file import write_cpp_file
from valle_convert.encodec.gguf_codec import write_gguf_codec
from valle_convert.encodec.weights import EncodecWeights
from valle_convert.gguf_file.header import Key, TensorEntry, pack_header, padded
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import GGML_TYPES, SCALARS
from valle_convert.llama.library import load_library
from valle_convert.quantize.imatrix import Entry, ImatrixFile, encode_imatrix
from valle_convert.quantize.manifest import ManifestFile, tensor_digests, write_manifest
from valle_convert.tokenizer.choose import BUILT_IN

Files = Mapping[str, bytes]
_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6


def _after(given: Files, run: Callable[[Path], object]) -> dict[str, bytes]:
    """The files of a folder in which a function has run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for one, data in given.items():
            (folder / one).write_bytes(data)
        run(folder)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def _written(write: Callable[[Path], object], name: str) -> bytes:
    """The bytes of what a function writes under a name."""
    return _after({}, lambda folder: write(folder / name))[name]


# -------------------------------------------------------------------------------- weights


@cache
def safetensors_file() -> bytes:
    """Four tensors of different types, and metadata."""
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(4, dtype=np.float16),
        "c": np.zeros((0, 3), np.int64),
        "d": np.arange(5, dtype=ml_dtypes.bfloat16),
    }
    return bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))


@cache
def torch_zip(*, legacy: bool = False) -> bytes:
    """What `torch.save` writes: a state dict with two views of one storage, and plain values."""
    shared = torch.arange(12, dtype=torch.float32)
    state = {
        "module": {
            "a.weight": shared[:6].view(2, 3),
            "b.bias": shared[6:],
            "c": torch.ones(3, dtype=torch.bfloat16),
            "sep": torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float16)),
        },
        "config": {"version": 5, "capabilities": ["ar"], "size": {"dim": 8}},
        "userdata": {"symmap": {"a": 1}},
        "stats": {"global_step": 7},
    }
    buffer = io.BytesIO()
    torch.save(
        state["module"] if legacy else state, buffer, _use_new_zipfile_serialization=not legacy
    )
    return buffer.getvalue()


def _tiny_shape() -> Any:  # noqa: ANN401 - of fixtures/, which is no package
    from make_checkpoint import Shape

    return Shape(
        dim=8, heads=2, layers=1, levels=2, audio_tokens=8, text_tokens=4, langs=2, tasks=3
    )


@cache
def checkpoint(suffix: str = ".sft") -> bytes:
    """A whole checkpoint, eight wide and one layer deep, with the vocabulary of the built-in."""
    from make_checkpoint import make_checkpoint

    shape = _tiny_shape()
    return _written(lambda path: make_checkpoint(path, shape), f"model{suffix}")


@cache
def config() -> dict[str, Any]:
    """The config of that checkpoint."""
    from make_checkpoint import config_of

    made: dict[str, Any] = config_of(_tiny_shape())
    return made


def config_json() -> bytes:
    return json.dumps(config()).encode()


@cache
def lora(suffix: str = ".sft") -> bytes:
    """A LoRA of two of its weights."""
    tensors = {
        f"model.layers.0.self_attn.{one}_proj.lora_{side}": torch.ones(shape)
        for one in "qv"
        for side, shape in (("A", (2, 8)), ("B", (8, 2)))
    }
    told = {"config": {"rank": 2, "alpha": 4}}
    if suffix == ".sft":
        return bytes(
            safetensors.torch.save(tensors, {key: json.dumps(value) for key, value in told.items()})
        )
    buffer = io.BytesIO()
    torch.save({"lora": tensors, **told}, buffer)
    return buffer.getvalue()


@cache
def converted() -> bytes:
    """The GGUF file of that checkpoint."""
    return _converted_set("model.sft", checkpoint())["x.gguf"]


@cache
def vallex() -> bytes:
    """A checkpoint of VALL-E X, eight wide and one layer deep, in the container of icefall."""
    from make_vallex import VallexShape, make_vallex

    shape = VallexShape(dim=8, heads=2, layers=1, levels=3, codes=8, text_rows=72, languages=3)
    return _written(lambda path: make_vallex(path, shape), "model.pt")


@cache
def vallex_set() -> dict[str, bytes]:
    return _converted_set("model.pt", vallex())


@cache
def version_7_set() -> dict[str, bytes]:
    """The two files of a checkpoint of version 7, eight wide and one layer deep."""
    from make_checkpoint import Shape, make_checkpoint

    shape = Shape(
        version=7, dim=8, heads=2, layers=1, levels=2, audio_tokens=4, text_tokens=1, langs=1
    )
    return _converted_set("model.sft", _written(lambda path: make_checkpoint(path, shape), "m.sft"))


def _converted_set(name: str, checkpoint: bytes) -> dict[str, bytes]:
    files = _after(
        {name: checkpoint},
        lambda folder: write_gguf(plan_conversion(folder / name), folder / "x.gguf"),
    )
    del files[name]
    return files


@cache
def old_gguf() -> bytes:
    """The small checkpoint as llama.cpp's LLaMA converter writes it."""
    from verify.old_files import make_old

    return _after(
        {"model.sft": checkpoint()},
        lambda folder: make_old(folder / "model.sft", folder / "old.gguf", "F16"),
    )["old.gguf"]


@cache
def adapter() -> bytes:
    return _after(
        {"base.gguf": converted(), "lora.sft": lora()},
        lambda folder: write_lora(folder / "base.gguf", folder / "lora.sft", folder / "out.gguf"),
    )["out.gguf"]


@cache
def gguf_file() -> bytes:
    """A GGUF file with a key of every type, and tensors of some."""
    keys = [Key("general.architecture", "gemma", "string"), Key("general.alignment", 32, "u32")]
    for kind in SCALARS:
        keys.append(Key(f"a.{kind}", kind == "bool" or 1, kind))
        keys.append(Key(f"b.{kind}", [True, False] if kind == "bool" else [0, 1, 2], f"[{kind}]"))
    keys += [Key("c.words", ["one", "zw\u00f6lf", ""], "[string]"), Key("c.none", [], "[string]")]
    tensors: list[TensorEntry] = []
    offset = 0
    for name, shape in (
        ("F32", (3,)), ("Q8_0", (2, 32)), ("F16", (2, 1, 3)), ("Q4_K", (1, 2, 1, 256)),
        ("I64", (2,)), ("IQ2_XXS", (1, 256)), ("BF16", (5, 7)), ("Q1_0", (1, 128)),
    ):  # fmt: skip
        tensors.append(TensorEntry(f"t.{name}", shape, GGML_TYPES[name], offset))
        offset += padded(tensors[-1].n_bytes)
    return pack_header(keys, tensors) + bytes(range(256)) * (offset // 256) + bytes(offset % 256)


@cache
def imatrix() -> bytes:
    entries = {name: Entry(np.arange(4, dtype=np.float32), 3) for name in ("a.weight", "b.weight")}
    return encode_imatrix(ImatrixFile(entries, ("words",), 2, 8))


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:  # which goes with this process
    return tempfile.TemporaryDirectory()


@cache
def converted_path() -> Path:
    """The converted file on disk, for llama.cpp; made before there are workers."""
    path = Path(_folder().name) / "model.gguf"
    path.write_bytes(converted())
    return path


# -------------------------------------------------------------------------------- codecs


@cache
def _tiny_codec(codebook_size: int = 1024) -> EncodecWeights:
    spec = EncodecSpec(
        n_codebooks=2,
        hidden_size=2,
        num_filters=1,
        codebook_size=codebook_size,
        codebook_dim=2,
        num_lstm_layers=1,
        target_bandwidths=(0.15 * math.log2(codebook_size),),
    )
    draw = np.random.default_rng(0)
    return EncodecWeights(
        spec,
        "tiny",
        lambda entry: draw.standard_normal(entry.shape, dtype=np.float32),
        (Path(__file__),),
    )


@cache
def codec_gguf(codebook_size: int = 1024) -> bytes:
    codec = _tiny_codec(codebook_size)
    return _written(lambda path: write_gguf_codec(codec, path), "codec.gguf")


@cache
def codec_cpp() -> bytes:
    codec = _tiny_codec()
    spec = replace(codec.spec, num_lstm_layers=2, target_bandwidths=(2.0,))
    return _written(lambda path: write_cpp_file(replace(codec, spec=spec), path), "codec.bin")


@cache
def codec_folder(*, shards: bool = False) -> dict[str, bytes]:
    """A codec as transformers saves it, weight norm folded; in one file, or in two and an index."""
    codec = _tiny_codec()
    told = {**asdict(codec.spec), "model_type": "encodec"}
    del told["n_codebooks"]
    tensors = {entry.transformers_name: codec.read(entry.name) for entry in codec.tensors}
    files = {"config.json": json.dumps(told).encode(), "README.md": b"---\nlicense: mit\n---\n"}
    if not shards:
        return files | {"model.safetensors": safetensors.numpy.save(tensors)}
    names = sorted(tensors)
    homes = {name: f"model-{1 + (i % 2)}.safetensors" for i, name in enumerate(names)}
    for home in sorted(set(homes.values())):
        files[home] = safetensors.numpy.save(
            {name: tensors[name] for name in names if homes[name] == home}
        )
    return files | {"model.safetensors.index.json": json.dumps({"weight_map": homes}).encode()}


# ----------------------------------------------------------------------------- tokenizers


@cache
def tokenizer_json() -> bytes:
    """A BPE of a dozen strings, two of which share an id."""
    tree = json.loads(BUILT_IN.read_text(encoding="utf-8"))
    letters = {"a": 4, "b": 5, "c": 6, "r": 7, "\u0281": 7, " ": 8, "ab": 9, "abc": 10, "cr": 11}
    specials = {token["content"]: token["id"] for token in tree["added_tokens"]}
    tree["model"]["vocab"] = specials | letters
    tree["model"]["merges"] = ["a b", "ab c", "c r"]
    return json.dumps(tree).encode()


@cache
def sentencepiece_model() -> bytes:
    """A SentencePiece model of bytes, four letters and two merges."""
    pieces: dict[str, tuple[float, int]] = {"<unk>": (0.0, _UNKNOWN)}
    pieces |= dict.fromkeys(("<s>", "</s>"), (0.0, _CONTROL))
    pieces |= {f"<0x{byte:02X}>": (0.0, _BYTE) for byte in range(256)}
    for i, piece in enumerate(("ab", "abc", "\u2581", "a", "b", "c")):
        pieces[piece] = (-float(i), 1)
    return sentencepiece_bytes(pieces)


# ------------------------------------------------------------------------- sound and codes


@cache
def wav() -> bytes:
    """A tenth of a second of 16-bit stereo with a chunk that is skipped."""
    samples = (np.sin(np.arange(800) / 5) * 9000).astype("<i2").tobytes()
    chunks = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 2, 8000, 32000, 4, 16)
    chunks += b"LIST" + struct.pack("<I", 4) + b"INFO" + b"data" + struct.pack("<I", len(samples))
    return b"RIFF" + struct.pack("<I", 4 + len(chunks) + len(samples)) + b"WAVE" + chunks + samples


@cache
def other_sound(kind: str) -> bytes:
    """Such a sound as FLAC, OGG, MP3 or AIFF."""
    buffer = io.BytesIO()
    samples = (np.sin(np.arange(2400) / 5) * 0.3).astype(np.float32)
    soundfile.write(buffer, samples, 24_000, format=kind)
    return buffer.getvalue()


@cache
def codes_npz(kind: str = "codes") -> dict[str, bytes]:
    """The arrays of a file of codes, of an utterance or a voice, as they are stored."""
    codes = np.arange(6, dtype=np.int32).reshape(3, 2)
    arrays: dict[str, Any] = {
        "format_version": np.int64(1),
        "codes": codes,
        "codec": np.str_("unknown"),
        "codebook_size": np.int64(8),
        "sample_rate": np.int64(24_000),
        "frame_rate": np.float64(75.0),
    }
    if kind == "voice":
        arrays = {"audio_tokens": codes[None], "text_tokens": np.array([[5, 69, 0]])}
        arrays["lang_code"] = np.array(2)
    if kind == "utterance":
        arrays = {"phonemes": np.array([1, 5, 2]), "response": codes, "prompt": codes}
        arrays["language"] = np.array(0)
    stored = {}
    for name, value in arrays.items():
        buffer = io.BytesIO()
        npy.write_array(buffer, np.asarray(value))
        stored[f"{name}.npy"] = buffer.getvalue()
    return stored


@cache
def codes_zip() -> bytes:
    return zip_of(list(codes_npz().items()))


# ------------------------------------------------------------------------- folders, reports


@cache
def manifest() -> dict[str, bytes]:
    """A folder of `quantize` with one file in it."""

    def write(folder: Path) -> None:
        path = folder / "m.gguf"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        file = ManifestFile(
            path.name, "imatrix", path.stat().st_size, digest, digest, {"name": "t"}, ("a",), None,
            tensor_digests(GgufFile(path)),
        )  # fmt: skip
        write_manifest(folder, [file])

    return _after({"m.gguf": imatrix()}, write)


def warm() -> None:
    """Import what every reader needs, before memory is limited and processes are made."""
    import sentencepiece
    import soxr
    import tokenizers
    import yaml

    load_library()
    converted_path()
    torch.set_num_threads(1)
    _ = (sentencepiece, soxr, tokenizers, yaml)
