"""phonemes.txt -> tokenizer.json, the form that Hugging Face `tokenizers` loads.

In goes the table of ids, strings and merges beside this script; out comes a character-level
BPE without a normalizer or a pre-tokenizer. The output depends on nothing but the table, so
that it can be compared byte for byte.

    python tokenizer/build.py            writes valle_convert/tokenizer/data/tokenizer.json
    python tokenizer/build.py FILE       writes FILE
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).with_name("phonemes.txt")
TARGET = Path(__file__).parents[1] / "valle_convert" / "tokenizer" / "data" / "tokenizer.json"

UNK, BOS, EOS = "<unk>", "<bos>", "</eos>"


@dataclass
class Table:
    """What phonemes.txt says: special texts by id, strings by id, merges by rank."""

    special: dict[str, int] = field(default_factory=dict)
    phonemes: dict[str, int] = field(default_factory=dict)
    merges: list[tuple[str, str]] = field(default_factory=list)

    def vocabulary(self) -> dict[str, int]:
        """Every string with its id, in the order of the ids, then of the file.

        Raises:
            ValueError: a string has two ids, or an id has no string.
        """
        written = self.special | self.phonemes
        # The results of the merges take the ids after the unbroken run that is written out.
        first = next(i for i in range(len(written) + 1) if i not in written.values())
        merged = {"".join(pair): first + rank for rank, pair in enumerate(self.merges)}
        twice = (self.special.keys() & self.phonemes.keys()) | (written.keys() & merged.keys())
        if twice or len(merged) != len(self.merges):
            raise ValueError(f"phonemes.txt makes a string more than once: {sorted(twice)}")
        vocab = written | merged
        missing = set(range(max(vocab.values()) + 1)) - set(vocab.values())
        if missing:
            raise ValueError(f"phonemes.txt gives no string to the ids {sorted(missing)}")
        return dict(sorted(vocab.items(), key=lambda item: item[1]))


def read_table(text: str) -> Table:
    """Read the text of phonemes.txt.

    Raises:
        ValueError: a line cannot be read, or says something twice; the message names it.
    """
    table = Table()
    section = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line or line.startswith("#"):
            continue
        try:
            if line.startswith("["):
                section = line
            elif section == "[special]":
                _read_id(line, table.special)
            elif section == "[phonemes]":
                _read_id(line, table.phonemes)
            elif section == "[merges]":
                _read_merges(line, table.merges)
            else:
                raise ValueError(f"no section of this file is called {section!r}")  # noqa: TRY301
        except ValueError as error:
            raise ValueError(f"phonemes.txt, line {number}, {line!r}: {error}") from error
    return table


def _read_id(line: str, strings: dict[str, int]) -> None:
    """`6 " “ ˇ`: an id and its strings."""
    id_, *names = line.split(" ")
    for name in names:
        escaped = re.fullmatch(r"U\+([0-9A-F]{4,6})", name)
        string = chr(int(escaped[1], 16)) if escaped else name
        if not string or string in strings:
            raise ValueError(f"{string!r} is empty or stands here for the second time")
        strings[string] = int(id_)


def _read_merges(line: str, merges: list[tuple[str, str]]) -> None:
    """`12: u+ː ˈ+ʌ`: the rank of the first merge, and the halves of each."""
    rank, _, pairs = line.partition(": ")
    if int(rank) != len(merges):
        raise ValueError(f"the row counts from {rank}, and {len(merges)} is next")
    for pair in pairs.split(" "):
        left, right = pair.split("+")
        merges.append((left, right))


def build(text: str) -> str:
    """Turn the text of phonemes.txt into the text of tokenizer.json.

    Raises:
        ValueError: as `read_table` and `Table.vocabulary`.
    """
    table = read_table(text)

    def special(token: str) -> dict[str, object]:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    def sequence(name: str) -> dict[str, object]:
        return {"Sequence": {"id": name, "type_id": 0}}

    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": id_,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token, id_ in table.special.items()
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special(BOS), sequence("A"), special(EOS)],
            "pair": [special(BOS), sequence("A"), special(EOS), sequence("B"), special(EOS)],
            "special_tokens": {
                token: {"id": token, "ids": [table.special[token]], "tokens": [token]}
                for token in (BOS, EOS)
            },
        },
        # Without a decoder, `tokenizers` puts a space between any two tokens; Fuse joins them.
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNK,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": table.vocabulary(),
            # "a b" and not ["a", "b"]: every release of `tokenizers` reads this form, and one
            # merge takes one line.
            "merges": [f"{left} {right}" for left, right in table.merges],
        },
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    target.write_text(build(SOURCE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
