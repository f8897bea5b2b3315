"""`valle-convert verify CHECKPOINT GGUF`: compare a converted file with its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from valle_convert.cli import console
from valle_convert.cli.options import (
    BiasesOption,
    CheckpointArgument,
    CodecNameOption,
    ConfigOption,
    ForceOption,
    JsonOption,
    LoraAlphaOption,
    LoraOption,
    ReportOption,
    TokenizerOption,
    paths_of,
    refuse_idle,
    split_loras,
)
from valle_convert.cli.remote import local_gguf
from valle_convert.wording import plural

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from valle_convert.checkpoint import Checkpoint
    from valle_convert.verify.report import Report


LevelChoice = Literal["all", "structure", "tensors", "tokenizer", "logits"]


_CONVERSION = ("--config", "--lora", "--lora-alpha", "--tokenizer", "--codec-name", "--biases")
#: For each kind of comparison, the options without effect, and why.
_UNUSED = {
    "alone": (
        "a file alone is compared with its own digests",
        ("--level", "--trace", *_CONVERSION),
    ),
    "codec": ("codecs do not use it", ("--trace", *_CONVERSION)),
    "old": ("LoRAs are not merged into GGUF files", ("--lora", "--lora-alpha")),
    "checkpoint": ("checkpoints have their biases", ("--biases",)),
}


def register(app: typer.Typer) -> None:
    app.command("verify")(verify)


def verify(
    checkpoint: CheckpointArgument,
    gguf: Annotated[
        Path | None,
        typer.Argument(
            metavar="GGUF",
            help="A file converted from it, quantized or not, or the .bin or .gguf of a codec. "
            "Without GGUF, CHECKPOINT is a converted file that is compared with its own digests.",
        ),
    ] = None,
    level: Annotated[LevelChoice, typer.Option(help="Run one level only.")] = "all",
    trace: Annotated[
        bool,
        typer.Option(
            "--trace",
            help="Also compare layer by layer, and name the first layer and part that are off.",
        ),
    ] = False,
    config: ConfigOption = None,
    lora: LoraOption = None,
    lora_alpha: LoraAlphaOption = None,
    tokenizer: TokenizerOption = None,
    codec: CodecNameOption = None,
    biases: BiasesOption = None,
    seed: Annotated[int, typer.Option(help="Seed of random texts and inputs.", min=0)] = 0,
    json_: JsonOption = False,
    report: ReportOption = None,
    force: ForceOption = False,
) -> None:
    r"""Compare a GGUF file with its checkpoint. Exit code 1 if it differs.

    \b
    structure  stock llama.cpp loads the file; all keys and counts are as planned
    tensors    every weight is read back and compared
    tokenizer  llama.cpp gives the same ids as the tokenizer's own library
    logits     llama.cpp computes what PyTorch computes, for every head and task, within rounding

    Use the same --config, --lora, --tokenizer and --codec-name as for the conversion. For models of
    several files, name the first one. Checks that cannot run here give NOT VERIFIED and exit code
    3.

    CHECKPOINT may also be a GGUF file of llama.cpp's LLaMA converter, if GGUF was repaired from it,
    or an EnCodec, if GGUF is its .bin or .gguf.
    """
    from valle_convert.families import family_of
    from valle_convert.families.bundle import paths_of as paths_of_parts
    from valle_convert.families.family import Choices
    from valle_convert.files import check_outputs, write_text_atomically
    from valle_convert.gguf_file.read import is_gguf, parsed
    from valle_convert.verify import LEVELS, verify_path, verify_whole
    from valle_convert.verify.codec_file import is_codec_file

    merged, adapters = split_loras(lora)
    check_outputs(
        {"--report": report},
        inputs=[checkpoint, gguf, config, *paths_of(lora), tokenizer, biases],
        force=force,
    )
    checkpoint = local_gguf(checkpoint, or_checkpoint=True)
    if gguf is not None:
        gguf = local_gguf(gguf)
    result: Report
    given: dict[str, object] = {
        "--level": None if level == "all" else level,
        "--trace": trace,
        "--config": config,
        "--lora": lora,
        "--lora-alpha": lora_alpha,
        "--tokenizer": tokenizer,
        "--codec-name": codec,
        "--biases": biases,
    }
    if gguf is None:
        _refuse_unused("alone", given)
        if not is_gguf(checkpoint):
            raise typer.BadParameter("Give the file that was converted from it.", param_hint="GGUF")
        result = verify_whole(checkpoint, progress=console.progress_bar)
    elif is_codec_file(file := parsed(gguf)):
        _refuse_unused("codec", given)
        result = _verify_codec(str(checkpoint), gguf, level)
    else:
        opened = _open_source(checkpoint, config, merged, lora_alpha, biases)
        # Shards, and the other files of a set, are known now.
        family = family_of(opened)
        parts = family.describe(opened, Choices(codec=codec)).contents
        read = [*opened.inputs, *paths_of_parts(gguf, parts).values()]
        check_outputs({"--report": report}, inputs=read, force=force)
        # For a GGUF of another converter, only merging is without effect: adapters are applied.
        is_foreign = is_gguf(checkpoint)
        kind = "old" if is_foreign else "checkpoint"
        _refuse_unused(kind, {**given, "--lora": merged if is_foreign else lora})
        result = verify_path(
            opened,
            file,
            given=Choices(tokenizer=tokenizer, codec=codec),
            levels=(*(LEVELS if level == "all" else (level,)), *(("trace",) if trace else ())),
            seed=seed,
            adapters=adapters,
            progress=console.progress_bar,
        )
    if json_:
        console.data_json(result.to_json())
    else:
        _show(result)
    if report is not None:  # last: the disk may be full by now
        write_text_atomically(report, result.to_markdown(), force=force)
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _open_source(
    path: Path,
    config: Path | None,
    lora: Sequence[str],
    lora_alpha: float | None,
    biases: Path | None,
) -> Checkpoint:
    """The checkpoint, or a GGUF file of another converter read as its checkpoint."""
    from valle_convert.api import read_checkpoint
    from valle_convert.families import family_of_file
    from valle_convert.gguf_file.read import GgufFile, is_gguf

    if is_gguf(path):
        read = family_of_file(GgufFile(path, allow_part=True)).ability("repair")
        given = None if biases is None else read_checkpoint(biases)
        opened: Checkpoint = read(path, config=config, biases=given)
        return opened
    return read_checkpoint(
        path, config=config, lora=lora, lora_alpha=lora_alpha, progress=console.progress_bar
    )


def _refuse_unused(kind: str, given: Mapping[str, object]) -> None:
    """Reject options without effect on this kind of verification."""
    reason, names = _UNUSED[kind]
    refuse_idle(reason, {name: given[name] for name in names})


def _verify_codec(source: str, path: Path, level: LevelChoice) -> Report:
    """The verdict on the file of a codec."""
    from valle_convert.encodec import open_encodec
    from valle_convert.verify.codec_file import CODEC_LEVELS, verify_codec

    if level == "tokenizer" or level == "logits":  # noqa: PLR1714 - this way the type is narrowed
        raise typer.BadParameter("a codec has none.", param_hint="--level")
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
    for note in result.notes:
        console.log(f"note: {note}")
    console.data(result.verdict())
