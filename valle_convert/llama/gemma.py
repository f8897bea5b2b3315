"""A `gemma` model whose positions may restart in every segment: `GemmaSession.step`.

In: raw embeddings, and positions that are the *model's own*: they may restart at 0 in every
segment, which llama.cpp's batches do not allow. Two tricks, both exact, both public API only:

* In both directions the order of a batch does not matter, so it is sorted by position
  (equal positions are allowed) and the logits are put back in order.
* Causally, rotary attention depends only on differences of positions, and llama.cpp's mask and
  checks only require that earlier elements have lower positions. With T the length of the first
  call (so that another segment can follow it), each earlier segment is decoded at T, T+1, ...,
  then its cells are lowered out of the way while its keys keep the phase that they were computed
  with (`Context.drop_pending_rotation`). The last segment goes in at T, T+1, ..., at once or token
  by token.

llama.cpp does not promise that a saved state forgets a pending rotation; it is proved on the loaded
model before the first sequence of several segments.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from valle_convert.errors import EnvironmentFault
from valle_convert.llama.context import EXACT, BoolArray, Context, FloatArray, IntArray, Settings
from valle_convert.llama.library import INSTALL_TESTED, Library
from valle_convert.llama.session import ALL_COLUMNS, SAME_NMSE, Session
from valle_convert.metrics import nmse

PROBE_SEGMENTS = 3
RMS_EPSILON = 1e-6
LAST = slice(-1, None)
NO_ROTATION = 1e-12  # a factor on positions; 0 would mean "as the file says"


@dataclass
class _Progress:
    """Where a causal sequence continues."""

    offset: int = 0  # llama.cpp's position minus the model's, in the last segment
    next_position: int = 0  # the model's own


#: Arguments of a step, checked: embeddings [n, n_embd], positions [n], and the wanted outputs [n].
_Given = tuple[FloatArray, IntArray, BoolArray]


class GemmaSession(Session):
    """A GGUF file of the `gemma` architecture, and the state of its sequences.

    With `last_norm`, which is `output_norm.weight`, it gives states instead of logits: the output
    of the last layer before that norm, [n_out, n_embd].
    """

    architecture = "gemma"

    def __init__(
        self,
        path: Path,
        *,
        probe_rows: Mapping[int, FloatArray],  # id -> row of token_embd.weight, for the scale
        n_ctx: int = 512,  # positions that a sequence has room for at once
        settings: Settings = EXACT,
        head_rows: Callable[[slice], FloatArray] | None = None,  # of token_embd.weight
        adapters: Sequence[Path] = (),
        last_norm: FloatArray | None = None,
        library: Library | None = None,
    ) -> None:
        self._progress: dict[Hashable, _Progress] = {}
        self._segments_proven = False
        self._probe_rows = dict(probe_rows)
        super().__init__(
            path,
            settings=settings,
            head_rows=head_rows,
            adapters=adapters,
            output="logits" if last_norm is None else "states",
            library=library,
        )
        with self._closed_on_error():
            if last_norm is not None:
                self._prove_states(last_norm)
            # The rows of token ids are multiplied by definition. llama.cpp 0.3.36 multiplies raw
            # embeddings too, except in gemma 3.
            self.input_scale = self._find_input_scale(
                probe_rows, of_ids=float(np.sqrt(self.n_embd))
            )
            self._prove_own_head(probe_rows)
            self._grow(n_ctx, 1)

    def forget(self, sequence: Hashable) -> None:
        super().forget(sequence)
        self._progress.pop(sequence, None)

    def forget_all(self) -> None:
        super().forget_all()
        self._progress = {}

    def step(
        self,
        embeddings: ArrayLike,
        positions: ArrayLike,
        *,
        causal: bool,
        outputs: slice = LAST,
        columns: slice = ALL_COLUMNS,
        sequence: Hashable = 0,
    ) -> FloatArray:
        """Run the inputs of the first layer, [n, n_embd], through the model: [n_out, n_columns].

        `positions` are the model's own; each segment counts 0, 1, ... . A causal call after the
        first continues the last segment or begins another at 0, for which a sequence of several
        segments has room once. A call that is not causal stands alone and leaves no state.
        """
        given = self._check(embeddings, positions, outputs)
        if not causal:
            return self._step_both_directions(given, columns)
        segments = self._segments_of_call(sequence, given[1])
        with self._forgotten_on_error([sequence]):
            return self._step_causal(sequence, given, segments, columns)

    def append(
        self,
        sequences: Sequence[Hashable],
        embeddings: ArrayLike,
        positions: ArrayLike,
        *,
        columns: slice = ALL_COLUMNS,
    ) -> FloatArray:
        """A causal step of one row [n, n_embd] for each of several sequences that have begun.

        The weights are read once: 12 x 1024 in F16 on two cores, two rows after 700 positions each:
        48 ms, compared with 82 in two calls. In both directions the arithmetic is the limit.
        """
        rows, own, _ = self._check(embeddings, positions, slice(None))
        for sequence, position in zip(sequences, own, strict=True):
            self._segments_of_call(sequence, position[None])
        with self._forgotten_on_error(sequences):
            places = np.array(
                [
                    self._place_of_next(sequence, int(position))
                    for sequence, position in zip(sequences, own, strict=True)
                ],
                np.int32,
            )
            return self.decode_steps(rows, places, sequences, columns)

    # -- the two ways through the model ------------------------------------------------------

    def _step_both_directions(self, given: _Given, columns: slice) -> FloatArray:
        """The logits of all outputs, in the order of the batch."""
        rows, positions, outputs = given
        split_segments(positions)
        order, alone = np.argsort(positions, kind="stable"), object()
        try:
            logits = self.decode(
                rows[order],
                positions[order],
                alone,
                outputs[order],
                causal=False,
                columns=columns,
            )
        finally:
            self.forget(alone)
        for parts in self._caught.values():
            parts[-1] = parts[-1][np.argsort(order)]
        return logits[np.argsort(order[outputs[order]])]

    def _step_causal(
        self, sequence: Hashable, given: _Given, segments: Sequence[slice], columns: slice
    ) -> FloatArray:
        """The logits of all outputs, in the order of the batch."""
        rows, positions, outputs = given
        n = len(positions)
        if len(segments) > 1:
            self._prove_segments()
        self._room_for({sequence: n})
        if sequence not in self._progress:
            # Room below for this whole call, so that a segment can still follow it. A single
            # segment needs none: its positions continue.
            self._progress[sequence] = _Progress(offset=n if len(segments) > 1 else 0)
        pieces = []
        for part in segments:
            first = self._place_of_next(sequence, int(positions[part.start]))
            size = part.stop - part.start
            pieces.append(
                self.decode(
                    rows[part],
                    np.arange(first, first + size, dtype=np.int32),
                    sequence,
                    outputs[part],
                    causal=True,
                    columns=columns,
                )
            )
            self._progress[sequence].next_position += size - 1
        return np.concatenate(pieces)

    def _place_of_next(self, sequence: Hashable, position: int) -> int:
        """llama.cpp's position of a row, which is then counted; 0 parks the segment before it."""
        progress = self._progress[sequence]
        if position == 0 and progress.next_position:
            context = self._context
            assert context is not None  # noqa: S101 - it holds the segment
            park_segment(context, self._places.index(sequence), progress.next_position)
        progress.next_position = position + 1
        return progress.offset + position

    def _segments_of_call(self, sequence: Hashable, positions: IntArray) -> list[slice]:
        """The segments of a causal call, checked against the state of the sequence."""
        if sequence not in self._progress:
            return split_segments(positions)
        progress = self._progress[sequence]
        if positions[0] == 0:
            segments = split_segments(positions)
            if self.length(sequence) + segments[-1].start > progress.offset:
                raise ValueError(
                    f"sequence {sequence} has room for one more segment after the first call, if "
                    "it has several; give all segments but the last in the first call"
                )
            return segments
        first = progress.next_position
        if not np.array_equal(positions, np.arange(first, first + len(positions))):
            raise ValueError(
                f"sequence {sequence} continues at position {first}, but the positions given "
                f"are {positions[:4].tolist()}...; forget it to begin another"
            )
        return [slice(0, len(positions))]

    @contextmanager
    def _forgotten_on_error(self, sequences: Sequence[Hashable]) -> Iterator[None]:
        """After a failure, the state of the cache is unknown."""
        try:
            yield
        except BaseException:
            for sequence in sequences:
                self.forget(sequence)
            raise

    # -- proofs on the loaded model ----------------------------------------------------------

    def _prove_states(self, last_norm: FloatArray) -> None:
        """Check that the states, normed by hand, equal the output of llama.cpp's own norm."""
        rows = np.stack(list(self._probe_rows.values()))
        states = self._outputs_of(rows, "states").astype(np.float64)
        size = np.sqrt(np.square(states).mean(-1, keepdims=True) + RMS_EPSILON)
        normed = self._outputs_of(rows, "embeddings")
        # NaN and infinity are reported during computation.
        if np.isfinite(normed).all() and not nmse(normed, states / size * last_norm) <= SAME_NMSE:
            raise EnvironmentFault(
                f"llama.cpp {self._version} does not give the states of the last layer of "
                f"{self.path}; {INSTALL_TESTED}."
            )

    def _prove_segments(self) -> None:
        """Check on this model that segments have the right phases.

        Two checks, since each sees what the other cannot. The keys in the cache, bit by bit: no
        number format blurs that. And the logits, compared with a reference without tricks: if every
        segment has one token, all positions are 0 and no key is rotated relative to a query, which
        is an ordinary causal batch without rotary embedding. If the pending rotation were applied
        after all, the logits would be those of running positions.
        """
        if self._segments_proven:
            return
        generator = np.random.default_rng(0)
        tokens = generator.standard_normal((PROBE_SEGMENTS, self.n_embd)).astype(np.float32)
        # As large as the rows of the file, so that the residual stream does not drown attention.
        size = np.median([np.sqrt(np.mean(row**2)) for row in self._probe_rows.values()])
        inputs = tokens * np.float32(size) / np.float32(self.input_scale)
        with self._new_context(PROBE_SEGMENTS, 1) as context:
            untouched = keys_stay_as_they_were(context, inputs)
            context.clear()
            running = _token_by_token(context, inputs)
            context.clear()
            offset = PROBE_SEGMENTS - 1
            segments = []
            for token in inputs[:-1]:
                segments.append(_token_by_token(context, token[None], start=offset))
                park_segment(context, 0, 1)
            segments.append(_token_by_token(context, inputs[-1:], start=offset))
        with self._new_context(PROBE_SEGMENTS, 1, rope_scale=NO_ROTATION) as context:
            reference = _token_by_token(context, inputs)
        to_reference = nmse(reference, np.concatenate(segments))
        to_running = nmse(running, np.concatenate(segments))
        # A model's attention may be so flat that positions drown in the rounding of its weights
        # (Q4_K, measured: 6e-4 either way). Then the logits say nothing, and the keys decide.
        if not untouched or not to_reference < 2 * to_running:
            raise EnvironmentFault(
                f"llama.cpp {self._version} does not support positions that restart in every "
                f"segment, as {self.path} needs them; {INSTALL_TESTED}."
            )
        self._segments_proven = True

    # -- arrays ------------------------------------------------------------------------------

    def _check(self, embeddings: ArrayLike, positions: ArrayLike, outputs: slice) -> _Given:
        embeddings = np.asarray(embeddings, dtype=np.float32)
        positions = np.asarray(positions)
        if embeddings.ndim != 2 or embeddings.shape[1] != self.n_embd or not len(embeddings):
            raise ValueError(
                f"embeddings of shape {embeddings.shape}, expected [n, {self.n_embd}], n at least 1"
            )
        if positions.shape != embeddings.shape[:1] or positions.dtype.kind not in "iu":
            raise ValueError(
                f"positions of shape {positions.shape} and type {positions.dtype}, expected "
                f"{len(embeddings)} integers"
            )
        wanted = np.zeros(len(embeddings), dtype=np.bool_)
        wanted[outputs] = True
        return embeddings, positions.astype(np.int32), wanted


