"""The whole pipeline in five functions, for programs; the command line calls the same.

plan = plan_conversion("ckpt.sft")            # nothing is read but headers
write_gguf(plan, "out.gguf")
report = verify_gguf(plan, "out.gguf")        # report.passed
with open_session("out.gguf") as network:     # stock llama.cpp
    network.step(...)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint import read_checkpoint as _read_checkpoint
from valle_convert.checkpoint.lora import lora_files
from valle_convert.errors import InputError
from valle_convert.gguf_file.metadata import GeneralMetadata
from valle_convert.gguf_file.plan import GgufPlan, plan_gguf
from valle_convert.progress import Progress, silent

if TYPE_CHECKING:
    from valle_convert.gguf_file.adapter import Adapter
    from valle_convert.gguf_file.vallex import SetPlan
    from valle_convert.network.converted import GgufNetwork
    from valle_convert.network.vallex_converted import VallexGguf
    from valle_convert.verify.report import Report
    from valle_convert.verify.run import LevelName

PathLike = str | Path


def read_checkpoint(
    path: PathLike,
    *,
    config: PathLike | None = None,
    lora: PathLike | Sequence[PathLike] = (),
    lora_alpha: float | None = None,
    progress: Progress = silent,
) -> Checkpoint:
    """Open a checkpoint without reading its weights; see `checkpoint.read_checkpoint`.

    LoRAs in `lora` are merged, each as `FILE` or `FILE@SCALE`.
    """
    try:
        return _read_checkpoint(
            Path(path),
            config=None if config is None else Path(config),
            lora=lora_files(lora),
            lora_alpha=lora_alpha,
            progress=progress,
        )
    except InputError:
        from valle_convert.gguf_file.old import refuse_old

        if Path(path).is_file():
            refuse_old(Path(path))
        raise


def plan_repair(
    old: PathLike,
    *,
    config: PathLike | None = None,
    biases: PathLike | None = None,
    tokenizer: PathLike | None = None,
) -> GgufPlan:
    """Plan the right file of a GGUF file that was made the old way; see `gguf_file.old`.

    Args:
        old: the file; its quantized rows are moved as they are.
        config: what it does not say, where that is not as in the published models.
        biases: the checkpoint that it was made of, which has the heads' biases.
        tokenizer: as for `plan_conversion`.

    Raises:
        InputError: it is no such file, or the checkpoint is of another model.
    """
    from valle_convert.gguf_file.old import read_old

    return plan_gguf(
        read_old(
            Path(old),
            config=None if config is None else Path(config),
            biases=None if biases is None else read_checkpoint(biases),
        ),
        tokenizer=None if tokenizer is None else Path(tokenizer),
    )


def plan_conversion(
    checkpoint: PathLike | Checkpoint,
    *,
    out_type: str = "auto",
    tokenizer: PathLike | None = None,
    codec: str | None = None,
    metadata: GeneralMetadata | None = None,
) -> GgufPlan:
    """Decide everything about the GGUF file of a checkpoint, without reading weights.

    Args:
        checkpoint: a path, or what `read_checkpoint` gave.
        out_type: "auto" (the checkpoint's own), "f32", "f16", "bf16" or "q8_0".
        tokenizer: a tokenizer.json or SentencePiece .model; None chooses one, and says why.
        codec: name of the audio codec; None tells it by levels and codes.
        metadata: values for the `general.*` keys.

    Raises:
        InputError: the checkpoint, its config or its tokenizer cannot be converted exactly.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read_checkpoint(checkpoint)
    return plan_gguf(
        checkpoint,
        out_type=out_type,
        tokenizer=None if tokenizer is None else Path(tokenizer),
        codec=codec,
        metadata=metadata,
    )


def write_gguf(
    plan: GgufPlan, target: PathLike, *, force: bool = False, progress: Progress = silent
) -> int:
    """Write the planned file, or leave nothing; returns its size in bytes.

    Raises:
        InputError: the target must not be written, or a weight is not finite.
        EnvironmentFault: the disk is full, or the folder is not writable.
    """
    from valle_convert.gguf_file.write import write_plan

    return write_plan(plan, Path(target), force=force, progress=progress)


def write_lora(
    base: PathLike,
    lora: PathLike,
    target: PathLike,
    *,
    out_type: str = "f32",
    config: PathLike | None = None,
    lora_alpha: float | None = None,
    force: bool = False,
) -> Adapter:
    """Write a LoRA as a GGUF adapter of a converted file, and read it back.

    Args:
        base: the converted file, quantized or not, or its checkpoint.
        lora: `FILE` or `FILE@SCALE`, of the adapter or of a checkpoint that holds one.
        target: the file to write.
        out_type: "f32" or "f16".
        config: of the checkpoint, where `base` is one without.
        lora_alpha: where the adapter does not say it.
        force: whether an existing file may be replaced.

    Raises:
        InputError: the adapter is of another model, or the target must not be written.
        UnsupportedModelError: it changes tables or heads, which llama.cpp cannot.
        EnvironmentFault: the disk is full, or the folder is not writable.
    """
    from valle_convert.checkpoint.read import open_lora
    from valle_convert.files import check_outputs
    from valle_convert.gguf_file.adapter import AdapterBase, read_adapter, write_adapter
    from valle_convert.gguf_file.read import GgufFile, is_gguf

    base, target = Path(base), Path(target)
    check_outputs([target], force=force, inputs=[base])
    if is_gguf(base):
        fits = AdapterBase.of_gguf(GgufFile(base))
    else:
        fits = AdapterBase.of_checkpoint(read_checkpoint(base, config=config))
    (given,) = lora_files([lora])
    pairs = open_lora(given, fits.specs, alpha=lora_alpha, kept_apart=True)
    inputs = [base, given.path]
    write_adapter(fits, pairs, given.path, target, out_type=out_type, force=force, inputs=inputs)
    return read_adapter(GgufFile(target), fits)


def verify_gguf(
    plan: GgufPlan,
    file: PathLike,
    *,
    levels: Sequence[LevelName] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """Hold a converted (or quantized) file against the plan of its checkpoint.

    Args:
        plan: of the checkpoint, with the tokenizer that the file should have.
        file: the file to judge.
        levels: of "structure", "tensors", "tokenizer", "logits"; None for all.
        seed: of the strings and inputs that are tried.
        progress: shows the long levels.

    Raises:
        InputError: the file is no whole GGUF file.
        EnvironmentFault: llama.cpp is there, and does not work on this machine.
    """
    from valle_convert.gguf_file.read import GgufFile
    from valle_convert.verify.run import LEVELS, verify

    return verify(
        plan,
        GgufFile(Path(file)),
        levels=LEVELS if levels is None else levels,
        seed=seed,
        progress=progress,
    )


def plan_vallex(
    checkpoint: PathLike | Checkpoint,
    *,
    out_type: str = "auto",
    codec: str | None = None,
    metadata: GeneralMetadata | None = None,
) -> SetPlan:
    """Decide everything about the files of a VALL-E X; see `gguf_file.vallex.plan_vallex`."""
    from valle_convert.gguf_file.vallex import plan_vallex as plan

    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read_checkpoint(checkpoint)
    return plan(checkpoint, out_type=out_type, codec=codec, metadata=metadata)


def write_set(
    plan: SetPlan, target: PathLike, *, force: bool = False, progress: Progress = silent
) -> dict[Path, int]:
    """Write all files of a VALL-E X, or leave nothing; see `gguf_file.write.write_set`."""
    from valle_convert.gguf_file.write import write_set as write

    return write(plan, Path(target), force=force, progress=progress)


def verify_set(
    plan: SetPlan,
    file: PathLike,
    *,
    levels: Sequence[LevelName] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """Hold a converted (or quantized) VALL-E X against the plan of its checkpoint.

    Args:
        plan: of the checkpoint, with the activation factor that the files should have.
        file: of the AR.
        levels: of "structure", "tensors", "tokenizer", "logits"; None for all.
        seed: of the strings and inputs that are tried.
        progress: shows the long levels.

    Raises:
        EnvironmentFault: llama.cpp is there, and does not work on this machine.
    """
    from valle_convert.verify.run import LEVELS
    from valle_convert.verify.vallex import verify_set as verify

    return verify(
        plan,
        Path(file),
        levels=LEVELS if levels is None else levels,
        seed=seed,
        progress=progress,
    )


def open_vallex(file: PathLike, *, n_threads: int | None = None) -> VallexGguf:
    """Open a converted VALL-E X by the file of its AR, on stock llama.cpp; a context manager.

    Raises:
        InputError: a file is missing, damaged, or of another set.
        EnvironmentFault: there is no usable llama.cpp.
    """
    from valle_convert.network.vallex_converted import VallexGguf

    return VallexGguf(Path(file), n_threads=n_threads)


def open_session(file: PathLike, *, n_threads: int | None = None) -> GgufNetwork:
    """Open a converted file on stock llama.cpp; a context manager.

    Raises:
        InputError: the file is no converted checkpoint.
        EnvironmentFault: there is no usable llama.cpp.
    """
    from valle_convert.network.converted import GgufNetwork

    return GgufNetwork(Path(file), n_threads=n_threads)
