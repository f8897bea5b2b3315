"""Running a GGUF file on stock llama.cpp; knows nothing of VALL-E.

From the outside in: `gemma` and `mpt` (positions and masks of a graph), `session` (a model and the
state of its sequences), `context` (llama.cpp's handles and batches), `library` (libllama and its
log). `probe` runs `selftest` in a child process before libllama is trusted in this one.
"""
