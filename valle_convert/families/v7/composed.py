"""Inputs and outputs of a VALL-E of version 7, for any implementation.

    speech     phonemes | language | prompt | tone | response   -> codes of every level, in place
    length     phonemes | language | prompt | tone | marker     -> a duration, at the marker
    phonemes   response | language | phonemes                   -> the next phoneme
    text       phonemes | language | text                       -> the next piece of text

A frame of the prompt or of the response is one element; a separator is between two segments.
"""

from abc import abstractmethod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from valle_convert.decode.causal import check_context
from valle_convert.families.v7.facts import DIGITS, VersionSevenModel
from valle_convert.model.inputs import Condition, FloatArray, IntArray, join
from valle_convert.network.protocol import AnyNetwork

Encoded = Literal["prompt", "response"]


class AllLevelsNetwork(AnyNetwork):
    """A model of version 7 that computes. Close it, or use it as a context manager.

    d is the width, A the codebook size.
    """

    def __init__(self, model: VersionSevenModel) -> None:
        self.model: VersionSevenModel = model
        self._prompt: tuple[NDArray[Any], FloatArray] | None = None

    # ---------------------------------------------------------------------- implementation

    @abstractmethod
    def look_up(self, table: str, rows: IntArray) -> FloatArray:
        """Rows of a table of the backbone's file, [n] -> [n, d]."""

    @abstractmethod
    def encode(self, kind: Encoded, codes: IntArray) -> FloatArray:
        """The elements of frames, [n, levels] -> [n, d]."""

    @abstractmethod
    def run(
        self, rows: FloatArray, positions: NDArray[np.int32], n_outputs: int, *, causal: bool
    ) -> FloatArray:
        """The backbone's output for the last elements, [n, d] -> [n_outputs, d].

        It includes the last norm, if the model has one.
        """

    @abstractmethod
    def decode(self, states: FloatArray) -> FloatArray:
        """The logits of every level, [n, d] -> [levels, n, A + 1]."""

    @abstractmethod
    def head(self, name: str, states: FloatArray) -> FloatArray:
        """The logits of another head, [n, d] -> [n, rows of the head]."""

    # ---------------------------------------------------------------------------- outputs

    def levels(self, condition: Condition, response: IntArray) -> FloatArray:
        """The logits of every level, [frames, levels] -> [levels, frames, A + 1].

        Unknown codes of the response are mask codes.
        """
        segments = [*self._leading(condition), self._encoded("response", response)]
        return self.decode(self._states(segments, "level", len(response)))

    def length(self, condition: Condition, *, everywhere: bool = False) -> FloatArray:
        """The duration of the text: [1, 1] seconds, or the logits of digits [5, 10].

        `everywhere` gives those of all elements, since one number says little about a network.
        """
        segments = [*self._leading(condition), self.look_up("length", np.zeros(1, np.int64))]
        n = sum(len(segment) + 1 for segment in segments) - 1 if everywhere else 1
        found = self.head("length", self._states(segments, "length", n))
        return found if found.shape[1] == 1 else found.reshape(-1, DIGITS)

    def phonemes(self, response: IntArray, phonemes: IntArray, language: int | None) -> FloatArray:
        """The logits of the phoneme after each given one, [n, rows of the head]."""
        return self._following("phonemes", self._encoded("response", response), phonemes, language)

    def text(self, phonemes: IntArray, text: IntArray, language: int | None) -> FloatArray:
        """The logits of the piece of text after each given one."""
        return self._following("text", self.look_up("phonemes", phonemes), text, language)

    def _following(
        self, table: str, before: FloatArray, given: IntArray, language: int | None
    ) -> FloatArray:
        segments = [before, *self._selected(language), self.look_up(table, given)]
        return self.head(table, self._states(segments, table, len(given)))

    # ------------------------------------------------------------------------- segments

    def _leading(self, condition: Condition) -> list[FloatArray]:
        """Everything before the response or the marker."""
        segments = [self.look_up("phonemes", condition.phonemes)]
        segments += self._selected(condition.language)
        prompt = condition.prompt
        if prompt is not None and len(prompt):
            # A prompt stays the same over many passes.
            if self._prompt is None or not np.array_equal(self._prompt[0], prompt):
                self._prompt = (np.array(prompt), self._encoded("prompt", prompt))
            encoded = self._prompt[1]
            if condition.task != "tts":
                row = self.model.tasks.index(condition.task)
                encoded = np.concatenate([self.look_up("task", np.array([row])), encoded])
            segments.append(encoded)
        if condition.tone is not None:
            segments.append(self.look_up("tone", np.array([condition.tone])))
        return segments

    def _selected(self, language: int | None) -> list[FloatArray]:
        return [] if language is None else [self.look_up("language", np.array([language]))]

    def _encoded(self, kind: Encoded, codes: IntArray) -> FloatArray:
        config = self.model.config
        codes, n_codes = np.asarray(codes), self.model.audio.table(f"{kind}.0").n_rows
        if codes.ndim != 2 or codes.shape[1] != config.n_levels:
            raise ValueError(f"{kind} of {list(codes.shape)}, expected [n, {config.n_levels}]")
        if codes.size and (codes.min() < 0 or codes.max() >= n_codes):
            raise ValueError(f"{kind} has codes up to {codes.max()}, expected 0 to {n_codes - 1}")
        check_context(config, len(codes))  # before an encoder takes memory for all of them
        return self.encode(kind, codes)

    def _states(self, segments: list[FloatArray], head: str, n_outputs: int) -> FloatArray:
        config, causal = self.model.config, self.model.is_causal(head)
        check_context(config, sum(len(segment) + 1 for segment in segments) - 1)
        separator = self.look_up("separator", np.zeros(1, np.int64))
        inputs = join(segments, separator, config.positions)
        return self.run(inputs.embeddings, inputs.positions, n_outputs, causal=causal)
