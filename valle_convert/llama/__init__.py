"""Running a GGUF file on stock llama.cpp; nothing in here knows what VALL-E is.

From the outside in: `session` (a model and its state: `step`), `context` (llama.cpp's
handles and batches), `library` (finding and loading libllama, its log). `probe` runs
`selftest` in a child process before libllama is trusted in this one.
"""
