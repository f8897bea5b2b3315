"""How options are declared, and those that several commands share.

A command declares its options as default values: `seed: int | None = opt("Random seed.", min=0)`.
The name is that of the parameter; a trailing `_` only avoids a Python name. A parameter whose type
is a dataclass stands for its fields, so that a group of options is one object.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import typer
from typer.models import OptionInfo

from valle_convert.errors import InputError

if TYPE_CHECKING:
    from valle_convert.checkpoint import Checkpoint
    from valle_convert.checkpoint.lora import LoraFile

#: Panels of `--help` that several commands have.
VOICE, MODEL, DECODING, OUTPUT = "Text and voice", "Model", "Decoding", "Output"
MEASURING = "Measuring"


def arg(metavar: str, help_: str = "", default: object = ...) -> Any:  # noqa: ANN401
    return typer.Argument(default, metavar=metavar, help=help_)


def opt(
    help_: str,
    metavar: str | None = None,
    panel: str | None = None,
    names: tuple[str, ...] = (),
    default: object = None,
    **limits: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """An option; `limits` are typer's `min`, `max` and others."""
    return typer.Option(
        default, *names, metavar=metavar, help=help_, rich_help_panel=panel, **limits
    )


def flag(help_: str, panel: str | None = None) -> Any:  # noqa: ANN401
    return opt(help_, panel=panel, default=False)


def expanded(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """The command as typer reads it: every group as its fields, every option with its name."""
    hints = get_type_hints(command)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for one in inspect.signature(command).parameters.values():
        group = groups.get(one.name)
        types = get_type_hints(group) if group else hints
        defaults = {x.name: x.default for x in fields(group)} if group else {one.name: one.default}
        parameters += [_parameter(name, types[name], value) for name, value in defaults.items()]

    def run(**given: Any) -> int | None:  # noqa: ANN401
        made = {
            name: group(**{one.name: given.pop(one.name) for one in fields(group)})
            for name, group in groups.items()
        }
        return command(**given, **made)

    run.__doc__ = command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _parameter(name: str, type_: object, default: object) -> inspect.Parameter:
    if isinstance(default, OptionInfo) and not default.param_decls:
        default = copy(default)
        default.param_decls = (f"--{name.rstrip('_').replace('_', '-')}",)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=type_
    )


# ------------------------------------------------------------------------- shared options

CHECKPOINT = arg(
    "CHECKPOINT",
    "A trained checkpoint: a .pth, .pt, .sft or .safetensors file, an index of shards, a training "
    "folder, or hf:OWNER/REPO/MODEL or hf:OWNER/REPO@REVISION:PATH on the Hugging Face hub.",
)
SOURCE = arg(
    "IN",
    "A converted .gguf file in F16, BF16 or F32, or a checkpoint, which is first converted.",
)
GGUF = arg("GGUF", "A converted file, quantized or not, or hf:OWNER/REPO:NAME.gguf on the hub.")
CONFIG = opt(
    "YAML or JSON that overrides the checkpoint's config or replaces a missing one. Default: a "
    "config.yaml beside a checkpoint without config, or above a training folder.",
    "FILE",
    MODEL,
)
TOKENIZER = opt(
    "tokenizer.json or a SentencePiece .model. Default: a tokenizer.json beside the checkpoint, "
    "else the built-in one of the published models.",
    "FILE",
    MODEL,
)
CODEC_NAME = opt(
    "encodec-24khz, dac-44khz, nemo-44khz or world-rvq. Default: detected from the number of "
    "levels and the codebook size.",
    "NAME",
    MODEL,
)
BIASES = opt(
    "The original checkpoint, to take the biases of the heads from; GGUF files of llama.cpp's "
    "LLaMA converter lack them.",
    "CHECKPOINT",
    MODEL,
)
CODEC = opt(
    "The codec: a .gguf, .bin or .th file, a folder with config.json and weights, or a name on the "
    "Hugging Face hub. Default: facebook/encodec_24khz.",
    "FILE|DIR|OWNER/REPO",
    MODEL,
)
LANGUAGE = opt(
    "en, de, fr, ja, zh or ko. Default: detected from the text; for recordings without text, the "
    "model's first language.",
    "CODE",
    VOICE,
)
THREADS = opt("Threads for llama.cpp. Default: one per usable core.", "N", MODEL, min=1, max=1024)


