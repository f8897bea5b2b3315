"""Proof that a converted file is equivalent to its checkpoint.

    structure   llama.cpp loads it, and every key and count is the plan's
    tensors     every weight, read back through the mapping, is the checkpoint's
    tokenizer   llama.cpp and the tokenizer's own library give the same ids
    logits      llama.cpp and the PyTorch reference compute the same, for every head

`verify` plans the conversion again from the checkpoint and compares the file with the plan.
"""
