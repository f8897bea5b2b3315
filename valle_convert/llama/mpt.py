"""A model of llama.cpp's `mpt` architecture that sees a text both ways and goes on causally.

In: raw embeddings, with positions in them already, since `mpt` has none but for the mask. The
mask is chosen by each call: what is decoded without one stays in the cache, and what follows
with one sees it. Public API only; three things that llama.cpp does not promise are found out
at load, on the loaded model where it can show them, and refused where they do not hold:

* a row fed as an embedding gives the logits of its id: inputs are not scaled;
* rows decoded in both directions do see each other, and a causal row sees none after it;
* GELU behind a factor k, with the divisor k behind it, is ReLU (on a model made for it).

Models that differ in their first part only, and there in the values of their tensors, need one
model and one context: llama.cpp maps a copy of the first part, and what is written into the copy
is what it computes with (`MptSession.exchange`).
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from valle_convert.closing import Closing
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.files import check_input_file, describe_os_error
from valle_convert.llama.context import CacheType, Context, FloatArray, LlamaModel
from valle_convert.llama.cpu import usable_cores
from valle_convert.llama.library import load_library
from valle_convert.llama.probe import prove_library
from valle_convert.llama.session import CAUSAL_UBATCH, CONTRAST, SAME_NMSE, SMALL_MODEL
from valle_convert.llama.tiny_mpt import MPT_WIDTH, random_mpt, write_mpt
from valle_convert.metrics import nmse

#: llama.cpp's own limit, LLAMA_MAX_SEQ, is no lower.
MAX_SEQUENCES = 64
#: Cells made room for at once, where more may be needed: 1,024 of 12 x 1024 in f32 take 100 MB.
_FIRST_ROOM = 1024
#: GELU's distance from ReLU falls with the third power of k: 6e-8 of the logits at 64, measured,
#: 9e-10 at 256 and 6e-13 at 4096, where float32 begins. Without the divisor it is 1e-2.
_RELU_NMSE_AT_64, _RELU_FLOOR = 1e-6, 1e-11
_PROVEN_FACTOR = 256  # of files that are no f32


class MptSession(Closing):
    """A model and its sequences.

    Args:
        path: a GGUF file of the `mpt` architecture, or the first part of a split one.
        further_parts: the other parts.
        probe_rows: token id -> its row in `token_embd.weight` [n_embd]; at least three.
        activation_factor: k, of this file.
        n_threads: None for the cores that this process may use, or one for a small model.
        cache_type: number format of cached keys and values.
        exchangeable: whether tensors of the first part will be exchanged; a copy of it is mapped.
        proven: whether another model of the same graph has passed all proofs here.

    Raises:
        InputError: the file is missing, broken, or of another architecture.
        EnvironmentFault: no usable llama.cpp, or an assumption about its graph does not hold.
    """

    def __init__(
        self,
        path: Path,
        further_parts: Sequence[Path] = (),
        *,
        probe_rows: Mapping[int, FloatArray],
        activation_factor: int,
        n_threads: int | None = None,
        cache_type: CacheType = "f32",
        exchangeable: bool = False,
        proven: bool = False,
    ) -> None:
        self._context: Context | None = None
        self._copy: BinaryIO | None = None
        self._cache_type: CacheType = cache_type
        self._lengths: list[int] = []  # rows of each sequence
        self._n_cells = 0  # of all of them together, shared ones counted once
        prove_library()
        library = load_library()
        opened_as = None
        if exchangeable:
            self._copy = _copy_without_name(path)
            opened_as = Path(f"/dev/fd/{self._copy.fileno()}")
        try:
            # Repacked weights are copies, which do not change with the file.
            self._model = LlamaModel(
                library,
                path,
                use_mmap=True,
                further_parts=further_parts,
                repack=not further_parts,
                opened_as=opened_as,
            )
        except BaseException:
            self._close_copy()
            raise
        small = self._model.n_params < SMALL_MODEL
        self.n_threads = n_threads or (1 if small else usable_cores())
        try:
            self._check_architecture()
            if not proven:
                prove_relu(activation_factor)
                self._prove_inputs(probe_rows)
                self._prove_masks(probe_rows)
        except BaseException:
            self.close()
            raise

    @property
    def n_embd(self) -> int:
        """The width of a row."""
        return self._model.n_embd

    @property
    def n_vocab(self) -> int:
        """The number of logits that a row has."""
        return self._model.n_vocab

    @property
    def n_params(self) -> int:
        """The number of weights that llama.cpp counts."""
        return self._model.n_params

    def read(self, rows: FloatArray, *, room: int = 0) -> None:
        """Empty all sequences and give sequence 0 rows that see each other, [n, n_embd].

        Args:
            rows: of the text.
            room: rows that will follow, in all sequences together, as far as that is known.
        """
        context = self._empty(len(rows) + min(room, _FIRST_ROOM), n_ubatch=len(rows))
        self._decode(context, rows, [0], 0, slice(0), causal=False)
        self._lengths, self._n_cells = [len(rows)], len(rows)

    def fork(self, n: int) -> None:
        """Make sequences 1 to n - 1 copies of sequence 0, which go on by themselves.

        Raises:
            ValueError: more than `MAX_SEQUENCES`.
        """
        if not 1 <= n <= MAX_SEQUENCES:
            raise ValueError(f"{n} sequences, where 1 to {MAX_SEQUENCES} are possible")
        context = self._open_context()
        for sequence in range(1, n):
            context.copy(0, sequence)
        self._lengths = self._lengths[:1] * n

    def append(
        self, rows: FloatArray, sequences: Sequence[int], n_outputs: int, columns: slice
    ) -> FloatArray:
        """Append rows causally: all to one sequence, or one to each of several.

        Args:
            rows: [n, n_embd].
            sequences: the one, or n different ones.
            n_outputs: how many of the last rows give logits.
            columns: which of a row's logits.

        Returns:
            [n_outputs, n_columns].

        Raises:
            EnvironmentFault: llama.cpp fails; the sequences are to be begun again then.
        """
        context = self._room_for(self._n_cells + len(rows))
        logits = self._decode(context, rows, sequences, n_outputs, columns, causal=True)
        for sequence in sequences:
            self._lengths[sequence] += len(rows) if len(sequences) == 1 else 1
        self._n_cells += len(rows)
        return logits

    def both_ways(self, rows: FloatArray, n_outputs: int, columns: slice) -> FloatArray:
        """Rows that all see each other, [n, n_embd]; every sequence is forgotten.

        Returns:
            Logits of the last rows, [n_outputs, n_columns].
        """
        context = self._empty(len(rows), n_ubatch=len(rows))
        return self._decode(context, rows, [0], n_outputs, columns, causal=False)

    def exchange(self, pieces: Iterable[tuple[int, memoryview]]) -> None:
        """Compute with other values of the first part's tensors; every sequence is forgotten.

        Args:
            pieces: where in the file they begin, and their bytes.

        Raises:
            EnvironmentFault: the disk of temporary files is full.
        """
        if self._copy is None:
            raise ValueError(f"{self._model.path} was not opened to be exchanged")
        self._lengths, self._n_cells = [], 0
        try:
            for start, data in pieces:
                os.pwrite(self._copy.fileno(), data, start)
        except OSError as error:
            raise _no_copy(self._model.path, error) from error

    def _release(self) -> None:
        if self._context is not None:
            self._context.close()
            self._context = None
        self._lengths, self._n_cells = [], 0

    def close(self) -> None:
        """Free everything; closing twice is no error."""
        self._release()
        self._model.close()
        self._close_copy()

    def _close_copy(self) -> None:
        if self._copy is not None:
            self._copy.close()

    # -- contexts ----------------------------------------------------------------------------

    def _decode(
        self,
        context: Context,
        rows: FloatArray,
        sequences: Sequence[int],
        n_outputs: int,
        columns: slice,
        *,
        causal: bool,
    ) -> FloatArray:
        n = len(rows)
        starts = self._lengths or [0]
        if len(sequences) == 1:
            places = np.arange(starts[sequences[0]], starts[sequences[0]] + n, dtype=np.int32)
        else:
            places = np.array([starts[sequence] for sequence in sequences], np.int32)
        outputs = np.arange(n) >= n - n_outputs
        ids = np.broadcast_to(np.array(sequences, np.int32), n)
        logits = context.decode(rows, places, ids, outputs, causal=causal)
        return logits[:, columns].copy()

    def _new_context(self, n_ctx: int, n_ubatch: int) -> Context:
        return Context(
            self._model,
            n_ctx=n_ctx,
            n_ubatch=n_ubatch,
            n_seq=MAX_SEQUENCES,
            n_threads=self.n_threads,
            cache_type=self._cache_type,
            flash_attention=False,
        )

    def _open_context(self) -> Context:
        if self._context is None:
            raise ValueError(f"nothing has been read into {self._model.path} yet")
        return self._context

    def _empty(self, n_cells: int, *, n_ubatch: int) -> Context:
        """An empty context with that much room; a batch without mask has to fit `n_ubatch`."""
        self._lengths, self._n_cells = [], 0
        if self._context is not None:
            if n_cells <= self._context.n_ctx and n_ubatch <= self._context.n_ubatch:
                self._context.clear()
                return self._context
            self._release()
        self._context = self._new_context(n_cells, max(n_ubatch, min(n_cells, CAUSAL_UBATCH)))
        return self._context

    def _room_for(self, n_cells: int) -> Context:
        """The context, made again where it is too small; the sequences move over."""
        old = self._open_context()
        if n_cells <= old.n_ctx:
            return old
        # Moved, copies do not share cells any more.
        n_cells += sum(self._lengths) - self._n_cells
        new = self._new_context(max(n_cells, 2 * old.n_ctx), old.n_ubatch)
        try:
            for sequence in range(len(self._lengths)):
                new.restore(sequence, old.save(sequence))
        except BaseException:
            new.close()
            raise
        old.close()
        self._context, self._n_cells = new, sum(self._lengths)
        return new

    # -- what is found out and not assumed ---------------------------------------------------

    def _check_architecture(self) -> None:
        architecture = self._model.metadata("general.architecture")
        if architecture != "mpt":
            raise InputError(
                f"{self._model.path} is a model of the architecture {architecture!r}, expected "
                "'mpt', whose graph this program knows; convert the checkpoint again."
            )

    def _prove_inputs(self, probe_rows: Mapping[int, FloatArray]) -> None:
        """A token by its id and by its row gives the same logits, and another row does not."""
        errors = []
        zero, one = np.zeros(1, np.int32), np.ones(1, np.bool_)
        with self._new_context(1, 1) as context:
            for token, row in probe_rows.items():
                expected = context.decode(
                    np.array([token], np.int32), zero, zero, one, causal=True
                ).copy()
                if not np.isfinite(expected).all():
                    raise InputError(
                        f"{self._model.path} gives no numbers (NaN or infinite) for token {token}, "
                        "so that a weight in it is damaged or far too large; convert it again."
                    )
                context.clear()
                found = context.decode(row[None], zero, zero, one, causal=True).copy()
                context.clear()
                scaled = context.decode(
                    row[None] * np.float32(np.sqrt(self.n_embd)), zero, zero, one, causal=True
                )
                errors.append((nmse(expected, found), nmse(expected, scaled)))
                context.clear()
                same, other = errors[-1]
                if same <= SAME_NMSE and same * CONTRAST < other:
                    return
        shown = ", ".join(f"{a:.1e} and {b:.1e}" for a, b in errors[:3])
        raise self._fault(
            f"does not take a row of {self._model.path} as it is: its logits are off from those of "
            f"its id by {shown} as it is and multiplied (normalized mean square)"
        )

    def _prove_masks(self, probe_rows: Mapping[int, FloatArray]) -> None:
        """Three rows see each other without a mask, and only what is before them with one."""
        rows = np.stack(list(probe_rows.values())[:3])
        n = len(rows)
        places, ids, all_ = (
            np.arange(n, dtype=np.int32),
            np.zeros(n, np.int32),
            np.ones(n, np.bool_),
        )
        with self._new_context(2 * n, n) as context:

            def run(given: FloatArray, start: int = 0, *, causal: bool) -> FloatArray:
                k = len(given)
                return context.decode(
                    given, places[:k] + start, ids[:k], all_[:k], causal=causal
                ).copy()

            forth = run(rows, causal=False)
            after = run(rows, n, causal=True)
            context.remove(0, start=n)
            other_end = run(np.concatenate([rows[:-1], rows[:1]]), n, causal=True)
            context.clear()
            back = run(rows[::-1], causal=False)[::-1]
            context.clear()
            alone = run(rows, causal=True)
        # Without positions, the order of rows that all see each other is nothing. Batches of one
        # size run through the same kernels, so that what does not matter changes hardly a bit.
        order, both_ways = nmse(forth, back), nmse(forth, alone)
        later, text = nmse(after[:-1], other_end[:-1]), nmse(after, alone)
        if not (
            max(order, later) <= SAME_NMSE
            and order * CONTRAST < both_ways
            and later * CONTRAST < text
        ):
            raise self._fault(
                f"does not attend as {self._model.path} needs it: the logits of rows in both "
                f"directions change by {order:.1e} with their order, and by {both_ways:.1e} when "
                f"they are causal; those of causal rows behind them change by {later:.1e} with "
                f"what comes later, and by {text:.1e} without what is before (normalized mean "
                "square)"
            )

    def _fault(self, what: str) -> EnvironmentFault:
        return EnvironmentFault(
            f"llama.cpp {self._model.library.binding_version} {what}. Check the file with "
            "valle-convert verify; use the version of llama-cpp-python that this program was "
            "tested with (constraints.txt)."
        )


def _copy_without_name(path: Path) -> BinaryIO:
    """A copy that the system removes with the process, however that ends."""
    check_input_file(path, "model")
    contents = path.read_bytes()
    try:
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the session
        copy.write(contents)
        copy.seek(0)  # flushes; where descriptors share their place, llama.cpp reads from here
    except OSError as error:
        raise _no_copy(path, error) from error
    return copy


def _no_copy(path: Path, error: OSError) -> EnvironmentFault:
    return EnvironmentFault(
        f"{path} cannot be copied to {tempfile.gettempdir()}: {describe_os_error(error)}; free "
        "some space, or set TMPDIR."
    )


@functools.cache
def prove_relu(factor: int) -> None:
    """Find out on a model of one layer that GELU between factor and divisor is ReLU.

    Raises:
        EnvironmentFault: it is not.
    """
    library = load_library()
    weights = random_mpt(attention=False)
    inputs = np.random.default_rng(1).standard_normal((16, MPT_WIDTH), dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="valle-convert-") as folder:
        (path,) = write_mpt(Path(folder), weights, factor)
        with (
            LlamaModel(library, path, use_mmap=False) as model,
            Context(
                model,
                n_ctx=16,
                n_ubatch=16,
                n_seq=1,
                n_threads=1,
                cache_type="f32",
                flash_attention=False,
            ) as context,
        ):
            found = context.decode(
                inputs,
                np.arange(16, dtype=np.int32),
                np.zeros(16, np.int32),
                np.ones(16, np.bool_),
                causal=False,
            ).copy()
    up, down = weights["blk.0.ffn_up.weight"], weights["blk.0.ffn_down.weight"]
    hidden = np.maximum(_normalized(inputs) @ up.T + weights["blk.0.ffn_up.bias"], 0) @ down.T
    error = nmse(_normalized(inputs + hidden) @ weights["token_embd.weight"].T, found)
    allowed = max(_RELU_FLOOR, _RELU_NMSE_AT_64 * min(1.0, 64 / factor) ** 3)
    if not error <= allowed:
        raise EnvironmentFault(
            f"llama.cpp {library.binding_version} does not compute ReLU by way of GELU with the "
            f"factor {factor}: the logits of a small model are off by {error:.1e}, where "
            f"{allowed:.1e} is allowed (normalized mean square); use the version of "
            "llama-cpp-python that this program was tested with (constraints.txt)."
        )


def prove_mpt() -> None:
    """Find out on a small split model that llama.cpp computes what a VALL-E X needs.

    Raises:
        EnvironmentFault: it does not.
    """
    weights = random_mpt(attention=True)
    rows = dict(enumerate(weights["token_embd.weight"][:4]))
    with tempfile.TemporaryDirectory(prefix="valle-convert-") as folder:
        first, *others = write_mpt(Path(folder), weights, _PROVEN_FACTOR, split=True)
        try:
            MptSession(
                first, others, probe_rows=rows, activation_factor=_PROVEN_FACTOR, n_threads=1
            ).close()
        except InputError as error:  # of a file of our own making
            raise EnvironmentFault(str(error)) from error


def _normalized(x: FloatArray) -> FloatArray:
    centred = x - x.mean(-1, keepdims=True)
    result: FloatArray = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5)
    return result
