"""Running a GGUF file on stock llama.cpp; nothing in here knows what VALL-E is.

From the outside in: `gemma` and `mpt` (what the positions and masks of a graph allow), `session`
(a model and the state of its sequences), `context` (llama.cpp's handles and batches), `library`
(finding and loading libllama, its log). `probe` runs `selftest` in a child process before
libllama is trusted in this one.
"""
