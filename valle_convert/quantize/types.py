"""Types of files and types of single tensors.

`Q4_K_M` and its like name a mixture: most matrices get its base type, some a better one.
The numbers are llama.cpp's own (`llama_ftype` in llama.h); a test compares the table with the list
that the stock program prints.

`pattern=type` is llama-quantize's `--tensor-type`: the tensors whose names the pattern matches get
this type; the first match wins. A file of them, separated by white space, is its
`--tensor-type-file`.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valle_convert.errors import InputError
from valle_convert.files import read_small_file
from valle_convert.gguf_file.header import TensorEntry, weights_by_type
from valle_convert.gguf_file.types import GGML_TYPES, PLAIN_DTYPES, GgmlType

PLAIN_TYPES = tuple(kind.name for kind in PLAIN_DTYPES)
_MAX_LIST = 1 << 16


@dataclass(frozen=True)
class FileType:
    """A type of file: most matrices become `base`; COPY, which has none, changes nothing."""

    name: str
    number: int
    base: GgmlType | None
    note: str = ""

    @property
    def is_quantized(self) -> bool:
        """Whether an importance matrix can make a difference."""
        return self.base is not None and self.base.block > 1


_NO_EXPERTS = (
    "MXFP4_MOE applies its type to experts only; VALL-E has none, so all matrices become Q8_0"
)

# name, number, base type
_ROWS = """
Q1_0 40 Q1_0, Q2_0 41 Q2_0, Q4_0 2 Q4_0, Q4_1 3 Q4_1, MXFP4_MOE 38 MXFP4, Q5_0 8 Q5_0,
Q5_1 9 Q5_1, IQ2_XXS 19 IQ2_XXS, IQ2_XS 20 IQ2_XS, IQ2_S 28 IQ2_XS, IQ2_M 29 IQ2_S,
IQ1_S 24 IQ1_S, IQ1_M 31 IQ1_M, TQ1_0 36 TQ1_0, TQ2_0 37 TQ2_0, Q2_K 10 Q2_K, Q2_K_S 21 Q2_K,
IQ3_XXS 23 IQ3_XXS, IQ3_S 26 IQ3_S, IQ3_M 27 IQ3_S, Q3_K 12 Q3_K, IQ3_XS 22 IQ3_S,
Q3_K_S 11 Q3_K, Q3_K_M 12 Q3_K, Q3_K_L 13 Q3_K, IQ4_NL 25 IQ4_NL, IQ4_XS 30 IQ4_XS,
Q4_K 15 Q4_K, Q4_K_S 14 Q4_K, Q4_K_M 15 Q4_K, Q5_K 17 Q5_K, Q5_K_S 16 Q5_K, Q5_K_M 17 Q5_K,
Q6_K 18 Q6_K, Q8_0 7 Q8_0, F16 1 F16, BF16 32 BF16, F32 0 F32
"""


def _table() -> dict[str, FileType]:
    table = {"COPY": FileType("COPY", 0, None)}
    for row in _ROWS.replace("\n", " ").split(","):
        name, number, base = row.split()
        note = _NO_EXPERTS if name == "MXFP4_MOE" else ""
        table[name] = FileType(name, int(number), GGML_TYPES[base], note)
    return table


FILE_TYPES: Mapping[str, FileType] = _table()
#: What most people want, best first.
COMMON = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M")


def _advice(name: str, names: Iterable[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name.strip().upper(), names, n=1)
    return f"did you mean {near[0]}?" if near else otherwise


def file_type(name: str) -> FileType:
    found = FILE_TYPES.get(name.strip().upper())
    if found is None:
        raise InputError(
            f"There is no type {name.strip()!r:.40}; "
            + _advice(name, FILE_TYPES, "`quantize --list-types` lists all.")
        )
    return found


def parse_types(text: str) -> tuple[FileType, ...]:
    """The types of a list such as `Q8_0,Q4_K_M`, without repetitions."""
    names = [name for name in text.split(",") if name.strip()]
    if not names:
        raise InputError("The list of types is empty; give some, such as --types Q8_0,Q4_K_M.")
    return tuple(dict.fromkeys(file_type(name) for name in names))


def ggml_type(name: str) -> GgmlType:
    """The type of single tensors of that name, in capitals or not.

    llama-quantize aborts on types that it reads and cannot make, such as I32.
    """
    made = {one.base.name: one.base for one in FILE_TYPES.values() if one.base}
    found = made.get(name.strip().upper())
    if found is None:
        raise InputError(
            f"No tensor type {name.strip()!r:.14}; "
            + _advice(name, made, f"expected one of {' '.join(made)}.")
        )
    return found


def check_tensor_type(text: str) -> str:
    """A `--tensor-type` value in the form that llama-quantize takes: pattern=type, lower case."""
    pattern, separator, name = text.partition("=")
    if not pattern or not separator:
        raise InputError(
            f"The tensor type {text!r} is not of the form PATTERN=TYPE, such as attn_v=Q6_K."
        )
    kind = ggml_type(name)
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"The pattern {pattern!r} of the tensor type {text!r} is no regular expression: "
            f"{error}."
        ) from error
    return f"{pattern.lower()}={kind.name.lower()}"


def read_tensor_types(path: Path) -> tuple[str, ...]:
    """The tensor types of a file, each as `check_tensor_type` gives it."""
    words = read_small_file(path, "list of tensor types", _MAX_LIST).split()
    if not words:
        raise InputError(f"The list of tensor types {path} is empty; write PATTERN=TYPE into it.")
    found = []
    for word in words:
        text = word.decode("utf-8", "replace")
        if not text.isprintable() or "\ufffd" in text:
            raise InputError(f"{path} is no list of tensor types: {text!r:.60} is no text.")
        try:
            found.append(check_tensor_type(text))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    return tuple(found)


def matches(tensor_type: str, tensor: str) -> bool:
    return re.search(tensor_type.partition("=")[0], tensor) is not None


def bits_and_weights(tensors: Sequence[TensorEntry]) -> dict[str, Any]:
    """`bits_per_weight` over all tensors, as llama-quantize counts them (None without any), and
    `weights`: how many have which type, most first.
    """
    counts = weights_by_type(tensors)
    n_bits = 8 * sum(tensor.n_bytes for tensor in tensors)
    return {
        "bits_per_weight": n_bits / counts.total() if counts else None,
        "weights": {kind.name: n for kind, n in counts.most_common()},
    }
