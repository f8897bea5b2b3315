"""Options that several commands share, each with one spelling and one explanation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from valle_convert.errors import InputError

if TYPE_CHECKING:
    from valle_convert.checkpoint.lora import LoraFile

#: Panels of `--help` that several commands have.
VOICE, MODEL, OUTPUT = "Text and voice", "Model", "Output"

#: Number formats of `--outtype`.
OutType = Literal["auto", "f32", "f16", "bf16", "q8_0"]

CheckpointArgument = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A trained checkpoint: a .pth, .pt, .sft or .safetensors file, an index of shards, a "
        "training folder, or hf:OWNER/REPO/MODEL or hf:OWNER/REPO@REVISION:PATH on the Hugging "
        "Face hub.",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="YAML or JSON that overrides the checkpoint's config or replaces a missing one. By "
        "default, a config.yaml beside a checkpoint without config, or above a training folder, "
        "is used.",
        rich_help_panel=MODEL,
    ),
]
LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[@SCALE]",
        help="A LoRA to merge into the weights, with an optional scale (a.sft@0.5); repeatable. "
        "`verify` and `evaluate` also take a GGUF adapter (see `lora`).",
        rich_help_panel=MODEL,
    ),
]
KeptLoraOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE.gguf[@SCALE]",
        help="A GGUF adapter (see `lora`) for llama.cpp to apply at run time; repeatable.",
        rich_help_panel=MODEL,
    ),
]
LoraAlphaOption = Annotated[
    float | None,
    typer.Option(
        "--lora-alpha",
        metavar="ALPHA",
        help="Override the alpha stored in the LoRA.",
        rich_help_panel=MODEL,
    ),
]
BiasesOption = Annotated[
    Path | None,
    typer.Option(
        "--biases",
        metavar="CHECKPOINT",
        help="The original checkpoint, to take the biases of the heads from; GGUF files of "
        "llama.cpp's LLaMA converter lack them.",
        rich_help_panel=MODEL,
    ),
]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="FILE",
        help="tokenizer.json or a SentencePiece .model. By default, a tokenizer.json beside the "
        "checkpoint is used, else the built-in one of the published models.",
        rich_help_panel=MODEL,
    ),
]
CodecNameOption = Annotated[
    str | None,
    typer.Option(
        "--codec-name",
        metavar="NAME",
        help="encodec-24khz, dac-44khz, nemo-44khz or world-rvq. By default, detected from the "
        "number of levels and the codebook size.",
        rich_help_panel=MODEL,
    ),
]
GgufArgument = Annotated[
    Path,
    typer.Argument(
        metavar="GGUF",
        help="A converted file, quantized or not, or hf:OWNER/REPO:NAME.gguf on the Hugging Face "
        "hub.",
    ),
]
CodecOption = Annotated[
    str | None,
    typer.Option(
        "--codec",
        metavar="FILE|DIR|OWNER/REPO",
        help="The codec: a .gguf, .bin or .th file, a folder with config.json and weights, or a "
        "name on the Hugging Face hub. Default: facebook/encodec_24khz.",
        rich_help_panel=MODEL,
    ),
]
LanguageOption = Annotated[
    str | None,
    typer.Option(
        "--language",
        metavar="CODE",
        help="en, de, fr, ja, zh or ko. Default: detected from the text; for recordings without "
        "text, the model's first language.",
        rich_help_panel=VOICE,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        help="Threads for llama.cpp. Default: one per usable core.",
        min=1,
        max=1024,
        rich_help_panel=MODEL,
    ),
]
TuneChoice = Literal["auto", "off", "again"]
TuneOption = Annotated[
    TuneChoice,
    typer.Option(
        "--tune",
        help="auto finds the fastest settings of llama.cpp for this file and CPU once, and keeps "
        "them; off computes as exactly as verify; again repeats the search.",
        rich_help_panel=MODEL,
    ),
]
GpuLayersOption = Annotated[
    int,
    typer.Option(
        "--gpu-layers",
        metavar="N",
        help="Layers to offload to a GPU, if llama.cpp was built for one; -1 is all.",
        min=-1,
        rich_help_panel=MODEL,
    ),
]
ParallelOption = Annotated[
    int,
    typer.Option(
        "--parallel",
        metavar="N",
        help="Sentences to decode side by side, in one batch of llama.cpp, by a model with an AR; "
        "guidance and best-of need several places for one.",
        min=1,
        max=64,
        rich_help_panel=MODEL,
    ),
]
TemperatureOption = Annotated[
    float,
    typer.Option(
        "--temperature",
        help="Of level 0; 0 takes the most likely code.",
        rich_help_panel="Decoding",
    ),
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE,...",
        help="Other settings, such as mode=ar,top_k=50; docs/commands.md lists them.",
        rich_help_panel="Decoding",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout.", rich_help_panel=OUTPUT)
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Overwrite existing files.", rich_help_panel=OUTPUT)
]
ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Also write the report as Markdown.",
        rich_help_panel=OUTPUT,
    ),
]


def refuse_idle(reason: str, given: Mapping[str, object]) -> None:
    """Refuse options that would have no effect."""
    # By identity: 0 is a value, and is equal to False.
    idle = [
        name
        for name, value in given.items()
        if not (value is None or value is False or value in ([], ()))
    ]
    if idle:
        raise typer.BadParameter(
            f"{reason}, so it has no effect; leave it out.", param_hint=", ".join(idle)
        )


def requires(context: typer.Context, table: Mapping[str, str]) -> None:
    """Refuse an option that has no effect without another one.

    The table lists what each parameter needs: one of some parameters, by their Python names, with
    any value or with one of several: `{"margin": "no_worse_than", "source": "text task=vc|ns"}`.
    """
    for name, needed in table.items():
        if is_given(context, name) and not any(_holds(context, one) for one in needed.split()):
            words = " or ".join(_shown(context, one) for one in needed.split())
            raise typer.BadParameter(
                f"it has no effect without {words}.", param_hint=_shown(context, name)
            )


def excludes(context: typer.Context, table: Mapping[str, str]) -> None:
    """Refuse an option beside another one that it contradicts; the table is as in `requires`."""
    for name, others in table.items():
        for one in filter(lambda other: _holds(context, other), others.split()):
            if is_given(context, name):
                raise typer.BadParameter(
                    f"it cannot be combined with {_shown(context, one)}.",
                    param_hint=_shown(context, name),
                )


def is_given(context: typer.Context, parameter: str) -> bool:
    """Whether the user set a parameter, even to its default."""
    # click has a class for where a value comes from, which typer does not offer.
    source = getattr(context.get_parameter_source(parameter), "name", "DEFAULT")
    value = context.params.get(parameter)  # 0 is one, and is equal to False
    return value is not None and value is not False and source not in ("DEFAULT", "DEFAULT_MAP")


def _holds(context: typer.Context, condition: str) -> bool:
    name, _, values = condition.partition("=")
    if not values:
        return is_given(context, name)
    return str(context.params.get(name)) in values.split("|")


def _shown(context: typer.Context, condition: str) -> str:
    """A parameter, with values or without, as the user types it."""
    name, _, values = condition.partition("=")
    param = next(one for one in context.command.params if one.name == name)
    if param.param_type_name == "option":
        values = values.replace("True", "")  # of a flag, its name says it
        return " ".join(filter(None, (max(param.opts, key=len), values)))
    return re.sub(r"[][{}]|\.\.\.", "", str(param.make_metavar(context)))


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
