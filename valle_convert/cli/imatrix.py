"""`valle-convert imatrix`."""

from pathlib import Path

from valle_convert.cli import console
from valle_convert.cli.options import CHECKPOINT, FORCE, JSON, DataOptions, ReadOptions, opt


def imatrix(
    *,
    checkpoint: Path = CHECKPOINT,
    out: Path = opt("The file to write.", "OUT.gguf", names=("-o", "--out"), default=...),
    reading: ReadOptions,
    dataset: DataOptions,
    json_: bool = JSON,
    force: bool = FORCE,
) -> None:
    """Make an importance matrix for llama-quantize.

    Runs every mode of the model, in PyTorch, over the utterances, and writes the mean square of
    each input column of each matrix in llama.cpp's own format. A model of several networks gets a
    file for each: OUT.gguf for its AR, and OUT-nar.gguf for its NAR.
    """
    from valle_convert.families.bundle import plan
    from valle_convert.files import check_outputs
    from valle_convert.quantize.examples import Examples
    from valle_convert.quantize.imatrix import make_imatrices
    from valle_convert.quantize.matrices import N_RANDOM

    read = [checkpoint, *reading.files, dataset.data]
    check_outputs({"--out": out}, inputs=read, force=force)
    conversion = plan(reading.read(checkpoint))
    n = dataset.utterances or (None if dataset.data else N_RANDOM)
    examples = Examples.choose(conversion.family, conversion.model, dataset.data, n)
    console.log(f"importance matrix of {examples.description}")
    files = make_imatrices(conversion, examples, out, force=force, progress=console.progress_bar)
    n_matrices = sum(len(one.entries) for one in files.values())
    n_passes = next(iter(files.values())).chunk_count
    if json_:
        console.data_json(
            {
                "file": str(out),
                "files": list(map(str, files)),
                "matrices": n_matrices,
                "passes": n_passes,
                "sequences": examples.description,
            }
        )
    else:
        shown = " and ".join(map(str, files))
        console.data(f"{shown}: {n_matrices} matrices over {n_passes} passes")
