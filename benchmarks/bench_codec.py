"""The codec: its files against the bytes of them, encoding and decoding against transformers.

    python benchmarks/bench_codec.py [--seconds 20] [--repeat 5] [--threads 1] [--long 600]

On EnCodec's published architecture with random weights (8 levels):

* export: `write_cpp_file` and `write_gguf_codec` over reading the source's bytes and writing as
  many as the result has, with fsync, in turns;
* encode and decode: seconds for a second of audio, this project's and transformers', in turns;
* memory: the largest resident size of a process that encodes and decodes --long seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from shared import in_turns, options, print_numbers
from transformers import EncodecConfig, EncodecModel
from transformers.utils import logging

from valle_convert.audio import Audio, EncodecCodec
from valle_convert.encodec.cpp_file import write_cpp_file
from valle_convert.encodec.gguf_codec import write_gguf_codec
from valle_convert.encodec.sources import open_encodec

RATE = 24_000
# VmHWM is of this process alone; ru_maxrss would be the parent's where that was larger.
LONG = """
import sys
import numpy as np
from valle_convert.audio import Audio, EncodecCodec
codec = EncodecCodec(sys.argv[1])
samples = 0.1 * np.random.default_rng(0).standard_normal(int(sys.argv[2]) * 24_000, np.float32)
codec.decode(codec.encode(Audio(samples, 24_000)))
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024)
"""


def copy_bytes(source: Path, target: Path, n_bytes: int) -> None:
    data = source.read_bytes()
    with target.open("wb") as file:
        file.write((data * (n_bytes // len(data) + 1))[:n_bytes])
        file.flush()
        os.fsync(file.fileno())


def bench_export(folder: Path, source: Path, repeat: int) -> dict[str, float]:
    """Times of export, of the bytes alone, and their ratios."""
    codec = open_encodec(source)
    weights, out = source / "model.safetensors", folder / "out"
    results = {}
    for name, write in (("cpp", write_cpp_file), ("gguf", write_gguf_codec)):
        for kind in ("f16", "f32"):
            size = write(codec, out, out_type=kind, force=True).n_bytes  # type: ignore[operator]
            times = in_turns(
                repeat,
                export=lambda: write(codec, out, out_type=kind, force=True),  # type: ignore[operator]  # noqa: B023
                plain=lambda: copy_bytes(weights, out, size),  # noqa: B023
            )
            results[f"export {name} {kind} (s)"] = times["export"]
            results[f"export {name} {kind} over reading and writing the bytes"] = (
                times["export"] / times["plain"]
            )
    return results


def bench_speed(source: Path, seconds: float, repeat: int) -> dict[str, float]:
    """Seconds for a second of audio, and ratios."""
    model = EncodecModel.from_pretrained(source).eval()
    codec = EncodecCodec(source)
    samples = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * RATE), np.float32)
    audio, tensor = Audio(samples, RATE), torch.from_numpy(samples)[None, None]
    codes = codec.encode(audio)
    theirs = torch.from_numpy(codes.T.astype(np.int64))[None, None]
    with torch.inference_mode():
        times = in_turns(
            repeat,
            encode=lambda: codec.encode(audio),
            encode_transformers=lambda: model.encode(tensor, bandwidth=6.0),
            decode=lambda: codec.decode(codes),
            decode_transformers=lambda: model.decode(theirs, [None]),
        )
    results = {f"{name} (s a second of audio)": t / seconds for name, t in times.items()}
    for name in ("encode", "decode"):
        results[f"{name} over transformers"] = times[name] / times[f"{name}_transformers"]
    return results


def main(argv: Sequence[str] | None = None) -> None:
    logging.disable_progress_bar()
    torch.manual_seed(0)
    with options(__doc__, argv, seconds=20.0, repeat=5, threads=1, long=600) as given:
        torch.set_num_threads(given.threads)
        model = EncodecModel(EncodecConfig())
        for layer in model.quantizer.layers:
            layer.codebook.embed.normal_()
        source = given.folder / "codec"
        model.save_pretrained(source)
        results = bench_export(given.folder, source, given.repeat)
        results |= bench_speed(source, given.seconds, given.repeat)
        command = [sys.executable, "-c", LONG, str(source), str(given.long)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        results[f"memory of {given.long} s there and back (MiB)"] = float(run.stdout)
    print_numbers(results)


if __name__ == "__main__":
    main()
