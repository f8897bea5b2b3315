"""Write the table of docs/verdict.md: what `verify` says of forty kinds of damage.

Each is done to a right file of three number formats (a random checkpoint, 256 wide, two layers).

    python scripts/damage_table.py
"""

from __future__ import annotations

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

DOCUMENT = ROOT / "docs" / "verdict.md"
BEGIN = "<!-- written by scripts/damage_table.py -->"


def noticed_by(report: Report) -> str:
    """The checks that failed, several of a level as their number."""
    if report.passed:
        return "**not noticed**"
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
    lines = [f"| what is wrong | {' | '.join(TYPES)} |", "|---" * (len(TYPES) + 1) + "|"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, damaged = folder / "right.sft", folder / "damaged.gguf"
        make_checkpoint(checkpoint, SHAPE)
        plan = plan_conversion(checkpoint)
        write_gguf(plan_conversion(checkpoint, Choices("f16")), folder / "F16.gguf")
        for kind in TYPES[1:]:
            quantize_file(load_library(), folder / "F16.gguf", folder / f"{kind}.gguf", kind)
        passed = [judge(plan, folder / f"{kind}.gguf").verdict().split(":")[0] for kind in TYPES]
        lines.append(f"| nothing | {' | '.join(passed)} |")
        for what, damage in DAMAGES.items():
            cells = []
            for kind in TYPES:
                parts = take_apart(folder / f"{kind}.gguf")
                damage(parts)
                put_together(parts, damaged)
                cells.append(noticed_by(judge(plan, damaged)))
            lines.append(f"| {what} | {' | '.join(cells)} |")
        for what, spoil in BROKEN.items():
            cells = []
            for kind in TYPES:
                damaged.write_bytes(spoil((folder / f"{kind}.gguf").read_bytes()))
                cells.append(noticed_by(verify_path(read_checkpoint(checkpoint), damaged)))
            lines.append(f"| {what} | {' | '.join(cells)} |")
    before = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)[0]
    DOCUMENT.write_text(before + "\n".join([BEGIN, "", *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
