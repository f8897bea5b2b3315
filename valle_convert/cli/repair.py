"""`valle-convert repair OLD.gguf NEW.gguf`: fix a file made by llama.cpp's LLaMA converter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from valle_convert.cli.convert import VerifyOption, carry_out
from valle_convert.cli.options import (
    BiasesOption,
    ConfigOption,
    ForceOption,
    JsonOption,
    TokenizerOption,
    is_given,
)
from valle_convert.cli.remote import local_gguf


def register(app: typer.Typer) -> None:
    app.command("repair")(repair)


def repair(
    context: typer.Context,
    old: Annotated[
        Path,
        typer.Argument(
            metavar="OLD.gguf",
            help="A VALL-E that llama.cpp's converter wrote as a `llama` model, quantized or not.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="NEW.gguf", help="Output file.")],
    config: ConfigOption = None,
    biases: BiasesOption = None,
    tokenizer: TokenizerOption = None,
    verify: VerifyOption = "quick",
    json_: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Repair a GGUF file of llama.cpp's LLaMA converter, which loads but generates garbage.

    Quantized rows are copied, not quantized again; only if tables and heads have different types,
    both become float16. What the old file lacks is assumed to be as in the published models and
    reported; --config overrides it.
    """
    from valle_convert.api import plan_repair
    from valle_convert.families.family import Choices
    from valle_convert.files import check_outputs

    inputs = [old, config, biases, tokenizer]
    check_outputs({"NEW.gguf": out}, inputs=inputs, force=force)
    plan = plan_repair(
        local_gguf(old), config=config, biases=biases, choices=Choices(tokenizer=tokenizer)
    )
    given = is_given(context, "verify")
    carry_out(plan, out, verify, must_run=given, inputs=inputs, force=force, as_json=json_)
