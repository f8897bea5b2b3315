"""Files of torch.save are read without torch, as torch itself reads them."""

from __future__ import annotations

import io
import pickle
import pickletools
import subprocess
import sys
import tempfile
import tracemalloc
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from valle_convert.checkpoint.torch_file import TorchTensors, load_torch_file
from valle_convert.checkpoint.torch_pickle import StoredTensor
from valle_convert.errors import InputError

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
        torch.save(
            {"once": value, "again": value},
            path,
            _use_new_zipfile_serialization=is_zip,
        )
        assert same(load_torch_file(path), torch.load(path, weights_only=True))


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
    subprocess.run([sys.executable, "-c", code], check=True)


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
        (b"K\x0ctq", b"K\x0dtq"),  # another size than that of the entry
        (b"K\x0ctq", b"J\xff\xff\xff\xfftq"),  # a negative size
        (b"K\x00K\x03", b"K\x01K\x03"),  # an offset
    ],
)
def test_a_tensor_beyond_its_data_is_refused(old: bytes, new: bytes, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3, 4)}, tmp_path / "x.pth")

    def change(data: bytes) -> bytes:
        assert data.count(old) == 1, data
        return data.replace(old, new)

    with pytest.raises(InputError, match=r"cannot be read as a file of torch.save"):
        load_torch_file(rewritten(tmp_path / "x.pth", change))


def test_one_number_that_stands_for_many_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(1 << 20)}, tmp_path / "x.pth")
    state = load_torch_file(tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"not dense tensors: a \(Tensor\)"):
        TorchTensors(tmp_path / "x.pth", state)  # type: ignore[arg-type]


def test_a_state_changes_no_class_and_no_function(tmp_path: Path) -> None:
    """BUILD may be given to whatever lies on the stack, a function that rebuilds tensors too."""
    torch.save({"a": torch.zeros(3, 4)}, tmp_path / "x.pth")
    for name in ("torch._utils\n_rebuild_tensor_v2", "collections\nOrderedDict", "x\nY"):
        pickled = b"\x80\x02c" + name.encode() + b"\n" + pickle.dumps((None, {"kind": 1}), 2)[2:-1]
        pickletools.dis(pickled + b"b.", io.StringIO())
        found = load_torch_file(rewritten(tmp_path / "x.pth", lambda _, p=pickled: p + b"b."))
        assert getattr(found, "kind", "") != 1


def test_an_index_of_the_memo_costs_no_memory(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3, 4)}, tmp_path / "x.pth")
    path = rewritten(tmp_path / "x.pth", lambda _: b"\x80\x02}r\xff\xff\xff\xff.")
    tracemalloc.start()
    assert load_torch_file(path) == {}
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_dicts_and_lists_of_other_classes_are_taken(tmp_path: Path) -> None:
    class Keys(dict):  # type: ignore[type-arg]
        pass

    Keys.__qualname__, Keys.__module__ = "Keys", "somewhere"
    module = types.ModuleType("somewhere")
    module.Keys = Keys  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "somewhere", module)
        torch.save({"a": torch.ones(2), "config": Keys(x=1)}, tmp_path / "x.pth")
    found = load_torch_file(tmp_path / "x.pth")
    np.testing.assert_array_equal(found["a"].read(), [1, 1])  # type: ignore[index]
