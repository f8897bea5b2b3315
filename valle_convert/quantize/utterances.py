"""The utterances that importance and quality are measured on: given ones, or seeded ones.

A given utterance is one `.npz` file (`numpy.savez`), of integers:

    phonemes  [n]               ids with the marks around them, as the tokenizer gives them
    response  [frames, levels]  the codes of the speech
    prompt    [frames, levels]  the codes of the voice; may be left out
    language  []                its id; may be left out (0 then)
    text      []                the words, a string; may be left out

What `speak --save-codes` writes of one sentence is taken as well: its `codes` are the response.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from valle_convert.audio.codes import read_codes
from valle_convert.errors import InputError
from valle_convert.files import describe_os_error
from valle_convert.model.inputs import Condition
from valle_convert.model.spec import Model
from valle_convert.npz_file import read_npz
from valle_convert.verify.cases import Utterance, utterances

N_SEEDED = 2
# Seeded utterances grow a little from one to the next; after so many they begin short again.
_PER_SEED = 8
_MASKED_PART = 0.5


ModelT = TypeVar("ModelT")
Example_co = TypeVar("Example_co", covariant=True)


@dataclass(frozen=True)
class Calibration(ABC, Generic[ModelT, Example_co]):
    """Examples that can be gone through again and again, and what they are.

    Attributes:
        model: whose symbols and codes they are.
        count: how many.
        description: in words, for reports and metadata.
        digest: a SHA-256 that changes with them.
        files: the given ones; empty for seeded ones.
        seed: of the seeded ones, and of what is masked.
    """

    #: What a file of one holds, in words.
    arrays: ClassVar[str]

    model: ModelT
    count: int
    description: str
    digest: str
    files: tuple[Path, ...] = ()
    seed: int = 0

    @classmethod
    def seeded(cls, model: ModelT, count: int, *, seed: int) -> Self:
        """Random symbols and codes; the same for the same seed."""
        text = f"{count} utterances of random phonemes and codes, seed {seed} (no real speech)"
        return cls(model, count, text, hashlib.sha256(text.encode()).hexdigest(), seed=seed)

    @classmethod
    def given(cls, model: ModelT, folder: Path, *, seed: int, limit: int | None = None) -> Self:
        """The `.npz` files of a folder, by name; all of them are checked now.

        Raises:
            InputError: there is none, or one of them is not of the format or not of this model.
        """
        files = _files_of(folder, limit, cls.arrays)
        digest = hashlib.sha256()
        for path in files:
            digest.update(os.fsencode(f"{path.name} ") + hashlib.sha256(path.read_bytes()).digest())
        sha256 = digest.hexdigest()
        text = f"{len(files)} given utterances, sha256 {sha256[:16]}"
        found = cls(model, len(files), text, sha256, files, seed)
        for path in files:
            found.read(path, 0)
        return found

    @classmethod
    def choose(cls, model: ModelT, data: Path | None, count: int | None, *, seed: int) -> Self:
        """The given ones of a folder, or seeded ones where there is no folder.

        Args:
            model: whose they are.
            data: the folder.
            count: at most so many; None for all given ones, or two seeded ones.
            seed: of seeded ones, and of what is masked.

        Raises:
            InputError: as `given`.
        """
        if data is not None:
            return cls.given(model, data, seed=seed, limit=count)
        return cls.seeded(model, N_SEEDED if count is None else count, seed=seed)

    def __iter__(self) -> Iterator[Example_co]:
        if self.files:
            yield from (self.read(path, i) for i, path in enumerate(self.files))
            return
        for block, start in enumerate(range(0, self.count, _PER_SEED)):
            # Far apart, so that no two blocks of different seeds are the same.
            seed = self.seed * 1_000_003 + block
            yield from self.draw(min(_PER_SEED, self.count - start), seed)

    @abstractmethod
    def read(self, path: Path, number: int) -> Example_co:
        """One of a file, the `number`th.

        Raises:
            InputError: it is not of the format or not of the model.
        """

    @abstractmethod
    def draw(self, n: int, seed: int) -> Iterable[Example_co]:
        """So many random ones."""


class Utterances(Calibration[Model, Utterance]):
    """What models of the versions 5 and 6 are run on."""

    arrays = "phonemes, response, prompt and language"

    def read(self, path: Path, number: int) -> Utterance:
        """See `read_utterance`; the number tells what is masked."""
        return read_utterance(path, self.model, seed=(self.seed, number))

    def draw(self, n: int, seed: int) -> Iterable[Utterance]:
        """See `verify.cases.utterances`."""
        return utterances(self.model, n, seed=seed)


def _files_of(folder: Path, limit: int | None, arrays: str) -> tuple[Path, ...]:
    """The first `.npz` files of a folder, by name.

    Raises:
        InputError: there is none; `arrays` says what one should hold.
    """
    try:
        files = tuple(sorted(folder.glob("*.npz"))[:limit])
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {describe_os_error(error)}.") from error
    if not files:
        raise InputError(
            f"{folder} is no folder with .npz files in it; each holds one utterance: the arrays "
            f"{arrays} (docs/quantize.md)."
        )
    return files


def read_utterance(path: Path, model: Model, *, seed: tuple[int, ...]) -> Utterance:
    """One utterance.

    Args:
        path: a `.npz` file.
        model: whose tables its rows have to be in.
        seed: of which frames are masked.

    Raises:
        InputError: the file is not of the format or not of this model.
    """
    config = model.config
    arrays = read_npz(
        path,
        (),
        # As many 64-bit integers as a context of frames has codes, and the headers.
        max_bytes=8 * (config.n_ctx_train + 1024) * max(config.n_levels, 1),
        what=".npz file of an utterance",
        hint="docs/quantize.md has the format",
        optional=("phonemes", "response", "prompt", "language", "codes", "text"),
    )
    codes = arrays.pop("codes", None)
    text = arrays.pop("text", np.array(""))
    if text.dtype.kind != "U" or text.shape:
        raise InputError(
            f"{path}: text is {text.dtype} {list(text.shape)}, where one string is expected."
        )
    if codes is not None and "response" not in arrays:
        # A file of codes; whether they are the model's is said in its own words.
        arrays["response"] = read_codes(path, config).codes
        if "phonemes" not in arrays:
            raise InputError(
                f"{path} is a file of codes and does not tell what is said in it: it has no array "
                "'phonemes', which speak saves with the codes of a single sentence; make an "
                f"utterance of it: valle-convert utterances {path} --text TEXT --model GGUF DIR."
            )
    if missing := [name for name in ("phonemes", "response") if name not in arrays]:
        raise InputError(
            f"{path} is no .npz file of an utterance (it has no array "
            f"{', '.join(map(repr, missing))}); docs/quantize.md has the format."
        )
    check_utterance(path, arrays, model)
    phonemes, response = arrays["phonemes"], arrays["response"]
    prompt, language = arrays.get("prompt"), arrays.get("language")
    hidden = np.random.default_rng(seed).random(len(response)) < _MASKED_PART
    return Utterance(
        condition=Condition(
            phonemes=phonemes.astype(np.int64),
            language=(0 if language is None else int(language))
            if model.has_table("language")
            else None,
            prompt=None if prompt is None else prompt.astype(np.int64),
            tone=0 if "tone" in config.capabilities else None,
        ),
        response=response.astype(np.int64),
        masked=np.where(hidden, config.special_code, response[:, 0]).astype(np.int64),
        digits=np.array([0, *map(int, str(len(response)))]),
        text=str(text),
    )


def check_utterance(path: Path, arrays: Mapping[str, NDArray[Any]], model: Model) -> None:
    """Refuse what is not of the format, or not of the model.

    Args:
        path: where it comes from, for messages.
        arrays: phonemes and response, and prompt and language where there are any.
        model: whose tables the rows have to be in.

    Raises:
        InputError: as said.
    """
    config = model.config
    phonemes, response = arrays["phonemes"], arrays["response"]
    prompt, language = arrays.get("prompt"), arrays.get("language")
    _check(path, "phonemes", phonemes, (None,), model.table("phonemes").n_rows)
    _check(path, "response", response, (None, config.n_levels), config.codebook_size)
    if prompt is not None:
        _check(path, "prompt", prompt, (None, config.n_levels), config.codebook_size)
    n_languages = model.table("language").n_rows if model.has_table("language") else 0
    if language is not None:
        _check(path, "language", language, (), max(n_languages, 1))
    n_elements = len(phonemes) + len(response) + (0 if prompt is None else len(prompt))
    if n_elements + 16 > config.n_ctx_train:
        raise InputError(
            f"{path} has {n_elements:,} phonemes and frames, more than the model's context of "
            f"{config.n_ctx_train:,}; cut it."
        )


def _check(
    path: Path, name: str, array: NDArray[Any], shape: tuple[int | None, ...], n_rows: int
) -> None:
    if array.dtype.kind not in "iu":
        raise InputError(f"{path}: {name} is of type {array.dtype}, where integers are expected.")
    fits = array.ndim == len(shape) and all(
        wanted in (None, found) for wanted, found in zip(shape, array.shape, strict=True)
    )
    if not fits or not array.size:
        words = ["n" if n is None else str(n) for n in shape]
        raise InputError(
            f"{path}: {name} is of shape {list(array.shape)}, where [{', '.join(words)}] is "
            "expected."
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= n_rows:
        raise InputError(
            f"{path}: {name} holds {low if low < 0 else high}, where 0 to {n_rows - 1} is expected."
        )
