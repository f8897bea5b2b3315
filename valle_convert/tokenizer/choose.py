"""Which tokenizer belongs to a checkpoint, and whether it fits.

A checkpoint has the strings of its vocabulary and their ids (`symmap`), but not the merges. So the
tokenizer is the file that the user names, else a `tokenizer.json` beside the checkpoint, else the
built-in one of the published models. It must agree with the checkpoint in every string and in the
number of rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from valle_convert.errors import InputError
from valle_convert.tokenizer.bpe import PhonemeBpe, parse_bpe, read_file
from valle_convert.tokenizer.compile import compile_bpe
from valle_convert.tokenizer.compiled import TOKENIZER_SHA256_KEY, CompiledTokenizer, refusal, short
from valle_convert.tokenizer.oracle import HuggingFaceOracle, Oracle, SentencePieceOracle
from valle_convert.tokenizer.sentencepiece import (
    SentencePieceBpe,
    compile_sentencepiece,
    parse_sentencepiece,
)

if TYPE_CHECKING:
    from valle_convert.checkpoint.source import CarriedVocabulary

FILE_NAME = "tokenizer.json"
#: Only in a tokenizer.json of the Hugging Face export.
ROW_MARK = b"<|RVQ:0|>"
BUILT_IN = Path(__file__).with_name("data") / FILE_NAME


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    path: Path
    tokenizer: PhonemeBpe | SentencePieceBpe
    data: bytes = field(repr=False)  # the bytes of the file, for the oracle
    sha256: str

    @property
    def kind(self) -> Literal["bpe", "sentencepiece"]:
        return "bpe" if isinstance(self.tokenizer, PhonemeBpe) else "sentencepiece"

    def compile(self, placeholders: Sequence[str]) -> CompiledTokenizer:
        if isinstance(self.tokenizer, PhonemeBpe):
            return compile_bpe(self.tokenizer, placeholders)
        return compile_sentencepiece(self.tokenizer, placeholders)

    def strings(self) -> list[str]:
        """The vocabulary's strings, for making texts."""
        if isinstance(self.tokenizer, PhonemeBpe):
            return list(self.tokenizer.vocab)
        return [piece.replace("\u2581", " ") for piece in self.tokenizer.pieces]

    def oracle(self) -> Oracle:
        if isinstance(self.tokenizer, PhonemeBpe):
            return HuggingFaceOracle(self.data)
        return SentencePieceOracle(self.data)


@dataclass(frozen=True, slots=True)
class TokenizerChoice:
    """A tokenizer that fits a checkpoint, and why it was chosen."""

    file: TokenizerFile
    source: str  # a file's name, or `built-in`
    reason: str  # why this one was chosen, as the second half of a sentence
    agreement: str  # what it agrees with, as the second half of a sentence


def open_tokenizer(path: Path) -> TokenizerFile:
    """Read a tokenizer.json or, if its name ends in `.model`, a SentencePiece model."""
    data, is_model = read_file(path), path.suffix == ".model"
    tokenizer = (parse_sentencepiece if is_model else parse_bpe)(data, str(path))
    return TokenizerFile(path, tokenizer, data, hashlib.sha256(data).hexdigest())


