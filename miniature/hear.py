"""Recognize speech with pocketsphinx: python -m miniature.hear SPEECH.wav

A recogniser for `evaluate --listen --asr` and `miniature.evaluate --asr`. Its words and their order
are those of the corpus' sentences (a bigram model of many, other ones than any that are tested):
with a list of words alone it hears a third of the recordings' words. Needs the extra `asr`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from miniature import corpus
from miniature.words import UNSEEN
from valle_convert.audio import read_audio
from valle_convert.extras import require
from valle_convert.listening.measures import plain_words

_RATE = 16_000
_SENTENCES = 4000
#: Seeds of sentences that no test uses.
_SEEDS = (1001, 1002)
_DISCOUNT = 0.5
_SILENCE = np.zeros(_RATE // 5, np.float32)


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split(":", 1)[0])
    arguments.add_argument("speech", type=Path)
    sphinx = require("pocketsphinx", "Hearing words", extra="asr")
    samples = read_audio(arguments.parse_args().speech, _RATE).samples
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "sentences.arpa"
        model.write_text("\n".join(language_model()) + "\n", encoding="utf-8")
        decoder = sphinx.Decoder(lm=str(model), samprate=_RATE, loglevel="FATAL")
        padded = np.concatenate([_SILENCE, samples, _SILENCE])
        decoder.start_utt()
        decoder.process_raw((padded * 32767).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        heard = decoder.hyp()
    print(heard.hypstr if heard else "")


def language_model() -> Iterator[str]:
    """A bigram language model in ARPA format, with absolute discounting."""
    texts = [*islice(corpus.sentences(_SEEDS[0]), _SENTENCES)]
    texts += islice(corpus.sentences(_SEEDS[1], UNSEEN), _SENTENCES // 10)
    lines = [["<s>", *plain_words(text), "</s>"] for text in texts]
    ones = Counter(word for line in lines for word in line)
    pairs = Counter(pair for line in lines for pair in pairwise(line))
    followers: dict[str, int] = defaultdict(int)
    for before, _ in pairs:
        followers[before] += 1
    total = sum(ones.values())
    yield from ("\\data\\", f"ngram 1={len(ones)}", f"ngram 2={len(pairs)}", "", "\\1-grams:")
    for word, n in sorted(ones.items()):
        back = _DISCOUNT * followers[word] / n if followers[word] else 1.0
        yield f"{math.log10(n / total):.4f} {word} {math.log10(back):.4f}"
    yield from ("", "\\2-grams:")
    for (before, word), n in sorted(pairs.items()):
        yield f"{math.log10((n - _DISCOUNT) / ones[before]):.4f} {before} {word}"
    yield from ("", "\\end\\")


if __name__ == "__main__":
    main()
