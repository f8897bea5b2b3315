"""Files of torch.save are read without torch, as torch itself reads them."""

import argparse
import io
import json
import pickle
import pickletools
import tempfile
import tracemalloc
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from support import run_python

from valle_convert.checkpoint.read import read_checkpoint
from valle_convert.checkpoint.stand_ins import StandIn
from valle_convert.checkpoint.torch_file import load_torch_file
from valle_convert.checkpoint.torch_pickle import StoredTensor
from valle_convert.errors import InputError
from valle_convert.families.bundle import plan_bundle

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
]


def same(ours: Any, theirs: Any) -> bool:
    """Whether a value is torch's, down to the bits."""
    if isinstance(theirs, torch.Tensor):
        whole = theirs.detach().clone(memory_format=torch.contiguous_format)
        return (
            isinstance(ours, StoredTensor)
            and ours.shape == tuple(theirs.shape)
            and f"torch.{ours.numbers.name}" == str(theirs.dtype)
            and ours.read().tobytes() == bytes(whole.reshape(-1).view(torch.uint8).numpy())
        )
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[k], theirs[k]) for k in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs and type(ours) is type(theirs))


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    found = (torch.randn(shape, generator=generator) * 50).to(draw(st.sampled_from(DTYPES)))
    kind = draw(st.sampled_from(["plain", "transposed", "sliced", "parameter", "strided"]))
    if kind == "transposed":
        return found.permute(list(reversed(range(found.ndim))))
    if kind == "sliced" and found.ndim and found.shape[0] > 1:
        return found[1:]
    if kind == "strided" and found.ndim:
        return found[..., ::2]
    return torch.nn.Parameter(found) if kind == "parameter" and found.is_floating_point() else found


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.dictionaries(st.integers(0, 9), st.integers(0, 9), max_size=2).map(Counter)
    | st.sets(st.tuples(st.integers(0, 9), st.tuples(st.integers(0, 9))), max_size=2)
    | tensors(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150)
@given(value=values, is_zip=st.booleans())
def test_what_torch_saved_is_what_torch_loads(value: Any, is_zip: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.pth"
        torch.save({"once": value, "again": value}, path, _use_new_zipfile_serialization=is_zip)
        assert same(load_torch_file(path), torch.load(path, weights_only=True))


@pytest.mark.filterwarnings("ignore:ComplexHalf", "ignore:torch.quantize")
def test_a_tensor_has_torchs_number_type_or_is_none(tmp_path: Path) -> None:
    path, names = tmp_path / "x.pth", set()
    for dtype in {one for one in vars(torch).values() if isinstance(one, torch.dtype)}:
        with suppress(KeyError, RuntimeError):  # torch cannot make or save it
            torch.save(torch.empty(8, dtype=dtype), path)
            found = load_torch_file(path)
            assert isinstance(found, StoredTensor)
            names.add(found.numbers.name)
            assert f"torch.{found.numbers.name}" == str(dtype)
    assert names > {"float32", "float8_e8m0fnu", "float4_e2m1fn_x2", "uint16", "complex32"}
    torch.save(torch.empty(8, dtype=torch.float8_e8m0fnu), path)
    path = rewritten(path, lambda data: data.replace(b"float8_e8m0fnu", b"float9_unknown"))
    assert isinstance(load_torch_file(path), StandIn)


def test_sets_that_cannot_change_are_read_in_every_protocol(tmp_path: Path) -> None:
    value = {"a": frozenset({("x", 1), (2, 3)}), "b": [frozenset([1])]}
    for protocol in range(2, 6):
        torch.save(value, tmp_path / "x.pth", pickle_protocol=protocol)
        assert load_torch_file(tmp_path / "x.pth") == value


def test_every_fixture_is_what_torch_loads() -> None:
    paths = [one for kind in ("pt", "pth", "th") for one in FIXTURES.rglob(f"*.{kind}")]
    assert len(paths) > 1
    for path in paths:
        ours = load_torch_file(path)
        assert isinstance(ours, dict)
        with torch.serialization.safe_globals([PosixPath]):
            theirs = torch.load(path, weights_only=True)
        for name, value in theirs.items():
            assert isinstance(value, PosixPath) or same(ours[name], value)


def test_torch_is_not_imported(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "x.pth")
    code = (
        "import sys; from pathlib import Path, PosixPath;"
        "from valle_convert.checkpoint.read import read_checkpoint;"
        "from valle_convert.checkpoint.torch_file import *;"
        f"p = Path({str(tmp_path / 'x.pth')!r});"
        "assert TorchTensors(p, load_torch_file(p)).read('a').tolist() == [0, 0, 0];"
        "assert 'torch' not in sys.modules"
    )
    run_python("-c", code, check=True)


def rewritten(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """The same archive around another pickle."""
    out = path.with_name("changed.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, change(data) if "data.pkl" in entry.filename else data)
    return out


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x03K\x04\x86", b"K\x03K\x05\x86"),  # a row more than there are numbers
        (b"K\x04K\x01\x86", b"K\x05K\x01\x86"),  # strides that lead behind the end
        (b"K\x00K\x03", b"K\x01K\x03"),  # an offset
        (b"K\x03K\x04\x86", b"J\xfd\xff\xff\xffJ\xfc\xff\xff\xff\x86"),  # negative sizes
        (b"K\x04K\x01\x86", b"J\xfc\xff\xff\xffK\x01\x86"),  # a negative stride
    ],
)
def test_a_tensor_beyond_its_data_is_refused(old: bytes, new: bytes, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3, 4)}, tmp_path / "x.pth")

    def change(data: bytes) -> bytes:
        assert data.count(old) == 1, data
        return data.replace(old, new)

    with pytest.raises(InputError, match=r"cannot be read as a file of torch.save"):
        load_torch_file(rewritten(tmp_path / "x.pth", change))


