"""Build the wheel twice, and use what is installed of it: alone, and with each extra alone.

    python scripts/check_wheel.py [--extras llama,speech,report]

Two builds at different times must give the same bytes. The wheel is then installed into a clean
environment, where everything that needs no extra must work, and everything else must fail with the
command that installs what is missing. Each extra gets an environment of its own, on top of the
first. pip installs the versions of constraints.txt.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "valle_convert"
#: 2024-01-01; any time will do.
EPOCH = "1704067200"
#: Every template that is there has to be in the wheel, too.
TEMPLATES = "import jinja2; print(*jinja2.PackageLoader('valle_convert.quantize').list_templates())"
#: What each extra has to make possible, as Python.
IMPORTS: Mapping[str, str] = {
    "llama": "from valle_convert.llama.library import load_library; load_library()",
    "speech": "import cn2an, soundfile, soxr, phonemizer, espeakng_loader, py3langid, pykakasi",
    "report": "import matplotlib.pyplot",
    "vallex": "import eng_to_ipa, inflect, jieba, pypinyin",
    "japanese": "import pyopenjtalk",
    "hub": "import hf_xet",
    "serve": "import python_multipart, prometheus_client, python_stretch, starlette, uvicorn",
    "cluster": "import snakemake",
    "asr": "import pocketsphinx",
    "miniature": "import pyworld",
}


def run(
    words: Sequence[object], expected: Sequence[int] = (0,), cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command, which must end with one of some codes and without a traceback."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, words)], capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )
    if done.returncode not in expected or (0 not in expected and "Traceback" in done.stderr):
        shown = " ".join(map(str, words))
        raise RuntimeError(f"{shown} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def build(folder: Path) -> Path:
    """The wheel, made from a copy of the tracked files."""
    copy = folder / "source"
    copy.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "archive", "HEAD"], cwd=PROJECT, check=True, capture_output=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(copy)], input=archive, check=True)
    now = time.time()
    for i, path in enumerate(copy.rglob("*")):
        os.utime(path, (now - i, now - i))
    builder = folder / "builder"
    run([sys.executable, "-m", "venv", builder])
    run([builder / "bin/python", "-m", "pip", "install", "--quiet", "hatchling"])
    os.environ["SOURCE_DATE_EPOCH"] = EPOCH
    run([builder / "bin/python", "-m", "hatchling", "build", "-t", "wheel"], cwd=copy)
    # To llama.cpp's build it means: no instruction set that is not named.
    del os.environ["SOURCE_DATE_EPOCH"]
    (wheel,) = (copy / "dist").glob("*.whl")
    return wheel


def environment(folder: Path, wheel: str, below: Path | None) -> Path:
    """A new environment with a wheel; `below` is one whose packages it has, too."""
    run([sys.executable, "-m", "venv", folder])
    if below is not None:
        (packages,) = folder.glob("lib/python*/site-packages")
        (others,) = below.glob("lib/python*/site-packages")
        (packages / "below.pth").write_text(f"{others}\n", encoding="utf-8")
    pip = [folder / "bin/python", "-m", "pip", "install", "--quiet"]
    if below is None:
        constraints = (PROJECT / "constraints.txt").read_text(encoding="utf-8")
        torch = next(line for line in constraints.splitlines() if line.startswith("torch=="))
        run([*pip, torch])
    pip += ["--constraint", PROJECT / "constraints.txt"]
    run([*pip, "--force-reinstall", "--no-deps", wheel.partition("[")[0]])
    run([*pip, wheel])
    return folder


def use(installed: Path, folder: Path, extra: str) -> None:
    """Check what works with an extra, and the errors of what does not."""
    folder.mkdir()
    program = installed / "bin/valle-convert"
    shutil.copy(PROJECT / "miniature/miniature.sft", folder / "model.sft")
    asked = "import valle_convert; print(valle_convert.__file__)"
    where = run([installed / "bin/python", "-c", asked], cwd=folder)
    if str(installed) not in where.stdout:
        raise RuntimeError(f"not the wheel is used, but {where.stdout}")
    listed = run([installed / "bin/python", "-c", TEMPLATES], cwd=folder).stdout.split()
    if listed != sorted(one.name for one in (PACKAGE / "quantize/templates").iterdir()):
        raise RuntimeError(f"the wheel has these templates only: {listed}")
    run([program, "--version"])
    run([program, "inspect", "model.sft"], cwd=folder)
    run([program, "model.sft", "model.gguf", "--verify", "none"], cwd=folder)
    run([program, "verify", "model.gguf"], cwd=folder)
    done = run([program, "tokenize", "model.gguf", "a"], [0 if extra == "llama" else 3], cwd=folder)
    if extra == "llama":
        run([program, "verify", "model.sft", "model.gguf"], cwd=folder)
    elif "pip install" not in done.stderr:
        raise RuntimeError(f"no advice in: {done.stderr}")
    spoken = run([program, "speak", "model.gguf", "a", "-o", "a.wav"], [2, 3], cwd=folder)
    if not spoken.stderr.splitlines()[-1].startswith("error: "):
        raise RuntimeError(f"no sentence in: {spoken.stderr}")
    if extra:
        run([installed / "bin/python", "-c", IMPORTS[extra]], cwd=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--extras", default=",".join(IMPORTS))
    extras = [one for one in parser.parse_args().extras.split(",") if one]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheels = [build(folder / f"build-{i}") for i in range(2)]
        digests = [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels]
        if len(set(digests)) != 1:
            raise RuntimeError(f"two builds differ: {digests}")
        print(f"{wheels[0].name}: sha256 {digests[0]}, twice", flush=True)
        base = environment(folder / "base", str(wheels[0]), None)
        use(base, folder / "use-base", "")
        print("alone: works", flush=True)
        for extra in extras:
            one = environment(folder / extra, f"{wheels[0]}[{extra}]", base)
            use(one, folder / f"use-{extra}", extra)
            print(f"[{extra}] alone: works", flush=True)


if __name__ == "__main__":
    main()
