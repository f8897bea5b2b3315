"""Repair of a GGUF file of production size, compared with a plain copy.

The copy reads and writes the same number of bytes, with fsync; both start with the source in the
page cache. `--verify none`: what is measured is the moving of rows and the two digests.

python benchmarks/bench_repair.py [--folder DIR] [--repeat 3]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from shared import MIB, PRODUCTION, PROGRAM, ROOT, in_own_process, make_checkpoint, options, timed

sys.path.insert(0, str(ROOT / "tests" / "verify"))

from old_files import make_old

PLAIN_COPY = """
import os, sys
with open(sys.argv[1], "rb") as source, open(sys.argv[2], "wb") as target:
    while piece := source.read(8 << 20):
        target.write(piece)
    target.flush()
    os.fsync(target.fileno())
"""


def main(argv: Sequence[str] | None = None) -> None:
    with options(__doc__, argv, repeat=3, types="F16,Q8_0,Q4_K_M") as given:
        checkpoint, old, out = (given.folder / one for one in ("p.sft", "old.gguf", "out.gguf"))
        # A child's peak memory starts at its parent's size, so this process must stay small.
        in_own_process(make_checkpoint, checkpoint, PRODUCTION, dtype="f16")
        for kind in given.types.split(","):
            in_own_process(make_old, checkpoint, old, kind)
            how = {"repeat": given.repeat, "source": old, "out": out}
            plain, _ = timed([sys.executable, "-c", PLAIN_COPY, old, out], **how)
            for verify in ("none", "quick"):
                seconds, peak = timed([*PROGRAM, "repair", old, out, "--verify", verify], **how)
                print(
                    f"{kind:8} {old.stat().st_size / MIB:6.0f} MiB  --verify {verify:5}  "
                    f"{seconds:6.2f} s, a copy {plain:5.2f} s, ratio {seconds / plain:5.2f}, "
                    f"{(peak - old.stat().st_size) / MIB:5.0f} MiB beyond the mapped source"
                )
    print(f"load average at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
