"""The pickle in a file of torch.save, read without importing or calling anything that it names.

It builds tensors, containers and plain values; `stand_ins` replaces everything else.
"""

import _compat_pickle
import mmap
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint.source import DTYPES
from valle_convert.checkpoint.stand_ins import StandIn, is_harmful, stand_in_for


@dataclass(frozen=True)
class Numbers:
    """A number type by its name in torch; `dtype` is None if numpy does not have it."""

    name: str
    itemsize: int
    dtype: np.dtype[Any] | None = None


#: Types of torch that numpy does not have, by their bytes.
_OTHERS = {
    1: "quint8 qint8 quint4x2 quint2x4 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz "
    "float8_e8m0fnu float4_e2m1fn_x2 bits8 bits1x8 bits2x4 bits4x2",
    2: "uint16 complex32 bits16",
    4: "uint32 qint32",
    8: "uint64 complex64",
    16: "complex128",
}
_NUMBERS = {name: Numbers(name, dtype.itemsize, dtype) for name, dtype in DTYPES.items()} | {
    name: Numbers(name, size) for size, names in _OTHERS.items() for name in names.split()
}
_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexDouble": "complex128",
    "ComplexFloat": "complex64",
    "QUInt8": "quint8",
    "QInt8": "qint8",
    "QInt32": "qint32",
    "QUInt4x2": "quint4x2",
    "QUInt2x4": "quint2x4",
    "Untyped": "uint8",
}
_STORAGE = re.compile(r"torch\.(?:storage\.)?(\w+)Storage")
_MAX_ARRAY_BYTES = 1 << 16
_MAX_NAMES = 1000
_MAX_KEY = 100  # values in a key, each counted as often as it is named


class RefusedError(Exception):
    """The pickle names something that is not allowed."""


@dataclass
class Storage:
    """The bytes of a tensor's numbers in a mapped file."""

    file: mmap.mmap
    n_bytes: int
    start: int = 0

    def read(self) -> memoryview:
        return memoryview(self.file)[self.start : self.start + self.n_bytes]


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A dense tensor: which numbers of a storage it consists of."""

    storage: Storage
    numbers: Numbers
    offset: int  # in numbers, like the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    kind: ClassVar[str] = "Tensor"

    @property
    def n_elements(self) -> int:
        return int(np.prod(self.shape, dtype=object))

    def read(self) -> NDArray[Any]:
        """The numbers; a view of the storage if they are in order."""
        size = self.numbers.itemsize
        found: NDArray[Any] = np.ndarray(
            self.shape,
            self.numbers.dtype,
            self.storage.read() if self.n_elements else b"",
            self.offset * size if self.n_elements else 0,
            tuple(size * stride for stride in self.strides),
        )
        return np.ascontiguousarray(found).reshape(self.shape)

    def plain(self) -> object:
        if self.numbers.dtype is None or self.n_elements * 8 > _MAX_ARRAY_BYTES:
            raise ValueError(f"a tensor of {self.n_elements:,} numbers ({self.numbers.name})")
        values = self.read()
        if self.numbers.name == "bfloat16":  # not a standard numpy type
            values = values.astype(np.float32)
        return values.tolist()


def word_for(value: object) -> str:
    """What a value is, in a word."""
    return str(getattr(value, "kind", type(value).__name__))


class _Negated(StandIn):
    kind = "negated or conjugated Tensor"


def _tensor(
    storage: object, offset: object, shape: object, strides: object, *more: object
) -> StoredTensor | StandIn:
    """`_rebuild_tensor_v2`, and 3 with its own type; rejects what does not fit."""
    if not isinstance(storage, _TypedStorage):
        raise TypeError("a tensor without a storage")
    if any(isinstance(one, dict) and (one.get("neg") or one.get("conj")) for one in more):
        return _Negated()
    if any(isinstance(one, type) for one in more):
        return StandIn()  # of a number type that is not known
    numbers = next((one for one in more if isinstance(one, Numbers)), storage.numbers)
    sizes, steps = _counts(shape), _counts(strides)
    (begin,) = _counts((offset,))
    tensor = StoredTensor(storage.where, numbers, begin, sizes, steps)
    if len(sizes) != len(steps):
        raise ValueError(f"a tensor of shape {sizes} with {len(steps)} strides")
    last = sum((n - 1) * step for n, step in zip(sizes, steps, strict=True))
    held = storage.where.n_bytes // numbers.itemsize
    if tensor.n_elements and begin + last >= held:
        raise ValueError(f"a tensor of shape {sizes} beyond its storage of {held} numbers")
    return tensor


def _counts(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or not all(
        type(one) is int and 0 <= one < 1 << 62 for one in values
    ):
        raise ValueError("a tensor size that is not a whole number below 2^62")
    return tuple(values)


@dataclass(frozen=True)
class _TypedStorage:
    where: Storage
    numbers: Numbers


def _small(key: object) -> object:
    """A key that is hashed quickly: a few bytes can describe a tuple of billions of values."""
    left = [key]
    for one in left:  # which grows
        if isinstance(one, tuple | frozenset):
            left += one
        if len(left) > _MAX_KEY:
            raise ValueError(f"a key of more than {_MAX_KEY:,} values")
    return key


def _frozen(items: Iterable[object] = ()) -> frozenset[object]:
    return frozenset(map(_small, items))


def _ordered(items: Mapping[Any, Any] | Iterable[Sequence[Any]] = ()) -> OrderedDict[Any, Any]:
    pairs = items.items() if isinstance(items, Mapping) else items  # a Counter's argument is a dict
    return OrderedDict((_small(key), value) for key, value in pairs)


def _first(value: object = None, *_more: object) -> object:
    return value


def _of_type(rebuild: object, kind: object, given: tuple[Any, ...], *_more: object) -> object:
    """`_rebuild_from_type_v2`: a tensor with attributes, or of a subclass."""
    if rebuild is _tensor:
        return _tensor(*given)
    return kind() if isinstance(kind, type) and issubclass(kind, StandIn) else StandIn()


_KNOWN: dict[str, object] = {
    "collections.OrderedDict": _ordered,
    "collections.Counter": _ordered,
    "builtins.set": lambda items=(): set(_frozen(items)),
    "builtins.frozenset": _frozen,
    "torch.Size": _first,
    "torch.serialization._get_layout": _first,  # of sparse tensors, which are placeholders
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch.nn.parameter.Parameter": _first,
    "torch._tensor._rebuild_from_type_v2": _of_type,
}


def _known(name: str) -> object:
    """The replacement of a pickle's global of that name; None for a placeholder."""
    if storage := _STORAGE.fullmatch(name):
        kind = _STORAGES.get(storage[1], "")
    else:
        kind = name.removeprefix("torch.") if name.startswith("torch.") else ""
    return _NUMBERS.get(kind) or _KNOWN.get(name)


