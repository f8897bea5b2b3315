"""A model on stock llama.cpp, and the state of its sequences, for any graph.

In: raw embeddings with llama.cpp's own positions. Out: logits. `gemma` and `mpt` build on it and
know the positions and masks of their models.

llama.cpp does not promise the factor that a graph multiplies raw embeddings by. It is measured on
the loaded model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
#: So many states are multiplied without BLAS, whose threads spin afterwards on the cores that
#: llama.cpp needs for the next step.
_FEW_STATES = 16


class Session(Closing):
    """A GGUF file on llama.cpp, and the state of sequences 0 to n_seq - 1.

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
        n_seq: int,
        further_parts: Sequence[Path] = (),
        mapped: BinaryIO | None = None,
        n_threads: int | None = None,
        settings: Settings = EXACT,
        head_rows: Callable[[slice], FloatArray] | None = None,
        adapters: Sequence[Path] = (),
        output: Output = "logits",
        library: Library | None = None,
    ) -> None:
        self.path = path
        self._output: Output = output
        self.n_seq = n_seq
        self.settings = settings
        self._head_rows = head_rows if settings.own_head else None
        self._heads: dict[tuple[int | None, int | None], FloatArray] = {}
        self._context: Context | None = None
        self._lengths = [0] * n_seq  # cells that each sequence holds
        self._n_cells = 0  # of all sequences, shared ones counted once
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
            self.n_threads = n_threads or (1 if small else usable_cores())
            self._check_architecture()
            self._adapters = [self._model.load_adapter(one) for one in adapters]

    @property
    def n_embd(self) -> int:
        return self._model.n_embd

    @property
    def n_vocab(self) -> int:
        """The number of logits of a position."""
        return self._model.n_vocab

    @property
    def n_layer(self) -> int:
        """The number of transformer layers."""
        return self._model.n_layer

    @property
    def n_params(self) -> int:
        """The number of weights, as llama.cpp counts them."""
        return self._model.n_params

    def length(self, sequence: int = 0) -> int:
        """The number of positions in a sequence."""
        return self._lengths[sequence]

    def use_adapters(self, scales: Sequence[float]) -> None:
        """Scale each of the session's adapters from now on; 0 switches it off.

        Earlier elements of a sequence stay unchanged.
        """
        if tuple(scales) != self._scales:
            self._scales = tuple(scales)
            if self._context is not None:
                self._switch_adapters(self._context)

    def decode(
        self,
        rows: FloatArray,
        places: IntArray,
        sequences: IntArray,
        outputs: BoolArray,
        *,
        causal: bool,
        columns: slice = ALL_COLUMNS,
    ) -> FloatArray:
        """Append a batch to the sequences.

        Args:
                rows: [n, n_embd], the inputs of the first layer.
            places: [n], llama.cpp's positions.
            sequences: [n], the sequence of each row.
            outputs: [n], true where logits are wanted.

        Returns:
            [n_out, n_columns], in the order of the batch.
        """
        context = self._room_for(len(rows), n_ubatch=1 if causal else len(rows))
        inputs = rows / np.float32(self.input_scale)
        # In the last layer, llama.cpp computes only the rows with outputs.
        wanted = np.ones_like(outputs) if self._watched else outputs
        found = context.decode(inputs, places, sequences, wanted, causal=causal)
        if self._watched:
            found = found[outputs]
            for name, values in {INPUTS: rows, **context.caught}.items():
                self._caught.setdefault(name, []).append(values)
        for sequence in sequences:
            self._lengths[sequence] += 1
        self._n_cells += len(rows)
        if self._head_rows is None or self._output != "normed":
            return found[:, columns].copy()
        key = (columns.start, columns.stop)
        if key not in self._heads:
            self._heads[key] = np.ascontiguousarray(self._head_rows(columns).T)
        return _product(found, self._heads[key])

    def forget(self) -> None:
        """Empty every sequence."""
        self._clear()

    @contextmanager
    def watching(self, names: Collection[str]) -> Iterator[dict[str, list[FloatArray]]]:
        """Catch tensors of the graph by name; sequences are emptied before and after.

        Yields each batch's tensors by name, [n, width]; the input rows are `INPUTS`.
        """
        self._clear()
        self._drop_context()
        self._watched, self._caught = names, {}
        try:
            yield self._caught
        finally:
            self._watched, self._caught = (), {}
            self._clear()
            self._drop_context()

    def close(self) -> None:
        """Free everything; closing twice is harmless."""
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
        n_seq: int | None = None,
        rope_scale: float | None = None,
        output: Output | None = None,
        watched: Collection[str] = (),
    ) -> Context:
        """A context with the session's options."""
        return Context(
            self._model,
            n_ctx=n_ctx,
            n_ubatch=n_ubatch,
            n_seq=n_seq or self.n_seq,
            n_threads=self.n_threads,
            settings=self.settings,
            rope_scale=rope_scale,
            output=output or self._output,
            watched=watched,
        )

    def _room_for(self, n_cells: int, *, n_ubatch: int = 1) -> Context:
        """The context, with room for more cells; a larger one if necessary."""
        old, needed = self._context, self._n_cells + n_cells
        if old is not None and needed <= old.n_ctx and n_ubatch <= old.n_ubatch:
            return old
        n_ctx, n_ubatch = needed, max(n_ubatch, CAUSAL_UBATCH)
        moving: list[tuple[int, Context]] = []
        if old is not None:
            n_ubatch = max(n_ubatch, old.n_ubatch)
            moving = [(sequence, old) for sequence, n in enumerate(self._lengths) if n]
            # Doubling, so that a sequence that grows row by row moves only a few times.
            n_ctx = max(n_ctx, 2 * old.n_ctx if moving and needed > old.n_ctx else old.n_ctx)
        if moving:
            # Copies of a sequence no longer share cells.
            n_ctx = max(n_ctx, sum(self._lengths) + n_cells)
        else:
            self._drop_context()
        new = self._new_context(n_ctx, n_ubatch, watched=self._watched)
        try:
            if self._scales:
                self._switch_adapters(new)
            for sequence, place in moving:
                new.restore(sequence, place.save(sequence))
        except BaseException:
            new.close()
            raise
        self._drop_context()
        self._context, self._n_cells = new, sum(self._lengths)
        return new

    def _clear(self) -> None:
        if self._context is not None:
            self._context.clear()
        self._lengths = [0] * self.n_seq
        self._n_cells = 0

    def _drop_context(self) -> None:
        if self._context is not None:
            self._context.close()
            self._context = None

    def _switch_adapters(self, context: Context) -> None:
        used = zip(self._adapters, self._scales, strict=True) if self._scales else ()
        context.use_adapters([(adapter, scale) for adapter, scale in used if scale])

    # -- proofs on the loaded model ----------------------------------------------------------

    def _check_architecture(self) -> None:
        found = self._model.metadata("general.architecture")
        if found != self.architecture:
            raise InputError(
                f"{self.path} has the architecture {found!r}, expected "
                f"{self.architecture!r}; convert the checkpoint "
                "again."
            )

    def _find_input_scale(self, probe_rows: Mapping[int, FloatArray], of_ids: float) -> float:
        """The factor that the graph multiplies raw embeddings by.

        A token is decoded by its id, by its row, and by its row times sqrt(n_embd); one of the
        latter two gives the same logits.

        Args:
            probe_rows: token id -> its row in `token_embd.weight` [n_embd]; the likeliest to show
                it first.
        """
        root = float(np.sqrt(self.n_embd))
        zero, one = np.zeros(1, np.int32), np.ones(1, np.bool_)
        with self._new_context(n_ctx=1, n_ubatch=1, n_seq=1) as context:
            for token, row in probe_rows.items():

                def logits(inputs: FloatArray | IntArray) -> FloatArray:
                    context.clear()
                    return context.decode(inputs, zero, zero, one, causal=True).copy()

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
        rows = np.stack(list(probe_rows.values()))
        places, wanted = np.arange(len(rows), dtype=np.int32), np.ones(len(rows), np.bool_)

        def decode(output: Output) -> FloatArray:
            with self._new_context(len(rows), len(rows), n_seq=1, output=output) as context:
                return context.decode(rows, places, 0 * places, wanted, causal=True).copy()

        # The logits of the likeliest ids; our product uses the exact rows, llama.cpp's rounds
        # them as its kernels like.
        with suppress(EnvironmentFault):
            caught = decode("normed")
            expected = decode("logits")[:, list(probe_rows)]
            same = nmse(decode("embeddings"), caught) <= SAME_NMSE
            if same and nmse(expected, caught @ rows.T) <= _ROUNDED_HEAD:
                self._output = "normed"

    @property
    def _version(self) -> str:
        return self._model.library.binding_version


def _product(states: FloatArray, head: FloatArray) -> FloatArray:
    """[n, d] x [d, m]."""
    if len(states) > _FEW_STATES:
        return states @ head
    found: FloatArray = np.einsum("nd,dm->nm", states, head)
    return found
