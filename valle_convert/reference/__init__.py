"""The small PyTorch VALL-E that every converted file is measured against.

It reads a checkpoint's own tensors under their own names and knows nothing of GGUF.
"""

from __future__ import annotations

from valle_convert.reference.network import ReferenceNetwork

__all__ = ["ReferenceNetwork"]