def park_segment(context: Context, sequence: int, n: int) -> None:
    """Lower a sequence's positions by `n`, with its keys unchanged in memory."""
    context.move(sequence, -n)
    context.drop_pending_rotation(sequence)


def keys_stay_as_they_were(context: Context, inputs: FloatArray) -> bool:
    """Whether `park_segment` changes only the positions in the cache, also after a decode.

    A segment is decoded and parked, one more token is decoded (any pending rotation would be
    applied now) and removed, and the positions are moved back: the saved state must be unchanged.
    """
    n = len(inputs) - 1
    _token_by_token(context, inputs[:-1], start=n)
    before = context.save(0)
    park_segment(context, 0, n)
    _token_by_token(context, inputs[-1:], start=n)
    context.remove(0, start=n)
    context.move(0, n)
    return np.array_equal(context.save(0), before)


def _token_by_token(context: Context, inputs: FloatArray, *, start: int = 0) -> FloatArray:
    """The logits [n, n_vocab] of a causal sequence, decoded one token at a time.

    Then everything compared ran through the same kernels: another batch size rounds differently, by
    up to 1e-4 with quantized weights.
    """
    return np.concatenate(
        [
            context.decode(token[None], np.array([place]), causal=True).copy()
            for place, token in enumerate(inputs, start)
        ]
    )


def split_segments(positions: IntArray) -> list[slice]:
    """Cut positions at every restart at 0.

    >>> split_segments(np.array([0, 1, 2, 0, 0, 1]))
    [slice(0, 3, None), slice(3, 4, None), slice(4, 6, None)]
    """
    starts = np.flatnonzero(positions == 0)
    if not len(starts) or starts[0] != 0:
        raise ValueError(f"the first position is {positions[0]}, expected 0")
    lengths = np.diff(np.append(starts, len(positions)))
    expected = np.arange(len(positions)) - np.repeat(starts, lengths)
    wrong = np.flatnonzero(positions != expected)
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(
            f"positions[{at}] is {positions[at]}, expected {expected[at]} (the segment goes on) "
            "or 0 (another begins)"
        )
    ends = np.append(starts[1:], len(positions))
    return [slice(int(a), int(b)) for a, b in zip(starts, ends, strict=True)]
