"""A speaker for models that read espeak-ng's phonemes and a voice of a few seconds."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

from valle_convert.audio.codec import AudioCodec
from valle_convert.decode.batch import Element
from valle_convert.decode.sampling import Logits
from valle_convert.decode.speech import Prefix, Speech
from valle_convert.gguf_file.read import GgufFile
from valle_convert.model.inputs import NULL_PHONEMES
from valle_convert.model.spec import LANGUAGES, Codes, GemmaModel
from valle_convert.network.protocol import AnyNetwork
from valle_convert.speech.recordings import Recording
from valle_convert.speech.results import SpeakOptions
from valle_convert.speech.speaker import Line, Speaker, sayable
from valle_convert.text.folding import listed, unsaid_notice
from valle_convert.text.languages import known_language, sentences_of
from valle_convert.text.phonemes import (
    check_phonemes,
    to_phonemes,
    unknown_phonemes,
    unsaid_characters,
)
from valle_convert.tokenizer.compiled import TRUE_IDS_KEY

#: Phonemes to the ids that the model was trained on, with `<bos>` and `</eos>`.
Tokenize = Callable[[str], list[int]]
#: The reverse, without `<bos>` and `</eos>`.
Detokenize = Callable[[Sequence[int]], str]


N = TypeVar("N", bound=AnyNetwork)


class PhonemeSpeaker(Speaker[Recording, Codes, Codes], Generic[N]):
    """A speaker for a model that reads phonemes. Close it, or use it as a context manager."""

    def __init__(
        self,
        network: N,
        tokenizer: tuple[Tokenize, Detokenize],
        codec: AudioCodec | None = None,
        opened: ExitStack | None = None,
    ) -> None:
        super().__init__(network.model, self._append, codec, opened)
        self._network, self._model = network, network.model
        self._tokenize, self._detokenize = tokenizer

    def _append(self, elements: Sequence[Element]) -> Logits:
        """Grow sequences of the network; only models with an AR have any."""
        raise NotImplementedError(elements)

    # ----------------------------------------------------------------------------- text

    def _lines(
        self, text: str, options: SpeakOptions, *, is_phonemes: bool, whole: bool
    ) -> list[Line[Codes]]:
        read = partial(line_of, self._model, self._tokenize)
        if is_phonemes:
            return [read(text, self._language(options.language), is_phonemes=True)]
        given = None if options.language is None else self._language(options.language)
        sentences, notices = sentences_of(text, given, self._languages, whole=whole)
        lines = ((sentence, partial(read, sentence, language)) for sentence, language in sentences)
        return sayable(lines, notices)

    def _silence(self, options: SpeakOptions) -> Line[Codes]:
        """The text input for a recording without transcript."""
        language = self._language(options.language)
        rows = np.array(NULL_PHONEMES, np.int32)
        return Line("", "", language, rows, language_id=language_id(self._model, language))

    @property
    def _languages(self) -> tuple[str, ...]:
        """The languages of the model; all languages if it does not distinguish them."""
        return self._model.languages or LANGUAGES

    def _language(self, given: str | None) -> str:
        return known_language(given or self._languages[0], self._languages)

    # ---------------------------------------------------------------------------- voice

    def _voice(
        self, voice: Recording | None, options: SpeakOptions
    ) -> tuple[Codes | None, tuple[str, ...]]:
        if voice is None:
            return None, ()
        return self.prompt(voice, options.prompt_seconds, "the voice")


def language_id(model: GemmaModel[Any], language: str) -> int | None:
    """The id of a language; None if the model does not distinguish them."""
    return model.languages.index(language) if model.has_table("language") else None


def line_of(
    model: GemmaModel[Any],
    tokenize: Tokenize,
    text: str,
    language: str,
    *,
    is_phonemes: bool = False,
) -> Line[Codes]:
    """A text, or phonemes, for the network."""
    notices: tuple[str, ...] = ()
    if is_phonemes:
        check_phonemes(text)
        text, phonemes = "", text
    else:
        phonemes = to_phonemes(text, language)
        if unsaid := unsaid_characters(text, language):
            notices += (unsaid_notice(unsaid, language),)
    rows = np.array(tokenize(phonemes), np.int32)
    if unknown := unknown_phonemes(phonemes, tokenize):
        notices += (f"the model's vocabulary lacks these phonemes of the text: {listed(unknown)}",)
    ids, number = tuple(rows.tolist()), language_id(model, language)
    return Line(text, phonemes, language, rows, notices, ids, number)


def prefix_of(
    said: Sequence[tuple[Line[Codes], Speech]], line: Line[Codes], n: int
) -> Prefix | None:
    """Text and codes of the last `n` sentences that have the same language."""
    recent = said[-n:] if n else []
    same = [(before, speech) for before, speech in recent if before.language == line.language]
    if not same:
        return None
    inner = [before.rows[1:-1] for before, _ in same]  # without the marks around each sentence
    phonemes = np.concatenate([line.rows[:1], *inner, line.rows[-1:]])
    return Prefix(phonemes, np.concatenate([speech.codes for _, speech in same]))


def phoneme_tokenizer(file: GgufFile, opened: ExitStack) -> tuple[Tokenize, Detokenize]:
    """llama.cpp's tokenizer of a converted file, with the ids that the network was trained on."""
    from valle_convert.tokenizer.oracle import LlamaTokenizer

    true_ids: Sequence[int] = file.keys[TRUE_IDS_KEY]
    llama = opened.enter_context(LlamaTokenizer(file.path))

    def tokenize(phonemes: str) -> list[int]:
        ids = llama.encode(phonemes, add_special=True, parse_special=False)
        return [true_ids[i] for i in ids]

    return tokenize, llama.decode
