"""Networks that compute, and what families share of them.

protocol     the interfaces of networks
backbone     PyTorch, from a checkpoint: the reference for every converted file
arithmetic   the effect of llama.cpp's rounding on the logits
weights      the weights of a converted file under the checkpoint's names
tuned        rows and settings for a session of llama.cpp
"""

from valle_convert.threads import limit_openmp_spinning

limit_openmp_spinning()  # before torch is imported
