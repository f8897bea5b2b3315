"""Attacks by way of `.pth`: the pickle, and the zip around it."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attacks.attack import (
    CHECKPOINT,
    CODEC,
    Attack,
    Calls,
    Made,
    called,
    dumped,
    looked_up,
    one_file,
    python,
    touch,
)
from fuzz import formats, seeds

#: The pattern of the message about a call.
_RUNS = "could run code, since it asks for posix.system"


def _right() -> list[tuple[str, bytes]]:
    """The entries of a valid checkpoint, the pickle first."""
    return formats.zip_entries(seeds.checkpoint(".pth"))


def _zip(pickled: bytes) -> bytes:
    """A valid zip with another pickle."""
    return formats.zip_of(formats.with_pickle(seeds.checkpoint(".pth"), pickled))


def _in_zip(pickled: Callable[[Path], bytes], name: str = "x.pth") -> Made:
    return one_file(name, lambda canary: _zip(pickled(canary)))


def _beside(key: str, value: Callable[[Path], bytes]) -> Made:
    """A valid checkpoint whose pickle sets one more entry, to the value of some opcodes."""
    ((_, pickled), *_) = _right()
    return _in_zip(lambda canary: pickled[:-2] + dumped(key)[2:-1] + value(canary) + b"u.")


def _call(module: str, name: str, *arguments: object) -> Made:
    """A call among the counters, whose arguments are Python that makes the canary, where None."""

    def opcodes(canary: Path) -> bytes:
        values = (python(canary) if one is None else one for one in arguments)
        return called(module, name, *values)[2:-1]

    return _beside("stats", opcodes)


def _config(name: str, value: bytes) -> Made:
    """A valid checkpoint whose config has another value."""
    return _beside(
        "config", lambda _c: dumped(seeds.config())[2:-1] + dumped(name)[2:-1] + value + b"s"
    )


def _saved(_canary: Path, *, is_zip: bool = False, **more: Any) -> bytes:  # noqa: ANN401
    """A valid checkpoint with more entries, in the old format of torch.save or the new one."""
    import torch

    state = torch.load(io.BytesIO(seeds.checkpoint(".pth")), weights_only=True)
    buffer = io.BytesIO()
    torch.save(state | more, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


def _evil_module(folder: Path, canary: Path) -> Path:
    """A module beside the file, which would be imported by its name."""
    (folder / "valle_attack_module.py").write_text(python(canary) + "\nclass Model: pass\n")
    path = folder / "x.pth"
    path.write_bytes(_zip(looked_up("valle_attack_module", "Model")))
    return path


def _tar(canary: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("storages", "tensors", "pickle", "../escaped"):
            data = dumped(touch(canary))
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _changed(sign: bytes, which: int, n: int, value: bytes) -> Made:
    """A valid file with another nth field behind one of the signs in its zip."""

    def data(_canary: Path) -> bytes:
        fields = formats.zip_fields(seeds.checkpoint(".pth"))
        at = [i for i, one in enumerate(fields) if one == sign][which] + n
        fields[at] = value
        return b"".join(fields)

    return one_file("x.pth", data)


def _two_pickles(canary: Path) -> bytes:
    ((name, _), *_) = _right()
    return formats.zip_of([(name, dumped(touch(canary))), *_right()])


def _leading(name: Callable[[Path], str]) -> Made:
    """A valid file with one more entry, whose name is a path to the canary."""
    return one_file("x.pth", lambda c: formats.zip_of([*_right(), (name(c), b"escaped")]))


def _hidden_pickle(canary: Path) -> bytes:
    """The zip gives the checksum of the valid pickle, and holds another."""
    ((_, right), *_), wrong = _right(), dumped(touch(canary))
    data = _zip(wrong)
    return data.replace(struct.pack("<I", zlib.crc32(wrong)), struct.pack("<I", zlib.crc32(right)))


def _storage(numel: bytes) -> Made:
    """The data of the first tensor, of 8 numbers, is said to have another number of them."""
    ((_, pickled), *_) = _right()
    return _in_zip(lambda _c: pickled.replace(b"K\x08t", numel + b"t", 1))


def _expanded(canary: Path) -> bytes:
    import torch

    huge = torch.zeros(1).expand(1 << 20, 1 << 20)
    return _saved(canary, is_zip=True, module={"text_emb.weight": huge})


def _bomb(_canary: Path) -> bytes:
    entries = formats.with_pickle(seeds.checkpoint(".pth"), bytes(200 << 20))
    return formats.zip_of(entries, zipfile.ZIP_DEFLATED)


def _unfolding() -> bytes:
    value: Any = ("x",) * 9
    for _ in range(12):
        value = (value,) * 9
    return dumped(value)[2:-1]


def _built(state: bytes) -> Callable[[Path], bytes]:
    """A valid dict, and behind it a BUILD with a state, as tools append it."""
    return lambda canary: dumped(OrderedDict(a=1))[:-1] + dumped({"a": touch(canary)})[2:-1] + state


#: Two of itself, 45 times: a key that takes years to hash.
_KEY = b"K\1" + b"q\0h\0\x86" * 45
#: Where a pickle puts a key into a dict, or a member into a set.
KEYS = {
    "setitem": b"}" + _KEY + b"K\1s",
    "setitems": b"}(" + _KEY + b"K\1u",
    "dict": b"(" + _KEY + b"K\1d",
    "additems": b"\x8f(" + _KEY + b"\x90",
    "frozenset": b"(" + _KEY + b"\x91",
    "call-set": b"cbuiltins\nset\n](" + _KEY + b"e\x85R",
    "call-frozenset": b"cbuiltins\nfrozenset\n](" + _KEY + b"e\x85R",
    "call-dict": b"cbuiltins\ndict\n](" + _KEY + b"K\1\x86e\x85R",
    "call-ordered": b"ccollections\nOrderedDict\n](" + _KEY + b"K\1\x86e\x85R",
    "call-counter": b"ccollections\nCounter\n}(" + _KEY + b"K\1u\x85R",
    "call-counter-dict": b"ccollections\nCounter\n(" + _KEY + b"K\1d\x85R",
}

#: Module, name and arguments of a call among the counters.
CALLS: Mapping[str, tuple[Any, ...]] = {
    "eval": ("builtins", "eval", None),
    "exec": ("builtins", "exec", None),
    "getattr": ("builtins", "getattr", "", "x"),
    "import": ("importlib", "import_module", "antigravity"),
    "pip": ("pip", "main", ["install", "--help"]),
    "pip-internal": ("pip._internal.cli.main", "main", ["install", "--help"]),
    "resolve-name": ("pkgutil", "resolve_name", "os:system"),
    "runpy": ("runpy", "run_path", "x.py"),
    "timeit": ("timeit", "timeit", None),
    "cprofile": ("cProfile", "run", None),
    "pdb": ("pdb", "run", None),
    "code": ("code", "InteractiveInterpreter"),
    "webbrowser": ("webbrowser", "open", "http://localhost"),
    "operator": ("operator", "attrgetter", "system"),
    "functools": ("functools", "partial", None),
    "asyncio": ("asyncio.unix_events", "_UnixSubprocessTransport._start", None),
    "logging": ("logging.config", "listen"),
    "numpy-runstring": ("numpy.testing._private.utils", "runstring", None, {}),
    "numpy-load": ("numpy", "load", "x.npy", None, True),
    "numpy-f2py": ("numpy.f2py.crackfortran", "myeval", None),
    "torch-load": ("torch", "load", "x.pt"),
    "torch-hub": ("torch.hub", "load", "a/b", "c"),
    "torch-cpp": ("torch.utils.cpp_extension", "load_inline", "x", ""),
    "torch-jit": ("torch.jit.unsupported_tensor_ops", "execWrapper", None, {}, {}),
    "dotted": ("torch.serialization", "os.system", None),
    "dotted-collections": ("collections", "abc.sys.exit"),
}


PICKLES: Mapping[str, Attack] = {
    "reduce": Attack("os.system by __reduce__", _in_zip(lambda c: dumped(touch(c))), _RUNS),
    "reduce-protocol-0": Attack(
        "the same in the oldest protocol, with INST",
        _in_zip(lambda c: f"(S\"touch '{c}'\"\niposix\nsystem\n.".encode()),
        _RUNS,
    ),
    "reduce-obj": Attack(
        "the same with OBJ",
        _in_zip(lambda c: b"(cposix\nsystem\n" + dumped(f"touch '{c}'")[2:-1] + b"o."),
        _RUNS,
    ),
    "reduce-protocol-4": Attack(
        "the same with STACK_GLOBAL", _in_zip(lambda c: dumped(touch(c), 4)), _RUNS
    ),
    "in-stats": Attack(
        "a call hidden among the training's counters",
        _beside("stats", lambda c: dumped({"global_step": touch(c)})[2:-1]),
        _RUNS,
    ),
    "nested": Attack(
        "a pickle within a pickle",
        _in_zip(lambda c: called("pickle", "loads", dumped(touch(c)))),
        "asks for pickle.loads",
    ),
    "nested-torch": Attack(
        "torch.load of a file from within a pickle",
        _in_zip(lambda c: called("torch.serialization", "load", str(c))),
        "asks for torch.serialization.load",
    ),
    "before-a-broken-tail": Attack(
        "a call before the pickle breaks off",
        _in_zip(lambda c: dumped(touch(c))[:-1] + b"\xff"),
        _RUNS,
    ),
    "legacy": Attack(
        "a call in a file of torch before 1.6",
        one_file("x.pt", lambda c: _saved(c, stats=touch(c))),
        _RUNS,
    ),
    "legacy-tar": Attack(
        "the tar of torch before 0.1.10", one_file("x.pt", _tar), "does not begin like a .pt file"
    ),
    "bare-pickle": Attack(
        "a bare pickle, as before torch 1.6",
        one_file("x.pt", lambda c: dumped(touch(c))),
        "is a bare pickle",
    ),
    "codec-bare-pickle": Attack(
        "a bare pickle for a codec",
        one_file("x.th", lambda c: dumped(touch(c))),
        "is a bare pickle",
        CODEC,
    ),
    "codec-zip": Attack(
        "a call in a codec", _in_zip(lambda c: dumped(touch(c)), "x.th"), _RUNS, CODEC
    ),
    "subclass-import": Attack(
        "a module beside the file, imported by its name",
        _evil_module,
        "holds a valle_attack_module.Model",
    ),
    **{
        name: Attack(
            f"a call of {module}.{function}",
            _call(module, function, *arguments),
            f"asks for {module}.{function}",
        )
        for name, (module, function, *arguments) in CALLS.items()
    },
    "persistent": Attack(
        "a persistent id that is no storage",
        _in_zip(lambda _c: b"\x80\x02X\1\0\0\0xQ."),
        "other than a storage",
    ),
    "extension": Attack(
        "a code of copyreg's registry",
        _in_zip(lambda _c: b"\x80\x02\x82\x01."),
        "unregistered extension code",
    ),
    "appended-build": Attack(
        "a BUILD behind a valid object, with a call in its state", _in_zip(_built(b"b.")), _RUNS
    ),
    "appended-setattr": Attack(
        "a BUILD that sets __class__ and __reduce_ex__",
        _in_zip(
            lambda c: (
                dumped(OrderedDict(a=1))[:-1]
                + dumped({"__class__": Calls(getattr, touch(c), "x")})[2:-1]
                + b"b."
            )
        ),
        "asks for builtins.getattr",
    ),
    "appended-pickle": Attack(
        "a second pickle behind the first, which is never read",
        _in_zip(lambda c: _right()[0][1] + dumped(touch(c))),
        "",
        CHECKPOINT[:1],
    ),
    **{
        f"key-{name}": Attack(
            "a key that takes years to hash",
            _beside("stats", lambda _c, opcodes=opcodes: opcodes),  # type: ignore[misc]
            "a key of more than 100 values",
        )
        for name, opcodes in KEYS.items()
    },
    "key-call-dict": Attack(
        "the same in a dict that is called, which a placeholder replaces",
        _beside("stats", lambda _c: b"cbuiltins\ndict\n](" + _KEY + b"K\1\x86e\x85R"),
        "",
        CHECKPOINT[:1],
    ),
    "unfolding": Attack(
        "a config of nine to the thirteenth values",
        _config("name", _unfolding()),
        "expands to more",
    ),
    "long": Attack(
        "a number of a million digits",
        _config("version", b"\x8b" + struct.pack("<i", 400_000) + b"\x7f" * 400_000),
        "a whole number of more than 64 bits",
    ),
    "memo": Attack(
        "a memo of four billion places",
        _in_zip(lambda _c: b"\x80\x02Nr\xff\xff\xff\xffj\xff\xff\xff\x7f."),
        "Memo value not found",
    ),
    "storage-larger": Attack(
        "data that reaches into the next entry", _storage(b"K\x0c"), "48 and 32 bytes"
    ),
    "storage-huge": Attack(
        "data of 2 to the 62nd elements",
        _storage(b"\x8a\x08" + bytes(7) + b"\x40"),
        r"below 2\^62",
    ),
    "storage-negative": Attack(
        "data of a negative size", _storage(b"J\xff\xff\xff\xff"), "not a whole number"
    ),
    "expanded": Attack(
        "a tensor of a trillion elements on one number",
        one_file("x.pth", _expanded),
        r"not dense tensors: text_emb\.weight",
    ),
    "zip-two-pickles": Attack(
        "two pickles of one name", one_file("x.pth", _two_pickles), "lists an entry twice"
    ),
    "zip-hidden-pickle": Attack(
        "a checksum of another pickle", one_file("x.pth", _hidden_pickle), "match its checksum"
    ),
    "zip-headers": Attack(
        "a table that gives an entry another name",
        _changed(b"PK\1\2", 1, 17, b"model/.format_versioX"),
        "the entry 'model/.format_versioX' disagree",
    ),
    "zip-crc": Attack(
        "a wrong checksum of the pickle",
        _changed(b"PK\1\2", 0, 7, b"abcd"),
        "data.pkl does not match its checksum",
    ),
    "zip-encrypted": Attack(
        "an entry said to be encrypted",
        _changed(b"PK\1\2", 0, 3, b"\1\0"),
        "the entry 'model/data.pkl' disagree",
    ),
    "zip-size": Attack(
        "an entry of four gigabytes",
        _changed(b"PK\1\2", 4, 9, b"\xf0\xff\xff\xff"),
        "claims 4,29.* bytes in a file",
    ),
    "zip-overlap": Attack(
        "two entries in one place",
        _changed(b"PK\1\2", 5, 16, bytes(4)),
        "the entry 'model/data/1' disagree",
    ),
    "zip-bomb": Attack(
        "200 megabytes of zeros in 200 kilobytes", one_file("x.pth", _bomb), "is compressed"
    ),
    "zip-path": Attack(
        "an entry that leads out of the folder",
        _leading(lambda c: f"../{c.name}"),
        "is outside the folder",
    ),
    "zip-absolute": Attack(
        "an entry with an absolute path", _leading(str), "is outside the folder"
    ),
    "zip-symlink": Attack(
        "an entry that is a symbolic link, which is not followed",
        _changed(b"PK\1\2", 1, 15, struct.pack("<I", 0o120777 << 16)),
        "",
        CHECKPOINT[:1],
    ),
    **{
        f"named-{suffix[1:]}": Attack(
            f"a call in a file named {suffix}",
            _in_zip(lambda c: dumped(touch(c)), f"x{suffix}"),
            _RUNS,
        )
        for suffix in (".sft", ".safetensors", ".ckpt", ".gguf", ".npz", ".bin")
    },
    **{
        f"bare-named-{suffix[1:]}": Attack(
            f"a bare pickle named {suffix}",
            one_file(f"x{suffix}", lambda c: dumped(touch(c))),
            "is a bare pickle",
        )
        for suffix in (".sft", ".gguf", ".pkl", ".json")
    },
}

#: What the attacks are made of, undamaged.
BASES: Mapping[str, Attack] = {
    "zip": Attack(
        "a file of torch.save", one_file("x.pth", lambda _c: formats.zip_of(_right())), ""
    ),
    "stats": Attack("one with other counters", _beside("stats", lambda _c: b"}"), ""),
    "config": Attack("one with another config", _config("name", dumped("x")[2:-1]), ""),
    "storage": Attack("one with the size of a storage", _storage(b"K\x08"), ""),
    "legacy": Attack("a file of torch before 1.6", one_file("x.pt", _saved), ""),
}