def _n_layers(text: str) -> int:
    n = -1 if text == "all" else int(text)
    if not -1 <= n < 1 << 31:
        raise ValueError
    return n


GPU_LAYERS = opt(
    "Layers to offload to a GPU, if llama.cpp was built for one. `doctor` lists its devices.",
    "N|all",
    MODEL,
    default="0",
    parser=_n_layers,
)
JSON = flag("Print JSON on stdout.", OUTPUT)
FORCE = flag("Overwrite existing files.", OUTPUT)


@dataclass(frozen=True)
class ReadOptions:
    config: Path | None = CONFIG
    lora: list[str] | None = opt(
        "A LoRA to merge into the weights, with an optional scale (a.sft@0.5); repeatable. "
        "`verify` and `evaluate` also take a GGUF adapter (see `lora`).",
        "FILE[@SCALE]",
        MODEL,
    )

    @property
    def files(self) -> list[Path]:
        return [*([self.config] if self.config else []), *(one.path for one in self.loras)]

    @property
    def loras(self) -> tuple[LoraFile, ...]:
        from valle_convert.checkpoint.lora import lora_files

        return lora_files(self.lora)

    def read(self, path: Path) -> Checkpoint:
        from valle_convert.api import read_checkpoint

        return read_checkpoint(path, config=self.config, lora=self.lora or ())

    def split(self) -> tuple[ReadOptions, tuple[LoraFile, ...]]:
        """The options without GGUF adapters, which are applied and not merged; and the adapters."""
        from valle_convert.gguf_file.read import look_at

        given = list(zip(self.lora or [], self.loras, strict=True))
        adapters = [one for _, one in given if look_at(one.path)[0] == "adapter"]
        merged = [text for text, one in given if one not in adapters]
        return replace(self, lora=merged), tuple(adapters)


@dataclass(frozen=True)
class QuantizerOptions(ReadOptions):
    checkpoint: Path | None = opt("The checkpoint that IN was converted from.", "CHECKPOINT", MODEL)
    threads: int | None = THREADS
    llama_quantize: str | None = opt(
        "The llama-quantize to run; `library` for the same routine in llama-cpp-python. Default: "
        "$LLAMA_QUANTIZE, then PATH, then the build of `make llama-tools`, then the library.",
        "PATH|library",
        MODEL,
    )

    def checkpoint_of(self, source: Path) -> Checkpoint | None:
        from valle_convert.gguf_file.read import look_at

        given = {"--config": self.config, "--lora": self.lora}
        if self.checkpoint is None and not any(given.values()):
            return None
        if self.checkpoint is None and look_at(source)[0] != "other":
            refuse_idle("there is no checkpoint", given)
        return self.read(self.checkpoint or source)


@dataclass(frozen=True)
class DataOptions:
    data: Path | None = opt(
        "Utterances as .npz files; see `utterances`. Default: random ones.", "DIR", MEASURING
    )
    utterances: int | None = opt(
        "Number of utterances, at most. Default: all of --data, or 2 random ones (32 for imatrix).",
        "N",
        MEASURING,
        min=1,
    )


def local_gguf(path: Path, *, or_checkpoint: bool = False) -> Path:
    """The path of a GGUF file; one on the hub is downloaded with all its parts."""
    from valle_convert.checkpoint.folder import is_on_hub

    if not is_on_hub(path) or (or_checkpoint and path.suffix != ".gguf"):
        return path
    if path.suffix != ".gguf":
        raise InputError(
            f"{path} is not a GGUF file (hf:OWNER/REPO:NAME.gguf, or a local one). Convert it "
            f"first: valle-convert {path} OUT.gguf."
        )
    from valle_convert.families.bundle import fetched

    return fetched(path)


def refuse_idle(reason: str, given: Mapping[str, object]) -> None:
    """Refuse options that would have no effect; `given` are their values by name."""
    if idle := [name for name, value in given.items() if value not in (None, False, [], ())]:
        raise typer.BadParameter(
            f"{reason}, so it has no effect; leave it out.", param_hint=", ".join(idle)
        )
