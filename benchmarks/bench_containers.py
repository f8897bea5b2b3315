"""Reading through every container, over reading the plain `.sft`, in the same call.

Each form of one checkpoint in float16 is opened, planned and written to f16, in turn, in one
process that has everything imported; the sources are in the page cache, the hub's in its own. The
processor's time of all threads is compared, as the machine may be busy. What reads with torch
is compared with the plain `.pth`, too.

python benchmarks/bench_containers.py [--folder DIR] [--repeat 5] [--width 1024] [--layers 12]
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from shared import MIB, ROOT, Shape, make_checkpoint

sys.path.insert(0, str(ROOT / "tests"))

from checkpoint.containers import (
    deepspeed_training,
    local_training,
    sharded,
    write_export,
)
from checkpoint.small_hub import small_hub

from valle_convert import plan_conversion, read_checkpoint, write_gguf
from valle_convert.families.family import Choices


def make_all(folder: Path, shape: Shape) -> dict[str, Callable[[], Path]]:
    """The argument of `read_checkpoint` for each form; the hub's is downloaded once."""
    from huggingface_hub import constants

    plain, torch = folder / "plain.sft", folder / "plain.pth"
    make_checkpoint(plain, shape, dtype="f16")
    make_checkpoint(torch, shape, dtype="f16")
    forms: dict[str, Path] = {
        ".sft": plain,
        "shards": sharded(folder / "shards", shape, "f16"),
        "Hugging Face export": write_export(folder / "export", shape, "f16"),
        "training folder, .sft": local_training(folder / "local", shape, "f16"),
        ".pth": torch,
        "training folder, .pth": local_training(folder / "local-pth", shape, "f16", ".pth"),
        "training folder, DeepSpeed": deepspeed_training(folder / "deepspeed", shape, "f16"),
    }
    constants.HF_HUB_CACHE = str(folder / "cache")
    constants.HF_HUB_DISABLE_XET = True
    with small_hub() as hub:
        hub.add("me/model", {"fp32.sft": plain.read_bytes()})
        constants.ENDPOINT = hub.url
        constants.HUGGINGFACE_CO_URL_TEMPLATE = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        read_checkpoint("hf:me/model")
    constants.HF_HUB_OFFLINE = True
    forms["the hub, in its cache"] = Path("hf:me/model")
    return {name: lambda path=path: path for name, path in forms.items()}  # type: ignore[misc]


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run it and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to work; 5 GB are needed")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    arguments = parser.parse_args(argv)
    width = arguments.width
    shape = Shape(
        dim=width, heads=width // 64, layers=arguments.layers, audio_tokens=1024, bias=False
    )
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        forms = make_all(folder, shape)
        config = folder / "heads.yaml"
        config.write_text(f"size: {{heads: {shape.heads}}}\n")
        out = folder / "out.gguf"
        size = (folder / "plain.sft").stat().st_size
        for _ in range(arguments.repeat + 1):  # the first is not counted: it imports and warms
            for form, path in forms.items():
                out.unlink(missing_ok=True)
                gc.collect()
                start = time.process_time()
                given = config if form == "Hugging Face export" else None
                checkpoint = read_checkpoint(path(), config=given)
                write_gguf(plan_conversion(checkpoint, Choices("f16")), out)
                seconds.setdefault(form, []).append(time.process_time() - start)
    least = {form: min(laps[1:]) for form, laps in seconds.items()}
    print(f"{size / MIB:.0f} MiB in float16 to f16, processor time, least of {arguments.repeat}")
    for form, one in least.items():
        ratio = f"{one / least['.sft']:.2f} of .sft, {one / least['.pth']:.2f} of .pth"
        print(f"{form:28} {one:6.2f} s  {ratio}")
    print(f"load average {os.getloadavg()[0]:.1f}")
    return {f"{form}, over .sft": one / least[".sft"] for form, one in least.items()}


if __name__ == "__main__":
    main()
