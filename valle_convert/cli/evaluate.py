"""`valle-convert evaluate`."""

from pathlib import Path

from valle_convert.cli import console
from valle_convert.cli.judging import LimitOptions, ReportOptions
from valle_convert.cli.options import (
    CODEC,
    GPU_LAYERS,
    MEASURING,
    MODEL,
    OUTPUT,
    THREADS,
    DataOptions,
    ReadOptions,
    arg,
    flag,
    local_gguf,
    opt,
    refuse_idle,
)

_LISTENING = "Listening"


def evaluate(
    *,
    files: list[Path] = arg(
        "FILE|DIR...",
        "Converted or quantized files of one model, folders of them, or hf:OWNER/REPO:NAME.gguf on "
        "the Hugging Face hub.",
    ),
    types: list[str] | None = opt("In a folder, only files of these types.", "LIST"),
    checkpoint: Path | None = opt(
        "Compare with this checkpoint, in PyTorch, and verify the files. Default: compare with the "
        "first of the files in F16, BF16 or F32, on llama.cpp.",
        "CHECKPOINT",
        MODEL,
    ),
    reading: ReadOptions,
    threads: int | None = THREADS,
    gpu_layers: int = GPU_LAYERS,
    dataset: DataOptions,
    reference: Path | None = opt(
        "Read the output of --save-reference instead of computing it again.", "FILE", MEASURING
    ),
    save_reference: Path | None = opt(
        "Save the logits and the codes of the reference, for other runs.", "FILE", MEASURING
    ),
    listen: bool = flag(
        "Also let every file speak the utterances of --data, or --sentences, and measure the "
        "speech.",
        _LISTENING,
    ),
    sentences: Path | None = opt(
        "Texts, one per line; the F16 file speaks the recordings to compare the others with.",
        "FILE.txt",
        _LISTENING,
    ),
    voice: Path | None = opt(
        "The voice of --sentences: a recording, or codes. Default: the model chooses.",
        "FILE",
        _LISTENING,
    ),
    codec: str | None = CODEC,
    asr: str | None = opt(
        "A speech recognizer: a command that gets the path of a wav file (at {}, or last) and "
        "prints the words.",
        "CMD",
        _LISTENING,
    ),
    limits: LimitOptions,
    prune: bool = flag(
        "If everything passed, remove the folder's other files of the same source.", OUTPUT
    ),
    output: ReportOptions,
) -> None:
    """Measure and judge the loss of quantizing.

    Exit code 1 if a file is wrong or beyond a limit. Compares files on stock llama.cpp with the
    checkpoint: KL divergence, error, top-1 agreement by head and level, greedy decoding, speed;
    with --listen, also the speech. Measurements are saved beside each file
    (NAME.measurements.json), and nothing is measured twice.
    """
    from valle_convert.files import check_outputs
    from valle_convert.quantize.evaluate import Given
    from valle_convert.quantize.evaluate import evaluate as evaluate_files
    from valle_convert.quantize.options import ListenOptions, MeasureOptions, RunLog
    from valle_convert.quantize.types import parse_types

    merged, adapters = reading.split()
    if checkpoint is None:
        refuse_idle("there is no --checkpoint", {"--lora": merged.lora})
    local = [local_gguf(path) for path in files]
    read = [*local, checkpoint, *reading.files, dataset.data, sentences, voice, limits.earlier[0]]
    output.check([*read, reference, Path(codec) if codec else None])
    check_outputs({"--save-reference": save_reference}, inputs=read, force=output.force)
    result = evaluate_files(
        Given(
            tuple(local),
            parse_types(",".join(types)) if types else (),
            None if checkpoint is None else merged.read(checkpoint),
            keep=files == local,  # nothing is written into the cache of the hub
            force=output.force,
        ),
        limits.gates(),
        MeasureOptions(
            data=dataset.data,
            n_utterances=dataset.utterances,
            adapters=adapters,
            threads=threads or 0,
            gpu_layers=gpu_layers,
            reference=reference,
            save_reference=save_reference,
        ),
        ListenOptions(sentences, voice, codec=codec, asr=asr) if listen else None,
        prunes=prune,
        reports=output.report or [],
        log=RunLog(console.progress_bar, console.log),
    )
    output.finish(result)
