"""A converted VALL-E X on stock llama.cpp: the AR's file, and the NAR's body with its first parts.

Tables are read from the files themselves, dequantized on request. All levels are one model with one
cache: the norms of a level are written into a copy of a first part that llama.cpp has mapped. That
llama.cpp computes with them is proved at load, by comparison with a level loaded from its own file.
"""

from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from valle_convert.errors import EnvironmentFault
from valle_convert.families.vallex.composed import ComposedNetwork, Ids, Rows
from valle_convert.families.vallex.facts import Net, VallexModel
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING
from valle_convert.gguf_file.read import GgufFile
from valle_convert.llama.context import EXACT, Settings
from valle_convert.llama.library import INSTALL_TESTED
from valle_convert.llama.mpt import MptSession
from valle_convert.metrics import nmse
from valle_convert.network.protocol import OnLlama
from valle_convert.network.tuned import head_rows, read_probe_rows, tuned_for

#: The bits are the same, measured on f32, f16 and Q8_0, except for how threads share the work.
_SAME_NMSE = 1e-9


class _Part:
    """A model that llama.cpp loads: its first file, and the one with its tables."""

    def __init__(self, first: GgufFile, tables: GgufFile, net: Net) -> None:
        self.first, self.tables = first, tables
        self.further = [] if first is tables else [tables.path]
        self.probe_rows = read_probe_rows(tables, net.n_rows)


class VallexGguf(OnLlama, ComposedNetwork):
    """A `ComposedNetwork` on stock llama.cpp. Close it, or use it as a context manager."""

    def __init__(
        self,
        files: Mapping[str, GgufFile],
        model: VallexModel,
        *,
        settings: Settings | None = None,
    ) -> None:
        super().__init__(model)
        self._file, self._body, *self._levels = files.values()
        # Exchanged parts cannot be repacked: llama.cpp would compute with the copies.
        for_nar = replace(settings or EXACT, repack=False)
        self._level = 1  # the level of the NAR's norms
        with ExitStack() as opened:
            ar = _Part(self._file, self._file, model.ar)
            steps = tuned_for(self._file, ar.probe_rows, settings).steps
            self._ar = opened.enter_context(self._open(ar, steps))
            nar = _Part(self._levels[0], self._body, model.nar)
            passes = tuned_for(self._body, nar.probe_rows, for_nar, first=nar.first.path).passes
            self._nar = opened.enter_context(self._open(nar, passes, exchangeable=True))
            self._prove_exchange(nar)
            self.sessions = {"ar": self._ar, "nar": self._nar}
            self._opened = opened.pop_all()

    def _open(self, part: _Part, settings: Settings, **how: bool) -> MptSession:
        return MptSession(
            part.first.path,
            part.further,
            probe_rows=part.probe_rows,
            activation_factor=self.model.activation_factor,
            settings=settings,
            head_rows=head_rows(part.tables),
            **how,
        )

    def _prove_exchange(self, nar: _Part) -> None:
        """Exchange the first level's norms for the last level's."""
        last = self.model.n_levels - 1
        if last == 1:
            return
        rows = np.stack(list(nar.probe_rows.values())[:3])
        columns = self.model.nar.head("nar.1").columns
        other = _Part(self._levels[-1], self._body, self.model.nar)
        with self._open(other, self._nar.settings, proven=True) as loaded:
            expected = loaded.both_ways(rows, len(rows), columns)
        self._switch(last)
        found = self._nar.both_ways(rows, len(rows), columns)
        # NaN and infinity are reported during computation, or by `verify`.
        same = np.array_equal(expected, found, equal_nan=True)
        if not same and not nmse(expected, found) <= _SAME_NMSE:
            raise EnvironmentFault(
                "llama.cpp does not compute with the norms written into a mapped file "
                f"({self._levels[-1].path}). Check the files with `valle-convert "
                f"verify`, or {INSTALL_TESTED}."
            )

    def _switch(self, level: int) -> None:
        """Make the NAR compute with the norms of a level."""
        if level == self._level:
            return
        places = self._levels[0].tensors
        self._level = 0  # in case it is interrupted
        self._nar.exchange(
            (places[name].start, tensor.data.data)
            for name, tensor in self._levels[level - 1].tensors.items()
        )
        self._level = level

    def look_up(self, net: str, table: str, ids: Ids) -> Rows:
        """Rows of an input table, [n] -> [n, d], dequantized from the mapped file."""
        file, part = (self._file, self.model.ar) if net == "ar" else (self._body, self.model.nar)
        return file.tensors[TOKEN_EMBEDDING].rows(part.table(table).first_row + np.asarray(ids))

    def make_room(self, n_seq: int) -> None:
        self._ar.make_room(n_seq)

    def forget(self, sequence: Hashable) -> None:
        self._ar.forget(sequence)

    def _read_text(self, sequence: Hashable, rows: Rows, room: int) -> None:
        self._ar.read(sequence, rows, room=room)

    def _extend(self, sequence: Hashable, rows: Rows, n_outputs: int) -> Rows:
        return self._ar.extend(sequence, rows, n_outputs, self.model.ar.head("ar").columns)

    def _append(self, sequences: Sequence[Hashable], rows: Rows) -> Rows:
        return self._ar.append(sequences, rows, self.model.ar.head("ar").columns)

    def _fork(self, sequence: Hashable, copies: Sequence[Hashable]) -> None:
        self._ar.fork(sequence, copies)

    def _run_nar(self, level: int, rows: Rows, n_outputs: int) -> Rows:
        self._switch(level)
        return self._nar.both_ways(rows, n_outputs, self.model.nar.head(f"nar.{level}").columns)

    def close(self) -> None:
        self._opened.close()


NETWORK = VallexGguf
