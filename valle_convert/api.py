"""The whole pipeline in seven functions; the command line calls the same ones.

plan = plan_conversion("ckpt.sft")            # reads headers
write_gguf(plan, "out.gguf")
report = verify_gguf(plan, "out.gguf")        # report.passed
with open_network("out.gguf") as network:     # stock llama.cpp
    print(network.model)

`read_checkpoint` opens a checkpoint with options, `plan_repair` plans from a GGUF file of another
converter, and `write_lora` writes an adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint import read_checkpoint as _read_checkpoint
from valle_convert.checkpoint.lora import LoraPairs, lora_files
from valle_convert.errors import InputError
from valle_convert.families.family import Choices
from valle_convert.network.protocol import AnyNetwork
from valle_convert.progress import Progress, silent

if TYPE_CHECKING:
    from valle_convert.families.bundle import Plan
    from valle_convert.verify.report import Report
    from valle_convert.verify.run import LevelName

PathLike = str | Path


def read_checkpoint(
    path: PathLike,
    *,
    config: PathLike | None = None,
    lora: PathLike | Sequence[PathLike] = (),
) -> Checkpoint:
    """Open a checkpoint without reading its weights.

    LoRAs in `lora` are merged, each as `FILE` or `FILE@SCALE`. The error for a GGUF file of another
    converter names the remedy, which `checkpoint.read_checkpoint` does not know.
    """
    try:
        return _read_checkpoint(
            Path(path),
            config=None if config is None else Path(config),
            lora=lora_files(lora),
        )
    except InputError:
        from valle_convert.families import refuse_known

        refuse_known(Path(path))
        raise


def plan_repair(
    old: PathLike,
    *,
    config: PathLike | None = None,
    biases: PathLike | None = None,
    choices: Choices | None = None,
) -> Plan:
    """Plan correct files for a GGUF file of another converter; see docs/inputs.md.

    Args:
        old: the file; its quantized rows are copied unchanged.
        config: values that the file lacks, if they differ from the published models.
        biases: the checkpoint that it was made from, which has the heads' biases.
        choices: as for `plan_conversion`.

    Raises:
        InputError: it is not such a file, or the checkpoint is of another model.
    """
    from valle_convert.families import family_of_file
    from valle_convert.families.bundle import plan_bundle
    from valle_convert.gguf_file.read import GgufFile

    file = GgufFile(Path(old), allow_part=True)
    checkpoint = family_of_file(file).ability("repair")(
        file,
        config=None if config is None else Path(config),
        biases=None if biases is None else read_checkpoint(biases),
    )
    return plan_bundle(checkpoint, choices)


def plan_conversion(checkpoint: PathLike | Checkpoint, choices: Choices | None = None) -> Plan:
    """Decide everything about the GGUF files of a checkpoint.

    Args:
        checkpoint: a path, or the result of `read_checkpoint`.
        choices: number format, tokenizer, codec and metadata; None for the defaults.

    Returns:
        The plan; `plan.at(target)` has the files by path.

    Raises:
        InputError: the checkpoint, its config or its tokenizer cannot be converted exactly.
    """
    from valle_convert.families.bundle import plan_bundle

    return plan_bundle(
        checkpoint if isinstance(checkpoint, Checkpoint) else read_checkpoint(checkpoint), choices
    )


def write_gguf(
    plan: Plan, target: PathLike, *, force: bool = False, progress: Progress = silent
) -> dict[Path, int]:
    """Write the planned files, or leave nothing.

    Args:
        plan: what to write.
        target: the main file; others are written beside it and named after it.
        force: whether existing files may be replaced.
        progress: shows the number of bytes written.

    Returns:
        The size of each file in bytes.

    Raises:
        InputError: a file must not be written, or a weight is not finite.
        EnvironmentFault: the disk is full, or the folder is not writable.
    """
    from valle_convert.families.bundle import write_bundle

    return write_bundle(plan, Path(target), force=force, progress=progress)


def verify_gguf(
    plan: Plan,
    file: PathLike,
    *,
    levels: Sequence[LevelName] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """Compare converted (or quantized) files with the plan of their checkpoint.

    Args:
        plan: of the checkpoint, with the choices that the files should have.
        file: the main file.
        levels: of "structure", "tensors", "tokenizer", "logits" and "trace"; None for all but the
            last, which compares layer by layer.
        seed: of the strings and inputs that are compared.
        progress: shows the long levels.

    Raises:
        InputError: a file is not a complete GGUF file, or belongs to another set.
        EnvironmentFault: llama.cpp is installed, but does not work on this machine.
    """
    from valle_convert.families.bundle import open_files
    from valle_convert.verify.run import LEVELS, verify

    return verify(
        plan,
        open_files(Path(file)),
        levels=LEVELS if levels is None else levels,
        seed=seed,
        progress=progress,
    )


def open_network(file: PathLike, *, n_threads: int | None = None) -> AnyNetwork:
    """Open converted files on stock llama.cpp; a context manager.

    Args:
        file: the main file.
        n_threads: None for the cores that this process may use.

    Raises:
        InputError: they are not a converted model, or damaged.
        EnvironmentFault: there is no usable llama.cpp.
    """
    from valle_convert.families.bundle import open_bundle
    from valle_convert.llama.context import Settings

    bundle = open_bundle(Path(file))
    network: AnyNetwork = bundle.family.open(bundle, settings=Settings(n_threads=n_threads))
    return network


def write_lora(
    base: PathLike,
    lora: PathLike,
    target: PathLike,
    *,
    out_type: str = "f32",
    config: PathLike | None = None,
    force: bool = False,
) -> LoraPairs:
    """Write a LoRA as a GGUF adapter of a converted file, and read it back.

    Args:
        base: the converted file, quantized or not, or its checkpoint.
        lora: `FILE` or `FILE@SCALE`, an adapter or a checkpoint that holds one.
        target: the file to write.
        out_type: "f32" or "f16".
        config: of the checkpoint, if `base` is one without a config.
        force: whether an existing file may be replaced.

    Returns:
        The adapter, with its `levels`, `alpha` and pairs of matrices.

    Raises:
        InputError: the adapter is of another model, or the target must not be written.
        UnsupportedModelError: it changes tables or heads, to which llama.cpp applies no adapter.
        EnvironmentFault: the disk is full, or the folder is not writable.
    """
    from valle_convert.families import family_of
    from valle_convert.families.bundle import open_files
    from valle_convert.files import check_outputs
    from valle_convert.gguf_file.read import look_at

    base, target = Path(base), Path(target)
    check_outputs([target], force=force, inputs=[base])
    kind, file = look_at(base)
    if config is not None and kind != "other":
        raise InputError(f"--config is for checkpoints, not for {base}; leave it out.")
    opened = read_checkpoint(base, config=config) if kind == "other" else open_files(file)
    family = family_of(opened) if isinstance(opened, Checkpoint) else opened.family
    (given,) = lora_files([lora])
    write: Callable[..., LoraPairs] = family.ability("lora")
    return write(opened, given, target, out_type=out_type, force=force)
