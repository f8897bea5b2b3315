"""A converted VALL-E X on stock llama.cpp: the AR's file, and the NAR's body with its first parts.

Tables are read from the files themselves, dequantized as they are needed. The body is mapped
once for all levels; one level at a time has a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from valle_convert.gguf_file.plan import TOKEN_EMBEDDING
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import F32
from valle_convert.gguf_file.vallex import VallexSet, open_set
from valle_convert.llama.context import CacheType
from valle_convert.llama.mpt import MptSession
from valle_convert.network.converted import read_probe_rows
from valle_convert.network.vallex import ComposedNetwork, Ids, Rows


class VallexGguf(ComposedNetwork):
    """A `VallexNetwork` on stock llama.cpp. Close it, or use it as a context manager.

    Args:
        files: an opened set, or the path of its AR.
        n_threads: None for the cores that this process may use.
        cache_type: number format of the cached keys and values. None takes f32, but f16 for the NAR
            of files that are no f32: it costs less than their own rounding (7e-7 for 5e-7 with
            f16), and a level's cache, which is made anew in each pass, is there in half the time.

    Attributes:
        files: the set.

    Raises:
        InputError: files are missing, damaged, or of different sets.
        EnvironmentFault: there is no usable llama.cpp.
    """

    def __init__(
        self,
        files: VallexSet | Path,
        *,
        n_threads: int | None = None,
        cache_type: CacheType | None = None,
    ) -> None:
        self.files = files if isinstance(files, VallexSet) else open_set(files)
        super().__init__(self.files.model)
        self._n_threads = n_threads
        is_f32 = self.files.body.tensors["blk.0.ffn_up.weight"].ggml_type == F32
        self._cache_types: tuple[CacheType, CacheType] = (
            cache_type or "f32",
            cache_type or ("f32" if is_f32 else "f16"),
        )
        self._levels: dict[int, MptSession] = {}
        self._active = 0  # the level that has a cache
        ar = self.files.ar
        self._ar = self._open(ar, [])
        try:
            self._nar(1)
        except BaseException:
            self.close()
            raise

    def _open(self, first: GgufFile, others: list[GgufFile]) -> MptSession:
        with_rows, net = (others[0], self._model.nar) if others else (first, self._model.ar)
        return MptSession(
            first.path,
            [other.path for other in others],
            probe_rows=read_probe_rows(with_rows, net.n_rows),
            activation_factor=self._model.activation_factor,
            n_threads=self._n_threads,
            cache_type=self._cache_types[bool(others)],
            proven=bool(self._levels),  # all levels are one graph
        )

    def _nar(self, level: int) -> MptSession:
        if level not in self._levels:
            self._levels[level] = self._open(self.files.levels[level - 1], [self.files.body])
        return self._levels[level]

    def look_up(self, net: str, table: str, ids: Ids) -> Rows:
        """Rows of an input table, [n] -> [n, d], dequantized from the mapped file."""
        file, part = (
            (self.files.ar, self._model.ar) if net == "ar" else (self.files.body, self._model.nar)
        )
        return file.tensors[TOKEN_EMBEDDING].rows(part.table(table).first_row + np.asarray(ids))

    def _read_text(self, rows: Rows, room: int) -> None:
        self._ar.read(rows, room=room)

    def _append(self, rows: Rows, sequences: Sequence[int], n_outputs: int) -> Rows:
        return self._ar.append(rows, sequences, n_outputs, self._model.ar.head("ar").columns)

    def _fork(self, n: int) -> None:
        self._ar.fork(n)

    def _run_nar(self, level: int, rows: Rows, n_outputs: int) -> Rows:
        if self._active not in (0, level):
            self._levels[self._active].release()
        self._active = level
        columns = self._model.nar.head(f"nar.{level}").columns
        return self._nar(level).both_ways(rows, n_outputs, columns)

    def count_weights(self) -> list[int]:
        """What llama.cpp counts in the AR, and in each level from 1 on, all of which it loads."""
        levels = (self._nar(level).n_params for level in range(1, self.n_levels))
        return [self._ar.n_params, *levels]

    def close(self) -> None:
        """Free what llama.cpp holds."""
        self._ar.close()
        for session in self._levels.values():
            session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
