"""Turn a trained VALL-E checkpoint into a GGUF file that stock llama.cpp runs."""

from __future__ import annotations

__version__ = "0.1.0"
