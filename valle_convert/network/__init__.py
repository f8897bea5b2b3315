"""Networks that compute, and what those of several families share.

protocol     what decoders and the verifier need of one
backbone     PyTorch, from a checkpoint: what every converted file is compared with
arithmetic   what llama.cpp's rounding does to the logits
weights      the weights of a converted file under the checkpoint's names
probe        rows that a session of llama.cpp is tried with
"""

from __future__ import annotations

from valle_convert.threads import limit_openmp_spinning

limit_openmp_spinning()  # before torch is imported
