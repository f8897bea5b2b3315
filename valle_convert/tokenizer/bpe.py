"""tokenizer.json -> `PhonemeBpe`, or one error with all reasons why it cannot be converted.

In: a Hugging Face file whose model is a character-level BPE: strings with ids, merges in rank
order, special texts that are matched as a whole. Unlike in most others, several strings share an id
("r", "ɽ" and "ʁ" have one embedding), and Hugging Face keys its merges by ids: a merge of "ɾ" and
"r" is also one of "ɾ" and "ʁ".

llama.cpp keys merges by text. So each merge is spelled out for all strings of its two ids
(`strings`, below), and the copies get neighbouring ranks instead of one. That gives the same ids as
long as the order of the copies of a merge cannot matter, which the rules in `_check_order` ensure:

    a merge joins two different ids       else its occurrences overlap: "a a a"
    its result is used by later ones only else a later copy would have to wait for it
    one merge a pair, one merge a result  else the rank of a text is not one number
    no text gets two ids                  else llama.cpp, which knows texts only, mixes them up
"""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from pathlib import Path

from valle_convert.errors import InputError
from valle_convert.files import json_object, read_small_file
from valle_convert.tokenizer.compiled import refusal, short

# A phoneme vocabulary takes 20 kB; the largest tokenizer.json of a language model, 40 MB.
MAX_FILE_BYTES = 64 << 20
# Strings that share ids multiply with every merge; the published vocabulary has 412.
MAX_STRINGS = 1 << 16
# Each costs llama.cpp a search through each text.
MAX_ADDED_TOKENS = 256

