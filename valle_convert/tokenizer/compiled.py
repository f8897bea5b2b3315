"""The result of compiling any kind of tokenizer, the vocabulary keys of a GGUF file, or its faults.

The writer needs `metadata()` and `extra_rows`, the verifier `true_ids`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from valle_convert.errors import InputError
from valle_convert.wording import listing

#: Keys of a converted file.
TOKENS_KEY = "tokenizer.ggml.tokens"
TRUE_IDS_KEY = "valle.tokenizer.true_ids"
TOKENIZER_SHA256_KEY = "valle.tokenizer.sha256"

MetadataValue = str | bool | int | list[str] | list[int] | list[float]
MetadataType = Literal["string", "bool", "u32", "[string]", "[i32]", "[f32]"]


class TokenType(IntEnum):
    """The values of `tokenizer.ggml.token_type` (those of `gguf.TokenType`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledTokenizer:
    """A vocabulary for stock llama.cpp, with a map to the original ids."""

    #: `tokenizer.ggml.model`, `gpt2` (byte-level BPE) or `llama` (merges by score).
    model: Literal["gpt2", "llama"]
    pre: str  # `tokenizer.ggml.pre`, the splitter before the merges
    #: The text of every token; for `gpt2` in byte-level form. All different.
    tokens: tuple[str, ...]
    token_types: tuple[TokenType, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    bos_id: int
    eos_id: int
    unk_id: int
    add_bos: bool  # whether <bos> is put before a text
    add_eos: bool  # whether </eos> is put after it
    add_space_prefix: bool = False  # for `llama`, whether a space is put before a text
    #: The original tokenizer's id of every token; -1 for a row that is not text.
    true_ids: tuple[int, ...]
    #: For every token after the model's own rows, the true id whose embedding row it copies. Row
    #: `len(tokens) - len(extra_rows) + i` copies row `extra_rows[i]`.
    extra_rows: tuple[int, ...] = ()

    def metadata(self) -> Iterator[tuple[str, MetadataValue, MetadataType]]:
        """The keys of the GGUF file, each with its value and the type to write it in."""
        yield "tokenizer.ggml.model", self.model, "string"
        yield "tokenizer.ggml.pre", self.pre, "string"
        yield TOKENS_KEY, list(self.tokens), "[string]"
        yield "tokenizer.ggml.token_type", [int(kind) for kind in self.token_types], "[i32]"
        if self.model == "gpt2":
            yield "tokenizer.ggml.merges", list(self.merges), "[string]"
        else:
            yield "tokenizer.ggml.scores", list(self.scores), "[f32]"
        # Without them, llama.cpp takes the ids of GPT-2 or LLaMA: 11, or 1 and 2.
        yield "tokenizer.ggml.bos_token_id", self.bos_id, "u32"
        yield "tokenizer.ggml.eos_token_id", self.eos_id, "u32"
        yield "tokenizer.ggml.unknown_token_id", self.unk_id, "u32"
        yield "tokenizer.ggml.add_bos_token", self.add_bos, "bool"
        yield "tokenizer.ggml.add_eos_token", self.add_eos, "bool"
        yield "tokenizer.ggml.add_space_prefix", self.add_space_prefix, "bool"
        yield TRUE_IDS_KEY, list(self.true_ids), "[i32]"


def check_placeholders(placeholders: Iterable[str], taken: Iterable[str]) -> None:
    """Reject texts for non-text rows that llama.cpp could take for text."""
    seen = set(taken)
    for text in placeholders:
        if text in seen:
            raise InputError(
                f"The token text {text!r} is given to two rows of the model, and llama.cpp loads "
                "no vocabulary with equal texts; name the rows differently."
            )
        if len(text) < 2:
            raise InputError(
                f"The token text {text!r} of a row that is not text is a single character, which "
                "text could be split into; use a name of two characters or more."
            )
        seen.add(text)


def refusal(what: str, problems: Sequence[str], remedy: str) -> InputError:
    """The error for a file: what failed, the problems, the remedy."""
    return InputError(f"{what}: {listing(problems, separator='; ')}. {remedy}")


def short(value: object) -> str:
    """A value from a file in at most 60 characters."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
