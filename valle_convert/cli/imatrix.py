"""`valle-convert imatrix`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from valle_convert.cli import console
from valle_convert.cli.evaluate import DataOption, SeedOption
from valle_convert.cli.options import (
    CheckpointArgument,
    ConfigOption,
    ForceOption,
    JsonOption,
    LoraAlphaOption,
    LoraOption,
    excludes,
    paths_of,
)


def register(app: typer.Typer) -> None:
    app.command("imatrix")(imatrix)


def imatrix(
    context: typer.Context,
    checkpoint: CheckpointArgument,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="OUT.gguf", help="The file to write.")
    ],
    config: ConfigOption = None,
    lora: LoraOption = None,
    lora_alpha: LoraAlphaOption = None,
    data: DataOption = None,
    utterances: Annotated[int, typer.Option(help="Number of random utterances.", min=1)] = 32,
    seed: SeedOption = 0,
    json_: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Make an importance matrix for llama-quantize by running the PyTorch reference.

    Runs every mode of the model over the utterances, and writes the mean square of each input
    column of each matrix in llama.cpp's own format. A model of several networks gets a file for
    each: a VALL-E X OUT.gguf for its AR and OUT-nar.gguf for its NAR.
    """
    from valle_convert.api import read_checkpoint
    from valle_convert.families.bundle import plan
    from valle_convert.files import check_outputs
    from valle_convert.quantize.examples import Examples
    from valle_convert.quantize.imatrix import make_imatrices

    excludes(context, {"utterances": "data"})
    check_outputs({"--out": out}, inputs=[checkpoint, config, *paths_of(lora), data], force=force)
    source = read_checkpoint(
        checkpoint,
        config=config,
        lora=lora or (),
        lora_alpha=lora_alpha,
        progress=console.progress_bar,
    )
    reference = plan(source)
    examples: Examples[Any] = Examples.choose(
        reference.family, reference.model, data, None if data else utterances, seed=seed
    )
    console.log(f"importance matrix of {examples.description}")
    files = make_imatrices(reference, examples, out, force=force, progress=console.progress_bar)
    made, words, paths = list(files.values()), examples.description, list(files)
    n_matrices, n_passes = sum(len(one.entries) for one in made), made[0].chunk_count
    if json_:
        console.data_json(
            {
                "file": str(out),
                "files": list(map(str, paths)),
                "matrices": n_matrices,
                "passes": n_passes,
                "sequences": words,
            }
        )
    else:
        shown = " and ".join(map(str, paths))
        console.data(f"{shown}: {n_matrices} matrices over {n_passes} passes")
