"""What tests of quantizing share: a file made alone, other programs, and looks at a folder."""

from functools import partial
from pathlib import Path

import numpy as np
from make_checkpoint import Shape, make_checkpoint
from make_vallex import VallexShape, make_vallex
from support import executable
from vallex_golden import write_voice

from valle_convert.families.bundle import Bundle
from valle_convert.families.family import Unit
from valle_convert.families.v5 import FAMILY
from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.make import make_files
from valle_convert.quantize.manifest import ManifestFile
from valle_convert.quantize.options import RunLog
from valle_convert.quantize.plan import TypePlan, UnitPlan
from valle_convert.quantize.source import Scratch, Source, SourceBundle
from valle_convert.quantize.tool import Quantizer, find_quantizer

#: Of each family, a checkpoint whose rows K-quants divide into.
WIDE = {
    "VALL-E": partial(make_checkpoint, shape=Shape(dim=256, heads=4, layers=1, ffn=1, levels=2)),
    "VALL-E X": partial(
        make_vallex, shape=VallexShape(dim=256, heads=4, layers=1, ffn=1, levels=3, codes=64)
    ),
    "VALL-E of version 7": partial(
        make_checkpoint, shape=Shape(version=7, dim=256, heads=4, layers=1, ffn=1, levels=2)
    ),
}


def make_one(plan: UnitPlan, target: Path, log: RunLog | None = None) -> ManifestFile:
    """One file made by llama-quantize, without the rest of a run."""
    unit, source = Unit("model"), plan.source
    bundle = Bundle(FAMILY, {"model": source.header})
    whole = TypePlan(plan.kind, {unit: plan}, {"model": target}, plan.n_bytes)
    with Scratch(target.parent) as scratch:
        given = SourceBundle(source.name, bundle, None, scratch, log or RunLog())
        made = make_files(whole, given, log=log)
    return made.entries[0]


def source_of(path: Path) -> Source:
    return Source(path, path.name, GgufFile(path), path)


def script(path: Path, text: str) -> Quantizer:
    """A program of somebody else's in the place of llama-quantize."""
    return find_quantizer(str(executable(path, text)))


def planner(program: Quantizer) -> str:
    """The beginning of a script whose dry run is the real one."""
    return f'if [ "$1" = --dry-run ]; then exec "{program.command[0]}" "$@"; fi\n'


def flip(path: Path, at: int = -1) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def write_utterance(folder: Path, name: str = "a", n_levels: int = 3) -> Path:
    folder.mkdir(exist_ok=True)
    codes = np.random.default_rng(len(name)).integers(0, 30, (10, n_levels))
    np.savez(folder / f"{name}.npz", phonemes=np.array([1, 40, 41, 2]), response=codes)
    return folder


def voice_file(path: Path, n_frames: int, seed: int = 0, *, levels: int = 8) -> Path:
    """As VALL-E X's own project writes them."""
    draw = np.random.default_rng(seed)
    codes, text = draw.integers(0, 64, (1, n_frames, levels)), draw.integers(5, 70, (1, 12))
    return write_voice(path, audio_tokens=codes, text_tokens=text, lang_code=0)
