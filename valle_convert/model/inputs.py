"""The inputs of the network: segments of summed table rows, with separators and positions.

A request (phonemes, a prompt, codes ...) is composed into segments. Each element of a segment is a
sum of rows, named symbolically as (table, row): the PyTorch reference looks them up in the
checkpoint's tensors and the llama.cpp session in the converted file, so this function serves both.

    tts, ns, sr   phonemes | language | level | prompt | tone | response
    len           phonemes | language | level | prompt | tone | length digits
    stt           response | language | level | phonemes

A separator comes between two segments and belongs to the first of them; there is none at the end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from valle_convert.errors import InputError
from valle_convert.model.spec import BOS_PHONEME, EOS_PHONEME, GemmaModel, Model, Positions

IntArray = NDArray[np.integer]
FloatArray = NDArray[np.float32]
#: `look_up(table, rows [n]) -> embeddings [n, n_embd]`
LookUp = Callable[[str, IntArray], FloatArray]

AudioTask = Literal["tts", "ns", "sr"]

#: The null condition of guidance has these phonemes, and no prompt.
NULL_PHONEMES = (BOS_PHONEME, EOS_PHONEME)


@dataclass(frozen=True)
class Segment:
    """Elements that are each a sum of table rows."""

    tables: tuple[str, ...]  # one per term, [n_terms]
    rows: IntArray  # the row in each term's table, [n_elements, n_terms]
    lead: tuple[str, int] | None = None  # a single row (table, row) as the first element

    def __len__(self) -> int:
        return len(self.rows) + (self.lead is not None)


@dataclass(frozen=True)
class Condition:
    """The input of a response."""

    phonemes: IntArray  # ids, with the marks around them, [n]
    language: int | None = None  # id; None if the model has no languages
    prompt: IntArray | None = None  # codes of the voice, [frames, levels]; None for no prompt
    tone: int | None = None
    #: "tts", or "ns" (noise suppression) or "sr" (speech removal) on the prompt.
    task: AudioTask = "tts"

    @classmethod
    def of(
        cls,
        model: GemmaModel[Any],
        phonemes: IntArray,
        prompt: IntArray | None = None,
        language: int = 0,
    ) -> Self:
        """With a language and a tone if the model has them."""
        return cls(
            phonemes,
            language if model.has_table("language") else None,
            prompt,
            tone=0 if "tone" in model.config.capabilities else None,
        )

    def null(self) -> Self:
        """Guidance's null condition: no text and no voice, the same language."""
        return type(self)(np.array(NULL_PHONEMES), self.language)


@dataclass(frozen=True)
class Inputs:
    """A whole sequence, ready for a network."""

    embeddings: FloatArray  # [n, n_embd], float32
    positions: NDArray[np.int32]  # [n]; they restart at 0 with every segment, or continue
    #: The start of the last segment; its elements are `embeddings[last:]`, and the separator before
    #: it is element `last - 1`.
    last: int

    def __len__(self) -> int:
        return len(self.positions)


def speech_segments(
    model: Model, condition: Condition, level: int, response: IntArray, *, masked: bool = False
) -> list[Segment]:
    """The segments of a pass that predicts one codebook level of a response.

    `response` is the known part: level 0 so far for the AR [frames], level 0 with mask codes where
    `masked` [frames], and at least `level` levels [frames, levels] for a NAR level.
    """
    segments = _leading(model, condition, level)
    if level == 0:
        table = "response.mask" if masked else "response.ar"
        codes = np.asarray(response).reshape(len(response), -1)[:, :1]
        segments.append(_segment(model, (table,), codes))
        return segments
    codes = np.asarray(response)
    if codes.ndim != 2 or codes.shape[1] < level:
        raise ValueError(f"level {level} needs {level} levels before it, not {list(codes.shape)}")
    levels = range(level) if model.config.sum_response else range(level - 1, level)
    tables = tuple(f"response.{i + 1}" for i in levels)
    segments.append(_segment(model, tables, codes[:, levels.start : levels.stop]))
    return segments


def length_segments(
    model: Model, condition: Condition, digits: Sequence[int] | IntArray
) -> list[Segment]:
    """The segments of a pass that predicts the next digit of a duration; `digits` begins with 0."""
    rows = np.asarray(digits, np.int64).reshape(-1, 1)
    return [*_leading(model, condition, 0), _segment(model, ("length",), rows)]


