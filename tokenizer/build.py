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
from pathlib import Path

SOURCE = Path(__file__).with_name("phonemes.txt")
TARGET = Path(__file__).parents[1] / "valle_convert" / "tokenizer" / "data" / "tokenizer.json"

UNK, BOS, EOS = "<unk>", "<bos>", "</eos>"


def read_table(text: str) -> tuple[dict[str, int], dict[str, int], list[tuple[str, str]]]:
    """Special texts with their ids, strings with their ids, and merges by rank."""
    tables: dict[str, dict[str, int]] = {"[special]": {}, "[phonemes]": {}}
    merges: list[tuple[str, str]] = []
    section = ""
    for line in filter(None, text.splitlines()):
        if line.startswith("#"):
            continue
        if line.startswith("["):
            section = line
        elif section == "[merges]":  # `12: u+ː ˈ+ʌ`: the first rank, and the halves
            left_and_right = [pair.split("+") for pair in line.partition(": ")[2].split(" ")]
            merges += [(left, right) for left, right in left_and_right]
        else:  # `6 " “ U+02C7`: an id and its strings
            id_, *names = line.split(" ")
            for name in names:
                escaped = re.fullmatch(r"U\+([0-9A-F]{4,6})", name)
                tables[section][chr(int(escaped[1], 16)) if escaped else name] = int(id_)
    return tables["[special]"], tables["[phonemes]"], merges


def build(text: str) -> str:
    special_ids, phonemes, merges = read_table(text)
    written = special_ids | phonemes
    # The results of the merges take the ids after the unbroken run that is written out.
    first = next(i for i in range(len(written) + 1) if i not in written.values())
    vocab = written | {"".join(pair): first + rank for rank, pair in enumerate(merges)}
    if sorted(set(vocab.values())) != list(range(max(vocab.values()) + 1)):
        raise ValueError("phonemes.txt leaves out an id")

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
            for token, id_ in special_ids.items()
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special(BOS), sequence("A"), special(EOS)],
            "pair": [special(BOS), sequence("A"), special(EOS), sequence("B"), special(EOS)],
            "special_tokens": {
                token: {"id": token, "ids": [special_ids[token]], "tokens": [token]}
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
            "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])),
            # "a b" and not ["a", "b"]: every release of `tokenizers` reads this form, and one
            # merge takes one line.
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    target.write_text(build(SOURCE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
