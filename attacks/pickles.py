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


def _zip(pickled: bytes) -> bytes:
    """A right file around another pickle."""
    return formats.zip_of(formats.with_pickle(seeds.torch_zip(), pickled))


def _in_zip(pickled: Callable[[Path], bytes], name: str = "x.pth") -> Made:
    return one_file(name, lambda canary: _zip(pickled(canary)))


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


def _changed(change: Callable[[list[bytes]], object]) -> Made:
    """A right file with other fields in its zip."""

    def data(_canary: Path) -> bytes:
        fields = formats.zip_fields(seeds.torch_zip())
        change(fields)
        return b"".join(fields)

    return one_file("x.pth", data)


def _field(fields: list[bytes], sign: bytes, which: int, n: int, value: bytes) -> None:
    at = [i for i, one in enumerate(fields) if one == sign][which] + n
    fields[at] = value


def _right() -> list[tuple[str, bytes]]:
    return formats.with_pickle(seeds.torch_zip(), dumped({"module": {}}))


def _two_pickles(canary: Path) -> bytes:
    return formats.zip_of([("archive/data.pkl", dumped(touch(canary))), *_right()])


def _leading(name: Callable[[Path], str]) -> Made:
    """A right file with one more entry, whose name is a path to the canary."""
    return one_file("x.pth", lambda c: formats.zip_of([*_right(), (name(c), b"escaped")]))


def _hidden_pickle(canary: Path) -> bytes:
    """The zip's table leads to a right pickle, the entry before its data to another."""
    right, wrong = dumped({"module": {}}), dumped(touch(canary))
    data = formats.zip_of([("archive/data.pkl", wrong), *_right()[1:]])
    return data.replace(struct.pack("<I", zlib.crc32(wrong)), struct.pack("<I", zlib.crc32(right)))


def _storage(numel: bytes) -> Made:
    """The data of the first tensor is said to have another number of elements."""

    def data(_canary: Path) -> bytes:
        entries = formats.zip_entries(seeds.torch_zip())
        changed = [
            (name, data.replace(b"K\x0c", numel, 1) if name.endswith("data.pkl") else data)
            for name, data in entries
        ]
        return formats.zip_of(changed)

    return one_file("x.pth", data)


def _expanded(_canary: Path) -> bytes:
    import torch

    buffer = io.BytesIO()
    huge = torch.zeros(1).expand(1 << 20, 1 << 20)
    torch.save({"module": {"text_emb.weight": huge}, "config": seeds.config()}, buffer)
    return buffer.getvalue()


def _bomb(_canary: Path) -> bytes:
    entries = formats.with_pickle(seeds.torch_zip(), bytes(200 << 20))
    return formats.zip_of(entries, zipfile.ZIP_DEFLATED)


def _unfolding(_canary: Path) -> bytes:
    value: Any = ("x",) * 9
    for _ in range(12):
        value = (value,) * 9
    return dumped({"module": {}, "config": {**seeds.config(), "name": value}})


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
    "legacy-tar": Attack("the tar of torch before 0.1.10", one_file("x.pt", _tar)),
    "bare-pickle": Attack(
        "a bare pickle, as before torch 1.6", one_file("x.pt", lambda c: dumped(touch(c)))
    ),
    "codec-bare-pickle": Attack(
        "a bare pickle for a codec", one_file("x.th", lambda c: dumped(touch(c))), CODEC
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
    "unfolding": Attack("a config of nine to the thirteenth values", _in_zip(_unfolding)),
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
    "expanded": Attack(
        "a tensor of a trillion elements on one number", one_file("x.pth", _expanded)
    ),
    "zip-two-pickles": Attack("two pickles of one name", one_file("x.pth", _two_pickles)),
    "zip-hidden-pickle": Attack("a checksum of another pickle", one_file("x.pth", _hidden_pickle)),
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
    "zip-bomb": Attack("200 megabytes of zeros in 200 kilobytes", one_file("x.pth", _bomb)),
    "zip-path": Attack("an entry that leads out of the folder", _leading(lambda c: f"../{c.name}")),
    "zip-absolute": Attack("an entry with an absolute path", _leading(str)),
    "zip-symlink": Attack(
        "an entry that is a symbolic link",
        _changed(lambda f: _field(f, b"PK\1\2", 1, 15, struct.pack("<I", 0o120777 << 16))),
    ),
    **{
        f"named-{suffix[1:]}": Attack(
            f"a call in a file named {suffix}",
            _in_zip(lambda c: dumped(touch(c)), f"x{suffix}"),
            CHECKPOINT,
        )
        for suffix in (".sft", ".safetensors", ".ckpt", ".gguf", ".npz", ".bin")
    },
    **{
        f"bare-named-{suffix[1:]}": Attack(
            f"a bare pickle named {suffix}",
            one_file(f"x{suffix}", lambda c: dumped(touch(c))),
            CHECKPOINT,
        )
        for suffix in (".sft", ".gguf", ".pkl", ".json")
    },
}
