"""Well-formed GGUF on which stock llama.cpp aborts, dies or hangs.

llama.cpp throws for most faulty models, but some faults end the process with an assertion. So a
file of the architecture `gemma` is checked before it is loaded. tests/gguf_file/test_loadable.py
gives each case to llama.cpp in a child process.
"""

from collections.abc import Collection, Iterator

from valle_convert.gguf_file.keys import ARCHITECTURE, ARCHITECTURE_KEYS
from valle_convert.gguf_file.read import GgufFile
from valle_convert.tokenizer.compiled import TOKENS_KEY
from valle_convert.wording import listing

_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
#: Types without matrix multiplication kernels.
_NOT_OF_WEIGHTS = ("I8", "I16", "I32", "I64", "F64")
_IDS = ("bos", "eos", "unknown")


def gemma_dangers(file: GgufFile) -> Iterator[str]:
    """Everything that llama.cpp would not survive, in words."""
    yield from graph_dangers(file, ARCHITECTURE, ARCHITECTURE_KEYS)
    if file.keys.get("general.architecture") == ARCHITECTURE:
        yield from _size_dangers(file)
        yield from type_dangers(file)
        yield from vocabulary_dangers(file)


def graph_dangers(file: GgufFile, architecture: str, known: Collection[str]) -> Iterator[str]:
    """Another architecture, and keys that would change its graph."""
    found, prefix = file.keys.get("general.architecture"), f"{architecture}."
    if found != architecture:
        yield f"general.architecture is {found!r:.40}, expected {architecture!r}"
    unknown = [name for name in file.keys if name.startswith(prefix)]
    unknown = [name for name in unknown if name.removeprefix(prefix) not in known]
    if unknown:
        yield f"{listing(unknown)} would change the graph"


def type_dangers(file: GgufFile) -> Iterator[str]:
    for tensor in file.tensors.values():
        kind, is_vector = tensor.ggml_type.name, len(tensor.shape) == 1
        if kind in _NOT_OF_WEIGHTS or (is_vector and kind != "F32"):
            expected = "F32" if is_vector else "a type of weights"
            yield f"the tensor {tensor.name!r:.70} is {kind}, expected {expected}"


def _size_dangers(file: GgufFile) -> Iterator[str]:
    def number(name: str) -> int | float:
        value = file.keys.get(f"{ARCHITECTURE}.{name}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            return value
        return -1

    n_layer = number("block_count")
    if not 1 <= n_layer <= _MAX_LAYERS:
        yield f"{n_layer} layers, where 1 to {_MAX_LAYERS} are allowed"
    n_rotated, n_head = number("rope.dimension_count"), number("attention.key_length")
    if not 2 <= n_rotated <= n_head or n_rotated % 2:
        yield f"{n_rotated} of the {n_head} elements of a head are rotated, expected an even number"
    epsilon = number("attention.layer_norm_rms_epsilon")
    if not epsilon >= 0:  # also for NaN
        yield f"an epsilon of {epsilon}"


def vocabulary_dangers(file: GgufFile) -> Iterator[str]:
    """Faults in the tokens of a file, in words."""
    tokens = file.keys.get(TOKENS_KEY)
    if file.key_types.get(TOKENS_KEY) != "[string]" or not tokens:
        yield f"{TOKENS_KEY} is not a list of strings"
        return
    # llama.cpp cuts texts at the first zero, and names empty ones.
    texts = {text.partition("\0")[0] or f"[EMPTY_{i}]" for i, text in enumerate(tokens)}
    if len(texts) != len(tokens):
        yield f"{len(tokens) - len(texts)} of its tokens have the text of another token"
    for name in _IDS:
        key = f"tokenizer.ggml.{name}_token_id"
        token = file.keys.get(key)
        if not isinstance(token, int) or not 0 <= token < len(tokens):
            yield f"{key} is {token!r:.40}, expected one of {len(tokens)} tokens"
