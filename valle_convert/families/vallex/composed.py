"""VALL-E X's two networks: text and codes in, logits out, for any implementation.

The AR keeps a sequence whose text sees itself in both directions and whose codes see everything
before them; the NAR sees everything, and every pass stands alone. PyTorch and stock llama.cpp get
finished rows: sums of tables, languages and positions.

Shapes: n rows, d = n_embd, A = codebook_size, R = n_levels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from valle_convert.closing import Closing
from valle_convert.families.vallex.facts import Net, VallexModel

Rows = NDArray[np.float32]
Ids = NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class VallexText:
    """All text rows: the prompt's transcript, then the text to say; nothing around them.

    Attributes:
        symbols: ids of the table in `symbols.py`, [n].
        languages: the network's id of each symbol's language (en 0, zh 1, ja 2), [n].
    """

    symbols: NDArray[np.int32]
    languages: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.symbols)

    def __add__(self, other: VallexText) -> VallexText:
        return VallexText(
            np.concatenate([self.symbols, other.symbols]),
            np.concatenate([self.languages, other.languages]),
        )


class ComposedNetwork(Closing):
    """AR and NAR of one model, and the state of the AR's copies.

    AR logits have one code more than NAR logits: stop.
    """

    def __init__(self, model: VallexModel) -> None:
        self._model = model
        self._lengths: list[int] = []  # audio rows that each sequence holds

    @property
    def model(self) -> VallexModel:
        return self._model

    @property
    def n_levels(self) -> int:
        return self._model.n_levels

    @property
    def codebook_size(self) -> int:
        """Codes of a level, without stop; also the id of stop in AR logits."""
        return self._model.codebook_size

    # ---- implemented by each backend

    @abstractmethod
    def look_up(self, net: str, table: str, ids: Ids) -> Rows:
        """Rows of an input table of `ar` or `nar`, [n] -> [n, d]."""

    @abstractmethod
    def _read_text(self, rows: Rows, room: int) -> None:
        """Forget all sequences; give the text [n, d] to sequence 0, in both directions."""

    @abstractmethod
    def _append(self, rows: Rows, sequences: Sequence[int], n_outputs: int) -> Rows:
        """Append audio, causally: all rows to one sequence, or one row to each of several.

        Gives the AR head's logits of the last `n_outputs` rows, [n_outputs, A + 1].
        """

    @abstractmethod
    def _fork(self, n: int) -> None:
        """Make sequences 1 to n - 1 copies of sequence 0."""

    @abstractmethod
    def _run_nar(self, level: int, rows: Rows, n_outputs: int) -> Rows:
        """Rows [n, d] in both directions; the logits of the last ones, [n_outputs, A]."""

    # ---- decoding

    def begin_ar(self, text: VallexText, prompt: Ids, *, room: int = 0, n_copies: int = 1) -> Rows:
        """Decode text, begin and the prompt's level 0 [frames]; earlier sequences are forgotten.

        Gives the logits of the first code, the same for all copies, [1, A + 1].
        """
        codes = np.concatenate([[self._model.begin_code], prompt]).astype(np.int64)
        self._read_text(self._text_rows(self._model.ar, text), len(codes) + n_copies * room)
        logits = self._append(self._audio_rows(codes, 0), [0], 1)
        if n_copies > 1:
            self._fork(n_copies)
        self._lengths = [len(codes)] * n_copies
        return logits

    def step_ar(self, copies: Sequence[int], codes: Ids) -> Rows:
        """Add a code to some of the copies: [copies] -> logits of the next, [copies, A + 1]."""
        given = [
            self._audio_rows(np.array([code]), self._lengths[i])
            for i, code in zip(copies, codes, strict=True)
        ]
        for i in copies:
            self._lengths[i] += 1
        return self._append(np.concatenate(given), copies, len(given))

    def continued(self, text: VallexText, prompt: Ids, codes: Ids) -> Rows:
        """The logits of given codes [frames] of level 0, and of the next one, in one pass.

        Row i of [frames + 1, A + 1] is after i codes.
        """
        given = np.concatenate([[self._model.begin_code], prompt, codes]).astype(np.int64)
        self._read_text(self._text_rows(self._model.ar, text), len(given))
        self._lengths = [len(given)]
        return self._append(self._audio_rows(given, 0), [0], len(codes) + 1)

    def pass_nar(
        self, text: VallexText, prompt: NDArray[np.integer], codes: NDArray[np.integer]
    ) -> Rows:
        """Level q at every frame, from codes [frames, q] of the levels below it: [frames, A].

        The prompt [frames, levels] may have no frames. The AR's sequence is lost.
        """
        net, level = self._model.nar, codes.shape[1]
        if not 1 <= level < self.n_levels or not len(codes):
            raise ValueError(f"codes {codes.shape} of a model of {self.n_levels} levels")
        audio = np.concatenate([self._summed(prompt), self._summed(codes)])
        audio += net.audio_scale * positions(0, len(audio), net.n_embd)
        rows = np.concatenate([self._text_rows(net, text), audio])
        return self._run_nar(level, rows, len(codes))

    # ---- inputs

    def _text_rows(self, net: Net, text: VallexText) -> Rows:
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