_REMEDY = "Give the tokenizer.json that the checkpoint was trained with (--tokenizer FILE)."
Json = object


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A text that is matched as a whole before anything else."""

    id: int
    text: str
    special: bool


@dataclass(frozen=True, slots=True)
class PhonemeBpe:
    """A BPE that has passed all checks."""

    #: String -> id; ids are 0 to `n_ids - 1` without a gap, strings may share one.
    vocab: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]  # pairs of strings by rank, as written in the file
    added_tokens: tuple[AddedToken, ...]
    unk_id: int
    bos_id: int
    eos_id: int
    add_bos: bool  # whether the post-processor puts <bos> before a text
    add_eos: bool  # whether it puts </eos> after it
    #: The strings of each id, first those of the file in its order, then those that merges make of
    #: strings that share ids. No string has two ids.
    strings: tuple[tuple[str, ...], ...] = ()
    #: Settings of the file that shape batches but change no id.
    left_out: tuple[str, ...] = field(default=(), compare=False)

    @property
    def n_ids(self) -> int:
        """The number of ids, which is the number of phoneme rows that a model needs."""
        return len(self.strings)

    def merges_by_id(self) -> Iterator[tuple[int, int, int]]:
        """`(id of the left part, id of the right part, id of the result)` by rank."""
        for left, right in self.merges:
            yield self.vocab[left], self.vocab[right], self.vocab[left + right]


def read_file(path: Path) -> bytes:
    data = read_small_file(path, "tokenizer", MAX_FILE_BYTES)
    if not data:
        raise InputError(f"The tokenizer {path} is empty (0 bytes); copy it again.")
    return data


def parse_bpe(data: bytes, where: str) -> PhonemeBpe:
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"The tokenizer {where} is not UTF-8 text (byte {error.start:,}), as a "
            "tokenizer.json must be; rename a SentencePiece file to *.model."
        ) from None
    document = json_object(data, f"The tokenizer {where}")
    problems: list[str] = []
    bpe = _read_bpe(document, problems)
    # Each check relies on the ones before.
    if bpe is not None and not problems:
        problems.extend(_check_order(bpe))
    if bpe is not None and not problems:
        bpe = replace(bpe, strings=_close(bpe, problems))
    if bpe is None or problems:
        raise refusal(f"The tokenizer {where} cannot be converted", problems, _REMEDY)
    return bpe


# --- the file's own form ------------------------------------------------------------------


# What must be absent (or have the value that means absent), and what it would do.
_ABSENT_AT_TOP = {
    "normalizer": "rewrites the text first, and llama.cpp has no counterpart",
    "pre_tokenizer": "splits the text first, unlike llama.cpp's splitters",
}
#: Set by trainers for their batches, and saved with the file.
_OF_BATCHES = ("truncation", "padding")
_ABSENT_IN_MODEL = {
    "dropout": "omits merges at random",
    "continuing_subword_prefix": "marks parts of words in a way that llama.cpp does not know",
    "end_of_word_suffix": "marks ends of words in a way that llama.cpp does not know",
    "fuse_unk": "makes one token of several unknown characters, which llama.cpp cannot",
    "byte_fallback": "spells unknown characters as bytes, which llama.cpp's BPE does not do",
    "ignore_merges": "takes whole words from the vocabulary before merging",
}
_OTHERS_AT_TOP = ("version", "added_tokens", "post_processor", "decoder", "model")
_TOP_KEYS = {*_OTHERS_AT_TOP, *_ABSENT_AT_TOP, *_OF_BATCHES}
_MODEL_KEYS = {"type", "unk_token", "vocab", "merges", *_ABSENT_IN_MODEL}


def _is_absent(value: Json) -> bool:
    return value is None or value in ("", 0)


def _read_bpe(document: dict[str, Json], problems: list[str]) -> PhonemeBpe | None:
    """The file's contents with checked types, without `strings`."""
    _check_options(document, "", _ABSENT_AT_TOP, _TOP_KEYS, problems)
    model = document.get("model")
    if not isinstance(model, dict):
        problems.append(f'"model" is {short(model)}, expected an object with vocab and merges')
        return None
    if model.get("type") != "BPE":
        problems.append(
            f'"model.type" is {short(model.get("type"))}, expected "BPE": the others do not merge '
            "by rank"
        )
    _check_options(model, "model.", _ABSENT_IN_MODEL, _MODEL_KEYS, problems)
    vocab = _read_vocab(model.get("vocab"), problems)
    merges = _read_merges(model.get("merges"), problems)
    if vocab is None or merges is None:
        return None
    unk = model.get("unk_token")
    if not isinstance(unk, str) or unk not in vocab:
        problems.append(
            f'"unk_token" is {short(unk)}, expected a string of the vocabulary: without it '
            "unknown characters vanish"
        )
        return None
    added = _read_added_tokens(document.get("added_tokens"), vocab, problems)
    around = _read_post_processor(document.get("post_processor"), added, problems)
    bpe = PhonemeBpe(
        vocab,
        tuple(merges),
        tuple(sorted(added, key=lambda token: token.id)),
        vocab[unk],
        *around,
        left_out=tuple(key for key in _OF_BATCHES if not _is_absent(document.get(key))),
    )
    _check_merge_strings(bpe, problems)
    return bpe


def _check_options(
    given: dict[str, Json],
    place: str,
    absent: Mapping[str, str],
    known: AbstractSet[str],
    problems: list[str],
) -> None:
    for key, effect in absent.items():
        if not _is_absent(given.get(key)):
            problems.append(f'"{place}{key}" is {short(given[key])}, expected null: it {effect}')
    problems.extend(
        f"the key {short(place + key)} is unknown, and could change the tokens of a text"
        for key in given.keys() - known
    )


