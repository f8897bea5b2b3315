"""EnCodec: weights from several kinds of files, its own files, and the network.

`architecture` has the layers and tensors, `weights` an opened codec whose tensors are read on
demand, `sources` opens folders and files, `cpp_file` is the file of encodec.cpp, `gguf_codec` the
GGUF file, `streaming` the network, with torch.
"""
