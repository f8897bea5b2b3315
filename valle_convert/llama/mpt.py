"""A model of llama.cpp's `mpt` architecture that sees a text both ways, then continues causally.

In: raw embeddings that include positions, since `mpt` only has the mask. Each call chooses its
mask: elements decoded without one stay in the cache, and later ones with a mask see them. Public
API only; two facts that llama.cpp does not promise are proved at load, on the loaded model if it
can show them:

* rows decoded in both directions see each other, and a causal row sees none after it;
* GELU after a factor k, with the divisor k after it, is ReLU (on a model made for it).

Models that differ only in tensor values of their first part need one model and one context:
llama.cpp maps a copy of the first part, and computes with whatever is written into the copy
(`MptSession.exchange`).
"""

import functools
import os
import tempfile
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from valle_convert.errors import EnvironmentFault
from valle_convert.files import check_input_file, describe_os_error
from valle_convert.llama.context import EXACT, Context, FloatArray, LlamaModel, Settings
from valle_convert.llama.library import INSTALL_TESTED, load_library
from valle_convert.llama.session import CONTRAST, SAME_NMSE, Session
from valle_convert.llama.tiny import MPT_WIDTH, random_mpt, write_mpt
from valle_convert.metrics import nmse

#: Cells of a sequence to allocate at once: 1,024 of 12 x 1024 in f32 take 100 MB.
_FIRST_ROOM = 1024
#: GELU's distance from ReLU falls with the third power of k: 6e-8 of the logits at 64, measured,
#: 9e-10 at 256 and 6e-13 at 4096, where float32 begins. Without the divisor it is 1e-2.
_RELU_NMSE_AT_64, _RELU_FLOOR = 1e-6, 1e-11


class MptSession(Session):
    architecture = "mpt"

    def __init__(
        self,
        path: Path,
        further_parts: Sequence[Path] = (),
        *,
        probe_rows: Mapping[int, FloatArray],  # id -> row of token_embd.weight; at least three
        activation_factor: int,
        settings: Settings = EXACT,
        head_rows: Callable[[slice], FloatArray] | None = None,
        exchangeable: bool = False,
        proven: bool = False,
    ) -> None:
        self._copy = _copy_without_name(path) if exchangeable else None
        super().__init__(
            path,
            further_parts=further_parts,
            mapped=self._copy,
            settings=settings,
            head_rows=head_rows,
        )
        with self._closed_on_error():
            if not proven:
                prove_relu(activation_factor)
                self.input_scale = self._find_input_scale(probe_rows, of_ids=1.0)
                self._prove_masks(probe_rows)
            self._prove_own_head(probe_rows)

    def read(self, sequence: Hashable, rows: FloatArray, *, room: int = 0) -> None:
        """Begin a sequence with rows that see each other, [n, n_embd]."""
        n = len(rows)
        self._room_for({sequence: n + min(room, _FIRST_ROOM)}, n_ubatch=n)
        self._run(sequence, rows, 0, slice(0), causal=False)

    def fork(self, sequence: Hashable, copies: Sequence[Hashable]) -> None:
        """Make copies of a sequence, which continue independently."""
        context = self._room_for(dict.fromkeys(copies, self.length(sequence)))
        state = context.save(self._places.index(sequence))
        for copy in copies:
            context.restore(self._places.index(copy), state)
            self._lengths[copy] = self._lengths[sequence]

    def extend(
        self, sequence: Hashable, rows: FloatArray, n_outputs: int, columns: slice
    ) -> FloatArray:
        """Append rows [n, n_embd], causally; the last ones' logits, [n_outputs, n_columns]."""
        return self._run(sequence, rows, n_outputs, columns, causal=True)

    def append(self, sequences: Sequence[Hashable], rows: FloatArray, columns: slice) -> FloatArray:
        """A causal step of one row [n, n_embd] for each of several sequences: [n, n_columns]."""
        positions = np.array([self.length(one) for one in sequences], np.int32)
        return self.decode_steps(rows, positions, sequences, columns)

    def both_ways(self, rows: FloatArray, n_outputs: int, columns: slice) -> FloatArray:
        """Rows [n, n_embd] that all see each other and stand alone; the last ones' logits."""
        alone = object()
        try:
            return self._run(alone, rows, n_outputs, columns, causal=False)
        finally:
            self.forget(alone)

    def exchange(self, pieces: Iterable[tuple[int, memoryview]]) -> None:
        """Compute with other bytes at offsets of the first part; empties every sequence."""
        if self._copy is None:
            raise ValueError(f"{self.path} was not opened to be exchanged")
        self.forget_all()
        try:
            for start, data in pieces:
                os.pwrite(self._copy.fileno(), data, start)
        except OSError as error:
            raise _no_copy(self.path, error) from error

    def _run(
        self, sequence: Hashable, rows: FloatArray, n_outputs: int, columns: slice, *, causal: bool
    ) -> FloatArray:
        n, start = len(rows), self.length(sequence)
        positions = np.arange(start, start + n, dtype=np.int32)
        outputs = np.arange(n) >= n - n_outputs
        return self.decode(rows, positions, sequence, outputs, causal=causal, columns=columns)

    # -- proofs on the loaded model ----------------------------------------------------------

    def _prove_masks(self, probe_rows: Mapping[int, FloatArray]) -> None:
        """Three rows see each other without a mask, and only earlier ones with one."""
        rows = np.stack(list(probe_rows.values())[:3])
        n = len(rows)
        with self._new_context(2 * n, n) as context:

            def run(given: FloatArray, start: int = 0, *, causal: bool) -> FloatArray:
                places = np.arange(start, start + len(given), dtype=np.int32)
                return context.decode(given, places, causal=causal).copy()

            forth = run(rows, causal=False)
            after = run(rows, n, causal=True)
            context.remove(0, start=n)
            other_end = run(np.concatenate([rows[:-1], rows[:1]]), n, causal=True)
            context.clear()
            back = run(rows[::-1], causal=False)[::-1]
            context.clear()
            alone = run(rows, causal=True)
        # Without positions, the order of rows that all see each other does not matter. Batches of
        # one size run through the same kernels, so the results differ by hardly a bit.
        order, both_ways = nmse(forth, back), nmse(forth, alone)
        later, text = nmse(after[:-1], other_end[:-1]), nmse(after, alone)
        if not (
            max(order, later) <= SAME_NMSE
            and order * CONTRAST < both_ways
            and later * CONTRAST < text
        ):
            raise EnvironmentFault(
                f"llama.cpp {self._version} does not attend as {self.path} needs it: to both sides "
                f"without a mask, and to earlier rows with one. Check the file with `valle-convert "
                f"verify`, or {INSTALL_TESTED}."
            )


