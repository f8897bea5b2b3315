"""Attacks by way of `.pth`: the pickle, and the zip around it."""

from __future__ import annotations

import io
import os
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
    called,
    dumped,
    looked_up,
    python,
    touch,
)
from fuzz import formats, seeds

Made = Callable[[Path, Path], Path]


def _entries(pickled: bytes) -> list[tuple[str, bytes]]:
    """Those of a right file around another pickle."""
    return [
        (name, pickled if name.endswith("data.pkl") else data)
        for name, data in formats.zip_entries(seeds.torch_zip())
    ]


def _in_zip(pickled: Callable[[Path], bytes], name: str = "x.pth") -> Made:
    def make(folder: Path, canary: Path) -> Path:
        path = folder / name
        path.write_bytes(formats.zip_of(_entries(pickled(canary))))
        return path

    return make


def _plain(pickled: Callable[[Path], bytes], name: str) -> Made:
    def make(folder: Path, canary: Path) -> Path:
        path = folder / name
        path.write_bytes(pickled(canary))
        return path

    return make


def _call(module: str, name: str, *arguments: object) -> Made:
    """A call among the counters, whose arguments are Python that makes the canary, where None."""
    # A right checkpoint but for that; the call stands in the place of a text.
    frame = dumped({"module": {}, "stats": {"global_step": "HERE"}})
    before, after = frame.split(b"X\x04\0\0\0HERE")

    def pickled(canary: Path) -> bytes:
        values = (python(canary) if one is None else one for one in arguments)
        return before + called(module, name, *values)[2:-1] + after

    return _in_zip(pickled)


def _state(value: Any) -> dict[str, Any]:  # noqa: ANN401 - anything
    return {"module": {}, "config": {"version": 5}, "stats": {"global_step": value}}


def _evil_module(folder: Path, canary: Path) -> Path:
    """A module beside the file, which would be imported by its name."""
    (folder / "valle_attack_module.py").write_text(python(canary) + "\nclass Model: pass\n")
    path = folder / "x.pth"
    path.write_bytes(formats.zip_of(_entries(looked_up("valle_attack_module", "Model"))))
    return path


def _tar(folder: Path, canary: Path) -> Path:
    path = folder / "x.pt"
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle", "../escaped"):
            data = dumped(touch(canary))
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def _changed(change: Callable[[list[bytes]], object]) -> Made:
    """A right file with other fields in its zip."""

    def make(folder: Path, _canary: Path) -> Path:
        fields = formats.zip_fields(seeds.torch_zip())
        change(fields)
        path = folder / "x.pth"
        path.write_bytes(b"".join(fields))
        return path

    return make


def _field(fields: list[bytes], sign: bytes, which: int, n: int, value: bytes) -> None:
    at = [i for i, one in enumerate(fields) if one == sign][which] + n
    fields[at] = value


def _two_pickles(folder: Path, canary: Path) -> Path:
    path = folder / "x.pth"
    entries = _entries(dumped({"module": {}}))
    path.write_bytes(formats.zip_of([("archive/data.pkl", dumped(touch(canary))), *entries]))
    return path


def _hidden_pickle(folder: Path, canary: Path) -> Path:
    """The zip's table leads to a right pickle, the entry before its data to another."""
    right, wrong = dumped({"module": {}}), dumped(touch(canary))
    data = formats.zip_of([("archive/data.pkl", wrong), *_entries(right)[1:]])
    path = folder / "x.pth"
    path.write_bytes(
        data.replace(struct.pack("<I", zlib.crc32(wrong)), struct.pack("<I", zlib.crc32(right)))
    )
    return path


def _storage(numel: bytes) -> Made:
    """The data of the first tensor is said to have another number of elements."""

    def make(folder: Path, _canary: Path) -> Path:
        entries = formats.zip_entries(seeds.torch_zip())
        changed = [
            (name, data.replace(b"K\x0c", numel, 1) if name.endswith("data.pkl") else data)
            for name, data in entries
        ]
        path = folder / "x.pth"
        path.write_bytes(formats.zip_of(changed))
        return path

    return make


def _expanded(folder: Path, _canary: Path) -> Path:
    import torch

    path = folder / "x.pth"
    huge = torch.zeros(1).expand(1 << 20, 1 << 20)
    torch.save({"module": {"text_emb.weight": huge}, "config": seeds.config()}, path)
    return path


def _bomb(folder: Path, _canary: Path) -> Path:
    path = folder / "x.pth"
    path.write_bytes(formats.zip_of(_entries(bytes(200 << 20)), zipfile.ZIP_DEFLATED))
    return path


def _unfolding(folder: Path, _canary: Path) -> Path:
    value: Any = ("x",) * 9
    for _ in range(12):
        value = (value,) * 9
    path = folder / "x.pth"
    config = {**seeds.config(), "name": value}
    path.write_bytes(formats.zip_of(_entries(dumped({"module": {}, "config": config}))))
    return path