def choose_tokenizer(
    explicit: Path | None,
    checkpoint: Path,
    symmap: Mapping[str, int] | None,
    n_text_rows: int,
    *,
    carried: CarriedVocabulary | None = None,
) -> TokenizerChoice:
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    beside = folder / FILE_NAME
    if explicit is not None:
        file, source, reason = open_tokenizer(explicit), explicit.name, "given by --tokenizer"
    elif beside.is_file():
        file, source, reason = open_tokenizer(beside), beside.name, "found beside the checkpoint"
        built_in = open_tokenizer(BUILT_IN) if ROW_MARK in file.data else None
        if built_in is not None and file.tokenizer == built_in.tokenizer:
            file, source = built_in, "built-in"
            reason = f"the export's {beside.name} is the same, but for the names of its other rows"
    else:
        file, source = open_tokenizer(BUILT_IN), "built-in"
        reason = f"no {FILE_NAME} lies beside the checkpoint"
    if isinstance(file.tokenizer, PhonemeBpe) and file.tokenizer.left_out:
        reason += f", without its {' and '.join(file.tokenizer.left_out)}"
    problems = _disagreements(file.tokenizer, symmap, n_text_rows)
    if carried is not None:
        problems += _differences(file.tokenizer, carried)
    if problems:
        what = f"the tokenizer {source}" if source != "built-in" else "the built-in tokenizer"
        raise refusal(
            f"The checkpoint {checkpoint} does not fit {what} ({reason})",
            problems,
            f"Give the {FILE_NAME} or .model file that the checkpoint was trained with "
            f"(--tokenizer FILE), or copy it into {folder}.",
        )
    agreement = f"its {file.tokenizer.n_ids} ids are the checkpoint's {n_text_rows} rows"
    if symmap is not None:
        agreement += f", its {len(symmap)} strings the checkpoint's own"
    elif carried is not None:
        agreement += f", its {len(carried.strings)} strings and {len(carried.merges)} merges too"
    else:
        agreement += ", and the checkpoint has no vocabulary to compare with"
    return TokenizerChoice(file, source, reason, agreement)


def recorded_tokenizer(
    keys: Mapping[str, Any], gguf: Path, explicit: Path | None = None
) -> TokenizerFile:
    """Open the file that the vocabulary of a converted file was compiled from."""
    recorded = keys.get(TOKENIZER_SHA256_KEY)
    if not isinstance(recorded, str):
        raise InputError(
            f"{gguf} does not record its tokenizer, so it is not a converted checkpoint; convert "
            "one with `valle-convert CHECKPOINT OUT.gguf`."
        )
    beside = gguf.with_name(FILE_NAME)
    candidates = [explicit] if explicit else [BUILT_IN, *([beside] if beside.is_file() else [])]
    for path in candidates:
        found = open_tokenizer(path)
        if found.sha256 == recorded:
            return found
    tried = str(explicit) if explicit else "the built-in one"
    raise InputError(
        f"{gguf} was converted with the tokenizer {keys.get('valle.tokenizer.source')!r} "
        f"(SHA-256 {recorded[:16]}...), not {tried}; give that file with --tokenizer."
    )


def _differences(tokenizer: PhonemeBpe | SentencePieceBpe, carried: CarriedVocabulary) -> list[str]:
    """Differences from an export's tokenizer; more strings for some ids are allowed."""
    if not isinstance(tokenizer, PhonemeBpe):
        return []  # another kind, whose merges have no ranks to compare
    problems = list(_other_ids(carried.strings, carried.strings, "the file", tokenizer.vocab))
    if carried.merges != tokenizer.merges:
        problems.append(f"its {len(tokenizer.merges)} merges differ from the file's")
    return problems


def _disagreements(
    tokenizer: PhonemeBpe | SentencePieceBpe, symmap: Mapping[str, int] | None, n_text_rows: int
) -> list[str]:
    problems = []
    if tokenizer.n_ids != n_text_rows:
        problems.append(
            f"it has {n_text_rows} phoneme rows, but the tokenizer has {tokenizer.n_ids} ids"
        )
    if symmap is None:
        return problems
    if isinstance(tokenizer, PhonemeBpe):
        vocab: Mapping[str, int] = tokenizer.vocab
    else:
        vocab = {piece: id_ for id_, piece in enumerate(tokenizer.pieces)}
    strings = sorted(vocab.keys() | symmap.keys())
    return [*problems, *_other_ids(strings, symmap, "the checkpoint", vocab)]


def _other_ids(
    strings: Iterable[str], theirs: Mapping[str, int], where: str, ours: Mapping[str, int]
) -> Iterator[str]:
    for string in strings:
        if theirs.get(string) != ours.get(string):
            ids = [theirs.get(string), ours.get(string)]
            there, here = ("no id" if one is None else f"the id {one}" for one in ids)
            yield f"{short(string)} has {there} in {where}, but {here} in the tokenizer"
