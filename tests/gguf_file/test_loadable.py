"""What stock llama.cpp does not survive is refused before; each case is shown to be one."""

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import Cli, Convert, error_of, golden_checkpoint, run_python

from valle_convert import plan_conversion
from valle_convert.gguf_file.header import Key, TensorEntry, pack_header, padded
from valle_convert.gguf_file.keys import ARCHITECTURE_KEYS, architecture_keys
from valle_convert.gguf_file.loadable import gemma_dangers
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import GGML_TYPES, GgmlType

#: llama.cpp alone, without any check of ours: vocabulary, model, context, one batch.
CHILD = """
import sys
from pathlib import Path
import numpy as np
from valle_convert.llama.gemma import GemmaSession
from valle_convert.tokenizer.oracle import LlamaTokenizer
with LlamaTokenizer(sys.argv[1]) as llama:
    llama.encode("a", add_special=True, parse_special=False)
rows = {i: np.linspace(-1, 1, 64, dtype=np.float32) for i in range(3)}
with GemmaSession(Path(sys.argv[1]), n_ctx=8, probe_rows=rows):
    pass
"""


def made(
    source: Path, target: Path, keys: dict[str, tuple[Any, str]], types: dict[str, GgmlType]
) -> None:
    """A copy of a file with other keys, and zeros of other types."""
    file = GgufFile(source)
    values = {name: (file.keys[name], file.key_types[name]) for name in file.keys} | keys
    entries: list[TensorEntry] = []
    data = b""
    for tensor in file.tensors.values():
        kind = types.get(tensor.name, tensor.ggml_type)
        entries.append(TensorEntry(tensor.name, tensor.shape, kind, len(data)))
        raw = tensor.data.tobytes() if kind == tensor.ggml_type else bytes(entries[-1].n_bytes)
        data += raw.ljust(padded(len(raw)), b"\0")
    header = pack_header([Key(name, *value) for name, value in values.items()], entries)
    target.write_bytes(header + data)


def run_llama_cpp(path: Path) -> subprocess.CompletedProcess[str]:
    return run_python("-c", CHILD, path, timeout=120, env=os.environ | {"GGML_NO_BACKTRACE": "1"})


def tokens(change: Callable[[list[str]], Sequence[str]]) -> Callable[[Path], dict[str, Any]]:
    def keys(path: Path) -> dict[str, Any]:
        name = "tokenizer.ggml.tokens"
        return {name: (list(change(GgufFile(path).keys[name])), "[string]")}

    return keys


def set_key(name: str, value: object, kind: str) -> Callable[[Path], dict[str, Any]]:
    return lambda _path: {name: (value, kind)}


def no_keys(_path: Path) -> dict[str, Any]:
    return {}


F16, F64, I8, I32 = (GGML_TYPES[name] for name in ("F16", "F64", "I8", "I32"))
CASES = [
    (set_key("gemma.block_count", 0, "u32"), {}, "0 layers"),
    (set_key("gemma.block_count", 513, "u32"), {}, "513 layers"),
    (
        set_key("gemma.attention.layer_norm_rms_epsilon", float("nan"), "f32"),
        {},
        "an epsilon of nan",
    ),
    (set_key("gemma.attention.layer_norm_rms_epsilon", -1.0, "f32"), {}, "an epsilon of -1\\.0"),
    (set_key("gemma.rope.dimension_count", 3, "u32"), {}, "3 of the 32"),
    (set_key("gemma.rope.dimension_count", 1024, "u32"), {}, "1024 of the 32"),
    (
        set_key("gemma.rope.scaling.type", "x", "string"),
        {},
        "gemma\\.rope\\.scaling\\.type would change the graph",
    ),
    (set_key("gemma.expert_count", 5000, "u32"), {}, "gemma\\.expert_count would change the graph"),
    (tokens(lambda old: [*old[:-1], old[-2]]), {}, "1 of its tokens have the text of another"),
    (tokens(lambda _old: ["a"]), {}, "bos_token_id is 1, expected one of 1 tokens"),
    (tokens(lambda _old: []), {}, "tokens is not a list of strings"),
    (no_keys, {"output_norm.weight": F16}, "norm.weight' is F16, expected F32"),
    (no_keys, {"blk.0.attn_q.weight": I8}, "is I8, expected a type of we"),
    (no_keys, {"blk.1.ffn_up.weight": F64}, "is F64, expected a type of we"),
    (no_keys, {"token_embd.weight": I32}, "is I32, expected a type of we"),
]


@pytest.mark.parametrize(("keys", "types", "words"), CASES, ids=[words for *_, words in CASES])
def test_what_kills_llama_cpp_is_refused_before(
    keys: Callable[[Path], dict[str, Any]],
    types: dict[str, GgmlType],
    words: str,
    converted: Convert,
    tmp_path: Path,
    cli: Cli,
) -> None:
    source, path = converted("ar-nar-len", "f32"), tmp_path / "deadly.gguf"
    made(source, path, keys(source), types)
    assert re.search(words, "; ".join(gemma_dangers(GgufFile(path))))
    assert "would make llama.cpp abort" in error_of(cli("tokenize", path, "a"), 2)
    judged = cli("verify", golden_checkpoint("ar-nar-len"), path)
    assert (judged.code, judged.out.splitlines()[-1][:8]) == (1, "FAILED: ")
    # Not a precaution against nothing: this is how llama.cpp takes it.
    ended = run_llama_cpp(path)
    assert ended.returncode < 0, (ended.returncode, ended.stderr[-500:])


def test_a_right_file_is_loadable_and_loaded(converted: Convert, tmp_path: Path) -> None:
    path = converted("ar-nar-len", "f32")
    assert list(gemma_dangers(GgufFile(path))) == []
    ended = run_llama_cpp(path)
    assert ended.returncode >= 0, ended.stderr[-500:]
    # And so is the copy that the cases are changed from.
    made(path, tmp_path / "copy.gguf", {}, {})
    assert list(gemma_dangers(GgufFile(tmp_path / "copy.gguf"))) == []
    assert run_llama_cpp(tmp_path / "copy.gguf").returncode == ended.returncode


def test_the_keys_of_the_architecture_are_those_that_are_written() -> None:
    config = plan_conversion(golden_checkpoint("ar-nar-len")).model.config
    names = {key.name.removeprefix("gemma.") for key in architecture_keys(config)}
    assert names == ARCHITECTURE_KEYS
