"""`valle-convert inspect FILE`: what is in a checkpoint, a GGUF file or a codec."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from valle_convert.cli import console
from valle_convert.cli.options import (
    ConfigOption,
    JsonOption,
    LoraAlphaOption,
    LoraOption,
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect")(inspect)


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A checkpoint (on the hub, too, of whose safetensors the header alone is read), a "
            "GGUF file made from one, or a codec's .bin.",
        ),
    ],
    config: ConfigOption = None,
    lora: LoraOption = None,
    lora_alpha: LoraAlphaOption = None,
    json_: JsonOption = False,
) -> None:
    """Show sizes, capabilities, tables and heads, tokenizer, types, bytes and provenance."""
    from valle_convert.checkpoint.lora import lora_files
    from valle_convert.inspect import inspect_file

    summary = inspect_file(
        file,
        config=config,
        lora=lora_files(lora),
        lora_alpha=lora_alpha,
        progress=console.progress_bar,
    )
    if json_:
        console.data_json(summary.to_json())
        return
    console.data(f"{summary.path}: {summary.kind}, {console.n_bytes(summary.n_bytes)}")
    for title, values in summary.sections():
        known = [(name, _show(value)) for name, value in values.items() if value is not None]
        if not known:
            continue
        console.data(f"\n{title}")
        console.data(console.table(known))
    if summary.rows:
        console.data("\ntables and heads")
        console.data(
            console.table(
                [
                    (one.kind, one.name, f"{one.first_row:,}", f"{one.n_rows:,}", one.source)
                    for one in summary.rows
                ],
                header=("kind", "name", "first row", "rows", "source"),
            )
        )
    console.data("\nweights")
    console.data(
        console.table(
            [
                (
                    group.name,
                    group.type,
                    f"{group.n_tensors:,}",
                    f"{group.n_weights:,}",
                    f"{group.n_bytes:,}",
                )
                for group in summary.groups
            ],
            header=("group", "type", "tensors", "weights", "bytes"),
        )
    )
    for note in summary.notes:
        console.talk(f"note: {note}")


def _show(value: Any) -> str:  # noqa: ANN401 - a value of a report
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)