def _is_text(value: Json) -> bool:
    """Whether a value is a string that UTF-8 can encode, unlike some JSON escapes."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _read_vocab(value: Json, problems: list[str]) -> dict[str, int] | None:
    if not isinstance(value, dict) or not value:
        problems.append(f'"model.vocab" is {short(value)}, expected an object of string: id')
        return None
    vocab: dict[str, int] = {}
    before = len(problems)
    for string, id_ in value.items():
        if _is_row_name(string):
            continue  # an export also names the network's other rows here
        if not string or not _is_text(string):
            problems.append(f"the vocabulary string {short(string)} is empty or not valid Unicode")
        elif not isinstance(id_, int) or isinstance(id_, bool) or id_ < 0:
            problems.append(f"the id of {short(string)} is {short(id_)}, expected a whole number")
        else:
            vocab[string] = id_
    if len(problems) > before:
        return None
    ids = sorted(set(vocab.values()))
    if ids[-1] != len(ids) - 1:
        gap = next(i for i, id_ in enumerate(ids) if i != id_)
        problems.append(
            f"the vocabulary's {len(ids)} ids go up to {ids[-1]}, expected 0 to {len(ids) - 1}: "
            f"no string has the id {gap}"
        )
        return None
    return vocab


def _is_row_name(string: str) -> bool:
    if not string.startswith("<|"):
        return False
    # It loads numpy, which nothing else here needs.
    from valle_convert.checkpoint.exported import is_row_name

    return is_row_name(string)


def _read_merges(value: Json, problems: list[str]) -> list[tuple[str, str]] | None:
    if not isinstance(value, list) or not value:
        problems.append(f'"model.merges" is {short(value)}, expected a list of pairs')
        return None
    merges = []
    before = len(problems)
    for rank, merge in enumerate(value):
        halves = merge.split(" ") if isinstance(merge, str) else merge
        match halves:
            case [str(left), str(right)] if left and right and _is_text(left + right):
                merges.append((left, right))
            case _:
                problems.append(
                    f'the merge of rank {rank} is {short(merge)}, expected "left right" or '
                    '["left", "right"]'
                )
    return merges if len(problems) == before else None


def _read_added_tokens(
    value: Json, vocab: Mapping[str, int], problems: list[str]
) -> list[AddedToken]:
    if value is None:
        value = []
    if not isinstance(value, list):
        problems.append(f'"added_tokens" is {short(value)}, expected a list')
        return []
    if len(value) > MAX_ADDED_TOKENS:
        problems.append(f"{len(value):,} added tokens, expected at most {MAX_ADDED_TOKENS}")
        return []
    tokens = []
    for entry in value:
        match entry:
            case {"id": int(id_), "content": str(text)} if vocab.get(text) == id_:
                tokens.append(AddedToken(id_, text, special=bool(entry.get("special"))))
                problems.extend(
                    f'the added token {short(text)} has "{flag}" set, expected false: it changes '
                    "which parts of a text match"
                    for flag in ("single_word", "lstrip", "rstrip")
                    if not _is_absent(entry.get(flag))
                )
            case {"id": int(id_), "content": str(text)}:
                problems.append(
                    f"the added token {short(text)} has the id {id_}, but in the vocabulary "
                    f"{vocab.get(text, 'none')}"
                )
            case _:
                problems.append(f"the added token {short(entry)} lacks an id or its content")
    texts = [token.text for token in tokens]
    problems.extend(
        f"the added tokens {short(a)} and {short(b)} can overlap in a text, where Hugging Face "
        "takes the leftmost and llama.cpp the longest"
        for a, b in permutations(texts, 2)
        if can_overlap(a, b)
    )
    if len(set(texts)) != len(texts):
        problems.append("an added token is in the list twice")
    return tokens


def can_overlap(a: str, b: str) -> bool:
    """Whether the text `b` can begin inside the different text `a`, or is part of it."""
    return any(
        a[i:].startswith(b) or b.startswith(a[i:]) for i in range(len(a)) if i or len(b) < len(a)
    )


def _read_post_processor(
    value: Json, added: list[AddedToken], problems: list[str]
) -> tuple[int, int, bool, bool]:
    """The ids of the tokens around a text, `<bos> $A </eos>` for a published model, and whether
    they are put there.
    """
    around = (None, None) if value is None else _read_template(value)
    if around is None:
        problems.append(
            f'"post_processor" is {short(value)}, expected null or a TemplateProcessing of at '
            "most one token before and one after the text"
        )
        return -1, -1, False, False
    named = (next((t.id for t in added if t.text == text), -1) for text in ("<bos>", "</eos>"))
    bos, eos = (id_ if id_ is not None else own for id_, own in zip(around, named, strict=True))
    known = {token.id for token in added if token.special}
    for name, id_ in (("begin", bos), ("end", eos)):
        if id_ not in known:
            problems.append(
                f"no special token marks the {name} of a text (found the id "
                f"{id_ if id_ >= 0 else 'none'}): expected <bos> and </eos> among the added "
                "tokens, which surround the phonemes of every VALL-E input"
            )
    return bos, eos, around[0] is not None, around[1] is not None


def _read_template(value: Json) -> tuple[int | None, int | None] | None:
    """The ids put before and after the text, or None for any other template."""
    match value:
        case {
            "type": "TemplateProcessing",
            "single": list(single),
            "special_tokens": dict(special),
        }:
            pass
        case _:
            return None
    ids: list[int | None] = []  # one per place; None for the text
    for piece in single:
        match piece:
            case {"Sequence": {"id": "A"}}:
                ids.append(None)
            case {"SpecialToken": {"id": str(name)}}:
                match special.get(name):
                    case {"ids": [int(id_)]}:
                        ids.append(id_)
                    case _:
                        return None
            case _:
                return None
    if ids.count(None) != 1 or len(ids) > 3:
        return None
    place = ids.index(None)
    before, after = ids[:place], ids[place + 1 :]
    if len(before) > 1 or len(after) > 1:
        return None
    return next(iter(before), None), next(iter(after), None)


def _check_merge_strings(bpe: PhonemeBpe, problems: list[str]) -> None:
    for rank, (left, right) in enumerate(bpe.merges):
        problems.extend(
            f"the merge of rank {rank}, {short(left)} + {short(right)}, {role} "
            f"{short(string)}, which the vocabulary lacks"
            for role, string in (("uses", left), ("uses", right), ("makes", left + right))
            if string not in bpe.vocab
        )


# --- conditions under which llama.cpp gives the same ids ------------------------------------


def _check_order(bpe: PhonemeBpe) -> Iterator[str]:
    """The rules in the module's docstring that follow from ids alone."""
    special = {token.id for token in bpe.added_tokens} | {bpe.unk_id}
    rank_of_pair: dict[tuple[int, int], int] = {}
    rank_of_result: dict[int, int] = {}
    for rank, (left, right, result) in enumerate(bpe.merges_by_id()):
        name = " + ".join(map(short, bpe.merges[rank]))
        if (left, right) in rank_of_pair:
            yield (
                f"the merges of rank {rank_of_pair[left, right]} and {rank} ({name}) are on the "
                f"same ids {left} and {right}, and the later one would replace the earlier"
            )
        if left == right:
            yield (
                f"the merge of rank {rank} ({name}) joins the id {left} with itself, so its result "
                "depends on where a run of it begins"
            )
        if result in rank_of_result:
            yield (
                f"the merges of rank {rank_of_result[result]} and {rank} ({name}) both make the "
                f"id {result}"
            )
        if special & {left, right, result}:
            yield (
                f"the merge of rank {rank} ({name}) uses the id of a special token or of unknown "
                "characters"
            )
        rank_of_pair.setdefault((left, right), rank)
        rank_of_result.setdefault(result, rank)
    for rank, (left, right, _) in enumerate(bpe.merges_by_id()):
        for used in (left, right):
            if rank_of_result.get(used, -1) >= rank:
                yield (
                    f"the merge of rank {rank} ({' + '.join(map(short, bpe.merges[rank]))}) uses "
                    f"the id {used}, which is made by the later rank {rank_of_result[used]}"
                )


