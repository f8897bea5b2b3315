"""VALL-E X as the decoders see it: text and codes in, logits out, on whatever computes them.

`VallexNetwork` composes the inputs (rows of tables, languages, positions); PyTorch and stock
llama.cpp are its two backends and get nothing but finished rows. The order of calls is

    begin(text, prompt)      the text in both directions, then begin and prompt, causally
    step(codes)              one code for each sequence, after which the next is asked for
    refine(level, ...)       one pass of the NAR, which needs nothing of the former

Shapes: n rows, d = n_embd, A = codebook_size, R = n_levels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from valle_convert.model.vallex import Net, VallexModel

Rows = NDArray[np.float32]
Ids = NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class SymbolText:
    """Symbols with a language each; the prompt's come first, the text's follow at once.

    Attributes:
        symbols: [n] ids.
        languages: [n] ids in the networks' order (en 0, zh 1, ja 2).
    """

    symbols: Ids
    languages: Ids

    def __post_init__(self) -> None:
        if self.symbols.shape != self.languages.shape or self.symbols.ndim != 1:
            raise ValueError(f"symbols {self.symbols.shape}, languages {self.languages.shape}")
        if not len(self.symbols):
            raise ValueError("a text has at least one symbol")


class VallexNetwork(ABC):
    """AR and NAR of one model, and the state of the AR's sequences."""

    def __init__(self, model: VallexModel) -> None:
        self._model = model
        self._lengths: list[int] = []  # audio rows that each sequence holds

    @property
    def model(self) -> VallexModel:
        """Tables, heads and sizes."""
        return self._model

    # ---- what a backend offers

    @abstractmethod
    def look_up(self, net: str, table: str, ids: Ids) -> Rows:
        """Rows of an input table of `ar` or `nar`, [n] -> [n, d]."""

    @abstractmethod
    def _read_text(self, rows: Rows) -> None:
        """Forget all sequences; give the text [n, d] to sequence 0, in both directions."""

    @abstractmethod
    def _append(self, rows: Rows, sequences: Sequence[int], n_outputs: int) -> Rows:
        """Append audio, causally: all rows to one sequence, or one row to each of several.

        Returns:
            The AR head's logits of the last `n_outputs` rows, [n_outputs, A + 1].
        """

    @abstractmethod
    def _fork(self, n: int) -> None:
        """Make sequences 1 to n - 1 copies of sequence 0."""

    @abstractmethod
    def _run_nar(self, level: int, rows: Rows, n_outputs: int) -> Rows:
        """Rows [n, d] in both directions; the logits of the last ones, [n_outputs, A]."""

    # ---- decoding

    def begin(self, text: SymbolText, prompt: Ids, *, n_sequences: int = 1) -> Rows:
        """Forget everything and start over: text, begin, and the prompt's codes of level 0.

        Args:
            text: the prompt's symbols and the text's.
            prompt: [frames], the prompt's codes of level 0; empty without a voice.
            n_sequences: how many continuations of it there will be.

        Returns:
            Logits of the first code, [A + 1]; the last of them is stop.
        """
        codes = np.concatenate([[self._model.begin_code], prompt])
        self._read_text(self._text_rows(self._model.ar, text))
        logits = self._append(self._audio_rows(codes, 0), [0], 1)
        if n_sequences > 1:
            self._fork(n_sequences)
        self._lengths = [len(codes)] * n_sequences
        return logits.reshape(-1)

    def step(self, codes: Ids, sequences: Sequence[int] | None = None) -> Rows:
        """Append one code of level 0 to each of some sequences.

        Args:
            codes: [n], one for each sequence.
            sequences: which; None for the first n.

        Returns:
            Logits of the code after it, [n, A + 1].
        """
        chosen = range(len(codes)) if sequences is None else sequences
        rows = np.concatenate(
            [
                self._audio_rows(np.array([code]), self._lengths[i])
                for code, i in zip(codes, chosen, strict=True)
            ]
        )
        for i in chosen:
            self._lengths[i] += 1
        return self._append(rows, list(chosen), len(rows))

    def continued(self, text: SymbolText, prompt: Ids, codes: Ids) -> Rows:
        """The logits of every code of a given speech and of what follows it, in one pass.

        Args:
            text: as for `begin`.
            prompt: likewise.
            codes: [frames] of level 0.

        Returns:
            [frames + 1, A + 1]; row i is after i codes.
        """
        given = np.concatenate([[self._model.begin_code], prompt, codes])
        self._read_text(self._text_rows(self._model.ar, text))
        self._lengths = [len(given)]
        return self._append(self._audio_rows(given, 0), [0], len(codes) + 1)

    def refine(
        self,
        level: int,
        text: SymbolText,
        prompt: NDArray[np.integer],
        codes: NDArray[np.integer],
    ) -> Rows:
        """The logits of one level, given those below.

        Args:
            level: from 1 on.
            text: the prompt's symbols and the text's.
            prompt: [frames, R]; no frames without a voice.
            codes: [frames, at least `level`], the levels known so far.

        Returns:
            [frames, A].
        """
        net = self._model.nar
        if not 1 <= level < self._model.n_levels or codes.shape[1] < level or not len(codes):
            raise ValueError(f"level {level} of codes {codes.shape}")
        frames = [
            self._summed(prompt[:, : self._model.n_levels]),
            self._summed(codes[:, :level]),
        ]
        audio = np.concatenate(frames)
        audio += net.audio_scale * positions(0, len(audio), net.n_embd)
        rows = np.concatenate([self._text_rows(net, text), audio])
        return self._run_nar(level, rows, len(codes))

    # ---- inputs

    def _text_rows(self, net: Net, text: SymbolText) -> Rows:
        rows = self.look_up(net.name, "text", text.symbols)
        rows = rows + self.look_up(net.name, "language", text.languages)
        return rows + net.text_scale * positions(0, len(rows), net.n_embd)

    def _audio_rows(self, codes: Ids, start: int) -> Rows:
        net = self._model.ar
        rows = self.look_up("ar", "audio", codes)
        return rows + net.audio_scale * positions(start, len(rows), net.n_embd)

    def _summed(self, codes: NDArray[np.integer]) -> Rows:
        """Frames [n, levels] of the NAR's audio: the sum of their levels' rows, [n, d]."""
        total = np.zeros((len(codes), self._model.nar.n_embd), np.float32)
        if len(codes):
            for i in range(codes.shape[1]):
                total += self.look_up("nar", f"audio.{i}", codes[:, i])
        return total


def positions(start: int, n: int, width: int) -> Rows:
    """Rows `start` to `start + n - 1` of the sinusoidal table of positions, [n, width].

    Sine and cosine alternate, as in the original, which computes them in float32.
    """
    frequencies = np.exp(
        np.arange(0, width, 2, dtype=np.float32) * np.float32(-np.log(10_000.0) / width)
    )
    angles = np.arange(start, start + n, dtype=np.float32)[:, None] * frequencies
    table = np.empty((n, width), np.float32)
    table[:, 0::2], table[:, 1::2] = np.sin(angles), np.cos(angles)
    return table
