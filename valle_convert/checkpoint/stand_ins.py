"""Placeholders for objects of a pickle other than tensors, containers and plain values.

Nothing in the file is imported or called. Placeholders for paths, numpy's numbers and namespaces of
arguments know their plain value. Names that no training writes are rejected.
"""

import re
import sys
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

#: Types of Python's own library that trainings store beside tensors. The rest of the library acts,
#: so a pickle that names it is an attack and is rejected, although a placeholder would be harmless.
_VALUES = frozenset(
    """
    argparse.Namespace collections.Counter collections.OrderedDict collections.defaultdict
    collections.deque copyreg._reconstructor datetime.date datetime.datetime datetime.time
    datetime.timedelta datetime.timezone decimal.Decimal fractions.Fraction types.SimpleNamespace
    uuid.UUID builtins.bool builtins.bytes builtins.bytearray builtins.complex builtins.dict
    builtins.float
    builtins.frozenset builtins.int builtins.list builtins.object builtins.range builtins.str
    builtins.set builtins.slice builtins.tuple builtins.type builtins.NoneType
    builtins.Ellipsis _codecs.encode
    """.split()
)
_PATH = re.compile(r"pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path")
_NUMPY = re.compile(
    r"numpy\.((_?core\.(multiarray|numeric)\.)?(scalar|dtype|ndarray|_reconstruct|_frombuffer)|"
    r"dtypes\.\w+|random\.\w+\.\w+|(u?int|float|complex|bool|str|bytes)\d*_?)"
)
#: Outside of Python's library: what loads, compiles, installs or evaluates, and Python 2's names.
_HARMFUL = frozenset(
    "IPython __builtin__ cPickle cloudpickle commands copy_reg dill distutils joblib numexpr "
    "pandas pip pkg_resources setuptools wheel".split()
)
_HARMFUL_TORCH = tuple(
    f"torch.{name}"
    for name in "load hub serialization utils.cpp_extension jit package fx ops _C _dynamo "
    "_inductor storage._load multiprocessing distributed.rpc testing".split()
)

#: Numpy's number types.
_NUMBER = re.compile(r"[biu][1248]|f[248]")
_MAX_ARRAY_BYTES = 1 << 16
_MAX_PATH = 1 << 12


class StandIn(dict[Any, Any]):
    """A placeholder for an object of a pickle.

    It keeps the items of a dict subclass and the attributes of a namespace, nothing else.
    """

    kind = "object"

    def __new__(cls, *_arguments: object, **_options: object) -> Self:
        return super().__new__(cls)

    def __init__(self, *_arguments: object, **_options: object) -> None:
        super().__init__()

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__

    def __setstate__(self, state: object) -> None:
        """Accepts any form: the state of a numpy type is a tuple."""

    def extend(self, values: object) -> None:
        """For subclasses of list and set."""

    append = add = extend

    def plain(self) -> object:
        if self:
            return dict(self)
        raise ValueError(f"a {self.kind} of the pickle")


class _Namespace(StandIn):
    """For objects that are only attributes."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.update(state)

    def plain(self) -> object:
        return dict(self)


class _NumpyType(StandIn):
    _code: object = None
    _order = "="

    def __init__(self, code: object = None, *_arguments: object) -> None:
        self._code = code

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self._order = state[1]

    def numbers(self, data: object) -> NDArray[Any] | None:
        """Data as numbers of this type, or None if it is not a number type."""
        known = isinstance(self._code, str) and _NUMBER.fullmatch(self._code)
        if not known or not isinstance(data, bytes) or len(data) > _MAX_ARRAY_BYTES:
            return None
        dtype = np.dtype(f"{self._order}{self._code}")
        return None if len(data) % dtype.itemsize else np.frombuffer(data, dtype)


class _NumpyArray(StandIn):
    kind = "numpy array"

    def __setstate__(self, state: object) -> None:
        self._state = state

    def plain(self) -> object:
        state = getattr(self, "_state", None)
        if isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], _NumpyType):
            numbers, shape = state[2].numbers(state[4]), state[1]
            if numbers is not None and shape in ((), (len(numbers),)):
                return numbers.tolist() if shape else numbers[0].item()
        return super().plain()


def _numpy_scalar(kind: object = None, data: object = None, *_arguments: object) -> object:
    numbers = kind.numbers(data) if isinstance(kind, _NumpyType) else None
    return StandIn() if numbers is None or len(numbers) != 1 else numbers[0].item()


def _from_buffer(data: object, kind: object, shape: object, *_more: object) -> object:
    """How protocol 5 saves an array."""
    array = _NumpyArray()
    given = bytes(data) if isinstance(data, bytes | bytearray | memoryview) else data
    array.__setstate__((1, shape, kind, False, given))
    return array


def _joined(*parts: object) -> object:
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) < len(parts) or sum(map(len, texts)) > _MAX_PATH:
        return StandIn()
    return "/".join(texts).replace("//", "/")


def _encoded(text: object = "", *_arguments: object) -> bytes:
    return text.encode("latin-1", "replace") if isinstance(text, str) else b""


def stand_in_for(name: str) -> object:
    """The replacement of a pickle's global of that name."""
    if _PATH.fullmatch(name):
        return _joined
    if name in ("argparse.Namespace", "types.SimpleNamespace"):
        return _Namespace
    if name.startswith("numpy."):
        known = {
            "scalar": _numpy_scalar,
            "dtype": _NumpyType,
            "ndarray": _NumpyArray,
            "_reconstruct": _NumpyArray,
            "_frombuffer": _from_buffer,
        }
        return known.get(name.rpartition(".")[2], StandIn)
    others: dict[str, object] = {
        "_codecs.encode": _encoded,
        "builtins.bytes": lambda *given: StandIn() if given else b"",
        "collections.defaultdict": lambda *_: {},
        "collections.deque": lambda *_: [],
    }
    return others.get(name) or type("StandIn", (StandIn,), {"kind": name[:80]})


def is_harmful(name: str) -> bool:
    """Whether only attackers' pickles have a global of that name."""
    module = name.partition(".")[0]
    if module in sys.stdlib_module_names or module == name:
        return name not in _VALUES and not _PATH.fullmatch(name)
    if module == "numpy":
        return _NUMPY.fullmatch(name) is None
    return module in _HARMFUL or (
        not name.startswith("torch._C._nn.")  # functions such as gelu
        and any(name == one or name.startswith(f"{one}.") for one in _HARMFUL_TORCH)
    )
