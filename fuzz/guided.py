"""Inputs that are led by the code that they reach: python -m fuzz.guided TARGET FOLDER [OPTIONS]

The bytes of one file are mutated by libFuzzer through atheris (in the extra `dev`), which keeps in
FOLDER what reached a new branch of the readers. The options are libFuzzer's, such as
`-max_total_time=60`. What is a finding, and the targets, are those of `python -m fuzz`; an input
that is one is left in build/fuzz.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import warnings
from pathlib import Path

from fuzz.__main__ import PROJECT  # which sets the environment before anything is imported


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["valle_convert"]):
        from fuzz import seeds
        from fuzz.runner import Bench
        from fuzz.targets import TARGETS

        seeds.warm()

    singles = {name: one for name, one in TARGETS.items() if all(len(f) == 1 for f in one.valid())}
    if len(sys.argv) < 3 or sys.argv[1] not in singles:
        sys.exit(f"usage: python -m fuzz.guided {{{','.join(singles)}}} FOLDER [OPTIONS]")
    target, corpus = singles[sys.argv[1]], Path(sys.argv[2])
    corpus.mkdir(parents=True, exist_ok=True)
    name = ""
    for i, files in enumerate(target.valid()):
        ((name, data),) = files.items()
        (corpus / f"valid-{i}").write_bytes(data)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        bench = Bench(Path(folder))

        def read(data: bytes) -> None:
            bench.read(target, {name: data})

        found = PROJECT / "build" / "fuzz"
        found.mkdir(parents=True, exist_ok=True)
        options = [f"-artifact_prefix={found}/", *sys.argv[3:]]
        atheris.Setup([sys.argv[0], str(corpus), *options], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
