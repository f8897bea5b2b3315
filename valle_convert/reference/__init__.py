"""The small PyTorch VALL-E that every converted file is measured against.

It reads a checkpoint's own tensors under their own names and knows nothing of GGUF.
"""

from __future__ import annotations

from valle_convert.threads import wait_politely

wait_politely()  # before torch is imported

from valle_convert.reference.network import ReferenceNetwork  # noqa: E402

__all__ = ["ReferenceNetwork"]
