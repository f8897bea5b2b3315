"""What tests share that is no fixture: paths of the golden files, results of the command line."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from valle_convert.checkpoint import Checkpoint
from valle_convert.families import family_of
from valle_convert.families.family import Choices
from valle_convert.gguf_file.header import Key
from valle_convert.gguf_file.read import GgufFile
from valle_convert.llama.context import Settings
from valle_convert.model.description import Description
from valle_convert.model.spec import Codec, ModelConfig
from valle_convert.speech.speaker import Watch

PROJECT = Path(__file__).parents[1]
GOLDEN = PROJECT / "fixtures" / "golden"
#: Of versions 5 and 6, of VALL-E X, and of version 7.
GOLDEN_NAMES = ("ar-nar-len", "ar-nar-len-unified-causal", "v6-text-head", "single-classifier")
GOLDEN_VALLEX = "valle-x-small"
GOLDEN_VERSION_7 = "v7-nemo"
#: How networks and speakers of tests compute.
ONE_THREAD = Settings(n_threads=1)


def golden_checkpoint(name: str) -> Path:
    """The checkpoint of a golden folder."""
    (path,) = (GOLDEN / name).glob("vallex-checkpoint.pt" if name == GOLDEN_VALLEX else "fp32.*")
    return path


def open_reference(path: Path) -> Any:
    """The PyTorch network of a checkpoint, whatever its family."""
    from valle_convert import plan_conversion

    plan = plan_conversion(path)
    return plan.family.reference(plan.description.tensors, plan.description)


def describe(checkpoint: Checkpoint) -> Description[Any]:
    """What the family of a checkpoint says of it."""
    return family_of(checkpoint).describe(checkpoint, Choices())


def model_of(codec: Codec, n_levels: int = 8, codebook_size: int = 1024) -> ModelConfig:
    """A model as far as it concerns a codec."""
    return ModelConfig(
        version=5,
        capabilities=("ar", "nar"),
        n_embd=64,
        n_layer=1,
        n_head=1,
        n_head_kv=1,
        n_ff=64,
        n_ctx_train=100,
        n_levels=n_levels,
        codebook_size=codebook_size,
        positions="segment",
        nar_attention="causal",
        sum_prompt=False,
        sum_response=False,
        codec=codec,
    )


@dataclass(frozen=True)
class Result:
    """What a run of the command line gave."""

    code: int
    out: str
    err: str


Cli = Callable[..., Result]
#: `converted(path or golden name, out type)`.
Convert = Callable[[str | Path, str], Path]


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def with_keys(source: Path, out: Path, *keys: Key, drop: Sequence[str] = ()) -> Path:
    """A GGUF file with other keys; in its own place, if that is `out`."""
    file, raw = GgufFile(source, allow_part=True), source.read_bytes()
    out.write_bytes(file.changed(keys, drop=drop) + raw[file.data_start :])
    return out


def resave(
    path: Path,
    change: Callable[[dict[str, Any]], object] = list,
    *,
    out: Path | None = None,
    drop: Sequence[str] = (),
) -> None:
    """Write a safetensors file with changed tensors, and without some of its metadata."""
    with safe_open(path, "np") as file:
        metadata = {key: value for key, value in file.metadata().items() if key not in drop}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, out or path, metadata)


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def after(n: int) -> Watch:
    """Asks to stop when it is asked for the (n+1)th time."""
    left = iter(range(n))
    return Watch(should_stop=lambda: next(left, None) is None)


def run_python(
    *arguments: object, check: bool = False, **how: Any
) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own."""
    words = [one if isinstance(one, bytes) else str(one) for one in arguments]
    given = {"cwd": PROJECT, "capture_output": True, "text": True, **how}
    return subprocess.run([sys.executable, *words], check=check, **given)


def run_program(*arguments: object, **how: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return run_python("-m", "valle_convert", *arguments, **how)


def executable(path: Path, text: str = "") -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def install(folder: Path) -> Path:
    """A `valle-convert` that runs this code."""
    run = f'PYTHONPATH="{PROJECT}" exec "{sys.executable}" -m valle_convert "$@"'
    return executable(folder / "valle-convert", run)


def run_without(module: str, *arguments: object) -> Result:
    """The command line in a Python without a module."""
    code = (
        f"import sys\nsys.modules[{module!r}] = None\n"
        f"sys.argv = {['valle-convert', *map(str, arguments)]!r}\n"
        "from valle_convert.cli import main\nmain()"
    )
    done = run_python("-c", code)
    return Result(done.returncode, done.stdout, done.stderr)


def error_of(result: Result, code: int) -> str:
    """The one sentence of a refusal."""
    assert result.code == code, result
    assert "Traceback" not in result.err
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")
