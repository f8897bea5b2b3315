"""From the tokenizer that a checkpoint was trained with to llama.cpp's, with the same ids.

`choose` finds the file that belongs to a checkpoint. `bpe` and `sentencepiece` read the two
kinds of file, strictly; `compile` and `sentencepiece` turn them into a `CompiledTokenizer`
(`compiled`), which gives the keys of the GGUF file. `check` then compares stock llama.cpp with
the tokenizer's own library (both in `oracle`) on the texts of `corpus`.
"""
