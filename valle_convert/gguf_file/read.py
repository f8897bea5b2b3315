"""What is in a GGUF file, whoever made it: keys as Python values, tensors mapped.

The gguf package parses; a file is untrusted, so that whatever its parser stumbles over
becomes one `InputError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader
from numpy.typing import NDArray

from valle_convert.errors import InputError
from valle_convert.files import describe_os_error
from valle_convert.gguf_file.encode import decode


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a GGUF file.

    Attributes:
        name: the tensor's name.
        shape: rows first, as in numpy.
        ggml_type: the type of its elements.
        offset: of its data, from the beginning of the file.
        data: mapped, in the type's own layout: [rows, bytes of a row] for quantized types.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: GGMLQuantizationType
    offset: int
    n_bytes: int
    data: NDArray[Any]

    def rows(
        self, index: slice | Sequence[int] | NDArray[Any] = slice(None)
    ) -> NDArray[np.float32]:
        """Rows as float32 [n, columns], dequantized; a vector as [columns]."""
        data = self.data if len(self.shape) == 1 else self.data.reshape(self.shape[0], -1)[index]
        return decode(data, self.ggml_type)


class GgufFile:
    """A GGUF file, parsed. It stays mapped as long as this object lives.

    Attributes:
        path: the file.
        keys: every metadata key, strings and lists as Python has them.
        key_types: the type of each key, as in `keys.Key`.
        tensors: by name, in file order.

    Raises:
        InputError: there is no such file, or it is no whole GGUF file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                magic = file.read(4)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {describe_os_error(error)}.") from error
        if magic != b"GGUF":
            raise InputError(
                f"{path} does not begin with the four letters GGUF, so it is no GGUF file; "
                "convert a checkpoint with `valle-convert CHECKPOINT OUT.gguf`."
            )
        try:
            reader = GGUFReader(path)
            self.keys: Mapping[str, Any] = {
                name: field.contents()
                for name, field in reader.fields.items()
                if not name.startswith("GGUF.")
            }
            self.key_types: Mapping[str, str] = {
                name: _type_name(field.types)
                for name, field in reader.fields.items()
                if not name.startswith("GGUF.")
            }
            self.tensors: Mapping[str, TensorInfo] = {
                tensor.name: TensorInfo(
                    name=tensor.name,
                    shape=tuple(int(n) for n in reversed(tensor.shape)),
                    ggml_type=tensor.tensor_type,
                    offset=int(tensor.data_offset),
                    n_bytes=int(tensor.n_bytes),
                    data=tensor.data.view(np.ndarray),
                )
                for tensor in reader.tensors
            }
        except Exception as error:
            # The parser indexes an untrusted file and raises whatever numpy raises there.
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{path} is a damaged GGUF file ({reason}); convert or copy it again."
            ) from error

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self.path.stat().st_size


def _type_name(types: list[Any]) -> str:
    """`u32`, `[string]` and so on, from the parser's list of types."""
    words = {"UINT": "u", "INT": "i", "FLOAT": "f"}
    names = []
    for item in types:
        name = str(item.name)
        letters = name.rstrip("0123456789")
        names.append(words.get(letters, letters.lower()) + name[len(letters) :])
    return f"[{names[1]}]" if names[0] == "array" and len(names) > 1 else names[0]
