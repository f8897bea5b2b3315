"""The decoding algorithms, on a `protocol.Network`: from a condition to codes and back.

Families with another network use parts of it: `batch`, `sampling`, `masked.demask`,
`nar.decode_levels_above`.

`speech` joins the stages: `greedy` (how many frames), `ar` or `masked` (level 0) and `nar` (the
levels above). `greedy` also has the reverse, transcripts. `options` has the settings of all
decoders, `sampling` is the arithmetic on logits, `causal` is a sequence that grows by one element
per step, and `batch` lets several decodings take their steps together.
"""
