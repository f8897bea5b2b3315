"""A model and the sequence so far: raw embeddings in, logits out.

In: a GGUF file of the `gemma` architecture. Out: `Session.step(embeddings, positions,
causal)`, where positions are the *model's own*: they may restart at 0 in every segment,
which llama.cpp's batches do not allow. Two tricks, both exact, both public API only:

* In both directions the order of a batch means nothing, so it is sorted by position
  (equal positions are allowed) and the logits are put back in order.
* Causally, rotary attention knows only differences of positions, and llama.cpp's mask and
  checks know only that what came before is lower. With T the length of the first call (so
  that another segment can follow it), each earlier segment is decoded at T, T+1, ..., then
  its cells are lowered out of the way while its keys keep the phase that they were computed
  with (`Context.drop_pending_rotation`). The last segment goes in at T, T+1, ..., at once or
  token by token.

Both things that llama.cpp does not promise are found out on the loaded model and never
assumed: by what its graph multiplies raw embeddings, and that a saved state forgets a
pending rotation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from valle_convert.closing import Closing
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.llama.context import (
    BoolArray,
    CacheType,
    Context,
    FloatArray,
    IntArray,
    LlamaModel,
)
from valle_convert.llama.cpu import usable_cores
from valle_convert.llama.library import Library, load_library
from valle_convert.llama.probe import prove_library
from valle_convert.metrics import nmse

OutputRows = Sequence[int] | slice | NDArray[np.bool_] | NDArray[np.int64] | None

ALL_COLUMNS = slice(None)
CAUSAL_UBATCH = 512  # llama.cpp's default; longer causal batches are split by llama.cpp
# Below this many weights, waiting for a second thread takes as long as it saves: measured, 11
# million weights gain nothing and 39 million a third.
SMALL_MODEL = 20_000_000
PROBE_ROWS = 32  # rows of the token table looked at, evenly spread over it
PROBE_SEGMENTS = 3
NO_ROTATION = 1e-12  # a factor on positions; 0 would mean "as the file says"

# A row fed as an embedding gives the logits of its id bit by bit (measured on f32, f16, Q8_0 and
# Q4_K files), and 0.3 to 1.5 with the wrong scale. Normalized mean square errors, both.
SAME_NMSE = 1e-4
CONTRAST = 100.0


@dataclass(frozen=True, eq=False)
class Pass:
    """What one sequence contributes to a `step_many`; the arguments of `Session.step`."""

    embeddings: ArrayLike  # [n, n_embd]
    positions: ArrayLike  # [n]
    outputs: OutputRows = None


@dataclass
class _Progress:
    """How far a causal sequence has come."""

    n_cells: int = 0  # cells that it holds in the cache
    offset: int = 0  # llama.cpp's position minus the model's, in the last segment
    next_position: int = 0  # the model's own


@dataclass(frozen=True, eq=False)
class _Checked:
    """A `Pass` whose arrays have been checked and converted."""

    embeddings: FloatArray  # [n, n_embd], as the caller gave them
    positions: IntArray  # [n]
    outputs: BoolArray  # [n]

    @property
    def n(self) -> int:
        return len(self.positions)


class Session(Closing):
    """A GGUF file opened for running, and the state of `n_seq` independent sequences.

    Args:
        path: a GGUF file of the `gemma` architecture.
        probe_rows: token id -> its row in `token_embd.weight` [n_embd], for finding the
            input scale; the likeliest to show it first.
        n_ctx: positions of one sequence to make room for at once. A longer sequence makes
            the room grow by itself: the context is made again and the state moved over.
        n_seq: independent sequences, 0 to n_seq - 1.
        n_threads: None for the cores that this process may use, or one for a small model.
        cache_type: number format of cached keys and values. "f32" is the default since "f16"
            makes the logits of an f32 file seven times less exact (normalized mean square error
            against float64: 6e-8 and 4e-7 with 2 layers x 64, 1.3e-5 and 9.6e-5 with random
            12 x 1024). What f16 gains on two cores: nothing in a causal step (37 ms both), a
            sixth in a pass of 700 positions in both directions (3.2 and 2.6 s).
        flash_attention: use the fused kernel. Off by default: it computes in f16 whatever the
            cache is, with the errors of an f16 cache, and a causal step takes 48 ms for 37.
        use_mmap: map the file instead of reading it.
        adapters: LoRA files to load; `use_adapters` switches them on.
        library: a loaded library; None proves the machine's in a child process, then loads it.

    Raises:
        InputError: the file is missing, broken, or of another architecture.
        EnvironmentFault: no usable llama.cpp, no memory, or one of the assumptions about its
            graph does not hold.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        probe_rows: Mapping[int, FloatArray],
        n_ctx: int = 512,
        n_seq: int = 1,
        n_threads: int | None = None,
        cache_type: CacheType = "f32",
        flash_attention: bool = False,
        use_mmap: bool = True,
        adapters: Sequence[Path] = (),
        library: Library | None = None,
    ) -> None:
        if n_ctx < 1 or n_seq < 1:
            raise ValueError(f"n_ctx and n_seq count from 1, not {n_ctx} and {n_seq}")
        self.path = Path(path)
        self.n_seq = n_seq
        self._cache_type: CacheType = cache_type
        self._flash_attention = flash_attention
        self._segments_proven = False
        self._context: Context | None = None
        self._progress = [_Progress() for _ in range(n_seq)]
        self._scales: tuple[float, ...] = ()
        if library is None:
            prove_library()
            library = load_library()
        self._model = LlamaModel(library, self.path, use_mmap=use_mmap)
        if n_threads is None:
            n_threads = 1 if self._model.n_params < SMALL_MODEL else usable_cores()
        self.n_threads = n_threads
        try:
            self._check_architecture()
            self._adapters = [self._model.load_adapter(one) for one in adapters]
            self._probe_rows = dict(probe_rows)
            self.input_scale = self._find_input_scale()
            self._context = self._new_context(n_ctx * n_seq, CAUSAL_UBATCH)
        except BaseException:
            self.close()
            raise

    @property
    def n_embd(self) -> int:
        """The width of an embedding."""
        return self._model.n_embd

    @property
    def n_vocab(self) -> int:
        """The number of logits that a position has."""
        return self._model.n_vocab

    @property
    def n_layer(self) -> int:
        """The number of transformer layers."""
        return self._model.n_layer

    @property
    def n_params(self) -> int:
        """The number of weights that llama.cpp counts."""
        return self._model.n_params

    @property
    def n_ctx(self) -> int:
        """The positions that there is room for now, all sequences together."""
        return self._open_context().n_ctx

    def metadata(self, key: str) -> str | None:
        """A value of the file's metadata as llama.cpp prints it; None where the key is missing."""
        return self._model.metadata(key)

    def length(self, sequence: int = 0) -> int:
        """How many positions a causal sequence holds."""
        return self._progress[sequence].n_cells

    def reset(self, sequence: int | None = None) -> None:
        """Empty one causal sequence, or all of them."""
        context = self._open_context()
        if sequence is None:
            context.clear()
            self._progress = [_Progress() for _ in range(self.n_seq)]
        else:
            context.remove(sequence)
            self._progress[sequence] = _Progress()

    def use_adapters(self, scales: Sequence[float]) -> None:
        """Scale each of the session's adapters from now on; 0 switches it off.

        What a causal sequence holds already stays as it was computed.
        """
        if tuple(scales) != self._scales:
            self._scales = tuple(scales)
            self._switch_adapters(self._open_context())

    def _switch_adapters(self, context: Context) -> None:
        used = zip(self._adapters, self._scales, strict=True) if self._scales else ()
        context.use_adapters([(adapter, scale) for adapter, scale in used if scale])

    def step(
        self,
        embeddings: ArrayLike,
        positions: ArrayLike,
        *,
        causal: bool,
        outputs: OutputRows = None,
        columns: slice = ALL_COLUMNS,
        sequence: int = 0,
    ) -> FloatArray:
        """Run a batch of one sequence through the model.

        Args:
            embeddings: [n, n_embd] floats, as the first layer is to see them.
            positions: [n] the model's own; each segment counts 0, 1, ... . A causal call
                after the first continues the last segment or begins another at 0, which a
                sequence of several segments has room for once.
            causal: True appends to the sequence, whose state stays. False computes the whole
                sequence at once in both directions, and empties the state of every sequence.
            outputs: positions of the batch whose logits are wanted: indices (any order),
                a slice, a boolean mask, or None for the last.
            columns: the slice of the n_vocab logits that is copied out.
            sequence: which causal sequence; without meaning in both directions.

        Returns:
            float32 [n_out, n_columns], in the order of `outputs`.

        Raises:
            ValueError: the arrays do not fit each other, the model, or the state.
            EnvironmentFault: llama.cpp fails; the sequences concerned are empty then.
        """
        one = Pass(embeddings, positions, outputs)
        if causal:
            return self._step_causal({sequence: one}, columns)[0]
        return self._step_both_directions([one], columns)[0]

    def step_many(
        self, passes: Sequence[Pass], *, causal: bool, columns: slice = ALL_COLUMNS
    ) -> list[FloatArray]:
        """Run several sequences in one batch, none of which sees another.

        Causally, pass i continues sequence i, and the last segments of all passes go into one
        batch: the weights are read once (12 x 1024 in F16 on two cores, two new tokens after 700
        positions each: 48 ms, against 82 in two calls). In both directions the arithmetic is the
        limit, and a batch of two computes the masked attention between them on top (6.6 s,
        against 5.5 in two calls), so there the passes run one after the other.

        Args:
            passes: at most n_seq of them where `causal`.
            causal: as in `step`.
            columns: as in `step`.

        Returns:
            For each pass, float32 [n_out, n_columns].

        Raises:
            ValueError, EnvironmentFault: as `step`.
        """
        if causal:
            return self._step_causal(dict(enumerate(passes)), columns)
        return self._step_both_directions(passes, columns)

    def close(self) -> None:
        """Free everything; closing twice is no error."""
        if self._context is not None:
            self._context.close()
            self._context = None
        self._model.close()

    # -- the two ways through the model ------------------------------------------------------

    def _step_both_directions(self, passes: Sequence[Pass], columns: slice) -> list[FloatArray]:
        checked = [self._check(one) for one in passes]
        for one in checked:
            split_segments(one.positions)
        self._clear_all()
        results = []
        for one, given in zip(checked, passes, strict=True):
            context = self._room_for(one.n, n_ubatch=one.n)
            order = np.argsort(one.positions, kind="stable")
            try:
                logits = context.decode(
                    self._scaled(one.embeddings[order]),
                    one.positions[order],
                    np.zeros(one.n, dtype=np.int32),
                    one.outputs[order],
                    causal=False,
                )
                # Row k of `logits` belongs to the k-th output in sorted order.
                rows = np.empty(one.n, dtype=np.int64)
                rows[order[one.outputs[order]]] = np.arange(len(logits))
                results.append(logits[rows[_wanted(given.outputs, one.n)], columns])
            finally:
                self._clear_all()
        return results

    def _step_causal(self, passes: Mapping[int, Pass], columns: slice) -> list[FloatArray]:
        checked: dict[int, _Checked] = {}
        segments: dict[int, list[slice]] = {}
        for sequence, given in passes.items():
            if not 0 <= sequence < self.n_seq:
                raise ValueError(f"sequence {sequence} of a session opened with {self.n_seq}")
            one = checked[sequence] = self._check(given)
            segments[sequence] = self._segments_of_call(sequence, one.positions)
        if any(len(parts) > 1 for parts in segments.values()):
            self._prove_segments()
        new = sum(one.n for one in checked.values())
        context = self._room_for(sum(p.n_cells for p in self._progress) + new)
        try:
            logits = self._decode_causal(context, checked, segments, columns)
        except BaseException:
            # How much of the batch is in the cache is not known any more.
            for sequence in checked:
                self.reset(sequence)
            raise
        results = []
        for sequence, given in passes.items():
            one = checked[sequence]
            rows = np.cumsum(one.outputs) - 1
            results.append(logits[sequence][rows[_wanted(given.outputs, one.n)]])
        return results

    def _decode_causal(
        self,
        context: Context,
        passes: Mapping[int, _Checked],
        segments: Mapping[int, list[slice]],
        columns: slice,
    ) -> dict[int, FloatArray]:
        """Lay down the earlier segments of each pass, then the last ones in one batch.

        Returns the logits of all outputs of each pass, in the pass's own order.
        """
        pieces: dict[int, list[FloatArray]] = {sequence: [] for sequence in passes}
        for sequence, one in passes.items():
            progress = self._progress[sequence]
            if progress.n_cells == 0:
                # Room below for all of this call, so that a segment can still follow it. One
                # segment alone needs none: its positions run on.
                progress.offset = one.n if len(segments[sequence]) > 1 else 0
            elif one.positions[0] == 0:
                park_segment(context, sequence, progress.next_position)
            for part in segments[sequence][:-1]:
                logits = lay_segment(
                    context,
                    self._scaled(one.embeddings[part]),
                    one.outputs[part],
                    offset=progress.offset,
                    sequence=sequence,
                )
                pieces[sequence].append(logits[:, columns].copy())
        last = {sequence: (one, segments[sequence][-1]) for sequence, one in passes.items()}
        logits = context.decode(
            self._scaled(np.concatenate([one.embeddings[part] for one, part in last.values()])),
            np.concatenate(
                [
                    one.positions[part] + self._progress[sequence].offset
                    for sequence, (one, part) in last.items()
                ]
            ),
            np.repeat(list(last), [one.n - part.start for one, part in last.values()]),
            np.concatenate([one.outputs[part] for one, part in last.values()]),
            causal=True,
        )
        start = 0
        for sequence, (one, part) in last.items():
            n_out = int(np.count_nonzero(one.outputs[part]))
            pieces[sequence].append(logits[start : start + n_out, columns].copy())
            start += n_out
            progress = self._progress[sequence]
            progress.n_cells += one.n
            progress.next_position = int(one.positions[-1]) + 1
        return {sequence: np.concatenate(parts) for sequence, parts in pieces.items()}

    def _segments_of_call(self, sequence: int, positions: IntArray) -> list[slice]:
        """The segments of a causal call, checked against the state of the sequence."""
        progress = self._progress[sequence]
        if progress.n_cells == 0:
            return split_segments(positions)
        if positions[0] == 0:
            segments = split_segments(positions)
            if progress.n_cells + segments[-1].start > progress.offset:
                raise ValueError(
                    f"sequence {sequence} has room for one more segment after its first call, and "
                    "that for several segments; give all segments but the last in the first call"
                )
            return segments
        first = progress.next_position
        if not np.array_equal(positions, np.arange(first, first + len(positions))):
            raise ValueError(
                f"sequence {sequence} goes on at position {first}, but the positions given "
                f"are {positions[:4].tolist()}...; reset() begins another sequence"
            )
        return [slice(0, len(positions))]

    # -- what is found out and not assumed ---------------------------------------------------

    def _check_architecture(self) -> None:
        architecture = self._model.metadata("general.architecture")
        if architecture != "gemma":
            raise InputError(
                f"{self.path} is a model of the architecture {architecture!r}, expected 'gemma', "
                "whose graph this program knows; convert the checkpoint again."
            )

    def _find_input_scale(self) -> float:
        """By what the graph multiplies raw embeddings.

        `gemma` multiplies the rows of token ids by sqrt(n_embd), by definition. For raw
        embeddings the architecture leaves it open: llama.cpp 0.3.36 multiplies them too, its
        gemma 3 does not. So a token is decoded by its id, and by its row under both
        hypotheses; the one that gives the same logits is true.
        """
        root = float(np.sqrt(self.n_embd))
        zero = np.zeros(1, dtype=np.int32)
        one = np.ones(1, dtype=np.bool_)
        errors = []
        with self._new_context(n_ctx=1, n_ubatch=1, n_seq=1) as context:
            for token, row in self._probe_rows.items():

                def logits(inputs: FloatArray | IntArray) -> FloatArray:
                    context.clear()
                    return context.decode(inputs, zero, zero, one, causal=True).copy()

                expected = logits(np.array([token], dtype=np.int32))
                if not np.isfinite(expected).all():
                    raise InputError(
                        f"{self.path} gives no numbers (NaN or infinite) for token {token}, so "
                        "that a weight in it is damaged or far too large; convert it again."
                    )
                # Fed as it is, the row is right if the graph multiplies it too.
                multiplied = nmse(expected, logits(row[None]))
                untouched = nmse(expected, logits(row[None] * np.float32(root)))
                errors.append((multiplied, untouched))
                if multiplied <= SAME_NMSE and multiplied * CONTRAST < untouched:
                    return root
                if untouched <= SAME_NMSE and untouched * CONTRAST < multiplied:
                    return 1.0
        raise EnvironmentFault(
            f"How llama.cpp {self._model.library.binding_version} scales raw embeddings cannot be "
            f"found out on {self.path}: a token's row, fed with and without the factor "
            f"sqrt({self.n_embd}), gives logits that are off from those of its id by "
            f"{', '.join(f'{a:.1e} and {b:.1e}' for a, b in errors[:3]) or 'nothing to compare'} "
            "(normalized mean square). Check the file with valle-convert verify; use the version "
            "of llama-cpp-python that this program was tested with (constraints.txt)."
        )

    def _prove_segments(self) -> None:
        """Check on this model that segments are laid down with the phases they should have.

        Twice, since each check sees what the other cannot. The keys in the cache, bit by bit:
        no number format blurs that. And the logits, against a reference that needs no trick:
        where every segment has one token, all positions are 0 and no key is turned against any
        query, which is an ordinary causal batch with the rotary embedding switched off. Were
        the pending rotation applied after all, the logits would be those of running positions.

        Raises:
            EnvironmentFault: this llama.cpp does not do it.
        """
        if self._segments_proven:
            return
        generator = np.random.default_rng(0)
        tokens = generator.standard_normal((PROBE_SEGMENTS, self.n_embd)).astype(np.float32)
        # As large as the rows of the file: the residual stream should not drown attention.
        size = np.median([np.sqrt(np.mean(row**2)) for row in self._probe_rows.values()])
        inputs = self._scaled(tokens * np.float32(size))
        with self._new_context(PROBE_SEGMENTS, 1, n_seq=1) as context:
            untouched = keys_stay_as_they_were(context, inputs)
            context.clear()
            running = _token_by_token(context, inputs)
            context.clear()
            one = np.ones(1, dtype=np.bool_)
            offset = PROBE_SEGMENTS - 1
            segments = [
                lay_segment(context, token[None], one, offset=offset, sequence=0).copy()
                for token in inputs[:-1]
            ]
            segments.append(_token_by_token(context, inputs[-1:], start=offset))
        with self._new_context(PROBE_SEGMENTS, 1, n_seq=1, rope_scale=NO_ROTATION) as context:
            reference = _token_by_token(context, inputs)
        to_reference = nmse(reference, np.concatenate(segments))
        to_running = nmse(running, np.concatenate(segments))
        # Attention of a model may be so flat that positions drown in the rounding of its weights
        # (Q4_K, measured: 6e-4 either way). Then the logits say nothing, and the keys decide.
        if not untouched or not to_reference < 2 * to_running:
            keys = "stay as they were" if untouched else "are changed"
            raise EnvironmentFault(
                f"llama.cpp {self._model.library.binding_version} does not keep the positions that "
                f"restart in every segment of {self.path}: the keys in the cache {keys}, and the "
                f"logits are off by {to_reference:.1e} from what they should be and by "
                f"{to_running:.1e} from those of running positions (normalized mean square). A "
                "saved state has to forget a pending rotation, and in this version it seems not "
                "to; use the version of llama-cpp-python that this program was tested with "
                "(constraints.txt)."
            )
        self._segments_proven = True

    # -- contexts ----------------------------------------------------------------------------

    def _new_context(
        self, n_ctx: int, n_ubatch: int, n_seq: int | None = None, rope_scale: float | None = None
    ) -> Context:
        """A context with the session's options."""
        return Context(
            self._model,
            n_ctx=n_ctx,
            n_ubatch=n_ubatch,
            n_seq=self.n_seq if n_seq is None else n_seq,
            n_threads=self.n_threads,
            cache_type=self._cache_type,
            flash_attention=self._flash_attention,
            rope_scale=rope_scale,
        )

    def _open_context(self) -> Context:
        if self._context is None:
            raise ValueError(f"the session on {self.path} is closed")
        return self._context

    def _room_for(self, n_cells: int, *, n_ubatch: int = 1) -> Context:
        """The context, made again where it is too small; causal sequences move over."""
        old = self._open_context()
        if n_cells <= old.n_ctx and n_ubatch <= old.n_ubatch:
            return old
        # Doubling, so that a sequence that grows token by token moves a few times only.
        n_ctx = old.n_ctx if n_cells <= old.n_ctx else max(n_cells, 2 * old.n_ctx)
        # A session that once ran in both directions gets all of its room in one ubatch.
        n_ubatch = n_ctx if max(n_ubatch, old.n_ubatch) > CAUSAL_UBATCH else CAUSAL_UBATCH
        new = self._new_context(n_ctx, n_ubatch)
        try:
            if self._scales:
                self._switch_adapters(new)
            for sequence, progress in enumerate(self._progress):
                if progress.n_cells:
                    new.restore(sequence, old.save(sequence))
        except BaseException:
            new.close()
            raise
        old.close()
        self._context = new
        return new

    def _clear_all(self) -> None:
        self._open_context().clear()
        self._progress = [_Progress() for _ in range(self.n_seq)]

    # -- arrays ------------------------------------------------------------------------------

    def _scaled(self, embeddings: FloatArray) -> FloatArray:
        return embeddings / np.float32(self.input_scale)

    def _check(self, one: Pass) -> _Checked:
        embeddings = np.asarray(one.embeddings, dtype=np.float32)
        positions = np.asarray(one.positions)
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
        wanted[_wanted(one.outputs, len(embeddings))] = True
        return _Checked(embeddings, positions.astype(np.int32), wanted)