def test_a_storage_of_two_sizes_is_refused(tmp_path: Path) -> None:
    numbers = torch.zeros(12)
    torch.save({"a": numbers[:3], "b": numbers[3:]}, tmp_path / "x.pth")
    size = b"K\x0ct"  # of the storage, in both references to it

    def change(data: bytes) -> bytes:
        assert data.count(size) == 2, data
        return b"K\x0bt".join(data.rsplit(size, 1))

    with pytest.raises(InputError, match="two types or sizes"):
        load_torch_file(rewritten(tmp_path / "x.pth", change))


def test_a_state_changes_no_class_and_no_function(tmp_path: Path) -> None:
    """BUILD may be given to whatever lies on the stack, a function that rebuilds tensors too."""
    torch.save({"a": torch.zeros(3, 4)}, tmp_path / "x.pth")
    for name in ("torch._utils\n_rebuild_tensor_v2", "collections\nOrderedDict", "x\nY"):
        pickled = b"\x80\x02c" + name.encode() + b"\n" + pickle.dumps((None, {"kind": 1}), 2)[2:-1]
        pickletools.dis(pickled + b"b.", io.StringIO())
        found = load_torch_file(rewritten(tmp_path / "x.pth", lambda _, p=pickled: p + b"b."))
        assert getattr(found, "kind", "") != 1


def checkpoint() -> dict[str, Any]:
    """A right checkpoint, as torch saves it."""
    path = FIXTURES / "golden" / "ar-nar-len" / "fp32.sft"
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {"module": state, "config": json.loads(file.metadata()["config"])}


class Opaque:
    """Something that has no plain value."""


