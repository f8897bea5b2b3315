"""EnCodec: weights from several kinds of files, its own files, and the network.

`architecture` has the layers and tensors, `weights` an opened codec whose tensors are read on
demand, `sources` opens folders and files, `cpp_file` is the file of encodec.cpp, `gguf_codec` the
GGUF file, `streaming` the network, with torch.
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
