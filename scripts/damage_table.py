"""Write docs/damages.csv: the checks of `verify` that detect each kind of damage.

Each damage is done to a correct file, or set of files, of two or three types: a random checkpoint
of version 5 and one of version 7, both 256 wide, and the golden VALL-E X.

    python scripts/damage_table.py
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "fixtures"), str(ROOT / "tests"), str(ROOT / "tests/verify")]

from damages import BROKEN, files_of  # noqa: E402
from test_damage import RIGHT, SPOIL, TITLES, TYPES, damaged, judge, make_right  # noqa: E402

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
    rows = [["model", "what is wrong", *TYPES]]
    with tempfile.TemporaryDirectory() as right, tempfile.TemporaryDirectory() as spoiled:
        plans, out = make_right(Path(right)), Path(spoiled)
        for which, kinds in RIGHT.items():
            plan, mains = plans[which], [Path(right) / f"{which}-{kind}.gguf" for kind in kinds]
            cells = {"nothing": [judge(plan, main).verdict().split(":")[0] for main in mains]}
            for what, do in SPOIL[which].items():
                cells[what] = [noticed_by(judge(plan, damaged(main, out, do))) for main in mains]
            for what, spoil in BROKEN.items():
                cells[what] = []
                for main in mains:
                    for path in files_of(main).values():
                        (out / path.name).write_bytes(path.read_bytes())
                    last = out / path.name
                    last.write_bytes(spoil(last.read_bytes()))
                    report = verify_path(plan.checkpoint, out / main.name)
                    cells[what].append(noticed_by(report))
            blanks = [""] * (len(TYPES) - len(kinds))
            rows += [[TITLES[which], what, *found, *blanks] for what, found in cells.items()]
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