class Subclass(torch.Tensor):
    """A tensor without numbers of its own, as DTensor is."""

    @classmethod
    def __torch_dispatch__(cls, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


class AttributeDict(dict[str, Any]):
    """What trainers keep settings in."""


def with_tuples(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "capabilities": tuple(config["capabilities"])}


@pytest.mark.parametrize(
    ("change", "protocol"),
    [
        (lambda c: {**c, "config": AttributeDict(with_tuples(c["config"]))}, 2),
        (lambda c: {**c, "module": AttributeDict(c["module"])}, 2),
        (lambda c: {"module": c["module"], "args": argparse.Namespace(**c["config"])}, 2),
        (lambda c: {**c, "x": b"", "y": np.array([]), "z": type(None), "e": ..., 10**6000: 1}, 2),
        (lambda c: {**c, "g": torch.nn.functional.gelu, "r": np.random.default_rng()}, 2),
        (lambda c: {**c, "config": {**c["config"], "x": Opaque, "y": Path, "z": type(None)}}, 2),
        (lambda c: c, 4),
    ],
)
@pytest.mark.parametrize("is_zip", [True, False])
def test_what_trainers_keep_beside_weights_changes_no_config(
    change: Callable[[dict[str, Any]], object], protocol: int, is_zip: bool, tmp_path: Path
) -> None:
    right = checkpoint()
    torch.save(
        change(right),
        tmp_path / "x.pth",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=is_zip,
    )
    read = read_checkpoint(tmp_path / "x.pth")
    assert {key: read.config[key] for key in right["config"]} == right["config"]
    assert list(read.tensors.specs) == list(right["module"])


@pytest.mark.parametrize(
    ("place", "key"),
    [("size", "heads"), ("experimental", "noncausal_masks"), ("", "version"), ("", "size")],
)
def test_a_value_that_the_network_depends_on_is_not_passed_over(
    place: str, key: str, tmp_path: Path
) -> None:
    right = checkpoint()
    inner = right["config"][place] if place else right["config"]
    inner[key] = Opaque()
    torch.save(right, tmp_path / "x.pth")
    with pytest.raises(InputError, match=rf"{key}.*Opaque of the pickle"):
        plan_bundle(read_checkpoint(tmp_path / "x.pth"))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            {"a": torch._neg_view(torch.ones(2)), "b": torch.ones(2)},
            r"not dense tensors: a \(negated",
        ),
        ({"a": torch.zeros(1).expand(1 << 20, 1 << 20)}, r"not dense tensors: a \(Tensor\)"),
        (
            {"a": torch.Tensor._make_wrapper_subclass(Subclass, (2,)), "b": torch.ones(2)},
            r"not dense tensors: a \(\w+\.Subclass\)",
        ),
        (torch.nn.Linear(2, 2), r"holds a torch\.nn\.modules\.linear\.Linear"),
    ],
)
@pytest.mark.parametrize("is_zip", [True, False])
def test_what_is_no_dense_tensor_is_named(
    value: object, words: str, is_zip: bool, tmp_path: Path
) -> None:
    torch.save(value, tmp_path / "x.pth", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(InputError, match=words):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_is_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(InputError, match="is a TorchScript program"):
        load_torch_file(tmp_path / "x.pt")


def doubled(first: bytes, twice: bytes) -> bytes:
    """A dict with a key that is made of two of itself, sixty times."""
    return b"\x80\x02}" + first + b"q\x000" + (twice + b"q\x000") * 60 + b"h\x00K\x01s."


@pytest.mark.parametrize(
    ("first", "twice"),
    [
        (b"K\x01", b"h\x00h\x00\x86"),
        (b"K\x01", b"cbuiltins\nfrozenset\n](h\x00h\x00\x86\x85e\x85R"),
        (b"X\x01\0\0\0p", b"cpathlib\nPosixPath\nh\x00h\x00\x86R"),
    ],
)
def test_what_doubles_itself_takes_neither_time_nor_memory(
    first: bytes, twice: bytes, tmp_path: Path
) -> None:
    torch.save({"a": torch.zeros(3, 4)}, tmp_path / "x.pth")
    path = rewritten(tmp_path / "x.pth", lambda _: doubled(first, twice))
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as refused:
            read_checkpoint(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20 << 20
    assert len(str(refused.value)) < 1000


def test_a_name_is_looked_up_once(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3, 4)}, tmp_path / "x.pth")
    again = b"\x80\x02](" + b"cx\nY\n" * 2000 + b"e."
    found = load_torch_file(rewritten(tmp_path / "x.pth", lambda _: again))
    assert len(set(found)) == 1  # type: ignore[call-overload]
    many = b"\x80\x02](" + b"".join(b"cx\nY%d\n" % i for i in range(2000)) + b"e."
    with pytest.raises(InputError, match="names more than 1,000 classes"):
        load_torch_file(rewritten(tmp_path / "x.pth", lambda _: many))
