"""`valle-convert scan` and `imatrix`, which run a checkpoint in PyTorch."""

from pathlib import Path

from valle_convert.cli import console
from valle_convert.cli.options import (
    CHECKPOINT,
    FORCE,
    JSON,
    MODEL,
    SOURCE,
    DataOptions,
    QuantizerOptions,
    ReadOptions,
    arg,
    local_gguf,
    opt,
)

_CHOICE = "Choice"


def scan(
    *,
    source: Path = SOURCE,
    out: Path | None = arg(
        "[OUT.txt]",
        "The chosen types, for `quantize --tensor-types` and llama-quantize's --tensor-type-file.",
        None,
    ),
    types: str | None = opt(
        "Tensor types to try. Default: Q2_K,Q3_K,Q4_K,Q5_K,Q6_K,Q8_0.", "LIST", _CHOICE
    ),
    target_bits: float | None = opt(
        "Choose the best mixture with this many bits per weight, over all matrices.",
        "BITS",
        _CHOICE,
        min=1,
        max=16,
    ),
    max_kl: float | None = opt(
        "Choose the smallest mixture whose mean KL divergence is at most this, in nats.",
        "LIMIT",
        _CHOICE,
        min=0,
    ),
    quantizer: QuantizerOptions,
    imatrix: Path | None = opt(
        "An importance matrix (GGUF) for quantizing.", "FILE", MODEL, dir_okay=False
    ),
    dataset: DataOptions,
    json_: bool = JSON,
    force: bool = FORCE,
) -> None:
    """Measure each matrix, and choose a type for it.

    Replaces one matrix after the other with its quantized form in PyTorch, and measures the mean KL
    divergence of the predictions. Needs the checkpoint.
    """
    from valle_convert.files import check_outputs, write_text_atomically
    from valle_convert.quantize.options import NONE, MakeOptions, MeasureOptions, RunLog
    from valle_convert.quantize.scan import Aim
    from valle_convert.quantize.scan import scan as scan_matrices

    source = local_gguf(source, or_checkpoint=True)
    read = [source, quantizer.checkpoint, *quantizer.files, imatrix, dataset.data]
    check_outputs({"OUT.txt": out}, inputs=read, force=force)
    result = scan_matrices(
        source,
        quantizer.checkpoint_of(source),
        Aim(tuple(filter(None, map(str.strip, (types or "").split(",")))), target_bits, max_kl),
        MakeOptions(
            tool=quantizer.llama_quantize,
            threads=quantizer.threads or 0,
            imatrix=NONE if imatrix is None else str(imatrix),
        ),
        MeasureOptions(dataset.data, dataset.utterances),
        log=RunLog(console.progress_bar, console.log),
    )
    if json_:
        console.data_json(result.to_json())
    else:
        header, rows = result.table()
        console.data_table(rows, header=header)
        console.data(result.verdict())
    if out is not None and result.mixture is not None:
        lines = "".join(f"{one}\n" for one in result.mixture.tensor_types)
        write_text_atomically(out, lines, force=force)


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
    from valle_convert.families.bundle import plan_bundle
    from valle_convert.files import check_outputs
    from valle_convert.quantize.examples import Examples
    from valle_convert.quantize.imatrix import make_imatrices
    from valle_convert.quantize.matrices import N_RANDOM

    read = [checkpoint, *reading.files, dataset.data]
    check_outputs({"--out": out}, inputs=read, force=force)
    conversion = plan_bundle(reading.read(checkpoint))
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
