"""Write the file of one attack, or list them."""

from __future__ import annotations

import sys
from pathlib import Path

from attacks.catalogue import ATTACKS


def main() -> None:
    """Names without arguments; a file with two."""
    if len(sys.argv) != 3:
        width = max(map(len, ATTACKS))
        for name, attack in ATTACKS.items():
            sys.stdout.write(f"{name:{width}}  {attack.tries}\n")
        return
    name, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    path = ATTACKS[name].make(folder, folder / "canary")
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
