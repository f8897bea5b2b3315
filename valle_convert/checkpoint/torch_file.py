"""`.pth` / `.pt`: what `torch.save` writes since torch 1.6, a zip of a pickle and raw tensors.

The pickle is loaded by torch with `weights_only=True`, which builds tensors, containers
and plain values and nothing else; there is no option to turn that off. The tensors are
mapped from the file. Before torch sees the file, the zip's table of contents is checked,
so that a small file cannot claim terabytes.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint.source import BFLOAT16, TensorSpec
from valle_convert.errors import InputError

if TYPE_CHECKING:
    import torch

# A VALL-E checkpoint's pickle has some hundred tensors and a vocabulary: tens of KiB.
_MAX_PICKLE_BYTES = 64 << 20
_MAX_ENTRIES = 100_000


def load_torch_file(path: Path) -> object:
    """The object inside a `.pth` file, tensors mapped from it.

    Raises:
        InputError: the file is damaged, or its pickle asks for anything but tensors and
            plain values.
    """
    _check_zip(path)
    import torch

    try:
        with warnings.catch_warnings():
            # torch warns that mapped memory is read-only; nothing here writes to it.
            warnings.simplefilter("ignore")
            loaded: object = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is refused, because its pickle holds more than tensors and plain values, and "
            f"loading it could run code: {_first_line(error)} "
            "Save it again with tensors, dicts, lists, strings and numbers only."
        ) from error
    except Exception as error:
        # The file is untrusted and torch's reader raises whatever its parts raise (RuntimeError,
        # EOFError, KeyError, OverflowError, ...); each means that the file is damaged.
        raise InputError(
            f"{path} cannot be read as a file of torch.save ({_first_line(error)}); "
            "copy or download it again."
        ) from error
    return loaded


class TorchTensors:
    """A `TensorSource` over the tensors of a loaded state dict.

    Raises:
        InputError: a value is no dense tensor on the CPU.
    """

    def __init__(self, path: Path, state: Mapping[str, object]) -> None:
        import torch

        self._tensors: dict[str, torch.Tensor] = {}
        specs: dict[str, TensorSpec] = {}
        dtypes: dict[torch.dtype, np.dtype[Any]] = {
            torch.float64: np.dtype(np.float64),
            torch.float32: np.dtype(np.float32),
            torch.float16: np.dtype(np.float16),
            torch.bfloat16: BFLOAT16,
            torch.int64: np.dtype(np.int64),
            torch.int32: np.dtype(np.int32),
            torch.int16: np.dtype(np.int16),
            torch.int8: np.dtype(np.int8),
            torch.uint8: np.dtype(np.uint8),
            torch.bool: np.dtype(np.bool_),
        }
        strange: list[str] = []
        for name, value in state.items():
            if (
                not isinstance(name, str)
                or not isinstance(value, torch.Tensor)
                or value.layout != torch.strided
                or value.is_quantized
                or value.device.type != "cpu"
            ):
                strange.append(f"{name!s} ({type(value).__name__})")
                continue
            self._tensors[name] = value.detach()
            specs[name] = TensorSpec(
                name=name,
                dtype=dtypes.get(value.dtype),
                dtype_name=str(value.dtype).removeprefix("torch."),
                shape=tuple(value.shape),
            )
        if strange:
            raise InputError(
                f"{path}: the state dict holds values that are no dense tensors: "
                f"{', '.join(strange[:5])}{' ...' if len(strange) > 5 else ''}; "
                "save the model's plain state_dict()."
            )
        self._path = path
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)

    def read(self, name: str) -> NDArray[Any]:
        """One tensor; a view of the mapped file where it is contiguous there."""
        import torch

        spec = self.specs[name]
        if spec.dtype is None:
            raise InputError(
                f"{self._path}: the tensor {name} has the type {spec.dtype_name}, which cannot be "
                "read; float32, float16 and bfloat16 can."
            )
        tensor = self._tensors[name].contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(BFLOAT16)
        return tensor.numpy()


def _check_zip(path: Path) -> None:
    """Refuse what `torch.save` never writes: compression, or more bytes than the file has."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"{path} begins like a file of torch.save, but is cut off or damaged "
            f"({_first_line(error)}); copy or download it again."
        ) from error
    pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
    if len(pickles) != 1:
        raise InputError(
            f"{path} is a zip file, but not one of torch.save: it has {len(pickles)} entries named "
            "data.pkl, where one is expected; give the checkpoint itself, unpacked."
        )
    claimed = sum(entry.file_size for entry in entries)
    size = path.stat().st_size
    if (
        any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        or claimed > size
        or len(entries) > _MAX_ENTRIES
        or pickles[0].file_size > _MAX_PICKLE_BYTES
    ):
        raise InputError(
            f"{path} is refused: its zip table claims {claimed:,} bytes in {len(entries):,} "
            f"entries inside a file of {size:,} bytes, or compressed entries, which torch.save "
            "never writes; save it again with torch.save."
        )


def _first_line(error: Exception) -> str:
    """The first sentence of an error's text, since torch appends pages of advice."""
    text = str(error).strip() or type(error).__name__
    for line in text.splitlines():
        if "WeightsUnpickler error" in line:
            return line.strip().removeprefix("WeightsUnpickler error:").strip()
    return text.splitlines()[0]
