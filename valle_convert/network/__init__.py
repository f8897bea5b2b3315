"""A VALL-E that computes: embeddings in, logits of one head out, whoever does it.

protocol     what decoders and the verifier need of one
reference    PyTorch, from a checkpoint: the yardstick of every converted file
converted    stock llama.cpp, from a converted file
"""

from __future__ import annotations

from valle_convert.threads import limit_openmp_spinning

limit_openmp_spinning()  # before torch is imported
