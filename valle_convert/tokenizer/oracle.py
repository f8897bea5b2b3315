"""The two programs that must agree: stock llama.cpp, and the tokenizer's own library.

`LlamaTokenizer` opens a GGUF file for its vocabulary alone; `HuggingFaceOracle` and
`SentencePieceOracle` open the source of the vocabulary. All turn a text into ids under the same two
settings:

    add_special     put <bos> and </eos> around
    parse_special   "<mask>" in the text is the token, not six characters

`tokenizers` always matches added tokens, unless `encode_special_tokens` is set; so the oracle
without `parse_special` is the same tokenizer with that flag on.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from valle_convert.closing import Closing
from valle_convert.errors import InputError
from valle_convert.tokenizer.byte_level import readable

# llama.cpp's time grows with the square of the special tokens in a text: this many bytes of
# apostrophes take two seconds.
MAX_TEXT_BYTES = 1 << 15


class Setting(NamedTuple):
    add_special: bool
    parse_special: bool


ALL_SETTINGS = tuple(Setting(add, parse) for add in (False, True) for parse in (False, True))


class HuggingFaceOracle:
    """Hugging Face `tokenizers` on the bytes of a tokenizer.json."""

    settings = ALL_SETTINGS

    def __init__(self, data: bytes) -> None:
        from tokenizers import Tokenizer

        try:
            self._parsing = Tokenizer.from_buffer(data)
            self._plain = Tokenizer.from_buffer(data)
        except ValueError as error:
            raise InputError(
                f"The tokenizers library does not load the tokenizer.json: {error}; "
                "give the file as that library wrote it."
            ) from None
        for tokenizer in (self._parsing, self._plain):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self._plain.encode_special_tokens = True

    def encode_batch(self, texts: Sequence[str], setting: Setting) -> list[list[int]]:
        tokenizer = self._parsing if setting.parse_special else self._plain
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=setting.add_special)
        return [encoding.ids for encoding in encodings]


class SentencePieceOracle:
    """Google's `sentencepiece` on the bytes of a .model file.

    It never takes text for a control piece, so it does not support `parse_special`.
    """

    settings = tuple(setting for setting in ALL_SETTINGS if not setting.parse_special)

    def __init__(self, data: bytes) -> None:
        import sentencepiece

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise InputError(
                f"The sentencepiece library does not load the model: {error}; "
                "give the file as that library wrote it."
            ) from None

    def encode_batch(self, texts: Sequence[str], setting: Setting) -> list[list[int]]:
        around = setting.add_special
        ids: list[list[int]] = self._processor.encode(
            list(texts), add_bos=around, add_eos=around, num_threads=1
        )
        return ids


#: A library that `LlamaTokenizer` is compared with; `settings` are those that it supports.
Oracle = HuggingFaceOracle | SentencePieceOracle


class LlamaTokenizer(Closing):
    """The vocabulary of a GGUF file, as stock llama.cpp reads it.

    Loads no tensors. Use it as a context manager, or call `close`. Not thread-safe: calls share the
    buffers.
    """

    def __init__(self, path: Path | str) -> None:
        from valle_convert.llama.context import LlamaModel
        from valle_convert.llama.library import load_library

        library = load_library()
        self.library = library.api
        self._model = LlamaModel(library, Path(path), vocab_only=True)
        self.vocabulary = self.library.llama_model_get_vocab(self._model.handle)
        self.n_tokens = self._model.n_vocab
        # A byte gives at most one token; <bos>, </eos> and a leading space come on top.
        self._ids = (ctypes.c_int32 * (MAX_TEXT_BYTES + 8))()
        self._text = ctypes.create_string_buffer(4 * MAX_TEXT_BYTES)

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Tokenize a text; the ids are llama.cpp's own, see `true_ids`."""
        try:
            # Only valid UTF-8 may reach llama.cpp: on other bytes it may abort the process.
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"The text is not valid Unicode: character {error.start} is "
                f"U+{ord(text[error.start]):04X}, half of a surrogate pair; remove it."
            ) from None
        if len(data) > MAX_TEXT_BYTES:
            raise InputError(
                f"The text has {len(data):,} bytes, expected at most {MAX_TEXT_BYTES:,} "
                "(llama.cpp's time grows with their square); give it in parts."
            )
        n = self.library.llama_tokenize(
            self.vocabulary, data, len(data), self._ids, len(self._ids), add_special, parse_special
        )
        if n < 0:
            raise RuntimeError(f"llama_tokenize wants room for {-n} tokens of {len(data)} bytes")
        return self._ids[:n]

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Turn llama.cpp's own ids back into text."""
        for id_ in ids:
            if not 0 <= id_ < self.n_tokens:
                raise InputError(
                    f"The token id {id_} is not in the vocabulary, expected 0 to "
                    f"{self.n_tokens - 1}."
                )
        if len(ids) > len(self._ids):
            raise InputError(
                f"{len(ids):,} ids to decode, expected at most {len(self._ids):,}; "
                "give them in parts."
            )
        array = (ctypes.c_int32 * len(ids))(*ids)
        n = self.library.llama_detokenize(
            self.vocabulary, array, len(ids), self._text, len(self._text), not special, special
        )
        if n < 0:
            self._text = ctypes.create_string_buffer(-n)
            return self.decode(ids, special=special)
        return self._text.raw[:n].decode("utf-8", errors="replace")

    def show(self, ids: Sequence[int]) -> str:
        """Spell llama.cpp's own ids for a reader: `[ˈɛ] [n] [<E2 80>]`."""
        is_bpe = self.library.llama_vocab_type(self.vocabulary) == self.library.LLAMA_VOCAB_TYPE_BPE
        texts = [self.library.llama_vocab_get_text(self.vocabulary, id_) for id_ in ids]
        pieces = [text.decode("utf-8", errors="replace") for text in texts]
        return " ".join(f"[{readable(piece) if is_bpe else piece}]" for piece in pieces)

    def close(self) -> None:
        self._model.close()