def lay_segment(
    context: Context, inputs: FloatArray, outputs: BoolArray, *, offset: int, sequence: int
) -> FloatArray:
    """Decode a segment at `offset`, and move it below `offset` without turning its keys.

    Args:
        context: `sequence` ends at position offset - 1 in it, or is empty.
        inputs: [n, n_embd], already divided by the input scale.
        outputs: [n] bool.
        offset: T, at least the length of all segments that come before the last.
        sequence: the sequence that the segment belongs to.

    Returns:
        [n_out, n_vocab]: a view, valid until the next decode.
    """
    n = len(inputs)
    logits = context.decode(
        inputs,
        np.arange(offset, offset + n, dtype=np.int32),
        np.full(n, sequence, dtype=np.int32),
        outputs,
        causal=True,
    )
    park_segment(context, sequence, n)
    return logits


def park_segment(context: Context, sequence: int, n: int) -> None:
    """Lower a sequence's positions by `n`, its keys staying as they are in memory."""
    context.move(sequence, -n)
    context.drop_pending_rotation(sequence)


def keys_stay_as_they_were(context: Context, inputs: FloatArray) -> bool:
    """Whether `park_segment` leaves every bit of the cache but the positions, also past a decode.

    A segment is decoded and parked, one more token is decoded (any pending rotation would
    be applied now) and removed, and the positions are moved forth again: the saved state has to
    be the one from before.

    Args:
        context: empty; afterwards it holds the segment with a pending rotation, to be cleared.
        inputs: [n, n_embd], already divided by the input scale; n at least 2.
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

    So that everything compared ran through the same kernels: a batch of another size rounds
    otherwise, by up to 1e-4 with quantized weights.
    """
    zero = np.zeros(1, dtype=np.int32)
    one = np.ones(1, dtype=np.bool_)
    return np.concatenate(
        [
            context.decode(token[None], zero + start + i, zero, one, causal=True).copy()
            for i, token in enumerate(inputs)
        ]
    )


def split_segments(positions: IntArray) -> list[slice]:
    """Cut positions where they restart at 0.

    >>> split_segments(np.array([0, 1, 2, 0, 0, 1]))
    [slice(0, 3, None), slice(3, 4, None), slice(4, 6, None)]

    Raises:
        ValueError: a segment does not count 0, 1, 2, ... .
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


def _wanted(outputs: OutputRows, n: int) -> NDArray[np.int64]:
    """The indices that an `outputs` argument stands for, in its order; negative ones resolved."""
    if outputs is None:
        return np.array([n - 1])
    if isinstance(outputs, slice):
        return np.arange(n)[outputs]
    chosen = np.asarray(outputs)
    if chosen.dtype == np.bool_:
        if chosen.shape != (n,):
            raise ValueError(f"an outputs mask of shape {chosen.shape} for {n} positions")
        return np.flatnonzero(chosen)
    if chosen.size and (chosen.ndim != 1 or chosen.min() < -n or chosen.max() >= n):
        raise ValueError(f"outputs {chosen.tolist()} for {n} positions")
    return np.arange(n)[chosen.astype(np.int64)]
