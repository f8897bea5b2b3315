"""`valle-convert evaluate` and `merge`: both judge files by limits, and write reports."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING

import typer

from valle_convert.cli import console
from valle_convert.cli.options import (
    CODEC,
    FORCE,
    GPU_LAYERS,
    JSON,
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
from valle_convert.errors import EXIT_ENVIRONMENT, EXIT_OK, ValleConvertError
from valle_convert.files import path_and_number
from valle_convert.wording import plural

if TYPE_CHECKING:
    from valle_convert.quantize.limits import Gates
    from valle_convert.quantize.report import EvaluationReport

_LISTENING = "Listening"
_LIMITS = "Limits (exit code 1 beyond them)"


@dataclass(frozen=True)
class LimitOptions:
    max_kl: list[str] | None = opt(
        "Mean KL divergence in nats: 0.01, or Q8_0=1e-3,Q4_K_M=1e-2. Limits are repeatable.",
        "LIMIT|TYPE=LIMIT,...",
        _LIMITS,
    )
    min_agreement: list[str] | None = opt(
        "Top-1 agreement, such as 0.97.", "SHARE|TYPE=SHARE,...", _LIMITS
    )
    max_nll: list[str] | None = opt(
        "How much less likely the true codes may be than for F16, in nats per code.",
        "LIMIT|TYPE=LIMIT,...",
        _LIMITS,
    )
    min_retrieval: list[str] | None = opt(
        "Share of the sentences that are closest to their own recording.",
        "SHARE|TYPE=SHARE,...",
        _LIMITS,
    )
    max_wer: list[str] | None = opt("Word error rate.", "RATE|TYPE=RATE,...", _LIMITS)
    no_worse_than: str | None = opt(
        "An earlier report as limits; divergence and the share of changed codes may be FACTOR "
        "(1.1) times as large.",
        "REPORT.json[@FACTOR]",
        _LIMITS,
    )

    @property
    def earlier(self) -> tuple[Path | None, float]:
        """The report of an earlier run, and the factor."""
        from valle_convert.quantize.limits import MARGIN

        if self.no_worse_than is None:
            return None, MARGIN
        path, factor = path_and_number(self.no_worse_than, MARGIN)
        if not 1 <= factor < math.inf:
            raise typer.BadParameter(
                f"the factor is {factor}, expected at least 1.", param_hint="--no-worse-than"
            )
        return path, factor

    def gates(self) -> Gates:
        from valle_convert.quantize.limits import gates_of

        limits = {name: text for name, text in vars(self).items() if name != "no_worse_than"}
        return gates_of(limits, *self.earlier)


@dataclass(frozen=True)
class ReportOptions:
    report: list[Path] | None = opt(
        "Write the report as .json, .md or .html; repeatable.", "FILE", OUTPUT
    )
    json_: bool = JSON
    force: bool = FORCE

    def check(self, inputs: Sequence[Path | None]) -> None:
        """Refuse reports that cannot be written, before an hour of work."""
        from valle_convert.files import check_outputs
        from valle_convert.quantize.forms import check_reports

        check_reports(self.report or [])
        targets = {f"--report {one}": one for one in self.report or []}
        check_outputs(targets, inputs=inputs, force=self.force)

    def finish(self, result: EvaluationReport) -> int:
        """Print a result and write its reports; returns the exit code."""
        from valle_convert.files import valid_utf8
        from valle_convert.quantize.forms import write_report

        command = shlex.join(["valle-convert", *sys.argv[1:]])
        result = replace(result, command=valid_utf8(command))
        if self.json_:
            console.data_json(result.to_json())
        else:
            _show(result)
        code = result.exit_code
        for one in self.report or []:
            try:
                write_report(result, one, force=self.force)
            except ValleConvertError as error:
                console.error(str(error))
                code = code or EXIT_ENVIRONMENT
        return code


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
) -> int:
    """Measure and judge the loss of quantizing.

    Exit code 1 if a file is wrong or beyond a limit. Compares files on stock llama.cpp with the
    checkpoint: KL divergence, error, top-1 agreement by head and level, greedy decoding, speed;
    with --listen, also the speech. Measurements are saved beside each file
    (NAME.measurements.json), and nothing is measured twice.
    """
    from valle_convert.files import check_outputs
    from valle_convert.quantize.evaluate import FileSelection
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
        FileSelection(
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
    return output.finish(result)


def merge(
    *,
    folders: list[Path] = arg("DIR...", "Output folders of `quantize`, for one model."),
    out: Path = arg("OUTDIR", "A new folder, or an earlier one of `merge` to add to."),
    limits: LimitOptions,
    output: ReportOptions,
) -> int:
    """Merge folders of separate jobs, and judge the result.

    Each has some types of one model. Files are linked if the file system supports it. Folders of
    different checkpoints, tools or options are rejected. Without limits, the verdicts of `evaluate`
    are kept.
    """
    from valle_convert.quantize.merge import merge as merge_folders

    output.check([*folders, limits.earlier[0]])
    result = merge_folders(
        folders,
        out,
        limits.gates() if any(vars(limits).values()) else None,
        reports=output.report or [],
        has_report=bool(output.report) or output.json_,
        force=output.force,
        progress=console.progress_bar,
    )
    console.log(f"merged {plural(len(result.files), 'file')} into {out}")
    console.notes(result.notes)
    return EXIT_OK if result.report is None else output.finish(result.report)


def _show(result: EvaluationReport) -> None:
    from valle_convert.quantize.tables import answer, heard, summary

    header, rows = summary(result)
    width = max(map(len, console.table(rows, header=header).splitlines()))
    if sys.stdout.isatty() and width > get_terminal_size().columns:
        header, rows = answer(result)  # the first columns; a pipe gets all
    console.data_table(rows, header=header)
    for title, (columns, cells) in list(heard(result))[:1]:  # a report has all of them
        console.log(f"{title}:\n{console.table(cells, header=columns)}")
    for line in result.facts():
        console.log(line)
    console.data(result.advice().sentence)
    console.data(result.verdict())
