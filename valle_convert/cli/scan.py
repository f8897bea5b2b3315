"""`valle-convert scan`."""

from pathlib import Path

from valle_convert.cli import console
from valle_convert.cli.options import (
    FORCE,
    JSON,
    MODEL,
    SOURCE,
    DataOptions,
    QuantizerOptions,
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
