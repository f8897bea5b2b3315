"""`valle-convert verify CHECKPOINT GGUF`: compare a converted file with its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from valle_convert.cli import console
from valle_convert.cli.options import (
    BIASES,
    CHECKPOINT,
    CODEC_NAME,
    FORCE,
    GPU_LAYERS,
    JSON,
    OUTPUT,
    TOKENIZER,
    ReadOptions,
    arg,
    flag,
    local_gguf,
    opt,
    refuse_idle,
)
from valle_convert.errors import InputError
from valle_convert.wording import plural

if TYPE_CHECKING:
    from valle_convert.checkpoint import Checkpoint
    from valle_convert.gguf_file.read import GgufFile
    from valle_convert.verify.report import Report

Level = Literal["all", "structure", "tensors", "tokenizer", "logits"]
_CONVERSION = ("--config", "--lora", "--tokenizer", "--codec-name", "--biases", "--gpu-layers")


@dataclass(frozen=True)
class VerifyOptions(ReadOptions):
    tokenizer: Path | None = TOKENIZER
    codec_name: str | None = CODEC_NAME
    biases: Path | None = BIASES
    level: Level = opt("Run one level only.", default="all")
    trace: bool = flag(
        "Also compare layer by layer, and name the first layer and part that are off."
    )
    seed: int = opt("Seed of random texts and inputs.", "N", default=0, min=0)
    gpu_layers: int = GPU_LAYERS

    def refuse(self, reason: str, *names: str) -> None:
        given = {f"--{name.replace('_', '-')}": value for name, value in vars(self).items()}
        given["--level"] = None if self.level == "all" else self.level
        refuse_idle(reason, {name: given[name] for name in names})


def verify(
    *,
    checkpoint: Path = CHECKPOINT,
    gguf: Path | None = arg(
        "GGUF",
        "A file converted from it, quantized or not, or the .bin or .gguf of a codec. Without "
        "GGUF, CHECKPOINT is a converted file that is compared with its own digests.",
        None,
    ),
    options: VerifyOptions,
    report: Path | None = opt(
        "Also write the report, as JSON if FILE ends in .json, else as Markdown.", "FILE", OUTPUT
    ),
    json_: bool = JSON,
    force: bool = FORCE,
) -> int:
    """Compare a GGUF file with its checkpoint. Exit code 1 if it differs.

    Structure: stock llama.cpp loads the file, and all keys and counts are as planned. Tensors:
    every weight is read back and compared. Tokenizer: llama.cpp gives the ids of the tokenizer's
    own library. Logits: llama.cpp computes what PyTorch computes, for every head and task, within
    rounding.

    Use the same --config, --lora, --tokenizer and --codec-name as for the conversion. For a model
    of several files, give the main file. Checks that cannot run here give NOT VERIFIED and exit
    code 3.

    CHECKPOINT may also be a GGUF file of llama.cpp's LLaMA converter, if GGUF was repaired from it,
    or an EnCodec, if GGUF is its .bin or .gguf.
    """
    from valle_convert.checkpoint.folder import is_on_hub
    from valle_convert.files import check_input_file, check_outputs, write_text_atomically
    from valle_convert.gguf_file.read import look_at
    from valle_convert.strict_json import to_json_text
    from valle_convert.verify.whole import verify_whole

    read = [checkpoint, gguf, *options.files, options.tokenizer, options.biases]
    check_outputs({"--report": report}, inputs=read, force=force)
    checkpoint = local_gguf(checkpoint, or_checkpoint=True)
    gguf = None if gguf is None else local_gguf(gguf)
    kind, file = look_at(gguf or checkpoint, strict=False)
    result: Report
    if gguf is None:
        reason = "a file alone is compared with its own digests"
        options.refuse(reason, "--level", "--trace", *_CONVERSION)
        if kind in ("encodec.cpp codec", "other"):
            if not checkpoint.is_dir() and not is_on_hub(checkpoint):
                check_input_file(checkpoint, "file")
            raise typer.BadParameter("give the file that was converted from it.", param_hint="GGUF")
        result = verify_whole(file, progress=console.progress_bar)
    elif kind in ("codec", "encodec.cpp codec"):
        options.refuse("codecs do not use it", "--trace", *_CONVERSION)
        result = _verify_codec(str(checkpoint), gguf, options.level)
    else:
        result = _verify_model(checkpoint, gguf, file, options, report, force=force)
    if json_:
        console.data_json(result.to_json())
    else:
        _show(result)
    if report is not None:  # last: the disk may be full by now
        as_json = report.suffix.lower() == ".json"
        text = to_json_text(result.to_json()) + "\n" if as_json else result.to_markdown()
        write_text_atomically(report, text, force=force)
    return result.exit_code


def _verify_model(
    path: Path,
    gguf: Path,
    file: GgufFile | Path,
    options: VerifyOptions,
    report: Path | None,
    *,
    force: bool,
) -> Report:
    from valle_convert.families.family import Choices
    from valle_convert.files import check_outputs
    from valle_convert.gguf_file.read import GgufFile, look_at
    from valle_convert.llama.context import Settings
    from valle_convert.verify.run import LEVELS, verify_path
    from valle_convert.verify.run import verify as verify_model

    merged, adapters = options.split()
    _, old = look_at(path)
    if isinstance(old, GgufFile):
        # Adapters are applied, as for a checkpoint.
        replace(options, lora=merged.lora).refuse("LoRAs are not merged into GGUF files", "--lora")
        opened = _read_old(old, options)
    else:
        options.refuse("checkpoints have their biases", "--biases")
        opened = merged.read(path)
    # Shards are known now; the other files of a set are named after the main one.
    beside = (one for one in gguf.parent.glob("*") if one.suffix.lower() == ".gguf")
    others = [one for one in beside if one.name.startswith(f"{gguf.stem}-")]
    check_outputs({"--report": report}, inputs=[*opened.inputs, *others], force=force)
    run = partial(
        verify_model,
        levels=(
            *(LEVELS if options.level == "all" else (options.level,)),
            *(("trace",) if options.trace else ()),
        ),
        seed=options.seed,
        settings=Settings(n_gpu_layers=options.gpu_layers),
        adapters=adapters,
        progress=console.progress_bar,
    )
    given = Choices(tokenizer=options.tokenizer, codec=options.codec_name)
    return verify_path(opened, file, given, run)


def _read_old(file: GgufFile, options: VerifyOptions) -> Checkpoint:
    """A GGUF file of another converter, read as its checkpoint."""
    from valle_convert.api import read_checkpoint
    from valle_convert.families import family_of_file
    from valle_convert.gguf_file.keys import is_converted

    if is_converted(file.keys):
        raise InputError(
            f"{file.path} is a converted file, expected the checkpoint. To compare two GGUF files, "
            "run valle-convert compare."
        )
    read = family_of_file(file).ability("repair")
    biases = None if options.biases is None else read_checkpoint(options.biases)
    opened: Checkpoint = read(file, config=options.config, biases=biases)
    return opened


def _verify_codec(source: str, path: Path, level: Level) -> Report:
    from valle_convert.encodec.sources import open_encodec
    from valle_convert.verify.codec_file import CODEC_LEVELS, verify_codec

    if level == "tokenizer" or level == "logits":  # noqa: PLR1714 - this way the type is narrowed
        raise typer.BadParameter("codecs have no such level.", param_hint="--level")
    levels = CODEC_LEVELS if level == "all" else (level,)
    return verify_codec(open_encodec(source), path, levels=levels, progress=console.progress_bar)


def _show(result: Report) -> None:
    """Every check, but only the worst of the many single tensors."""
    for level in result.levels:
        console.data(f"{level.name} ({level.seconds:.1f} s)")
        if level.skipped:
            console.data(f"  not run: {level.skipped}")
        checks = level.checks
        if level.name == "tensors" and level.worst is not None:
            failed = [check for check in checks if not check.passed]
            console.data(
                f"  {len(checks) - len(failed)} of {plural(len(checks), 'tensor')} pass; the worst:"
            )
            checks = tuple(failed) or (level.worst,)
        for check in checks:
            console.data(f"  {'pass' if check.passed else 'FAIL'}  {check.name}: {check.summary}")
            if not check.passed and check.limit:
                console.data(f"        allowed: {check.limit}")
    console.notes(result.notes)
    console.data(result.verdict())
