"""A model on stock llama.cpp, and the state of its sequences, for any graph.

In: raw embeddings with llama.cpp's own positions. Out: logits. `gemma` and `mpt` build on it and
know the positions and masks of their models.

llama.cpp does not promise the factor that a graph multiplies raw embeddings by. It is measured on
the loaded model.
"""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np

from valle_convert.closing import Closing
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.llama.context import (
    EXACT,
    BoolArray,
    Context,
    FloatArray,
    IntArray,
    LlamaModel,
    Output,
    Settings,
)
from valle_convert.llama.cpu import usable_cores
from valle_convert.llama.library import INSTALL_TESTED, Library, load_library
from valle_convert.llama.probe import prove_library
from valle_convert.metrics import nmse

ALL_COLUMNS = slice(None)
#: The name of the input rows among the caught tensors.
INPUTS = "inputs"
CAUSAL_UBATCH = 512  # llama.cpp's default; longer causal batches are split by llama.cpp
# Below this many weights, waiting for a second thread takes as long as it saves: measured, 11
# million weights gain nothing and 39 million a third.
SMALL_MODEL = 20_000_000

# A row fed as an embedding gives the logits of its id bit by bit (measured on f32, f16, Q8_0 and
# Q4_K files), and 0.3 to 1.5 with the wrong scale. Normalized mean square errors, both.
SAME_NMSE = 1e-4
CONTRAST = 100.0
#: A wrong head gives 1 and more; Q4_0 rows against rounded states 1e-3.
_ROUNDED_HEAD = 1e-2
#: Rows that the own head is proved on; each takes 10 ms and is decoded three times per session.
_FEW_ROWS = 4
#: So many states are multiplied without BLAS, whose threads spin afterwards on the cores that
#: llama.cpp needs for the next step.
_FEW_STATES = 16