class PickleReader(pickle._Unpickler):  # noqa: SLF001 - see below
    """Python's own pickle reader; the one in C would allocate what an index asks for."""

    proto: int
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    append: Callable[[object], None]

    def __init__(self, file: BinaryIO | mmap.mmap, storage: Callable[[str, int], Storage]) -> None:
        """`storage` gives the storage of a key and a number of bytes."""
        super().__init__(file, encoding="utf-8")
        self._storage = storage
        self._stand_ins: dict[str, object] = {}
        self._stored: dict[str, _TypedStorage] = {}

    def find_class(self, module: str, name: str) -> object:
        if self.proto < 3:
            module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        full = f"{module}.{name}"
        found = _known(full)
        if found is None and is_harmful(full):
            raise RefusedError(full)
        if found is not None:
            return found
        if full not in self._stand_ins:
            self._stand_ins[full] = stand_in_for(full)
            if len(self._stand_ins) > _MAX_NAMES:
                raise ValueError(f"it names more than {_MAX_NAMES:,} classes")
        return self._stand_ins[full]

    def persistent_load(self, saved: object) -> object:
        if isinstance(saved, tuple) and len(saved) == 4 and saved[0] == "module":
            return saved[1]  # a class with its source code
        if not isinstance(saved, tuple) or len(saved) not in (5, 6) or saved[0] != "storage":
            raise ValueError("a reference to something other than a storage")
        _, numbers, key, _, n = saved[:5]
        if not isinstance(numbers, Numbers) or not isinstance(key, str) or any(saved[5:]):
            raise ValueError("a storage of an unknown kind")
        (count,) = _counts((n,))
        n_bytes = count * numbers.itemsize
        found = self._stored.get(key)
        if found is None:
            found = _TypedStorage(self._storage(key, n_bytes), numbers)
            self._stored[key] = found
        if (found.numbers, found.where.n_bytes) != (numbers, n_bytes):
            raise ValueError(f"the storage {key} has two types or sizes")
        return found

    def load_build(self) -> None:
        """Set the state of objects that were built, but never of a class or function."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, StandIn):
            target.__setstate__(state)

    def load_dict(self) -> None:
        items = self.pop_mark()  # changes self.append
        self.append(dict(zip(map(_small, items[::2]), items[1::2], strict=True)))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][_small(key)] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][_small(key)] = value

    def load_additems(self) -> None:
        items = self.pop_mark()
        for item in items:
            self.stack[-1].add(_small(item))

    def load_frozenset(self) -> None:
        items = self.pop_mark()  # changes self.append
        self.append(_frozen(items))

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,  # noqa: SLF001
        pickle.BUILD[0]: load_build,
        pickle.DICT[0]: load_dict,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
    }
