"""The decoding algorithms, on any `protocol.Network`: from a condition to codes and back.

`speech` joins the stages: `length` (how many frames), `ar` or `masked` (level 0) and `nar` (the
levels above). `transcribe` is the reverse. `options` has the settings of all decoders, `sampling`
and `guidance` are the arithmetic on logits, `causal` is a sequence that grows by one element a
step, and `batch` lets several decodings take their steps together.
"""
