"""Sessions on files that stand for themselves: their probe rows are read from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from valle_convert.gguf_file.read import GgufFile
from valle_convert.llama.context import EXACT, Settings
from valle_convert.llama.gemma import GemmaSession
from valle_convert.network.tuned import read_probe_rows


def open_session(path: Path, settings: Settings = EXACT, **options: Any) -> GemmaSession:
    """A session of one thread."""
    rows, one = read_probe_rows(GgufFile(path)), replace(settings, n_threads=1)
    return GemmaSession(path, probe_rows=rows, settings=one, **options)
