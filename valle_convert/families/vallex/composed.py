"""VALL-E X's two networks: text and codes in, logits out, for any implementation.

The AR keeps a sequence whose text sees itself in both directions and whose codes see everything
before them; the NAR sees everything, and every pass stands alone. PyTorch and stock llama.cpp get
finished rows: sums of tables, languages and positions.

Shapes: n rows, d = n_embd, A = codebook_size, R = n_levels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from valle_convert.decode.batch import Element
from valle_convert.families.vallex.facts import Net, VallexModel
from valle_convert.network.protocol import AnyNetwork

Rows = NDArray[np.float32]
Ids = NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class VallexText:
    """All text rows: the prompt's transcript, then the text to say; nothing around them."""

    symbols: NDArray[np.int32]  # ids of the table in `symbols.py`, [n]
    #: The network's id of each symbol's language (en 0, zh 1, ja 2), [n].
    languages: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.symbols)

    def __add__(self, other: VallexText) -> VallexText:
        return VallexText(
            np.concatenate([self.symbols, other.symbols]),
            np.concatenate([self.languages, other.languages]),
        )


class ComposedNetwork(AnyNetwork):
    """AR and NAR of one model, and the state of the AR's sequences, each named by any key.

    AR logits have one code more than NAR logits: stop, the codebook size.
    """

    def __init__(self, model: VallexModel) -> None:
        self.model: VallexModel = model

    # ---- implemented by each backend

    @abstractmethod
    def look_up(self, net: str, table: str, ids: Ids) -> Rows:
        """Rows of an input table of `ar` or `nar`, [n] -> [n, d]."""

    @abstractmethod
    def _read_text(self, sequence: Hashable, rows: Rows, room: int) -> None:
        """Begin a sequence with the text [n, d], in both directions."""

    @abstractmethod
    def _extend(self, sequence: Hashable, rows: Rows, n_outputs: int) -> Rows:
        """Append audio to a sequence; the AR head's last logits, [n_outputs, A + 1]."""

    @abstractmethod
    def _append(self, sequences: Sequence[Hashable], rows: Rows) -> Rows:
        """Append a row to each of several sequences; the AR head's logits, [n, A + 1]."""

    @abstractmethod
    def _fork(self, sequence: Hashable, copies: Sequence[Hashable]) -> None:
        """Make copies of a sequence."""

    @abstractmethod
    def make_room(self, n_seq: int) -> None:
        """Reserve room for `n_seq` more sequences."""

    @abstractmethod
    def forget(self, sequence: Hashable) -> None:
        """End a sequence, if there is one of this key."""

    @abstractmethod
    def _run_nar(self, level: int, rows: Rows, n_outputs: int) -> Rows:
        """Rows [n, d] in both directions; the logits of the last ones, [n_outputs, A]."""

    # ---- decoding

    def begin_ar(
        self, text: VallexText, prompt: Ids, sequences: Sequence[Hashable] = (0,), *, room: int = 0
    ) -> Rows:
        """Decode text, begin and the prompt's level 0 [frames], the same in all sequences.

        Reserves `room` codes for each. Gives the logits of the first code, [1, A + 1].
        """
        codes = np.concatenate([[self.model.begin_code], prompt]).astype(np.int64)
        first, *copies = sequences
        for sequence in sequences:
            self.forget(sequence)
        self.make_room(len(sequences))
        self._read_text(first, self._text_rows(self.model.ar, text), len(codes) + room)
        logits = self._extend(first, self._audio_rows(codes, np.arange(len(codes))), 1)
        if copies:
            self._fork(first, copies)
        return logits

    def append_codes(self, elements: Sequence[Element]) -> Rows:
        """Grow some sequences; the logits of the next codes, [n, A + 1].

        The prompt's first code has position 1, after begin.
        """
        sequences, codes, positions = zip(*elements, strict=True)
        rows = self._audio_rows(np.array(codes), np.array(positions))
        return self._append(sequences, rows)

    def continued(self, text: VallexText, prompt: Ids, codes: Ids) -> Rows:
        """The logits of given codes [frames] of level 0, and of the next one, in one pass.

        Row i of [frames + 1, A + 1] is after i codes.
        """
        given = np.concatenate([[self.model.begin_code], prompt, codes]).astype(np.int64)
        alone = object()
        try:
            self._read_text(alone, self._text_rows(self.model.ar, text), len(given))
            rows = self._audio_rows(given, np.arange(len(given)))
            return self._extend(alone, rows, len(codes) + 1)
        finally:
            self.forget(alone)

    def pass_nar(
        self, text: VallexText, prompt: NDArray[np.integer], codes: NDArray[np.integer]
    ) -> Rows:
        """Level q at every frame, from codes [frames, q] of the levels below it: [frames, A].

        The prompt [frames, levels] may have no frames.
        """
        net, level = self.model.nar, codes.shape[1]
        if not 1 <= level < self.model.n_levels or not len(codes):
            raise ValueError(f"codes {codes.shape} of a model of {self.model.n_levels} levels")
        audio = np.concatenate([self._summed(prompt), self._summed(codes)])
        audio += net.audio_scale * sinusoids(np.arange(len(audio)), net.n_embd)
        rows = np.concatenate([self._text_rows(net, text), audio])
        return self._run_nar(level, rows, len(codes))

    # ---- inputs

    def _text_rows(self, net: Net, text: VallexText) -> Rows:
        rows = self.look_up(net.name, "text", text.symbols)
        rows = rows + self.look_up(net.name, "language", text.languages)
        return rows + net.text_scale * sinusoids(np.arange(len(rows)), net.n_embd)

    def _audio_rows(self, codes: Ids, positions: Ids) -> Rows:
        net = self.model.ar
        rows = self.look_up("ar", "audio", codes)
        return rows + net.audio_scale * sinusoids(positions, net.n_embd)

    def _summed(self, codes: NDArray[np.integer]) -> Rows:
        """Frames [n, levels] of the NAR's audio: the sum of their levels' rows, [n, d]."""
        total = np.zeros((len(codes), self.model.nar.n_embd), np.float32)
        if len(codes):
            for i in range(codes.shape[1]):
                total += self.look_up("nar", f"audio.{i}", codes[:, i])
        return total


def sinusoids(positions: Ids, width: int) -> Rows:
    """Rows of the sinusoidal table of positions, [n, width].

    Sine and cosine alternate, as in the original, which computes them in float32.
    """
    frequencies = np.exp(
        np.arange(0, width, 2, dtype=np.float32) * np.float32(-np.log(10_000.0) / width)
    )
    angles = positions.astype(np.float32)[:, None] * frequencies
    table = np.empty((len(positions), width), np.float32)
    table[:, 0::2], table[:, 1::2] = np.sin(angles), np.cos(angles)
    return table
