"""Write docs/damages.csv: the checks of `verify` that detect each kind of damage.

Each damage is done to a correct file of three types (a random checkpoint, 256 wide, two layers).

    python scripts/damage_table.py
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "fixtures"), str(ROOT / "tests"), str(ROOT / "tests/verify")]

from damages import BROKEN, DAMAGES, put_together, take_apart  # noqa: E402
from make_checkpoint import make_checkpoint  # noqa: E402
from test_damage import SHAPE, TYPES, judge  # noqa: E402

from valle_convert import plan_conversion, read_checkpoint, write_gguf  # noqa: E402
from valle_convert.families.family import Choices  # noqa: E402
from valle_convert.llama.library import load_library  # noqa: E402
from valle_convert.llama.selftest import quantize_file  # noqa: E402
from valle_convert.verify.report import Report  # noqa: E402
from valle_convert.verify.run import verify_path  # noqa: E402

TABLE = ROOT / "docs" / "damages.csv"


def noticed_by(report: Report) -> str:
    """The checks that failed, several of a level as their number."""
    if report.passed:
        return "not detected"
    words = []
    for level in report.levels:
        failed = [check.name for check in level.checks if not check.passed]
        if level.name in ("tensors", "logits") and len(failed) > 1:
            words.append(f"{len(failed)} {level.name}")
        else:
            words += failed
    return ", ".join(words)


def main() -> None:
    """Make the files, damage them, write the table."""
    rows: list[list[str]] = [["what is wrong", *TYPES]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, damaged = folder / "right.sft", folder / "damaged.gguf"
        make_checkpoint(checkpoint, SHAPE)
        plan = plan_conversion(checkpoint)
        write_gguf(plan_conversion(checkpoint, Choices("f16")), folder / "F16.gguf")
        for kind in TYPES[1:]:
            quantize_file(load_library(), folder / "F16.gguf", folder / f"{kind}.gguf", kind)
        passed = [judge(plan, folder / f"{kind}.gguf").verdict().split(":")[0] for kind in TYPES]
        rows.append(["nothing", *passed])
        for what, damage in DAMAGES.items():
            cells = []
            for kind in TYPES:
                parts = take_apart(folder / f"{kind}.gguf")
                damage(parts)
                put_together(parts, damaged)
                cells.append(noticed_by(judge(plan, damaged)))
            rows.append([what, *cells])
        for what, spoil in BROKEN.items():
            cells = []
            for kind in TYPES:
                damaged.write_bytes(spoil((folder / f"{kind}.gguf").read_bytes()))
                cells.append(noticed_by(verify_path(read_checkpoint(checkpoint), damaged)))
            rows.append([what, *cells])
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