def _close(bpe: PhonemeBpe, problems: list[str]) -> tuple[tuple[str, ...], ...]:
    """The strings of every id, with those that a merge makes of other strings of its halves.

    One pass by rank is enough, since a merge uses results of lower ranks only.
    """
    strings: list[dict[str, None]] = [{} for _ in range(max(bpe.vocab.values()) + 1)]
    # The text of a special token comes first, before others with its id.
    for token in bpe.added_tokens:
        strings[token.id][token.text] = None
    owner = dict(bpe.vocab)
    for string, id_ in bpe.vocab.items():
        strings[id_][string] = None
    for (left, right), (a, b, result) in zip(bpe.merges, bpe.merges_by_id(), strict=True):
        if len(owner) + len(strings[a]) * len(strings[b]) > MAX_STRINGS:
            problems.append(
                f"strings that share ids make more than {MAX_STRINGS:,} strings through the merges"
            )
            break
        for string in ["".join(pair) for pair in product(strings[a], strings[b])]:
            if owner.setdefault(string, result) != result:
                problems.append(
                    f"the text {short(string)} has the id {owner[string]}, but the merge "
                    f"{short(left)} + {short(right)} makes it as the id {result}"
                )
            else:
                strings[result][string] = None
    return tuple(tuple(group) for group in strings)
