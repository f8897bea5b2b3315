"""Codes of some speech in a file, so that they can be kept, exchanged and decoded again.

The file holds numpy arrays only: `codes` [frames, levels], what they are codes of, and the
phonemes of a single sentence, which only `quantize.utterances` reads. Nothing in it is ever
unpickled, and a file that would unpack to more than it may is refused unread.
"""

from __future__ import annotations

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

#: Five hours of eight levels; what it would unpack to is checked before anything is.
_MAX_BYTES = 64 << 20
_ENTRIES = ("format_version", "codes", "codec", "codebook_size", "sample_rate", "frame_rate")


@dataclass(frozen=True, eq=False)
class SavedCodes:
    """Codes with what is needed to decode them.

    Attributes:
        codes: [frames, levels], int32.
        codec: which codec they belong to, with its rates.
        codebook_size: all codes are below this.
        phonemes: the ids of what is said, with the marks around them, where it is one sentence
            and known; so the file can serve as an utterance to measure on.
        language: its id, where there is one.
    """

    codes: Codes
    codec: Codec
    codebook_size: int
    phonemes: tuple[int, ...] = ()
    language: int | None = None


def is_codes_path(path: Path) -> bool:
    """Whether a file of that name holds codes, and not sound."""
    return path.suffix.lower() == CODES_SUFFIX


def check_codes_target(path: Path) -> None:
    """Refuse a name by which the codes would not be found again.

    Raises:
        InputError: it does not end in `.npz`.
    """
    if not is_codes_path(path) and not is_stream(path):
        raise InputError(
            f"The codes {path} have a name that ends in {path.suffix or 'nothing'}; give one that "
            f"ends in {CODES_SUFFIX}."
        )


def write_codes(
    path: Path, saved: SavedCodes, *, force: bool = False, sources: Iterable[Path] = ()
) -> None:
    """Write a file of codes, or leave nothing.

    Args:
        path: of the file, `.npz`.
        saved: what to write.
        force: whether a file that exists may be replaced.
        sources: files that must not be overwritten, whatever `force` says.

    Raises:
        InputError, EnvironmentFault: as `check_codes_target` and `files.atomic_output`.
    """
    check_codes_target(path)
    said: dict[str, NDArray[Any]] = {}
    if saved.phonemes:
        said["phonemes"] = np.array(saved.phonemes, np.int32)
        if saved.language is not None:
            said["language"] = np.array(saved.language, np.int32)
    with atomic_output(path, force=force, sources=sources) as file:
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
    """Read a file of codes.

    Args:
        path: of the file.
        config: of the model that they are for; None for any.

    Raises:
        InputError: it is no such file, is damaged, or its codes are not the model's.
    """
    entries = read_npz(
        path,
        _ENTRIES,
        max_bytes=_MAX_BYTES,
        what="file of codes",
        hint="one is written with --save-codes",
    )
    saved = _checked(path, entries)
    if config is not None:
        check_codes_fit(saved, config, str(path))
    return saved


def check_codes_fit(saved: SavedCodes, config: CodeFormat, where: str) -> None:
    """Refuse codes that are not of the model's codec.

    Raises:
        InputError: levels, codebook or codec differ.
    """
    found = (saved.codes.shape[1], saved.codebook_size, saved.codec)
    check_format(where, found, config, "encode the recording again, with the model's codec")


def check_format(what: str, found: tuple[int, int, Codec], model: CodeFormat, advice: str) -> None:
    """Refuse codes, or a codec, of other levels, codebooks or rates than the model's."""
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


def _checked(path: Path, entries: dict[str, NDArray[Any]]) -> SavedCodes:
    codes = entries["codes"]
    scalars = {name: entries[name] for name in _ENTRIES if name != "codes"}
    kinds = {"codec": "U", "frame_rate": "f"}
    for name, value in scalars.items():
        if value.shape != () or value.dtype.kind != kinds.get(name, "i"):
            raise InputError(f"{path}: {name} is no single value of its type; the file is damaged.")
    version = int(scalars["format_version"])
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} is a file of codes of version {version}, and this program reads "
            f"{FORMAT_VERSION}; update it, or write the file again."
        )
    size = int(scalars["codebook_size"])
    sample_rate, frame_rate = int(scalars["sample_rate"]), float(scalars["frame_rate"])
    if codes.ndim != 2 or codes.dtype.kind != "i" or 0 in codes.shape:
        raise InputError(
            f"{path}: codes are {codes.dtype} {list(codes.shape)}, where integers [frames, levels] "
            "are expected."
        )
    if codes.min() < 0 or codes.max() >= size:
        raise InputError(
            f"{path} has codes from {codes.min()} to {codes.max()}, where 0 to {size - 1} is "
            "expected; the file is damaged."
        )
    if not (0 <= sample_rate <= 1_000_000 and 0 <= frame_rate <= 100_000):
        raise InputError(
            f"{path}: {sample_rate} Hz and {frame_rate} frames a second are no rates of speech."
        )
    codec = Codec(str(scalars["codec"]), sample_rate, frame_rate)
    return SavedCodes(codes.astype(np.int32), codec, size)
