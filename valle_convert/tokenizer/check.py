"""Compares stock llama.cpp with the tokenizer's own library, text by text.

In: two tokenizers, the array of true ids, and a stream of texts of any length. Out: a
`TokenizerReport`. The ids themselves must be equal:

    true_ids[llama_tokenize(text)] == tokenizers.encode(text).ids
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from valle_convert.threads import made_ahead
from valle_convert.tokenizer.oracle import LlamaTokenizer, Oracle, Setting

# Hugging Face encodes a batch on all cores; larger batches are no faster.
BATCH_SIZE = 512
MAX_SHOWN_DIFFERENCES = 5


@dataclass(frozen=True, slots=True)
class Difference:
    text: str
    expected: tuple[int, ...]  # the ids of the tokenizer's own library
    found: tuple[int, ...]  # llama.cpp's tokens as true ids (-1 for a token that is not text)
    pieces: str


@dataclass(frozen=True, slots=True)
class TokenizerReport:
    n_texts: int
    settings: tuple[Setting, ...]
    n_differences: int  # pairs of text and setting with different ids
    n_tokens: int
    first: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        """Whether something was compared, and everything was equal."""
        return self.n_texts > 0 and self.n_differences == 0


def compare(
    llama: LlamaTokenizer,
    oracle: Oracle,
    true_ids: Sequence[int],
    texts: Iterable[str],
    settings: Sequence[Setting] | None = None,
) -> TokenizerReport:
    if len(true_ids) != llama.n_tokens:
        raise ValueError(f"{len(true_ids)} true ids for {llama.n_tokens} tokens")
    chosen = tuple(oracle.settings if settings is None else settings)
    true_id = list(true_ids).__getitem__
    n_texts = n_differences = n_tokens = 0
    first: list[Difference] = []
    # The oracle answers the next batch while llama.cpp answers this one.
    for batch, setting, answers in made_ahead(_answers(oracle, texts, chosen)):
        n_texts += len(batch) if setting == chosen[0] else 0
        add, parse = setting
        for text, expected in zip(batch, answers, strict=True):
            ids = llama.encode(text, add_special=add, parse_special=parse)
            found = list(map(true_id, ids))
            n_tokens += len(expected)
            if found == expected:
                continue
            n_differences += 1
            if len(first) < MAX_SHOWN_DIFFERENCES:
                first.append(Difference(text, tuple(expected), tuple(found), llama.show(ids)))
    return TokenizerReport(n_texts, chosen, n_differences, n_tokens, tuple(first))


def _answers(
    oracle: Oracle, texts: Iterable[str], settings: Sequence[Setting]
) -> Iterator[tuple[list[str], Setting, list[list[int]]]]:
    rest = iter(texts)
    while batch := list(islice(rest, BATCH_SIZE)):
        for setting in settings:
            yield batch, setting, oracle.encode_batch(batch, setting)
