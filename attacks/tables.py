"""Attacks by way of headers and texts: safetensors, GGUF, YAML, JSON, arrays, sound, folders."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from attacks.attack import CHECKPOINT, CODEC, CONVERTED, Attack, Made, dumped, one_file, touch
from fuzz import formats, seeds
from valle_convert.tokenizer.choose import BUILT_IN

# ---------------------------------------------------------------------------- safetensors


def _safetensors(change: Callable[[dict[str, Any]], object], more: bytes = b"") -> Made:
    """A valid checkpoint with another header."""

    def made(_canary: Path) -> bytes:
        header, data = formats.safetensors_parts(seeds.checkpoint())
        tree = json.loads(header)
        change(tree)
        return formats.safetensors_of(json.dumps(tree).encode(), data) + more

    return one_file("x.sft", made)


def _set(name: str, key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda tree: tree[name].update({key: value})


def _huge_header(folder: Path, _canary: Path) -> Path:
    path = folder / "x.sft"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 200 << 20) + b"{")
        file.truncate(210 << 20)
    return path


def _many(_canary: Path) -> bytes:
    header = {
        f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)
    }
    header["__metadata__"] = {"config": json.dumps(seeds.config())}
    return formats.safetensors_of(json.dumps(header).encode(), b"")


def _twice(_canary: Path) -> bytes:
    header, data = formats.safetensors_parts(seeds.checkpoint())
    entry = json.dumps({"sep": json.loads(header)["dropout_token"]}).encode()
    return formats.safetensors_of(entry[:-1] + b"," + header[1:], data)


def _json_tail(_canary: Path) -> bytes:
    header, data = formats.safetensors_parts(seeds.checkpoint())
    return formats.safetensors_of(header + b'{"a": 1}', data)


def _polyglot(canary: Path) -> bytes:
    """Safetensors from the front, a zip with a call in its pickle from the end."""
    return seeds.checkpoint() + formats.zip_of([("archive/data.pkl", dumped(touch(canary)))])


# ---------------------------------------------------------------------------------- texts

_NINE = ",".join("x" * 9)
YAML = {
    "yaml-python": ("python/object/a", "a: !!python/object/apply:os.system ['touch CANARY']"),
    "yaml-new": ("python/object/n", "a: !!python/object/new:os.system ['touch CANARY']"),
    "yaml-name": ("python/name:os", "a: !!python/name:os.system"),
    "yaml-module": ("python/module:a", "a: !!python/module:antigravity"),
    "yaml-laughs": (
        "expands to more",
        f"a0: &a0 [{_NINE}]\n"
        + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
        + "capabilities: *a11\n",
    ),
    "yaml-merges": (
        "expands to more",
        "a0: &a0 {x: 1}\n"
        + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], y{i}: 1}}\n" for i in range(1, 50)),
    ),
    "yaml-circle": ("contains itself", "capabilities: &a [*a]"),
    "yaml-base-60": ("800,001 characters that is not text", "version: 1" + ":1" * 400_000),
    "yaml-deep": ("nested too deeply", "a: " + "[" * 100_000),
    "yaml-long": ("900,002 characters that is not text", "version: 0x" + "f" * 900_000),
}


def _config(text: str) -> Made:
    """A config beside a checkpoint that has none inside."""

    def make(folder: Path, canary: Path) -> Path:
        header, data = formats.safetensors_parts(seeds.checkpoint())
        tree = json.loads(header)
        del tree["__metadata__"]
        path = folder / "x.sft"
        path.write_bytes(formats.safetensors_of(json.dumps(tree).encode(), data))
        (folder / "config.yaml").write_text(text.replace("CANARY", str(canary)))
        return path

    return make


def _tokenizer(name: str, data: Callable[[], bytes]) -> Made:
    """A hostile tokenizer beside a valid checkpoint."""

    def make(folder: Path, _canary: Path) -> Path:
        (folder / "x.sft").write_bytes(seeds.checkpoint())
        (folder / name).write_bytes(data())
        return folder / "x.sft"

    return make


def _normalizing() -> bytes:
    tree = json.loads(BUILT_IN.read_bytes())
    tree["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
    }
    return json.dumps(tree).encode()


def _strings_without_end() -> bytes:
    """Each merge doubles how many strings share an id."""
    tree = json.loads(BUILT_IN.read_bytes())
    vocab, merges = tree["model"]["vocab"], tree["model"]["merges"]
    vocab["\u0281"] = vocab["r"]
    left = "b"
    for i in range(len(set(vocab.values())), 300):
        merges.append(f"{left} r")
        left += "r"
        vocab[left] = i
    return json.dumps(tree).encode()


# ----------------------------------------------------------------------------------- GGUF


def _gguf(
    change: Callable[[list[bytes]], object] = lambda _: None, more: bytes = b"", cut: int = 0
) -> Made:
    def made(_canary: Path) -> bytes:
        *header, data = formats.gguf_fields(seeds.converted(), 1)
        data = data[-sum(map(len, header)) % 32 :]
        change(header)
        written = b"".join(header)
        whole = written + bytes(-len(written) % 32) + data + more
        return whole[: len(whole) - cut]

    return one_file("x.gguf", made)


def _at(name: bytes, n: int, value: bytes) -> Callable[[list[bytes]], object]:
    """Set the nth field behind a name."""

    def change(fields: list[bytes]) -> None:
        at = fields.index(name) + n
        if len(fields[at]) != len(value):
            raise ValueError(f"the field has {len(fields[at])} bytes")
        fields[at] = value

    return change


def _key(name: bytes, kind: int, value: bytes) -> Callable[[list[bytes]], object]:
    """A key more, in front of all."""

    def change(fields: list[bytes]) -> None:
        fields[3] = struct.pack("<Q", int.from_bytes(fields[3], "little") + 1)
        fields.insert(4, struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value)

    return change


def _u64(value: int) -> bytes:
    return struct.pack("<Q", value)


_ALIGNMENT = b"general.alignment"
_TABLE = b"token_embd.weight"  # name, n_dims, dims, type, offset
GGUF: Mapping[str, tuple[str, str, Callable[[list[bytes]], object]]] = {
    "gguf-tensors": (
        "2 to the 63rd tensors",
        "claims 9223372036854775808 tensors",
        lambda f: f.__setitem__(2, _u64(1 << 63)),
    ),
    "gguf-keys": (
        "2 to the 40th keys",
        "claims 1099511627776 keys",
        lambda f: f.__setitem__(3, _u64(1 << 40)),
    ),
    "gguf-string": (
        "a name of 2 to the 64th bytes",
        "a name of 18446744073709551615 bytes",
        lambda f: f.__setitem__(4, _u64((1 << 64) - 1)),
    ),
    "gguf-no-dims": ("a tensor without dimensions", "has 0 dimensions", _at(_TABLE, 1, bytes(4))),
    "gguf-many-dims": (
        "a tensor of five dimensions",
        "has 5 dimensions",
        _at(_TABLE, 1, b"\5\0\0\0"),
    ),
    "gguf-zero-dim": ("a dimension of nothing", "has no elements", _at(_TABLE, 2, _u64(0))),
    "gguf-overflow": (
        "dimensions whose product wraps around",
        "2305843009213693953.*exceeds 63 bits",
        _at(_TABLE, 3, _u64((1 << 61) + 1)),
    ),
    "gguf-type": ("a type that is none", "unknown type 255", _at(_TABLE, 4, b"\xff\0\0\0")),
    "gguf-offset": (
        "data before the file",
        "at 18446744073709551584 exceeds 63 bits",
        _at(_TABLE, 5, _u64((1 << 64) - 32)),
    ),
    "gguf-unaligned": (
        "data that is not aligned",
        "begins at 1 and leaves a hole",
        _at(_TABLE, 5, _u64(1)),
    ),
    "gguf-alignment-0": (
        "an alignment of 0",
        "general.alignment is 0",
        _key(_ALIGNMENT, 4, bytes(4)),
    ),
    "gguf-alignment-3": (
        "an alignment of 3",
        "general.alignment is 3",
        _key(_ALIGNMENT, 4, b"\3\0\0\0"),
    ),
    "gguf-alignment-huge": (
        "an alignment of 2 GiB",
        "general.alignment is 2147483648",
        _key(_ALIGNMENT, 4, b"\0\0\0\x80"),
    ),
    "gguf-alignment-text": (
        "an alignment in words",
        "has type string",
        _key(_ALIGNMENT, 8, _u64(1) + b"8"),
    ),
    "gguf-empty-key": ("a key without a name", "a name of 0 bytes", _key(b"", 4, bytes(4))),
    "gguf-key-twice": (
        "a key that is there twice",
        "'general.architecture' is there twice",
        _key(b"general.architecture", 8, _u64(5) + b"llama"),
    ),
    "gguf-array": (
        "an array of 2 to the 62nd",
        "elements of all arrays to 4611686018427387904",
        _key(b"a", 9, b"\4\0\0\0" + _u64(1 << 62)),
    ),
    "gguf-nested": (
        "arrays in arrays",
        "an array of arrays",
        _key(b"a", 9, b"\x09\0\0\0" + _u64(1) + b"\4\0\0\0" + _u64(0)),
    ),
    "gguf-split": (
        "a part that makes llama.cpp open others",
        "one part of a split model",
        _key(b"split.count", 2, b"\2\0"),
    ),
    "gguf-big-endian": (
        "the other order of bytes",
        "big-endian",
        lambda f: f.__setitem__(1, f[1][::-1]),
    ),
    "gguf-experts": (
        "a key that makes another graph",
        "expert_count|it was changed",
        _key(b"gemma.expert_count", 4, b"\xff\xff\0\0"),
    ),
}

# --------------------------------------------------------------------------- arrays, sound


def _npz(header: bytes, data: Callable[[Path], bytes], method: int = zipfile.ZIP_STORED) -> Made:
    """A file of codes with another array."""

    def made(canary: Path) -> bytes:
        arrays = {**seeds.codes_npz(), "codes.npy": formats.npy_of(header, data(canary))}
        return formats.zip_of(list(arrays.items()), method)

    return one_file("x.npz", made)


def _array(kind: str, shape: str) -> bytes:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}), }}".encode()


#: A valid model, so that the voice is what is refused; `tests/attacks` gives it.
VOICE = (
    "speak {model} a --phonemes --voice {} -o {out}.wav --codec {codec} --set max_seconds=0.1",
)


_SECOND = 48_000  # bytes, at 24 kHz
_NOISE = Random(0).randbytes(_SECOND)  # noqa: S311 - no secret


def _wav(rate: int, size: int, data: bytes) -> bytes:
    head = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate & 0xFFFFFFFF, 2, 16)
    length = struct.pack("<I", size)
    return b"RIFF" + length + b"WAVE" + head + b"data" + length + data


# ---------------------------------------------------------------------------------- folders


def _codec_index(shard: str = "") -> Made:
    def make(folder: Path, _canary: Path) -> Path:
        for name, data in seeds.codec_folder(shards=True).items():
            (folder / name).write_bytes(data)
        index = folder / "model.safetensors.index.json"
        tree = json.loads(index.read_text())
        first = next(iter(tree["weight_map"]))
        tree["weight_map"][first] = shard or tree["weight_map"][first]
        index.write_text(json.dumps(tree))
        return folder

    return make


def _checkpoint_index(shard: str) -> Made:
    def make(folder: Path, _canary: Path) -> Path:
        (folder / "a.safetensors").write_bytes(seeds.checkpoint())
        names = [
            name
            for name in json.loads(formats.safetensors_parts(seeds.checkpoint())[0])
            if name[0] != "_"
        ]
        weight_map = dict.fromkeys(names, "a.safetensors") | {names[0]: shard}
        path = folder / "x.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return path

    return make


def _latest(tag: str) -> Made:
    def make(folder: Path, _canary: Path) -> Path:
        training = folder / "training"
        training.mkdir()
        (training / "latest").write_text(tag)
        (training / "1000").mkdir()
        (training / "1000" / "state.sft").write_bytes(seeds.checkpoint())
        return training

    return make


def _manifest(name: str) -> Made:
    def make(folder: Path, _canary: Path) -> Path:
        inner = folder / "set"
        inner.mkdir()
        for file, data in seeds.manifest().items():
            (inner / file).write_bytes(data)
        tree = json.loads((inner / "manifest.json").read_text())
        tree["files"][0]["name"] = name
        (inner / "manifest.json").write_text(json.dumps(tree))
        return inner

    return make


def _pipe(folder: Path, _canary: Path) -> Path:
    os.mkfifo(folder / "x.sft")
    return folder / "x.sft"


def _link_to_device(folder: Path, _canary: Path) -> Path:
    (folder / "x.sft").symlink_to("/dev/zero")
    return folder / "x.sft"


TABLES: Mapping[str, Attack] = {
    "header-200-mb": Attack("a header of 200 MB of nothing", _huge_header, "header too large"),
    "header-100000": Attack("100,000 tensors", one_file("x.sft", _many), "its tensors are t0"),
    "header-length": Attack(
        "a header as long as the memory",
        one_file("x.sft", lambda _: b"\xff" * 8 + seeds.checkpoint()[8:]),
        "header too large",
    ),
    "header-twice": Attack(
        "a tensor that is there twice", one_file("x.sft", _twice), "has 'sep' twice"
    ),
    "header-overlap": Attack(
        "two tensors in one place",
        _safetensors(_set("dropout_token", "data_offsets", [0, 32])),
        "invalid offset for tensor",
    ),
    "header-hole": Attack(
        "a hole between tensors",
        _safetensors(lambda tree: tree.pop("dropout_token")),
        "invalid offset for tensor",
    ),
    "header-backwards": Attack(
        "data that ends before it begins",
        _safetensors(_set("sep", "data_offsets", [32, 0])),
        "invalid offset for tensor `sep`",
    ),
    "header-negative": Attack(
        "a negative dimension",
        _safetensors(_set("sep", "shape", [-8])),
        "invalid value: integer",
    ),
    "header-overflow": Attack(
        "a shape whose product wraps around",
        _safetensors(_set("sep", "shape", [1 << 62, 8])),
        "overflow computing buffer size",
    ),
    "header-dimensions": Attack(
        "a tensor of 300 dimensions",
        _safetensors(_set("sep", "shape", [1] * 300 + [8])),
        "has 301 dimensions",
    ),
    "header-trailing": Attack(
        "bytes behind the data", _safetensors(lambda _: None, bytes(8)), "file not fully covered"
    ),
    "header-json-tail": Attack(
        "bytes behind the JSON", one_file("x.sft", _json_tail), "trailing characters"
    ),
    "header-infinite": Attack(
        "a config with numbers that are none",
        _safetensors(lambda t: t["__metadata__"].update(config='{"version": 1e999, "size": NaN}')),
        "has version inf",
    ),
    "header-deep": Attack(
        "a config nested 100,000 deep",
        _safetensors(lambda tree: tree["__metadata__"].update(config="[" * 100_000)),
        "maximum recursion depth",
    ),
    "polyglot": Attack(
        "safetensors in front, a pickle's zip behind",
        one_file("x.sft", _polyglot),
        "file not fully covered",
    ),
    **{
        name: Attack(f"a config of YAML that begins {text[:24]!r}", _config(text), says)
        for name, (says, text) in YAML.items()
    },
    "tokenizer-regex": Attack(
        "a regular expression that never ends",
        _tokenizer("tokenizer.json", _normalizing),
        "pre_tokenizer",
        CHECKPOINT[1:],
    ),
    "tokenizer-strings": Attack(
        "merges that double the strings of an id each time",
        _tokenizer("tokenizer.json", _strings_without_end),
        "more than 65,536 strings",
        CHECKPOINT[1:],
    ),
    "tokenizer-deep": Attack(
        "JSON nested 100,000 deep",
        _tokenizer("tokenizer.json", lambda: b"[" * 100_000),
        "maximum recursion depth",
        CHECKPOINT[1:],
    ),
    **{
        name: Attack(words, _gguf(change), says, CONVERTED)
        for name, (words, says, change) in GGUF.items()
    },
    "gguf-trailing": Attack(
        "bytes behind the last tensor",
        _gguf(more=bytes(64)),
        "64 bytes follow the last tensor",
        CONVERTED,
    ),
    "gguf-cut": Attack(
        "data that is cut off", _gguf(cut=100), "ends at byte .* but the file has", CONVERTED
    ),
    "npz-pickle": Attack(
        "a pickled array",
        _npz(_array("|O", "1,"), lambda c: dumped(touch(c))),
        "Object arrays cannot be loaded",
        VOICE,
    ),
    "npz-huge": Attack(
        "an array of 32 terabytes",
        _npz(_array("<i4", "1099511627776, 8"), lambda _: bytes(32)),
        "Unable to allocate",
        VOICE,
    ),
    "npz-bomb": Attack(
        "200 megabytes of zeros in 200 kilobytes",
        _npz(_array("<i4", "25000000, 2"), lambda _: bytes(200_000_000), zipfile.ZIP_DEFLATED),
        "would unpack to more than",
        VOICE,
    ),
    "npz-eval": Attack(
        "Python in the header of an array",
        _npz(b"__import__('os').system('true')", lambda _: b""),
        "malformed node",
        VOICE,
    ),
    "wav-rate": Attack(
        "a rate of 1 Hz",
        one_file("x.wav", lambda _: _wav(1, _SECOND, _NOISE)),
        "sample rate of 1 Hz",
        VOICE,
    ),
    "wav-size": Attack(
        "four gigabytes of sound in a second of silence",
        one_file("x.wav", lambda _: _wav(24_000, 0xFFFFFFF0, bytes(_SECOND))),
        "0.0 of 1.0 seconds are above",
        VOICE,
    ),
    "codec-index-path": Attack(
        "a shard outside of the folder",
        _codec_index("../../etc/passwd"),
        "names '../../etc/passwd'",
        CODEC,
    ),
    "codec-index-absolute": Attack(
        "a shard with an absolute path", _codec_index("/etc/passwd"), "names '/etc/passwd'", CODEC
    ),
    "index-path": Attack(
        "a shard outside of the folder",
        _checkpoint_index("../a.safetensors"),
        "names '../a.safetensors'",
    ),
    "index-absolute": Attack(
        "a shard with an absolute path", _checkpoint_index("/etc/passwd"), "names '/etc/passwd'"
    ),
    "index-itself": Attack(
        "an index that names itself",
        _checkpoint_index("x.safetensors.index.json"),
        "names 'x.safetensors.index.json'",
    ),
    "latest-path": Attack("a tag outside of the folder", _latest("../../etc"), "holds '../../etc'"),
    "latest-long": Attack(
        "a tag of a megabyte", _latest("x" * (1 << 20)), "larger than 4,096 bytes"
    ),
    "manifest-path": Attack(
        "a file outside of the folder",
        _manifest("../../etc/passwd"),
        r"files\[0\].name",
        ("check-manifest {}",),
    ),
    "manifest-absolute": Attack(
        "a file with an absolute path",
        _manifest("/etc/passwd"),
        r"files\[0\].name",
        ("check-manifest {}",),
    ),
    "pipe": Attack("a pipe that nobody writes into", _pipe, "is a pipe"),
    "device": Attack("a device without an end", _link_to_device, "is a device"),
}

#: What the attacks are made of, undamaged.
BASES: Mapping[str, Attack] = {
    "safetensors": Attack("a checkpoint", _safetensors(lambda _: None), ""),
    "yaml": Attack("a config beside it", _config(seeds.config_json().decode()), ""),
    "tokenizer": Attack(
        "a tokenizer beside it",
        _tokenizer("tokenizer.json", BUILT_IN.read_bytes),
        "",
        CHECKPOINT[1:],
    ),
    "gguf": Attack("a converted file", _gguf(), "", CONVERTED),
    "npz": Attack("codes", _npz(_array("<i4", "3, 2"), lambda _: bytes(24)), "", VOICE),
    "wav": Attack(
        "a second of noise", one_file("x.wav", lambda _: _wav(24_000, _SECOND, _NOISE)), "", VOICE
    ),
    "codec-index": Attack("a codec in shards", _codec_index(), "", CODEC),
    "index": Attack("a checkpoint in shards", _checkpoint_index("a.safetensors"), ""),
    "latest": Attack("a training", _latest("1000"), ""),
    "manifest": Attack("quantized files", _manifest("m.gguf"), "", ("check-manifest {}",)),
}
