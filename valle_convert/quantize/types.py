"""The types that stock llama-quantize offers, and what is to be known of each.

`Q4_K_M` and its like name a mixture: most matrices get its base type, some a better one.
The numbers are llama.cpp's own (`llama_ftype` in llama.h); a test holds the table against
the list that the stock program prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from valle_convert.errors import InputError
from valle_convert.gguf_file.header import GGML_TYPES, GgmlType


@dataclass(frozen=True)
class FileType:
    """A type of file.

    Attributes:
        name: as llama-quantize spells it.
        number: llama.cpp's.
        base: what most matrices become; None for COPY, which changes none.
        note: what a user should know, in words.
    """

    name: str
    number: int
    base: GgmlType | None
    note: str = ""

    @property
    def is_quantized(self) -> bool:
        """Whether an importance matrix can make a difference."""
        return self.base is not None and self.base.block > 1


_NO_EXPERTS = (
    "MXFP4_MOE gives its type to experts only, which VALL-E has none of: all matrices become Q8_0"
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


def file_type(name: str) -> FileType:
    """The type of that name, in capitals or not.

    Raises:
        InputError: there is none; the message lists those that there are.
    """
    found = FILE_TYPES.get(name.strip().upper())
    if found is None:
        raise InputError(
            f"There is no type {name.strip()!r}; llama-quantize has {', '.join(FILE_TYPES)}."
        )
    return found


def parse_types(text: str) -> tuple[FileType, ...]:
    """The types of a list such as `Q8_0,Q4_K_M`, without repetitions.

    Raises:
        InputError: the list is empty, or names something that is no type.
    """
    names = [name for name in text.split(",") if name.strip()]
    if not names:
        raise InputError("The list of types is empty; give some, such as --types Q8_0,Q4_K_M.")
    return tuple(dict.fromkeys(file_type(name) for name in names))


def ggml_type(name: str) -> GgmlType:
    """The type of single tensors of that name, in capitals or not.

    Raises:
        InputError: there is none.
    """
    found = GGML_TYPES.get(name.strip().upper())
    if found is None:
        raise InputError(
            f"There is no tensor type {name.strip()!r}; llama.cpp has {', '.join(GGML_TYPES)}."
        )
    return found
