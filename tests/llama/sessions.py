"""Sessions on files that stand for themselves: their probe rows are read from them."""

from pathlib import Path
from typing import Any

from valle_convert.gguf_file.read import GgufFile
from valle_convert.llama.gemma import GemmaSession
from valle_convert.network.probe import read_probe_rows


def open_session(path: Path, **options: Any) -> GemmaSession:
    return GemmaSession(path, probe_rows=read_probe_rows(GgufFile(path)), **options)
