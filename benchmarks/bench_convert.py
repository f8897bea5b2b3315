"""Speed and memory of the conversion, each beside something run in the same call.

convert    production-size float32 .sft and .pth to f16, against a plain numpy loop that maps,
           casts and writes the same bytes; peak resident memory beyond the mapped file
start      --help, --dry-run and inspect
tokenize   valle-convert's calls of llama_tokenize against bare ctypes calls of it

python benchmarks/bench_convert.py [--folder DIR] [--repeat 3]
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from shared import (
    MIB,
    PRODUCTION,
    PROGRAM,
    ROOT,
    in_turns,
    make_checkpoint,
    options,
    print_numbers,
    timed,
)

from valle_convert.checkpoint.torch_zip import check_sums, zip_entries

# What the ratio is against: what any converter has to do, and nothing else.
PLAIN_LOOP = """
import json, sys
import numpy as np
source, target = sys.argv[1:]
data = np.memmap(source, np.uint8, mode="r")
length = int(data[:8].view("<u8")[0])
header = json.loads(data[8:8 + length].tobytes())
header.pop("__metadata__")
with open(target, "wb") as file:
    for entry in header.values():
        start, end = entry["data_offsets"]
        weights = data[8 + length + start:8 + length + end].view("<f4")
        file.write(weights.astype(np.float16).tobytes())
    file.flush()
    import os
    os.fsync(file.fileno())
"""


def bench_conversion(folder: Path, repeat: int) -> dict[str, float]:
    """Conversion over the plain loop, and memory beyond the mapped source."""
    results: dict[str, float] = {}
    sft, pth = folder / "production.sft", folder / "production.pth"
    make_checkpoint(sft, PRODUCTION)
    make_checkpoint(pth, PRODUCTION)
    out = folder / "out.bin"

    start = time.perf_counter()
    check_sums(pth, zip_entries(pth))
    results["checksums of the .pth, s"] = time.perf_counter() - start
    loop = [sys.executable, "-c", PLAIN_LOOP, sft, out]
    plain, _ = timed(loop, repeat=repeat, source=sft, out=out)
    results["plain loop, s"] = plain
    for path in (sft, pth):
        for verify in ("none", "quick"):
            command = [*PROGRAM, path, out, "--outtype", "f16", "--verify", verify]
            seconds, peak = timed(command, repeat=repeat, source=path, out=out)
            name = f"{path.suffix} to f16, --verify {verify}"
            results[f"{name}, s"] = seconds
            results[f"{name}, over the plain loop"] = seconds / plain
            results[f"{name}, MiB beyond the mapped file"] = (peak - path.stat().st_size) / MIB
    starts = {"--help": ["--help"]}
    for path in (sft, pth):
        starts[f"--dry-run of a {path.suffix}"] = [str(path), "--dry-run"]
        starts[f"inspect of a {path.suffix}"] = ["inspect", str(path)]
    for name, arguments in starts.items():
        results[f"{name}, s"], _ = timed([*PROGRAM, *arguments], repeat=9)
    return results


def bench_tokenizer(folder: Path, repeat: int) -> dict[str, float]:
    """Our wrapper around llama_tokenize, over the bare call, on espeak-ng's lines."""
    from valle_convert import plan_conversion, write_gguf
    from valle_convert.tokenizer import corpus
    from valle_convert.tokenizer.oracle import LlamaTokenizer

    path = folder / "tokenizer.gguf"
    write_gguf(plan_conversion(ROOT / "fixtures/golden/ar-nar-len/fp32.sft"), path, force=True)
    lines = corpus.ipa_lines()
    with LlamaTokenizer(path) as llama:
        library, vocabulary = llama.library, llama.vocabulary
        buffer = (ctypes.c_int32 * 4096)()
        encoded = [line.encode() for line in lines]

        def bare() -> None:
            for data in encoded:
                library.llama_tokenize(vocabulary, data, len(data), buffer, 4096, True, False)

        def ours() -> None:
            for line in lines:
                llama.encode(line, add_special=True, parse_special=False)

        times = in_turns(max(5, repeat), bare=bare, ours=ours)
    return {
        "tokenize, lines per s": len(lines) / times["ours"],
        "tokenize, over bare llama_tokenize": times["ours"] / times["bare"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    with options(__doc__, argv, repeat=3) as given:
        results = bench_conversion(given.folder, given.repeat)
        results |= bench_tokenizer(given.folder, given.repeat)
    print_numbers(results)


if __name__ == "__main__":
    main()
