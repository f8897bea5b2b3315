"""Options that several commands share, each with one spelling and one explanation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from valle_convert.errors import InputError

if TYPE_CHECKING:
    from valle_convert.checkpoint.lora import LoraFile

#: Number formats of `--outtype`.
OutType = Literal["auto", "f32", "f16", "bf16", "q8_0"]

CheckpointArgument = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A trained checkpoint: .pth, .pt, .sft or .safetensors, the index of several, a "
        "folder with one of them, such as a training's; or hf:OWNER/REPO/MODEL, or "
        "hf:OWNER/REPO@REVISION:PATH, on the Hugging Face hub.",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="YAML or JSON whose keys override the checkpoint's config, or stand for a missing "
        "one. Without it, a config.yaml beside a checkpoint that has none (above it, in a "
        "training folder) is used.",
    ),
]
LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[@SCALE]",
        help="A LoRA to merge into the weights; may be given several times, each with a scale of "
        "its own (a.sft@0.5). `verify` and `quantize` take one kept apart, too (see `lora`).",
    ),
]
KeptLoraOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE.gguf[@SCALE]",
        help="A LoRA that was kept apart (see `lora`), applied while llama.cpp runs; may be given "
        "several times.",
    ),
]
LoraAlphaOption = Annotated[
    float | None,
    typer.Option(
        "--lora-alpha", metavar="ALPHA", help="The LoRA's alpha; without it, what its file says."
    ),
]
BiasesOption = Annotated[
    Path | None,
    typer.Option(
        "--biases",
        metavar="CHECKPOINT",
        help="For a GGUF file made the old way: the checkpoint that it was made of, which still "
        "has the heads' biases.",
    ),
]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="FILE",
        help="tokenizer.json or a SentencePiece .model. Without it, a tokenizer.json beside the "
        "checkpoint is used, else the built-in one of the published models.",
    ),
]
CodecNameOption = Annotated[
    str | None,
    typer.Option(
        "--codec-name",
        metavar="NAME",
        help="encodec-24khz, dac-44khz, nemo-44khz or world-rvq. Without it, levels and codebook "
        "size tell.",
    ),
]
GgufArgument = Annotated[
    Path,
    typer.Argument(
        metavar="GGUF",
        help="A converted file, quantized or not; or hf:OWNER/REPO:NAME.gguf on the Hugging Face "
        "hub.",
    ),
]
CodecOption = Annotated[
    str | None,
    typer.Option(
        "--codec",
        metavar="FILE|DIR|OWNER/REPO",
        help="An EnCodec: a .gguf, .bin or .th file, a folder with its config.json and weights, or "
        "its name on the Hugging Face hub. Without it, facebook/encodec_24khz.",
    ),
]
LanguageOption = Annotated[
    str | None,
    typer.Option("--language", metavar="WORD", help="Such as en, de, fr, ja, zh, ko."),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", help="Without it, one for each core that may be used.", min=1, max=1024
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
ReportOption = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Also write the report as Markdown."),
]


def refuse_idle(reason: str, given: Mapping[str, object]) -> None:
    """Refuse options that would change nothing."""
    # By identity: 0 is a value, and is equal to False.
    idle = [
        name
        for name, value in given.items()
        if not (value is None or value is False or value in ([], ()))
    ]
    if idle:
        raise typer.BadParameter(
            f"{reason}, so it would change nothing; leave it out.", param_hint=", ".join(idle)
        )


def paths_of(lora: list[str] | None) -> list[Path]:
    """The files of `--lora`, without their scales."""
    from valle_convert.checkpoint.lora import lora_files

    return [one.path for one in lora_files(lora)]


def split_loras(lora: list[str] | None) -> tuple[list[str], tuple[LoraFile, ...]]:
    """What is to be merged, as it was given, and the adapters that are kept apart."""
    from valle_convert.checkpoint.lora import lora_files
    from valle_convert.gguf_file.read import is_adapter

    given = list(zip(lora or [], lora_files(lora), strict=True))
    apart = [one.path.is_file() and is_adapter(one.path) for _, one in given]
    merged = [text for (text, _), is_apart in zip(given, apart, strict=True) if not is_apart]
    return merged, tuple(one for (_, one), is_apart in zip(given, apart, strict=True) if is_apart)


def check_utf8(text: str) -> None:
    """Refuse a TEXT of the command line with bytes in it that are no UTF-8."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError("The text is not valid UTF-8; save it as UTF-8, and give it again.")


def is_given(context: typer.Context, parameter: str) -> bool:
    """Whether the user gave a value, be it the default."""
    # click has a class for where a value comes from, which typer does not offer.
    source = getattr(context.get_parameter_source(parameter), "name", "DEFAULT")
    return source not in ("DEFAULT", "DEFAULT_MAP")
