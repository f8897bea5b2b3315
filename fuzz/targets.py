"""The targets: what makes an input, what reads it, and the library that it is compared with.

A target makes the files of an input from a random generator alone, and reads them as the program
does. A reader may raise `ValleConvertError`. What it accepts is read to the end and compared with
the format's own library, if there is one. Any other exception is a finding.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml

from fuzz import formats, oracles, seeds
from fuzz.mutate import (
    NUMBERS,
    TEXTS,
    damage_bytes,
    damage_fields,
    damage_json,
    damage_pickle,
    damage_tree,
    number_bytes,
    pickle_opcodes,
    tree_bytes,
)
from valle_convert.api import plan_conversion, plan_repair
from valle_convert.audio.codes import read_codes
from valle_convert.audio.files import read_audio
from valle_convert.audio.utterances import read_list
from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.containers import read_container
from valle_convert.checkpoint.folder import Tree
from valle_convert.checkpoint.lora import LoraFile
from valle_convert.checkpoint.read import read_checkpoint
from valle_convert.checkpoint.safetensors_file import SafetensorsFile
from valle_convert.encodec.cpp_file import plan_cpp_file
from valle_convert.encodec.gguf_codec import plan_gguf_codec
from valle_convert.encodec.sources import open_encodec
from valle_convert.errors import InputError, ValleConvertError
from valle_convert.families import family_of
from valle_convert.families.bundle import open_bundle
from valle_convert.families.family import Choices
from valle_convert.families.v5.adapter import Adapter, AdapterBase
from valle_convert.families.v5.files import read_model
from valle_convert.families.v5.trials import read_utterance
from valle_convert.families.vallex.voice import read_vallex_voice
from valle_convert.gguf_file.header import Key, TensorEntry, pack_header, padded
from valle_convert.gguf_file.loadable import gemma_dangers
from valle_convert.gguf_file.metadata import GeneralMetadata
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import GGML_TYPES
from valle_convert.gguf_file.write import header_of, pieces
from valle_convert.inspect import inspect_file
from valle_convert.llama.context import Settings
from valle_convert.llama.gemma import GemmaSession
from valle_convert.model.spec import Model
from valle_convert.network.tuned import read_probe_rows
from valle_convert.quantize.imatrix import encode_imatrix, read_imatrix
from valle_convert.quantize.limits import read_earlier
from valle_convert.quantize.manifest import check_manifest
from valle_convert.tokenizer.choose import open_tokenizer
from valle_convert.tokenizer.oracle import LlamaTokenizer

Files = Mapping[str, bytes]
_SPOKEN = "h\u0259l\u02c8o\u028a"


@dataclass(frozen=True)
class Target:
    """One kind of input: what makes its files, and what reads them in a folder."""

    name: str
    make: Callable[[Random], Files]
    read: Callable[[Path], None]
    #: The inputs that mutations start from; `read` accepts them.
    valid: Callable[[], Sequence[Files]]


def _damaged(rng: Random, fields: list[bytes]) -> bytes:
    """Fields or bytes, whichever."""
    if rng.randrange(3):
        return damage_fields(rng, fields)
    return damage_bytes(rng, b"".join(fields))


# ----------------------------------------------------------------------------------- GGUF


@cache
def _fields(split: Callable[[bytes], list[bytes]], seed: Callable[[], bytes]) -> list[bytes]:
    return split(seed())


def _by_fields(
    name: str, split: Callable[[bytes], list[bytes]], seed: Callable[[], bytes]
) -> Callable[[Random], Files]:
    return lambda rng: {name: _damaged(rng, _fields(split, seed))}


def _gguf(seed: Callable[[], bytes]) -> Callable[[Random], Files]:
    return _by_fields("x.gguf", formats.gguf_fields, seed)


def _rekeyed(seed: Callable[[], bytes]) -> Callable[[Random], Files]:
    """A file with other keys and tensors, well-formed or not."""

    def make(rng: Random) -> Files:
        if rng.randrange(3) == 0:
            return _gguf(seed)(rng)
        return {"x.gguf": _rebuilt(rng, seed())}

    return make


def _read_gguf(folder: Path) -> None:
    path = folder / "x.gguf"
    GgufFile(path)
    oracles.same_gguf(path)


def _rebuilt(rng: Random, data: bytes) -> bytes:
    """A GGUF file with other keys, types and shapes."""
    keys, tensors = _gguf_parts(data)
    chosen = rng.sample(sorted(keys), min(6, len(keys)))
    tree = damage_tree(rng, json.loads(json.dumps({name: keys[name][0] for name in chosen})))
    tree = tree if isinstance(tree, dict) else {chosen[0]: tree}
    changed = []
    for name, (value, kind) in keys.items():
        new = tree.pop(name, value) if rng.randrange(2) else value
        changed.append((name, new, kind))
    changed += [(str(name), value, "string") for name, value in tree.items()]
    if rng.randrange(4) == 0:
        del changed[rng.randrange(len(changed))]
    entries, values, offset = [], [], 0
    for name, (shape, kind, raw) in tensors.items():
        if rng.randrange(40) == 0:
            kind = rng.choice(list(GGML_TYPES))  # noqa: PLW2901
        if rng.randrange(60) == 0:
            shape = (*shape[:-1], max(1, shape[-1] + rng.randrange(-1, 2)))  # noqa: PLW2901
        try:
            entry = TensorEntry(name, shape, GGML_TYPES[kind], offset)
            n_bytes = entry.n_bytes
        except ValueError:
            continue
        entries.append(entry)
        values.append(raw[:n_bytes].ljust(padded(n_bytes), b"\0"))
        offset += len(values[-1])
    packed = []
    for name, value, kind in changed:
        try:
            with np.errstate(over="ignore"):  # 1e300 as a float32
                pack_header([Key(name, value, kind)], [])
        except (ValueError, TypeError, OverflowError, AttributeError, struct.error):
            continue
        packed.append(Key(name, value, kind))
    with np.errstate(over="ignore"):
        return b"".join([pack_header(packed, entries), *values])


@cache
def _gguf_parts(
    data: bytes,
) -> tuple[dict[str, tuple[Any, str]], dict[str, tuple[Any, str, bytes]]]:
    file = GgufFile(Path("seed.gguf"), data, allow_part=True)
    keys = {name: (file.keys[name], file.key_types[name]) for name in file.keys}
    tensors = {
        name: (tensor.shape, tensor.ggml_type.name, tensor.data.tobytes())
        for name, tensor in file.tensors.items()
    }
    return keys, tensors


def _read_model(folder: Path) -> None:
    path = folder / "x.gguf"
    json.dumps(asdict(inspect_file(path)))
    read_probe_rows(open_bundle(path).main)


def _read_vocabulary(folder: Path) -> None:
    """llama.cpp has to survive what the program accepts: it runs in this very process."""
    path = folder / "x.gguf"
    for danger in gemma_dangers(GgufFile(path)):
        raise InputError(danger)
    with LlamaTokenizer(path) as llama:
        for text in ("", f"{_SPOKEN} <mask> \U0001f600", "</eos><unk>"):
            llama.encode(text, add_special=True, parse_special=True)


def _make_text(rng: Random) -> Files:
    """A text of any bytes, and ids, some of them invalid."""
    parts = (_SPOKEN, "<mask>", "</eos>", "<unk>", " ", "\u0301", "\U0001f600", "\0", *TEXTS)
    text = "".join(rng.choice(parts) for _ in range(rng.randrange(20)))
    data = text.encode("utf-8", "surrogatepass")
    if rng.randrange(2):
        data = damage_bytes(rng, data)
    if rng.randrange(500) == 0:
        data = (data or b"'") * (100_000 // max(1, len(data)))
    ids = [rng.choice((rng.randrange(-2, 1000), rng.choice(NUMBERS))) for _ in range(8)]
    return {"text": data, "ids": json.dumps(ids).encode()}


def _read_text(folder: Path) -> None:
    llama = _tokenizer_of_llama()
    # What is no UTF-8 comes as half surrogates, as from a command line.
    text = (folder / "text").read_bytes().decode("utf-8", "surrogateescape")
    for flag in (False, True):
        ids = llama.encode(text, add_special=flag, parse_special=flag)
        llama.show(ids)
        llama.decode(ids, special=flag)
    llama.decode(json.loads((folder / "ids").read_bytes()))


@cache
def _tokenizer_of_llama() -> LlamaTokenizer:
    return LlamaTokenizer(seeds.converted_path())


_RIGHT_CALLS = b"""[{
    "n": 2, "width": 8, "value": 0.5, "positions": [0, 1], "causal": true, "outputs": [-1, null],
    "sequence": 0
}]"""


def _make_calls(rng: Random) -> Files:
    """Calls of the session with shapes, positions, outputs and sequences, some of them invalid."""
    calls = []
    for _ in range(rng.randrange(1, 4)):
        n = rng.choice((0, 1, 2, 3, 5, 17))
        first = rng.randrange(1, n + 1) if n else 0
        positions = [*range(first), *range(n - first)]
        if rng.randrange(3) == 0:
            positions = [rng.choice((0, 1, 2, -1, 7, *NUMBERS[-12:])) for _ in range(n)]
        calls.append(
            {
                "n": n if rng.randrange(5) else n + 1,
                "width": rng.choice((8, 8, 8, 8, 7, 0)),
                "value": rng.choice((0.5, 0.5, 0.5, 1e30, "nan", "inf")),
                "positions": positions,
                "causal": bool(rng.randrange(2)),
                "outputs": rng.choice(
                    ([-1, None], [-1, None], [0, 1], [n, None], [0, 0], [1 << 40])
                ),
                "sequence": rng.choice((0, 0, 0, 1, 2, -1, 1 << 40)),
            }
        )
    return {"calls": json.dumps(calls).encode()}


def _read_calls(folder: Path) -> None:
    session = _session()
    try:
        for call in json.loads((folder / "calls").read_bytes()):
            embeddings = np.full((call["n"], call["width"]), float(call["value"]), np.float32)
            session.step(
                embeddings,
                np.array(call["positions"]),
                causal=call["causal"],
                outputs=slice(*call["outputs"]),
                sequence=call["sequence"],
            )
    except ValueError as error:
        raise InputError(str(error)) from error
    finally:
        session.forget_all()


@cache
def _session() -> GemmaSession:
    path = seeds.converted_path()
    rows = read_probe_rows(GgufFile(path))
    two = Settings(n_threads=1, n_parallel=2)
    return GemmaSession(path, n_ctx=32, settings=two, probe_rows=rows)


def _read_imatrix(folder: Path) -> None:
    read = read_imatrix(folder / "x.gguf")
    encode_imatrix(read)
    read.keys("x.gguf")


# ---------------------------------------------------------------------------- safetensors


def _damaged_header(rng: Random, file: bytes) -> bytes:
    header, data = formats.safetensors_parts(file)
    return formats.safetensors_of(damage_json(rng, header), data)


def _make_safetensors(rng: Random) -> Files:
    header, data = formats.safetensors_parts(seeds.safetensors_file())
    match rng.randrange(5):
        case 0:
            made = damage_bytes(rng, formats.safetensors_of(header, data))
        case 1:
            made = number_bytes(rng, 8) + header + data
        case _:
            header = damage_json(rng, header)
            header += b" " * rng.choice((0, 0, 1, -len(header) % 8))
            made = formats.safetensors_of(header, data)
    return {"x.safetensors": made}


def _read_safetensors(folder: Path) -> None:
    path = folder / "x.safetensors"
    SafetensorsFile(path)
    oracles.same_safetensors(path)


# ---------------------------------------------------------------------------------- torch


def _make_zip(rng: Random) -> Files:
    """The zip itself: headers against directory, sizes, names, flags, the rest."""
    if rng.randrange(3):
        return _by_fields("x.pth", formats.zip_fields, seeds.torch_zip)(rng)
    entries = [
        (damage_bytes(rng, name.encode(), 1).decode("utf-8", "replace"), data)
        if rng.randrange(6) == 0
        else (name, damage_bytes(rng, data, 1) if rng.randrange(6) == 0 else data)
        for name, data in formats.zip_entries(seeds.torch_zip())
        for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 1, 2)))
    ]
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    return {"x.pth": formats.zip_of(entries, method)}


@cache
def _opcodes(data: bytes) -> list[bytes]:
    """The opcodes of the pickle in a zip of torch."""
    (pickled,) = [one for name, one in formats.zip_entries(data) if name.endswith("data.pkl")]
    return pickle_opcodes(pickled)


def _damaged_pickle(rng: Random, data: bytes) -> bytes:
    """A right zip around a wrong pickle."""
    return formats.zip_of(formats.with_pickle(data, damage_pickle(rng, _opcodes(data))))


def _make_pickle(rng: Random) -> Files:
    return {"x.pth": _damaged_pickle(rng, seeds.torch_zip())}


def _read_torch(folder: Path) -> None:
    path = folder / "x.pth"
    checkpoint = read_checkpoint(path)
    oracles.same_torch(path, checkpoint.tensors)
    json.dumps(dict(checkpoint.stats))
    with suppress(ValleConvertError):  # it is no whole model, and may say so
        _describe(checkpoint)


def _legacy() -> bytes:
    return seeds.torch_zip(legacy=True)


@cache
def _legacy_opcodes() -> list[bytes]:
    """Five pickles, one after the other, and the storages."""
    data, found = _legacy(), []
    for _ in range(5):
        opcodes = pickle_opcodes(data)
        found += opcodes
        data = data[sum(map(len, opcodes)) :]
    return [*found, data]


def _make_legacy(rng: Random) -> Files:
    opcodes = _legacy_opcodes()
    return {"x.th": damage_pickle(rng, opcodes) if rng.randrange(3) else _damaged(rng, opcodes)}


def _read_legacy(folder: Path) -> None:
    path = folder / "x.th"
    source = read_container(path, Tree(), path).tensors
    for name in source.specs:
        if source.specs[name].dtype is not None:
            source.read(name)


# ---------------------------------------------------------------- checkpoints and configs


def _describe(checkpoint: Checkpoint) -> None:
    family_of(checkpoint).describe(checkpoint, Choices())


@cache
def _checkpoint_parts() -> tuple[str, bytes]:
    header, data = formats.safetensors_parts(seeds.checkpoint())
    tree = json.loads(header)
    # The vocabulary is another target's; here it would drown the rest.
    tree["__metadata__"]["userdata"] = "{}"
    return json.dumps(tree), data


def _damaged_text(rng: Random, text: str) -> str:
    return damage_json(rng, text).decode("utf-8", "replace")


def _make_checkpoint(rng: Random) -> Files:
    text, data = _checkpoint_parts()
    tree = json.loads(text)
    told = tree["__metadata__"]
    match rng.randrange(6):
        case 0:
            tree = damage_tree(rng, tree, 2)
        case 1:
            told["userdata"] = _damaged_text(rng, '{"symmap": {"a": 1, "<unk>": 0}}')
        case 2:
            told["stats"] = _damaged_text(rng, '{"global_step": 1, "b": [1, {"c": "x"}]}')
        case 3:
            names = [name for name in tree if name != "__metadata__"]
            for _ in range(rng.randrange(1, 4)):
                one = tree.pop(rng.choice(names), None)
                if one is not None and rng.randrange(2):
                    tree[rng.choice((*names, *TEXTS))] = one
        case _:
            told["config"] = _damaged_text(rng, told["config"])
    try:
        header = json.dumps(tree).encode()
    except (ValueError, RecursionError):
        header = b"{}"
    return {"x.sft": formats.safetensors_of(header, data)}


def _read_checkpoint(folder: Path) -> None:
    path = folder / "x.sft"
    header_of(plan_conversion(path).main)
    inspect_file(path)


_YAML = (
    "&a {v}", "*a", "<<: *a", '!!python/object/apply:os.system ["echo"]', "!!binary YQ==",
    "!!python/name:os.system", "!!omap [a: 1]", "!!float x", "!!int x", "!!timestamp x", "1:30:00",
    "2024-01-01", "2024-13-41", "0o7", "0x", "1_000", ".inf", ".nan", "~", "? [a]\n: b",
    "!!set {a}",
    "|\n  text", ">-\n  text", "'", '"\\ud800"', '"\\x"', "%YAML 9.9\n---", "- a\n- b", "...",
    "---\na: 1\n---\nb: 2", "\t", "@", "`", "[" * 300, "{" * 300, "1" * 5000, "1:" * 3000 + "1",
    "#", "", "yes", "NO", "=", "!", "!a b", "{a: &x [*x]}", "&x [*x, *x]", "{[]: 1}", "{{}: 1}",
    "? *a\n: 1", "!!map [1]", "!!str {}", "!!null x", "!!bool x", "0x" + "f" * 999,
    "!!pairs [a: 1]",
)  # fmt: skip


def _make_config(rng: Random) -> Files:
    tree = json.loads(seeds.config_json())
    match rng.randrange(4):
        case 0:
            text = tree_bytes(rng, damage_tree(rng, tree))
        case 1:
            text = _yaml_lines(rng, tree, rng.choice(_YAML)).encode("utf-8", "surrogatepass")
        case _:
            lines = _yaml_lines(rng, damage_tree(rng, tree), rng.choice(_YAML))
            text = lines.encode("utf-8", "surrogatepass")
            if rng.randrange(3) == 0:
                text = damage_bytes(rng, text, 2)
    return {"config.yaml": text}


def _yaml_lines(rng: Random, tree: Any, put: str) -> str:  # noqa: ANN401 - any JSON
    """A tree in block style, one of whose values is another text."""
    try:
        lines = yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).splitlines()
    except (yaml.YAMLError, ValueError, RecursionError):
        lines = ["a: 1"]
    for _ in range(rng.randrange(3)):
        at = rng.randrange(len(lines))
        key, colon, _ = lines[at].partition(": ")
        lines[at] = f"{key}{colon}{put}" if rng.randrange(4) else put
    return "\n".join(lines)


@cache
def _weights_without_config() -> bytes:
    text, data = _checkpoint_parts()
    tree = json.loads(text)
    del tree["__metadata__"]
    return formats.safetensors_of(json.dumps(tree).encode(), data)


def _read_config(folder: Path) -> None:
    # Beside the weights: written here, since it is no part of the input.
    path = folder / "x.sft"
    path.write_bytes(_weights_without_config())
    try:
        _describe(read_checkpoint(path))
    finally:
        path.unlink()


@cache
def _folders() -> dict[str, Files]:
    """Shards with their index and config; the folders of a training; an export."""
    text, data = _checkpoint_parts()
    tree = json.loads(text)
    config = json.dumps(json.loads(tree.pop("__metadata__")["config"])).encode()
    names = sorted(tree, key=lambda name: tree[name]["data_offsets"])
    middle = tree[names[len(names) // 2]]["data_offsets"][0]
    shards: dict[str, bytes] = {}
    homes: dict[str, str] = {}
    for i, (begin, end) in enumerate(((0, middle), (middle, len(data))), 1):
        home = f"model-{i:05}-of-00002.safetensors"
        header = {
            name: {**one, "data_offsets": [at - begin for at in one["data_offsets"]]}
            for name, one in tree.items()
            if begin <= one["data_offsets"][0] < end
        }
        homes |= dict.fromkeys(header, home)
        shards[home] = formats.safetensors_of(json.dumps(header).encode(), data[begin:end])
    index = {"metadata": {"total_size": len(data)}, "weight_map": homes}
    golden = Path(__file__).parents[1] / "fixtures" / "golden" / "hf-export"
    # Every export says 16 heads, which is corrected here, so that nothing has to be asked.
    exported = json.loads((golden / "config.json").read_bytes())
    exported |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    return {
        "shards": {
            **shards,
            "model.safetensors.index.json": json.dumps(index).encode(),
            "config.yaml": config,
        },
        "training": {
            "latest": b"1000\n",
            "1000/state.sft": _weights_without_config(),
            "config.yaml": config,
        },
        "export": {
            "config.json": json.dumps(exported).encode(),
            "tokenizer.json": (golden / "tokenizer.json").read_bytes(),
            "model.safetensors": (golden / "model.safetensors").read_bytes(),
        },
    }


_NAMES = ("a.sft", "fp32.sft", "latest", "1000", "lora.sft", "state.pth")


def _damaged_files(rng: Random, files: Files) -> Files:
    """Files that belong together: one missing, under another name, or damaged."""
    files = dict(files)
    name = rng.choice(list(files))
    match rng.randrange(6):
        case 0:
            del files[name]
        case 1:
            files[rng.choice((*_NAMES, *files))] = files.pop(name)
        case 2:
            files[name] = damage_bytes(rng, files[name])
        case _ if name.endswith((".json", ".yaml")):
            files[name] = damage_json(rng, files[name])
        case _ if name.endswith((".safetensors", ".sft")):
            files[name] = _damaged_header(rng, files[name])
        case 3 if name.endswith(".gguf"):
            files[name] = _damaged(rng, formats.gguf_fields(files[name]))
        case _ if name.endswith(".gguf"):
            files[name] = _rebuilt(rng, files[name])
        case _:
            files[name] = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    # A file cannot be where a folder has to be.
    folders = {one.partition("/")[0] for one in files if "/" in one}
    return {one: data for one, data in files.items() if one not in folders}


def _of_files(
    name: str, seeds_of: Callable[[], Sequence[Files]], read: Callable[[Path], None]
) -> Target:
    return Target(name, lambda rng: _damaged_files(rng, rng.choice(seeds_of())), read, seeds_of)


def _read_folder(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    with suppress(ValleConvertError):  # an export does not tell everything
        _describe(checkpoint)
    for name in list(checkpoint.tensors.specs)[:5]:
        if checkpoint.tensors.specs[name].dtype is not None:
            checkpoint.tensors.read(name)


def _make_lora(rng: Random) -> Files:
    if rng.randrange(3) == 0:
        return {"x.pth": _damaged_pickle(rng, seeds.lora(".pth"))}
    if rng.randrange(2):
        return {"x.sft": _damaged_header(rng, seeds.lora())}
    header, data = formats.safetensors_parts(seeds.lora())
    tree = json.loads(header)
    told = '{"rank": 2, "alpha": 4, "rvq_levels": [], "lora": {"rank": 2}}'
    tree["__metadata__"]["config"] = _damaged_text(rng, told)
    return {"x.sft": formats.safetensors_of(tree_bytes(rng, tree), data)}


def _read_lora(folder: Path) -> None:
    (lora,) = folder.iterdir()
    path = folder / "base.sft"
    path.write_bytes(seeds.checkpoint())
    try:
        tensors = read_checkpoint(path, lora=[LoraFile(lora)]).tensors
        for name in tensors.specs:
            if "attn" in name:
                tensors.read(name)
    finally:
        path.unlink()


_METADATA = b'{"author": "a", "general.license": "mit", "tags": ["x", "y"], "languages": ["en"]}'


def _read_metadata(folder: Path) -> None:
    GeneralMetadata.read(folder / "x.json")


# ----------------------------------------------------------------------------- tokenizers


def _make_tokenizer(rng: Random) -> Files:
    return {"x.json": damage_json(rng, seeds.tokenizer_json(), 2)}


def _read_tokenizer(folder: Path) -> None:
    (path,) = folder.iterdir()
    opened = open_tokenizer(path)
    opened.compile(["<row:0>", "<row:1>"])
    oracles.loads_tokenizer(opened)


def _make_sentencepiece(rng: Random) -> Files:
    message = formats.proto_message(seeds.sentencepiece_model())
    if rng.randrange(4) == 0:
        return {"x.model": damage_bytes(rng, formats.proto_bytes(message))}
    for _ in range(rng.randrange(1, 4)):
        last = len(message) - 1
        at = rng.choice((rng.randrange(last + 1), rng.randrange(3), last - rng.randrange(8)))
        number, wire, value = message[at]
        match rng.randrange(6):
            case 0:
                del message[at]
            case 1:
                message.insert(rng.randrange(len(message)), message[at])
            case 2:
                message[at] = (rng.choice((1, 2, 3, 4, 5, 9999)), wire, value)
            case _:
                inner = formats.proto_message(value)
                place = rng.randrange(len(inner)) if inner else 0
                if inner:
                    inner[place] = _damaged_field(rng, inner[place])
                if rng.randrange(3) == 0:
                    more = rng.choice((1, 2, 3, 24, 35, 40, 41, 42))
                    inner.append((more, 0, formats.varint(rng.getrandbits(64))))
                message[at] = (number, wire, formats.proto_bytes(inner))
    return {"x.model": formats.proto_bytes(message)}


def _damaged_field(rng: Random, field: tuple[int, int, bytes]) -> tuple[int, int, bytes]:
    number, wire, value = field
    if wire == 0:
        n = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 300, -1, 1 << 31, 1 << 63))
        return number, 0, formats.varint(n)
    if wire == 5:
        score = rng.choice((0.0, -1.0, 5.0, math.nan, math.inf, 1e38))
        return number, 5, struct.pack("<f", score)
    text = rng.choice((*TEXTS, "ab", "abc", "a", "b", "nmt_nfkc")).encode("utf-8", "surrogatepass")
    return number, wire, text if rng.randrange(2) else damage_bytes(rng, value, 1)


# ----------------------------------------------------------------------------------- codecs


def _read_codec(folder: Path) -> None:
    paths = list(folder.iterdir())
    codec = open_encodec(folder if len(paths) > 1 else paths[0])
    for make in (plan_cpp_file, plan_gguf_codec):
        with suppress(ValleConvertError):
            make(codec)
    for tensor in codec.tensors[:40]:
        codec.read(tensor.name)


# ------------------------------------------------------------------------- sound and codes

_SOUNDS = ("FLAC", "OGG", "MP3", "AIFF")


def _sounds() -> list[Files]:
    others = [{f"x.{kind.lower()}": seeds.other_sound(kind)} for kind in _SOUNDS]
    return [{"x.wav": seeds.wav()}, *others]


def _make_sound(rng: Random) -> Files:
    if rng.randrange(3):
        return _by_fields("x.wav", formats.riff_fields, seeds.wav)(rng)
    kind = rng.choice(_SOUNDS)
    return {f"x.{kind.lower()}": damage_bytes(rng, seeds.other_sound(kind), 6)}


def _read_sound(folder: Path) -> None:
    (path,) = folder.iterdir()
    audio = read_audio(path, 24_000, max_seconds=60.0)
    if not np.isfinite(audio.samples).all():
        raise oracles.DisagreementError("samples that are no numbers")


def _make_npz(rng: Random) -> Files:
    arrays = dict(seeds.codes_npz(rng.choice(("codes", "utterance", "voice"))))
    if rng.randrange(4) == 0:
        return _by_fields("x.npz", formats.zip_fields, seeds.codes_zip)(rng)
    for _ in range(rng.randrange(1, 3)):
        name = rng.choice(list(arrays))
        match rng.randrange(6):
            case 0:
                new = rng.choice((*arrays, *TEXTS)).encode("utf-8", "replace").decode()
                arrays[new] = arrays.pop(name)
            case 1:
                arrays[name] = damage_bytes(rng, arrays[name])
            case _:
                arrays[name] = _damaged_array(rng)
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    return {"x.npz": formats.zip_of(list(arrays.items()), rng.choice(methods))}


def _damaged_array(rng: Random) -> bytes:
    """An array of any type and shape, whose data may be of another size."""
    kinds = "<i4 <i8 <u8 <f4 <f8 |b1 |O <U3 <M8[s] |V4 <c8 >i4 |S3 <i4,<i4".split()
    sizes = (0, 1, 2, 3, 6, -1, 1 << 20, 1 << 40, 1 << 62)
    kind = rng.choice(kinds)
    shape = tuple(rng.choice(sizes) for _ in range(rng.randrange(4)))
    header: Any = {"descr": kind, "fortran_order": bool(rng.randrange(2)), "shape": shape}
    if rng.randrange(5) == 0:
        header = damage_tree(rng, header)
    text = repr(header).encode("utf-8", "surrogatepass")
    if rng.randrange(8) == 0:
        imports = b"{'descr': __import__('os')}"
        text = rng.choice((b"(" * 3000, imports, b"'" * 50_000, b"\0", b"{'a':" * 99))
    count = math.prod(abs(n) for n in shape)
    is_right = count < 1000 and rng.randrange(2)
    data = rng.randbytes(count * 4) if is_right else bytes(rng.randrange(64))
    return formats.npy_of(text, data, rng.choice(((1, 0), (1, 0), (2, 0), (3, 0), (9, 9))))


def _read_npz(folder: Path) -> None:
    path = folder / "x.npz"
    refused: list[ValleConvertError] = []
    readers: tuple[Callable[[Path], object], ...] = (
        read_codes,
        lambda path: read_utterance(path, _model(), seed=(0,)),
        lambda path: read_vallex_voice(path, _model().config),
    )
    for read in readers:
        try:
            read(path)
        except ValleConvertError as error:
            refused.append(error)
    if len(refused) == len(readers):
        raise refused[0]
    oracles.loads_npz(path)


@cache
def _model() -> Model:
    return read_model({"model": GgufFile(Path("converted.gguf"), seeds.converted())})


# ------------------------------------------------------- VALL-E X, old files and adapters


def _make_vallex(rng: Random) -> Files:
    """The container of icefall: its pickle, and the entries around it."""
    if rng.randrange(4) == 0:
        return {"x.pt": damage_bytes(rng, seeds.vallex())}
    return {"x.pt": _damaged_pickle(rng, seeds.vallex())}


def _read_vallex(folder: Path) -> None:
    for file in plan_conversion(folder / "x.pt").files.values():
        header_of(file)


def _read_set(folder: Path) -> None:
    """llama.cpp has to survive what the program accepts: it runs in this very process."""
    path = folder / "x.gguf"
    json.dumps(asdict(inspect_file(path)))
    bundle = open_bundle(path)
    family, model = bundle.family, bundle.model
    (example,) = family.trials.utterances(model, 1)
    with family.open(bundle, settings=Settings(n_threads=1)) as network:
        next(family.trials.cases(model, example)).run(network)


def _read_old(folder: Path) -> None:
    path = folder / "x.gguf"
    GgufFile(path)
    json.dumps(asdict(inspect_file(path)))
    plan = plan_repair(path).main
    header_of(plan)
    for tensor in plan.tensors:
        for _ in pieces(plan, tensor):
            pass


def _read_adapter(folder: Path) -> None:
    base = GgufFile(Path("converted.gguf"), seeds.converted())
    Adapter(LoraFile(folder / "x.gguf"), AdapterBase.of(base))


# ------------------------------------------------------------------------ folders, reports


def _read_manifest(folder: Path) -> None:
    json.dumps(check_manifest(folder).to_json())


_REPORT = b"""{
    "source": "model.gguf",
    "checkpoint": {"name": "model.sft", "sha256": "%s"},
    "sequences": "2 utterances",
    "files": [
        {"type": "Q8_0", "quality": {"all": {
            "n_rows": 7, "kl_mean": 0.1, "kl_p99": 0.2, "kl_max": 0.3, "nmse": 0.1,
            "best_code": 0.9
        }}},
        {"type": "F16", "quality": null}
    ]
}""" % (b"0" * 64)


def _read_report(folder: Path) -> None:
    read_earlier(folder / "x.json")


def _make_list(rng: Random) -> Files:
    lines = [b"a.wav\tsome text", "b.wav\tzw\u00f6lf".encode(), b"", b"/c.wav\tx\r"]
    return {"x.tsv": damage_fields(rng, [part for line in lines for part in (line, b"\n")])}


def _read_list(folder: Path) -> None:
    read_list(folder / "x.tsv")


# -------------------------------------------------------------------------------- the table


def _one(name: str, make: Callable[[], bytes]) -> Callable[[], list[Files]]:
    return lambda: [{name: make()}]


def _of_json(name: str, text: bytes, read: Callable[[Path], None]) -> Target:
    return Target(
        name, lambda rng: {"x.json": damage_json(rng, text)}, read, _one("x.json", lambda: text)
    )


def _of_gguf(
    name: str,
    how: Callable[[Callable[[], bytes]], Callable[[Random], Files]],
    seed: Callable[[], bytes],
    read: Callable[[Path], None],
) -> Target:
    return Target(name, how(seed), read, _one("x.gguf", seed))


_LIST = (
    _of_gguf("gguf", _gguf, seeds.gguf_file, _read_gguf),
    _of_gguf("model", _rekeyed, seeds.converted, _read_model),
    _of_gguf("vocabulary", _rekeyed, seeds.converted, _read_vocabulary),
    Target("text", _make_text, _read_text, lambda: [{"text": _SPOKEN.encode(), "ids": b"[1, 2]"}]),
    Target("session", _make_calls, _read_calls, _one("calls", lambda: _RIGHT_CALLS)),
    _of_gguf("imatrix", _gguf, seeds.imatrix, _read_imatrix),
    Target(
        "safetensors",
        _make_safetensors,
        _read_safetensors,
        _one("x.safetensors", seeds.safetensors_file),
    ),
    Target("zip", _make_zip, _read_torch, _one("x.pth", seeds.torch_zip)),
    Target("pickle", _make_pickle, _read_torch, _one("x.pth", seeds.torch_zip)),
    Target("legacy-pickle", _make_legacy, _read_legacy, _one("x.th", _legacy)),
    Target("checkpoint", _make_checkpoint, _read_checkpoint, _one("x.sft", seeds.checkpoint)),
    Target("config", _make_config, _read_config, _one("config.yaml", seeds.config_json)),
    _of_files("folder", lambda: [*_folders().values()], _read_folder),
    Target(
        "lora",
        _make_lora,
        _read_lora,
        lambda: [{"x.sft": seeds.lora()}, {"x.pth": seeds.lora(".pth")}],
    ),
    _of_json("metadata", _METADATA, _read_metadata),
    Target("tokenizer", _make_tokenizer, _read_tokenizer, _one("x.json", seeds.tokenizer_json)),
    Target(
        "sentencepiece",
        _make_sentencepiece,
        _read_tokenizer,
        _one("x.model", seeds.sentencepiece_model),
    ),
    _of_gguf("codec-gguf", _gguf, seeds.codec_gguf, _read_codec),
    Target(
        "codec-cpp",
        _by_fields("x.bin", formats.encodec_cpp_fields, seeds.codec_cpp),
        _read_codec,
        _one("x.bin", seeds.codec_cpp),
    ),
    _of_files(
        "codec-folder",
        lambda: [seeds.codec_folder(shards=shards) for shards in (False, True)],
        _read_codec,
    ),
    Target("sound", _make_sound, _read_sound, _sounds),
    Target("npz", _make_npz, _read_npz, _one("x.npz", seeds.codes_zip)),
    _of_files("manifest", lambda: [seeds.manifest()], _read_manifest),
    _of_json("report", _REPORT, _read_report),
    Target("vallex", _make_vallex, _read_vallex, _one("x.pt", seeds.vallex)),
    _of_files("set", lambda: [seeds.vallex_set(), seeds.version_7_set()], _read_set),
    _of_gguf("old", _rekeyed, seeds.old_gguf, _read_old),
    _of_gguf("adapter", _rekeyed, seeds.adapter, _read_adapter),
    Target("list", _make_list, _read_list, _one("x.tsv", lambda: b"a.wav\tb\n")),
)
TARGETS: Mapping[str, Target] = {one.name: one for one in _LIST}
