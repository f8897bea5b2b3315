"""Reading through every container, over reading the plain `.sft`, in the same call.

Each form of one checkpoint in float16 is opened, planned and written to f16, in turn, in one
process that has everything imported; the sources are in the page cache, the hub's in its own. The
processor's time of all threads is compared, as the machine may be busy. What reads with torch
is compared with the plain `.pth`, too. Needs 5 GB of disk.

python benchmarks/bench_containers.py [--folder DIR] [--repeat 5]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from shared import PRODUCTION, ROOT, Shape, in_turns, make_checkpoint, options, print_numbers

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


def make_all(folder: Path, shape: Shape) -> dict[str, Path]:
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
    return forms


def convert(path: Path, out: Path, config: Path) -> None:
    """Convert one form; only an export needs a config, which gives its heads."""
    given = config if path.name == "export" else None
    write_gguf(
        plan_conversion(read_checkpoint(path, config=given), Choices("f16")), out, force=True
    )


def main(argv: Sequence[str] | None = None) -> None:
    with options(__doc__, argv, repeat=5) as given:
        folder = given.folder
        shape = replace(PRODUCTION, bias=False)  # an export has none
        config, out = folder / "heads.yaml", folder / "out.gguf"
        config.write_text(f"size: {{heads: {shape.heads}}}\n")
        forms = make_all(folder, shape)
        runs = {form: partial(convert, path, out, config) for form, path in forms.items()}
        seconds = in_turns(given.repeat, time.process_time, **runs)
    for base in (".sft", ".pth"):
        print_numbers({f"{form}, of {base}": one / seconds[base] for form, one in seconds.items()})


if __name__ == "__main__":
    main()