class Session(Closing):
    """A GGUF file on llama.cpp, and the state of its sequences, each named by any key.

    A sequence begins with its first row and lasts until it is forgotten.

    `path` may be the first part of a split file; llama.cpp then maps `mapped` instead, which is
    closed with the session. The other arguments are those of `GemmaSession`.
    """

    architecture: ClassVar[str]
    #: The graph multiplies raw embeddings by this, so `decode` divides them by it.
    input_scale = 1.0

    def __init__(
        self,
        path: Path,
        *,
        further_parts: Sequence[Path] = (),
        mapped: BinaryIO | None = None,
        settings: Settings = EXACT,
        head_rows: Callable[[slice], FloatArray] | None = None,
        adapters: Sequence[Path] = (),
        output: Output = "logits",
        library: Library | None = None,
    ) -> None:
        self.path = path
        self._output: Output = output
        self.settings = settings
        self._head_rows = head_rows if settings.own_head else None
        self._heads: dict[tuple[int | None, int | None], FloatArray] = {}
        self._context: Context | None = None
        self._lengths: dict[Hashable, int] = {}
        #: The key of each of llama.cpp's sequences; without gaps, since a gap would cut a batch.
        self._places: list[Hashable] = []
        self._n_seq = settings.n_parallel
        self._is_paired: bool | None = None
        self._scales: tuple[float, ...] = ()
        self._watched: Collection[str] = ()
        self._caught: dict[str, list[FloatArray]] = {}
        self._held = ExitStack()
        with self._closed_on_error():
            if mapped is not None:
                self._held.enter_context(mapped)
            if library is None:
                prove_library()
                library = load_library()
            self._model = self._held.enter_context(
                LlamaModel(
                    library,
                    path,
                    further_parts=further_parts,
                    settings=settings,
                    opened_as=Path(f"/dev/fd/{mapped.fileno()}") if mapped else None,
                )
            )
            small = self._model.n_params < SMALL_MODEL
            self.n_threads = settings.n_threads or (1 if small else usable_cores())
            self._check_architecture()
            self._adapters = [self._model.load_adapter(one) for one in adapters]

    @property
    def n_embd(self) -> int:
        return self._model.n_embd

    @property
    def n_layer(self) -> int:
        return self._model.n_layer

    def length(self, sequence: Hashable = 0) -> int:
        return self._lengths.get(sequence, 0)

    def use_adapters(self, scales: Sequence[float]) -> None:
        """Scale each of the session's adapters from now on; 0 switches it off.

        Earlier elements of a sequence stay unchanged.
        """
        if tuple(scales) != self._scales:
            self._scales = tuple(scales)
            if self._context is not None:
                self._switch_adapters(self._context)

    def make_room(self, n_seq: int) -> None:
        """Have room for so many more sequences; llama.cpp's number is fixed while there are any."""
        n_seq += len(self._places)
        if self._places and self._context is not None and n_seq > self._context.n_seq:
            raise ValueError(f"{n_seq} sequences, but there is room for {self._context.n_seq}")
        self._n_seq = max(self._n_seq, n_seq)

    def decode(
        self,
        rows: FloatArray,
        positions: IntArray,
        sequence: Hashable,
        outputs: BoolArray,
        *,
        causal: bool,
        columns: slice = ALL_COLUMNS,
    ) -> FloatArray:
        """Append rows [n, n_embd], the inputs of the first layer, to a sequence.

        `positions` are llama.cpp's. Gives the logits of the wanted `outputs`, [n_out, n_columns].
        """
        context = self._room_for({sequence: len(rows)}, n_ubatch=1 if causal else len(rows))
        inputs, place = rows / np.float32(self.input_scale), self._places.index(sequence)
        # In the last layer, llama.cpp computes only the rows with outputs.
        wanted = np.ones_like(outputs) if self._watched else outputs
        found = context.decode(inputs, positions, place, wanted, causal=causal)
        if self._watched:
            found = found[outputs]
            for name, values in {INPUTS: rows, **context.caught}.items():
                self._caught.setdefault(name, []).append(values)
        self._lengths[sequence] += len(rows)
        return self._of_head(found, columns)

    def decode_steps(
        self, rows: FloatArray, positions: IntArray, sequences: Sequence[Hashable], columns: slice
    ) -> FloatArray:
        """Append a row to each of several sequences, in one batch; the logits, [n, n_columns]."""
        if len(rows) == 1 and self._needs_pair(rows):
            companion = object()
            try:
                return self.decode_steps(
                    rows.repeat(2, axis=0),
                    np.append(positions, np.int32(0)),
                    [*sequences, companion],
                    columns,
                )[:1]
            finally:
                self.forget(companion)
        context = self._room_for(dict.fromkeys(sequences, 1))
        places = np.array([self._places.index(one) for one in sequences], np.int32)
        order = np.argsort(places)
        inputs = (rows / np.float32(self.input_scale))[order]
        found = context.decode(inputs, positions[order], places[order], causal=True)
        for sequence in sequences:
            self._lengths[sequence] += 1
        return self._of_head(found[np.argsort(order)], columns)

    def _of_head(self, found: FloatArray, columns: slice) -> FloatArray:
        """The wanted logits, given llama.cpp's or the inputs of the head."""
        if self._head_rows is None or self._output != "normed":
            return found[:, columns].copy()
        key = (columns.start, columns.stop)
        if key not in self._heads:
            self._heads[key] = np.ascontiguousarray(self._head_rows(columns).T)
        return _product(found, self._heads[key])

    def forget(self, sequence: Hashable) -> None:
        """Empty a sequence; the last one of llama.cpp's takes its place."""
        if self._lengths.pop(sequence, None) is None:
            return
        place, last = self._places.index(sequence), len(self._places) - 1
        moved = self._places.pop()
        if self._context is not None:
            self._context.remove(place)
            if place != last:
                self._context.restore(place, self._context.save(last))
                self._context.remove(last)
        if place != last:
            self._places[place] = moved

    def forget_all(self) -> None:
        if self._context is not None:
            self._context.clear()
        self._lengths, self._places = {}, []

    @contextmanager
    def watching(self, names: Collection[str]) -> Iterator[dict[str, list[FloatArray]]]:
        """Catch tensors of the graph by name; sequences are emptied before and after.

        Yields each batch's tensors by name, [n, width]; the input rows are `INPUTS`.
        """
        self.forget_all()
        self._drop_context()
        self._watched, self._caught = names, {}
        try:
            yield self._caught
        finally:
            self._watched, self._caught = (), {}
            self.forget_all()
            self._drop_context()

    def close(self) -> None:
        self._drop_context()
        self._held.close()

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    # -- contexts ----------------------------------------------------------------------------

    def _new_context(
        self,
        n_ctx: int,
        n_ubatch: int,
        n_seq: int = 1,
        rope_scale: float | None = None,
        output: Output | None = None,
        watched: Collection[str] = (),
    ) -> Context:
        return Context(
            self._model,
            n_ctx=n_ctx,
            n_ubatch=n_ubatch,
            n_seq=n_seq,
            n_threads=self.n_threads,
            settings=self.settings,
            rope_scale=rope_scale,
            output=output or self._output,
            watched=watched,
        )

    def _room_for(self, added: Mapping[Hashable, int], *, n_ubatch: int = 1) -> Context:
        """The context, with room for more cells of some sequences; a larger one if necessary."""
        begun = [one for one in added if one not in self._lengths]
        self.make_room(len(begun))
        n_ctx = max(self.length(one) + n for one, n in added.items())
        context = self._context
        if (
            context is None
            or n_ctx > context.n_ctx
            or n_ubatch > context.n_ubatch
            or self._n_seq > context.n_seq
        ):
            context = self._grow(n_ctx, n_ubatch)
        self._lengths |= dict.fromkeys(begun, 0)
        self._places += begun
        return context

    def _grow(self, n_ctx: int, n_ubatch: int) -> Context:
        """Move all sequences to a larger context."""
        old, n_ubatch = self._context, max(n_ubatch, CAUSAL_UBATCH)
        if old is not None:
            n_ubatch = max(n_ubatch, old.n_ubatch)
            # Doubling, so that a sequence that grows row by row moves only a few times.
            is_short = self._places and n_ctx > old.n_ctx
            n_ctx = max(n_ctx, 2 * old.n_ctx if is_short else old.n_ctx)
            if not self._places:
                self._drop_context()
        new = self._new_context(n_ctx, n_ubatch, self._n_seq, watched=self._watched)
        try:
            if self._scales:
                self._switch_adapters(new)
            for place in range(len(self._places)):
                assert old is not None  # noqa: S101 - it holds them
                new.restore(place, old.save(place))
        except BaseException:
            new.close()
            raise
        self._drop_context()
        self._context = new
        return new

    def _drop_context(self) -> None:
        if self._context is not None:
            self._context.close()
            self._context = None

    def _switch_adapters(self, context: Context) -> None:
        used = zip(self._adapters, self._scales, strict=True) if self._scales else ()
        context.use_adapters([(adapter, scale) for adapter, scale in used if scale])

    # -- proofs on the loaded model ----------------------------------------------------------

    def _check_architecture(self) -> None:
        found = self._model.architecture()
        if found != self.architecture:
            raise InputError(
                f"{self.path} has the architecture {found!r:.40}, expected {self.architecture!r}; "
                "convert the checkpoint again."
            )

    def _needs_pair(self, row: FloatArray) -> bool:
        """Whether sequences are to be independent of others, and a row alone rounds differently.

        So it is where llama.cpp has other kernels for one row than for several: in F32 and F16, and
        in flash attention beyond 512 positions.
        """
        if self.settings.n_parallel == 1:
            return False
        if self._is_paired is None:
            with self._new_context(1, 2, n_seq=2) as context:

                def run(n: int) -> FloatArray:
                    context.clear()
                    ids, rows = np.arange(n, dtype=np.int32), row.repeat(n, axis=0)
                    return context.decode(rows, 0 * ids, ids, causal=True)[:1].copy()

                same = np.array_equal(run(1), run(2))
            self._is_paired = self.settings.flash_attention or not same
        return self._is_paired

    def _find_input_scale(self, probe_rows: Mapping[int, FloatArray], of_ids: float) -> float:
        """The factor that the graph multiplies raw embeddings by.

        A token is decoded by its id, by its row, and by its row times sqrt(n_embd); one of the
        latter two gives the same logits. `probe_rows` begins with the token likeliest to show it.
        """
        root = float(np.sqrt(self.n_embd))
        with self._new_context(n_ctx=1, n_ubatch=1) as context:
            for token, row in probe_rows.items():

                def logits(inputs: FloatArray | IntArray) -> FloatArray:
                    context.clear()
                    return context.decode(inputs, np.zeros(1, np.int32), causal=True).copy()

                expected = logits(np.array([token], np.int32))
                if not np.isfinite(expected).all():
                    raise InputError(
                        f"{self.path} gives NaN or infinity for token {token}: "
                        "a weight in it is damaged or far too large; convert it again."
                    )
                as_it_is = nmse(expected, logits(row[None]))
                multiplied = nmse(expected, logits(row[None] * np.float32(root)))
                if as_it_is <= SAME_NMSE and as_it_is * CONTRAST < multiplied:
                    return of_ids
                if multiplied <= SAME_NMSE and multiplied * CONTRAST < as_it_is:
                    return of_ids / root
        raise EnvironmentFault(
            f"Cannot determine how llama.cpp {self._version} scales the input embeddings of "
            f"{self.path}. Check the file with `valle-convert verify`, or {INSTALL_TESTED}."
        )

    def _prove_own_head(self, probe_rows: Mapping[int, FloatArray]) -> None:
        """Compute heads outside of llama.cpp from now on, if its graph ends as expected."""
        if self._head_rows is None or self._output != "logits":
            return
        head = np.stack(list(probe_rows.values()))
        rows = head[:_FEW_ROWS]
        # The logits of the likeliest ids; our product uses the exact rows, llama.cpp's rounds
        # them as its kernels like.
        with suppress(EnvironmentFault):
            caught = self._outputs_of(rows, "normed")
            expected = self._outputs_of(rows, "logits")[:, list(probe_rows)]
            same = nmse(self._outputs_of(rows, "embeddings"), caught) <= SAME_NMSE
            if same and nmse(expected, caught @ head.T) <= _ROUNDED_HEAD:
                self._output = "normed"

    def _outputs_of(self, rows: FloatArray, output: Output) -> FloatArray:
        """What llama.cpp gives for a causal sequence of rows, in a context of its own."""
        with self._new_context(len(rows), len(rows), output=output) as context:
            places = np.arange(len(rows), dtype=np.int32)
            return context.decode(rows, places, causal=True).copy()

    @property
    def _version(self) -> str:
        return self._model.library.binding_version


def _product(states: FloatArray, head: FloatArray) -> FloatArray:
    """[n, d] x [d, m]."""
    if len(states) > _FEW_STATES:
        return states @ head
    found: FloatArray = np.einsum("nd,dm->nm", states, head)
    return found
