"""`valle-convert tokenize GGUF TEXT`: ids from llama.cpp and from the tokenizer's own library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from valle_convert.cli import console
from valle_convert.cli.options import GGUF, JSON, arg, flag, local_gguf, opt
from valle_convert.errors import EXIT_FAILED_CHECK, EXIT_OK, InputError
from valle_convert.wording import plural

if TYPE_CHECKING:
    from collections.abc import Iterator

    from valle_convert.tokenizer.check import TokenizerReport


def tokenize(
    *,
    gguf: Path = GGUF,
    text: str | None = arg("TEXT", "Phonemes or symbols.", None),
    file: Path | None = opt("Read one text per line.", "FILE"),
    tokenizer: Path | None = opt(
        "The tokenizer.json or .model of the conversion, checked by its hash. Default: the "
        "built-in one.",
        "FILE",
    ),
    no_special: bool = flag("Add no <bos> and </eos>."),
    parse_special: bool = flag(
        "Read special tokens such as <mask> in the text as one token each. Without it they are "
        "plain text, as in speech."
    ),
    json_: bool = JSON,
) -> int:
    """Tokenize with stock llama.cpp.

    The ids are compared with those of the tokenizer's own library. Exit code 1 if they differ.
    """
    if text is None and file is None:
        raise typer.BadParameter("give TEXT or --file FILE.", param_hint="TEXT")
    from valle_convert.families.bundle import open_bundle
    from valle_convert.text.folding import listed
    from valle_convert.text.phonemes import unknown_phonemes
    from valle_convert.tokenizer.check import compare
    from valle_convert.tokenizer.compiled import TRUE_IDS_KEY
    from valle_convert.tokenizer.oracle import LlamaTokenizer, Setting

    gguf = local_gguf(gguf)
    bundle = open_bundle(gguf)
    recorded = bundle.family.recorded_tokenizer(bundle.main, tokenizer)
    oracle = recorded.oracle()
    setting = Setting(not no_special, parse_special)
    if setting not in oracle.settings:
        raise InputError(
            "SentencePiece models do not parse special tokens; leave out --parse-special."
        )
    true_ids = bundle.main.keys[TRUE_IDS_KEY]
    with LlamaTokenizer(gguf) as llama:
        if file is not None:
            report = compare(llama, oracle, true_ids, _lines(file), [setting])
            _show_report(report, as_json=json_)
            agree = report.ok
        else:
            ids = llama.encode(str(text), add_special=not no_special, parse_special=parse_special)
            (expected,) = oracle.encode_batch([str(text)], setting)
            found = [true_ids[i] for i in ids]
            pieces, agree = llama.show(ids), found == expected
            if json_:
                console.data_json(
                    {
                        "text": text,
                        "pieces": pieces,
                        "llama_cpp": {"tokens": ids, "ids": found},
                        recorded.kind: {"ids": expected},
                        "agree": agree,
                    }
                )
            else:
                console.data(f"pieces         {pieces}")
                console.data(f"llama.cpp      {found}")
                console.data(f"{recorded.kind:<14} {expected}")
                console.log("they agree" if agree else "they differ")
            unknown = unknown_phonemes(
                str(text),
                lambda part: [
                    true_ids[i] for i in llama.encode(part, add_special=False, parse_special=False)
                ],
            )
            if unknown:
                console.log(f"note: the vocabulary lacks {listed(unknown)}")
    return EXIT_OK if agree else EXIT_FAILED_CHECK


def _lines(path: Path) -> Iterator[str]:
    from valle_convert.files import os_faults

    n = 0
    try:
        with os_faults(f"{path} cannot be read"), path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                n += 1
                yield line.removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 after line {n} ({error.reason}).") from error
    if n == 0:
        raise InputError(f"{path} is empty, expected one text per line.")


def _show_report(report: TokenizerReport, *, as_json: bool) -> None:
    if as_json:
        console.data_json(
            {
                "texts": report.n_texts,
                "tokens": report.n_tokens,
                "differences": report.n_differences,
                "first": [
                    {
                        "text": d.text,
                        "pieces": d.pieces,
                        "llama_cpp": list(d.found),
                        "tokenizers": list(d.expected),
                    }
                    for d in report.first
                ],
                "agree": report.ok,
            }
        )
    for difference in report.first:
        console.log(f"differs: {difference.text!r}")
        console.log(f"  pieces     {difference.pieces}")
        console.log(f"  llama.cpp  {list(difference.found)}")
        console.log(f"  expected   {list(difference.expected)}")
    if not as_json:
        console.data(
            f"{plural(report.n_texts, 'text')}, {plural(report.n_tokens, 'token')}, "
            f"{plural(report.n_differences, 'difference')}"
        )
