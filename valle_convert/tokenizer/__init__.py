"""From a checkpoint's tokenizer to llama.cpp's, with the same ids.

`choose` finds the file for a checkpoint. `bpe` and `sentencepiece` read the two kinds of files,
strictly; `compile` and `sentencepiece` turn them into a `CompiledTokenizer` (`compiled`), which
gives the keys of the GGUF file. `check` then compares stock llama.cpp with the tokenizer's own
library (both in `oracle`) on the texts of `corpus`.
"""
