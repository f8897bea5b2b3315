"""`valle-convert scan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from valle_convert.cli import console
from valle_convert.cli.evaluate import DataOption, SeedOption, UtterancesOption
from valle_convert.cli.options import (
    MODEL,
    ConfigOption,
    ForceOption,
    JsonOption,
    LoraAlphaOption,
    LoraOption,
    excludes,
    paths_of,
    requires,
)
from valle_convert.cli.quantize import (
    CheckpointOption,
    QuantizeOption,
    QuantizeThreadsOption,
    SourceArgument,
    checkpoint_of,
)
from valle_convert.cli.remote import local_gguf

_CHOICE = "Choice"


def register(app: typer.Typer) -> None:
    app.command("scan")(scan)


def scan(
    context: typer.Context,
    source: SourceArgument,
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="[OUT.txt]",
            help="The chosen types, for `quantize --tensor-types` and llama-quantize's "
            "--tensor-type-file.",
        ),
    ] = None,
    types: Annotated[
        str | None,
        typer.Option(
            "--types",
            metavar="LIST",
            help="Tensor types to try. Default: Q2_K,Q3_K,Q4_K,Q5_K,Q6_K,Q8_0.",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    target_bits: Annotated[
        float | None,
        typer.Option(
            help="Choose the best mixture with this many bits per weight, over all matrices.",
            min=1,
            max=16,
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(
            help="Choose the smallest mixture whose mean KL divergence is at most this, in nats.",
            min=0,
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    config: ConfigOption = None,
    lora: LoraOption = None,
    lora_alpha: LoraAlphaOption = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="An importance matrix for quantizing.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    threads: QuantizeThreadsOption = 0,
    llama_quantize: QuantizeOption = None,
    data: DataOption = None,
    utterances: UtterancesOption = None,
    seed: SeedOption = 0,
    json_: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Measure the sensitivity of every matrix, and choose a type for each.

    Replaces one matrix after the other with its quantized form in PyTorch, and measures the mean KL
    divergence of the predictions. Needs the checkpoint.
    """
    from valle_convert.files import check_outputs, write_text_atomically
    from valle_convert.quantize.options import NONE, MakeOptions, MeasureOptions, RunLog
    from valle_convert.quantize.scan import Aim
    from valle_convert.quantize.scan import scan as scan_matrices

    requires(context, {"out": "target_bits max_kl"})
    excludes(context, {"max_kl": "target_bits"})
    source = local_gguf(source, or_checkpoint=True)
    read = [source, checkpoint, config, *paths_of(lora), imatrix, data]
    check_outputs({"OUT.txt": out}, inputs=read, force=force)
    result = scan_matrices(
        source,
        checkpoint_of(source, checkpoint, config, lora, lora_alpha),
        Aim(tuple(filter(None, map(str.strip, (types or "").split(",")))), target_bits, max_kl),
        MakeOptions(
            tool=llama_quantize, threads=threads, imatrix=NONE if imatrix is None else str(imatrix)
        ),
        MeasureOptions(data, utterances, seed),
        log=RunLog(console.progress_bar, console.log),
    )
    if json_:
        console.data_json(result.to_json())
    else:
        header, rows = result.table()
        console.data(console.table(rows, header=header))
        console.data(result.verdict())
    if out is not None and result.mixture is not None:
        lines = "".join(f"{one}\n" for one in result.mixture.tensor_types)
        write_text_atomically(out, lines, force=force)
