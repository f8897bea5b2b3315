"""EnCodec without any other program: its weights from every kind of file, its files, its network.

`architecture` says what an EnCodec consists of, `weights` is one with tensors that are read when
they are asked for, `sources` makes that of folders and files; `cpp_file` is the file of
encodec.cpp, `gguf_codec` the one beside a model's; `streaming` computes. torch is imported where it
is used.
"""

from valle_convert.encodec.architecture import EncodecSpec
from valle_convert.encodec.cpp_file import write_cpp_file
from valle_convert.encodec.gguf_codec import write_gguf_codec
from valle_convert.encodec.sources import ENCODEC_24KHZ, open_encodec
from valle_convert.encodec.weights import EncodecWeights

__all__ = [
    "ENCODEC_24KHZ",
    "EncodecSpec",
    "EncodecWeights",
    "open_encodec",
    "write_cpp_file",
    "write_gguf_codec",
]