def transcript_segments(
    model: Model, response: IntArray, phonemes: IntArray, language: int | None
) -> list[Segment]:
    """The segments of a pass that predicts the next phoneme of some speech [frames, levels].

    `phonemes` are the ids so far, beginning with `BOS_PHONEME`.
    """
    # All levels except the last. Level 0 is looked up in the AR's table, the others in the tables
    # of the NAR levels.
    n_terms = model.config.n_levels - 1
    if n_terms == 0:
        raise InputError(
            "A model with one codebook level cannot transcribe, since transcription reads all "
            "levels but the last."
        )
    tables = tuple("response.ar" if i == 0 else f"response.{i + 1}" for i in range(n_terms))
    codes = np.asarray(response)
    if codes.ndim != 2 or codes.shape[1] < n_terms:
        raise ValueError(f"speech needs {n_terms} levels, not {list(codes.shape)}")
    segments = [_segment(model, tables, codes[:, :n_terms])]
    segments += _selectors(model, language, 0)
    rows = np.asarray(phonemes).reshape(-1, 1)
    return [*segments, _segment(model, ("phonemes",), rows)]


def assemble(model: Model, segments: Sequence[Segment], look_up: LookUp) -> Inputs:
    """Look up and sum the rows, put separators between the segments, and count positions."""
    separator = look_up("separator", np.zeros(1, np.int64))
    pieces = [embed(one, look_up) if len(one) else separator[:0] for one in segments]
    return join(pieces, separator, model.config.positions)


def join(pieces: Sequence[FloatArray], separator: FloatArray, positions: Positions) -> Inputs:
    """Put the separator [1, n_embd] between the embeddings of segments, and count positions."""
    *before, last = pieces
    parts = [part for piece in before for part in (piece, separator)]
    counts = [len(piece) + 1 for piece in before]
    embeddings = np.concatenate([*parts, last])
    return Inputs(embeddings, positions_of(positions, [*counts, len(last)]), sum(counts))


def embed(segment: Segment, look_up: LookUp) -> FloatArray:
    """The embeddings of a segment's elements, [n, n_embd], without a separator."""
    total = look_up(segment.tables[0], segment.rows[:, 0])
    for term, table in enumerate(segment.tables[1:], start=1):
        total = total + look_up(table, segment.rows[:, term])
    if segment.lead is not None:
        table, row = segment.lead
        total = np.concatenate([look_up(table, np.array([row])), total])
    return total


def positions_of(positions: Positions, counts: Sequence[int]) -> NDArray[np.int32]:
    """Positions of segments with these numbers of elements, each with its separator."""
    if positions == "unified":
        return np.arange(sum(counts), dtype=np.int32)
    return np.concatenate([np.arange(count, dtype=np.int32) for count in counts])


def _leading(model: Model, condition: Condition, level: int) -> list[Segment]:
    """Everything before the response or the digits."""
    phonemes = np.asarray(condition.phonemes).reshape(-1, 1)
    segments = [_segment(model, ("phonemes",), phonemes)]
    segments += _selectors(model, condition.language, level)
    if condition.prompt is not None and len(condition.prompt):
        segments.append(_prompt(model, condition, level))
    if condition.tone is not None:
        segments.append(_one(model, "tone", condition.tone))
    return segments


def _selectors(model: Model, language: int | None, level: int) -> list[Segment]:
    segments = [] if language is None else [_one(model, "language", language)]
    return [*segments, _one(model, "level", level)]


def _one(model: Model, table: str, row: int) -> Segment:
    return _segment(model, (table,), np.array([[row]]))


def _prompt(model: Model, condition: Condition, level: int) -> Segment:
    """The voice: as many of its levels as the response has, at least one."""
    codes = np.asarray(condition.prompt)
    n = max(level, 1)
    if codes.ndim != 2 or codes.shape[1] < n:
        raise ValueError(f"level {level} needs a prompt of {n} levels, not {list(codes.shape)}")
    levels = range(n) if model.config.sum_prompt else range(n - 1, n)
    tables = tuple(f"prompt.{i}" for i in levels)
    prompt = _segment(model, tables, codes[:, levels.start : levels.stop])
    if condition.task == "tts":
        return prompt
    return replace(prompt, lead=("task", model.tasks.index(condition.task)))


def _segment(model: Model, tables: tuple[str, ...], rows: IntArray) -> Segment:
    """A segment, after a check that its rows are inside their tables."""
    for term, table in enumerate(tables):
        column, n_rows = rows[:, term], model.table(table).n_rows
        if len(column) and (column.min() < 0 or column.max() >= n_rows):
            raise ValueError(f"{table} has rows 0 to {n_rows - 1}, not {column.max()}")
    return Segment(tables, rows.astype(np.int64))