def _copy_without_name(path: Path) -> BinaryIO:
    """A copy that disappears with the process, however it ends."""
    check_input_file(path, "model")
    contents = path.read_bytes()
    try:
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the session
        copy.write(contents)
        copy.seek(0)  # flushes; if descriptors share their position, llama.cpp reads from here
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
    """Prove on a model of one layer that GELU between factor and divisor is ReLU."""
    library = load_library()
    weights = random_mpt(attention=False)
    inputs = np.random.default_rng(1).standard_normal((16, MPT_WIDTH), dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="valle-convert-") as folder:
        path = Path(folder) / "mpt.gguf"
        write_mpt(path, weights, factor)
        with (
            LlamaModel(library, path) as model,
            Context(model, n_ctx=16, n_ubatch=16, n_seq=1, n_threads=1) as context,
        ):
            found = context.decode(inputs, np.arange(16), causal=False).copy()
    up, down = weights["blk.0.ffn_up.weight"], weights["blk.0.ffn_down.weight"]
    hidden = np.maximum(_normalized(inputs) @ up.T + weights["blk.0.ffn_up.bias"], 0) @ down.T
    error = nmse(_normalized(inputs + hidden) @ weights["token_embd.weight"].T, found)
    allowed = max(_RELU_FLOOR, _RELU_NMSE_AT_64 * min(1.0, 64 / factor) ** 3)
    if not error <= allowed:
        raise EnvironmentFault(
            f"llama.cpp {library.binding_version} does not compute ReLU from GELU with the "
            f"factor {factor} (error {error:.1e}, allowed {allowed:.1e}); {INSTALL_TESTED}."
        )


def _normalized(x: FloatArray) -> FloatArray:
    centred = x - x.mean(-1, keepdims=True)
    result: FloatArray = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5)
    return result
