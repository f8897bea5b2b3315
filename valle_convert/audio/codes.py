"""Saved codes: a `.npz` file of numpy arrays.

It has `codes` [frames, levels], their codec, and the phonemes of a single sentence, so that it can
serve as data to measure on. Nothing is unpickled, and a file that would unpack to too much is
rejected unread.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.errors import InputError
from valle_convert.files import atomic_output, is_stream
from valle_convert.model.spec import Codec, CodeFormat, Codes
from valle_convert.npz_file import read_npz
from valle_convert.wording import plural

FORMAT_VERSION = 1
CODES_SUFFIX = ".npz"

#: Unpacked size: five hours of eight levels.
_MAX_BYTES = 64 << 20
_ENTRIES = ("format_version", "codes", "codec", "codebook_size", "sample_rate", "frame_rate")


@dataclass(frozen=True, eq=False)
class SavedCodes:
    """Codes with everything needed to decode them."""

    codes: Codes  # [frames, levels], int32
    codec: Codec  # the codec, with its rates
    codebook_size: int  # all codes are below this
    #: Ids of the text with `<bos>` and `</eos>`, if it is one known sentence.
    phonemes: tuple[int, ...] = ()
    language: int | None = None  # id of the language, if known


def is_codes_path(path: Path) -> bool:
    """Whether a file name is that of saved codes, not audio."""
    return path.suffix.lower() == CODES_SUFFIX


def check_codes_target(path: Path) -> None:
    """Raise an `InputError` if the name of a file of codes does not end in `.npz`."""
    if not is_codes_path(path) and not is_stream(path):
        raise InputError(f"{path}: the name of saved codes must end in {CODES_SUFFIX}.")


def write_codes(
    path: Path, saved: SavedCodes, *, force: bool = False, inputs: Iterable[Path] = ()
) -> None:
    """Write a `.npz` file, or nothing; arguments and errors as `files.atomic_output`."""
    check_codes_target(path)
    said: dict[str, NDArray[Any]] = {}
    if saved.phonemes:
        said["phonemes"] = np.array(saved.phonemes, np.int32)
        if saved.language is not None:
            said["language"] = np.array(saved.language, np.int32)
    with atomic_output(path, force=force, inputs=inputs) as file:
        np.savez_compressed(
            file,
            **said,  # type: ignore[arg-type]
            format_version=np.int64(FORMAT_VERSION),
            codes=saved.codes.astype(np.int32),
            codec=np.str_(saved.codec.name),
            codebook_size=np.int64(saved.codebook_size),
            sample_rate=np.int64(saved.codec.sample_rate),
            frame_rate=np.float64(saved.codec.frame_rate),
        )


def read_codes(path: Path, config: CodeFormat | None = None) -> SavedCodes:
    """Read a file of codes, which must fit the model `config`; None for any.

    Raises:
        InputError: it is not such a file, is damaged, or does not fit the model.
    """
    entries = read_npz(
        path,
        _ENTRIES,
        max_bytes=_MAX_BYTES,
        what="file of codes",
        hint="write one with --save-codes",
    )
    saved = _checked(path, entries)
    if config is not None:
        check_codes_fit(saved, config, str(path))
    return saved


def check_codes_fit(saved: SavedCodes, config: CodeFormat, where: str) -> None:
    """Raise an `InputError` if codes have other levels, sizes or rates than a model."""
    found = (saved.codes.shape[1], saved.codebook_size, saved.codec)
    check_format(where, found, config, "encode the recording again, with the model's codec")


def check_format(what: str, found: tuple[int, int, Codec], model: CodeFormat, advice: str) -> None:
    """Check levels, codebook size and rates of codes or a codec against a model."""
    n_levels, size, codec = found
    trained = model.codec
    named = "" if trained.name == "unknown" else f" ({trained.name})"
    if (n_levels, size) != (model.n_levels, model.codebook_size):
        raise InputError(
            f"{what} has {plural(n_levels, 'level')} of {size} codes, and the model was trained on "
            f"{plural(model.n_levels, 'level')} of {model.codebook_size}{named}; {advice}."
        )
    if "unknown" not in {codec.name, trained.name} and not codec.is_like(trained):
        raise InputError(f"{what} is {codec}, and the model was trained on {trained}; {advice}.")


def check_array(
    path: Path, name: str, array: NDArray[Any], shape: tuple[int | str, ...], n_rows: int
) -> None:
    """Reject an array of a file unless it has this shape, and whole numbers below `n_rows`.

    An axis with a name in place of a length has any length but 0.
    """
    is_shaped = array.size > 0 and array.ndim == len(shape)
    is_shaped = is_shaped and all(
        isinstance(wanted, str) or wanted == found
        for wanted, found in zip(shape, array.shape, strict=True)
    )
    if array.dtype.kind not in "iu" or not is_shaped:
        expected = f"integers [{', '.join(map(str, shape))}]" if shape else "one integer"
        fault = f"is {array.dtype} {list(array.shape)}, expected {expected}"
    elif (low := int(array.min())) < 0 or int(array.max()) >= n_rows:
        fault = f"has {low if low < 0 else array.max()}, expected 0 to {n_rows - 1}"
    else:
        return
    raise InputError(f"{path}: the array {name} {fault}; the file is damaged, or of another model.")


def _checked(path: Path, entries: dict[str, NDArray[Any]]) -> SavedCodes:
    codes = entries["codes"]
    scalars = {name: entries[name] for name in _ENTRIES if name != "codes"}
    kinds = {"codec": "U", "frame_rate": "fiu"}
    for name, value in scalars.items():
        if value.shape != () or value.dtype.kind not in kinds.get(name, "iu"):
            raise InputError(
                f"{path}: {name} is not a single value of its type; the file is damaged."
            )
    version = int(scalars["format_version"])
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has version {version} of the format, expected {FORMAT_VERSION}; update "
            "valle-convert, or write the file again."
        )
    size = int(scalars["codebook_size"])
    sample_rate, frame_rate = int(scalars["sample_rate"]), float(scalars["frame_rate"])
    check_array(path, "codes", codes, ("frames", "levels"), size)
    if not (0 <= sample_rate <= 1_000_000 and 0 <= frame_rate <= 100_000):
        raise InputError(
            f"{path}: {sample_rate} Hz and {frame_rate} frames per second are out of range."
        )
    codec = Codec(str(scalars["codec"]), sample_rate, frame_rate)
    return SavedCodes(codes.astype(np.int32), codec, size)