def _leading_to_canary(*, absolute: bool) -> Made:
    """A right file with one more entry, whose name is a path to the canary."""

    def make(folder: Path, canary: Path) -> Path:
        name = str(canary) if absolute else os.path.relpath(canary, folder)
        path = folder / "x.pth"
        path.write_bytes(formats.zip_of([*_entries(dumped({"module": {}})), (name, b"escaped")]))
        return path

    return make


def _built(state: bytes) -> Callable[[Path], bytes]:
    """A right dict, and behind it a BUILD with a state, as tools append it."""
    return lambda canary: dumped(OrderedDict(a=1))[:-1] + dumped({"a": touch(canary)})[2:-1] + state


PICKLES: Mapping[str, Attack] = {
    "reduce": Attack("os.system by __reduce__", _in_zip(lambda c: dumped(touch(c)))),
    "reduce-protocol-0": Attack(
        "the same in the oldest protocol, with INST",
        _in_zip(lambda c: f"(S\"touch '{c}'\"\niposix\nsystem\n.".encode()),
    ),
    "reduce-obj": Attack(
        "the same with OBJ",
        _in_zip(lambda c: b"(cposix\nsystem\n" + dumped(f"touch '{c}'")[2:-1] + b"o."),
    ),
    "reduce-protocol-4": Attack(
        "the same with STACK_GLOBAL", _in_zip(lambda c: dumped(touch(c), 4))
    ),
    "in-stats": Attack(
        "a call hidden among the training's counters",
        _in_zip(lambda c: dumped(_state(touch(c)))),
    ),
    "nested": Attack(
        "a pickle within a pickle",
        _in_zip(lambda c: called("pickle", "loads", dumped(touch(c)))),
    ),
    "nested-torch": Attack(
        "torch.load of a file from within a pickle",
        _in_zip(lambda c: called("torch.serialization", "load", str(c))),
    ),
    "before-a-broken-tail": Attack(
        "a call before the pickle breaks off",
        _in_zip(lambda c: dumped(touch(c))[:-1] + b"\xff"),
    ),
    "legacy-tar": Attack("the tar of torch before 0.1.10", _tar),
    "bare-pickle": Attack(
        "a bare pickle, as before torch 1.6", _plain(lambda c: dumped(touch(c)), "x.pt")
    ),
    "codec-bare-pickle": Attack(
        "a bare pickle for a codec", _plain(lambda c: dumped(touch(c)), "x.th"), CODEC
    ),
    "codec-zip": Attack("a call in a codec", _in_zip(lambda c: dumped(touch(c)), "x.th"), CODEC),
    "eval": Attack("builtins.eval", _call("builtins", "eval", None)),
    "exec": Attack("builtins.exec", _call("builtins", "exec", None)),
    "getattr": Attack("builtins.getattr, to reach anything", _call("builtins", "getattr", "", "x")),
    "import": Attack("importlib.import_module", _call("importlib", "import_module", "antigravity")),
    "subclass-import": Attack("a module beside the file, imported by its name", _evil_module),
    "pip": Attack("pip.main", _call("pip", "main", ["install", "--help"])),
    "pip-internal": Attack(
        "pip's inner main", _call("pip._internal.cli.main", "main", ["install", "--help"])
    ),
    "resolve-name": Attack(
        "pkgutil.resolve_name, which names anything", _call("pkgutil", "resolve_name", "os:system")
    ),
    "runpy": Attack("runpy.run_path", _call("runpy", "run_path", "x.py")),
    "timeit": Attack("timeit.timeit of a text", _call("timeit", "timeit", None)),
    "cprofile": Attack("cProfile.run of a text", _call("cProfile", "run", None)),
    "pdb": Attack("pdb.run of a text", _call("pdb", "run", None)),
    "code": Attack("code.InteractiveInterpreter", _call("code", "InteractiveInterpreter")),
    "webbrowser": Attack("webbrowser.open", _call("webbrowser", "open", "http://localhost")),
    "operator": Attack(
        "operator.attrgetter, to reach anything", _call("operator", "attrgetter", "system")
    ),
    "functools": Attack("functools.partial of a call", _call("functools", "partial", None)),
    "asyncio": Attack(
        "a subprocess of asyncio",
        _call("asyncio.unix_events", "_UnixSubprocessTransport._start", None),
    ),
    "logging": Attack("logging.config.listen", _call("logging.config", "listen")),
    "numpy-runstring": Attack(
        "numpy.testing's exec", _call("numpy.testing._private.utils", "runstring", None, {})
    ),
    "numpy-load": Attack(
        "numpy.load with allow_pickle", _call("numpy", "load", "x.npy", None, True)
    ),
    "numpy-f2py": Attack("numpy.f2py's eval", _call("numpy.f2py.crackfortran", "myeval", None)),
    "torch-load": Attack("torch.load without weights_only", _call("torch", "load", "x.pt")),
    "torch-hub": Attack("torch.hub.load", _call("torch.hub", "load", "a/b", "c")),
    "torch-cpp": Attack(
        "a C++ extension compiled by torch",
        _call("torch.utils.cpp_extension", "load_inline", "x", ""),
    ),
    "torch-jit": Attack(
        "an expression of torch.jit",
        _call("torch.jit.unsupported_tensor_ops", "execWrapper", None, {}, {}),
    ),
    "dotted": Attack(
        "a name that leads through an allowed module",
        _call("torch.serialization", "os.system", None),
    ),
    "dotted-collections": Attack(
        "the same through one of Python's", _call("collections", "abc.sys.exit")
    ),
    "persistent": Attack(
        "a persistent id that is no storage", _in_zip(lambda _c: b"\x80\x02X\1\0\0\0xQ.")
    ),
    "extension": Attack("a code of copyreg's registry", _in_zip(lambda _c: b"\x80\x02\x82\x01.")),
    "appended-build": Attack(
        "a BUILD behind a right object, with a call in its state", _in_zip(_built(b"b."))
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
    ),
    "appended-pickle": Attack(
        "a second pickle behind the first", _in_zip(lambda c: dumped({}) + dumped(touch(c)))
    ),
    "unfolding": Attack("a config of nine to the thirteenth values", _unfolding),
    "long": Attack(
        "a number of a million digits",
        _in_zip(
            lambda _c: (
                b"\x80\x02}X\6\0\0\0moduleX\0\0\0\0\x8b"
                + struct.pack("<i", 400_000)
                + b"\x7f" * 400_000
                + b"s."
            )
        ),
    ),
    "memo": Attack(
        "a memo of four billion places",
        _in_zip(lambda _c: b"\x80\x02Nr\xff\xff\xff\xffj\xff\xff\xff\x7f."),
    ),
    "storage-larger": Attack("data that reaches into the next entry", _storage(b"K\x0f")),
    "storage-huge": Attack(
        "data of 2 to the 62nd elements", _storage(b"\x8a\x08" + bytes(7) + b"\x40")
    ),
    "storage-negative": Attack("data of a negative size", _storage(b"J\xff\xff\xff\xff")),
    "expanded": Attack("a tensor of a trillion elements on one number", _expanded),
    "zip-two-pickles": Attack("two pickles of one name", _two_pickles),
    "zip-hidden-pickle": Attack("a checksum of another pickle", _hidden_pickle),
    "zip-headers": Attack(
        "a table that gives an entry another name",
        _changed(lambda f: _field(f, b"PK\1\2", 1, 17, b"archive/.format_versioX")),
    ),
    "zip-crc": Attack(
        "a wrong checksum of the pickle", _changed(lambda f: _field(f, b"PK\1\2", 0, 7, b"abcd"))
    ),
    "zip-encrypted": Attack(
        "an entry said to be encrypted", _changed(lambda f: _field(f, b"PK\1\2", 0, 3, b"\1\0"))
    ),
    "zip-size": Attack(
        "an entry of four gigabytes",
        _changed(lambda f: _field(f, b"PK\1\2", 4, 9, b"\xf0\xff\xff\xff")),
    ),
    "zip-overlap": Attack(
        "two entries in one place",
        _changed(lambda f: _field(f, b"PK\1\2", 5, 16, bytes(4))),
    ),
    "zip-bomb": Attack("200 megabytes of zeros in 200 kilobytes", _bomb),
    "zip-path": Attack("an entry that leads out of the folder", _leading_to_canary(absolute=False)),
    "zip-absolute": Attack("an entry with an absolute path", _leading_to_canary(absolute=True)),
    "zip-symlink": Attack(
        "an entry that is a symbolic link",
        _changed(lambda f: _field(f, b"PK\1\2", 1, 15, struct.pack("<I", 0o120777 << 16))),
    ),
    **{
        f"named-{suffix[1:]}": Attack(
            f"a call in a file named {suffix}",
            _plain(lambda c: formats.zip_of(_entries(dumped(touch(c)))), f"x{suffix}"),
            CHECKPOINT,
        )
        for suffix in (".sft", ".safetensors", ".ckpt", ".gguf", ".npz", ".bin")
    },
    **{
        f"bare-named-{suffix[1:]}": Attack(
            f"a bare pickle named {suffix}",
            _plain(lambda c: dumped(touch(c)), f"x{suffix}"),
            CHECKPOINT,
        )
        for suffix in (".sft", ".gguf", ".pkl", ".json")
    },
}
