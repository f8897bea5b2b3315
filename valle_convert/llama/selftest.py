"""Run by `probe` in a child process: llama.cpp at every kind of work that has killed one.

`python -m valle_convert.llama.selftest` writes a tiny random model, runs it as f32, f16, Q8_0 and
Q4_K, in both directions and causally, and prints each stage before it begins, so that the parent
knows the stage of a crash. The exit code is 0 if all logits are finite and close to those of the
f32 file.
"""

import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

from valle_convert.errors import EnvironmentFault, ValleConvertError
from valle_convert.llama.context import Settings
from valle_convert.llama.gemma import GemmaSession
from valle_convert.llama.library import Library, load_library
from valle_convert.llama.probe import STAGE
from valle_convert.llama.tiny import GemmaShape, random_gemma, write_gemma
from valle_convert.metrics import nmse

# Rows of 256, which K-quants need, and a batch large enough for llama.cpp's matrix kernels (such as
# AMX) instead of those for vectors.
SHAPE = GemmaShape(n_embd=256, n_head=4, n_head_kv=4, n_layer=1, n_ff=256, n_vocab=256)
BATCH = 48

# Normalized mean square error against the f32 file; random weights, measured 1e-8, 1e-4, 1e-2.
ALLOWED_NMSE = {"f16": 1e-5, "q8_0": 5e-3, "q4_k": 0.1}


def main() -> int:
    """Run all stages; prints progress to stdout and errors to stderr."""
    try:
        with tempfile.TemporaryDirectory(prefix="valle-convert-") as folder:
            run(Path(folder))
    except ValleConvertError as error:
        print(error, file=sys.stderr)  # noqa: T201 - a program of its own, read by the parent
        return error.exit_code
    return 0


def run(folder: Path) -> None:
    _say("loading the library")
    library = load_library()
    weights = random_gemma(SHAPE, seed=0)
    for file_type in ("f32", "f16", "q8_0"):
        write_gemma(folder / f"{file_type}.gguf", SHAPE, weights, file_type=file_type)
    _say("quantizing to Q4_K")
    quantize_file(library, folder / "f32.gguf", folder / "q4_k.gguf", "Q4_K_S")

    generator = np.random.default_rng(1)
    inputs = generator.standard_normal((BATCH, SHAPE.n_embd), dtype=np.float32)
    positions = np.arange(BATCH)
    expected: dict[bool, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}
    for file_type in ("f32", *ALLOWED_NMSE):
        _say(f"decoding with {file_type.upper()} weights")
        path = folder / f"{file_type}.gguf"
        with GemmaSession(
            path, probe_rows=_token_rows(path), settings=Settings(n_threads=1), library=library
        ) as session:
            for causal in (False, True):
                logits = session.step(inputs, positions, causal=causal, outputs=slice(None))
                reference = expected.setdefault(causal, logits)
                error = nmse(reference, logits)
                # Written so that NaN fails.
                if not error <= ALLOWED_NMSE.get(file_type, 0.0):
                    raise EnvironmentFault(
                        f"logits of {file_type.upper()} weights are off by {error:.1e} (normalized "
                        f"mean square), expected at most {ALLOWED_NMSE.get(file_type, 0.0):.0e}"
                    )


def quantize_file(library: Library, source: Path, target: Path, kind: str) -> None:
    api = library.api
    parameters = api.llama_model_quantize_default_params()
    words = "ALL" if kind == "F32" else "MOSTLY"
    parameters.ftype = getattr(api, f"LLAMA_FTYPE_{words}_{kind}")
    parameters.nthread = 1
    mark = library.log.mark()
    code = api.llama_model_quantize(str(source).encode(), str(target).encode(), parameters)
    if code != 0:
        raise EnvironmentFault(f"llama_model_quantize returned {code}.{library.log.explain(mark)}")


def _token_rows(path: Path) -> dict[int, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """The rows of the token table as stored in the file's type, id -> [n_embd]."""
    (table,) = (t for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight")
    return dict(enumerate(gguf.quants.dequantize(table.data, table.tensor_type)))


def _say(stage: str) -> None:
    print(f"{STAGE}{stage}", flush=True)  # noqa: T201 - a program of its own


if __name__ == "__main__":
    sys.exit(main())
