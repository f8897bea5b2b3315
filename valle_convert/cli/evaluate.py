"""`valle-convert evaluate`."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from valle_convert.cli import console
from valle_convert.cli.options import (
    MODEL,
    OUTPUT,
    CodecOption,
    ConfigOption,
    ForceOption,
    JsonOption,
    LoraAlphaOption,
    LoraOption,
    excludes,
    refuse_idle,
    requires,
    split_loras,
)
from valle_convert.cli.remote import local_gguf
from valle_convert.errors import EXIT_ENVIRONMENT, EXIT_OK, ValleConvertError

if TYPE_CHECKING:
    from valle_convert.quantize.evaluate import Given
    from valle_convert.quantize.report import EvaluationReport

_MEASURING, _LISTENING, _LIMITS = "Measuring", "Listening", "Limits (exit code 1 beyond them)"
#: What each option requires to have an effect.
_NEEDS = {
    "config": "checkpoint",
    "lora_alpha": "checkpoint",
    "sentences": "listen",
    "voice": "sentences",
    "codec": "listen",
    "asr": "listen",
    "max_nll": "listen",
    "min_retrieval": "listen",
    "max_wer": "asr",
    "margin": "no_worse_than",
}

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Utterances as .npz files; see `utterances`. Default: random ones.",
        rich_help_panel=_MEASURING,
    ),
]
SeedOption = Annotated[
    int,
    typer.Option("--seed", help="Seed of random utterances.", min=0, rich_help_panel=_MEASURING),
]
UtterancesOption = Annotated[
    int | None,
    typer.Option(
        "--utterances",
        help="Number of utterances, at most. Default: all of --data, or 2 random ones.",
        min=1,
        rich_help_panel=_MEASURING,
    ),
]
MaxKlOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LIMIT|TYPE=LIMIT,...",
        help="Mean KL divergence, in nats: 0.01, or Q8_0=1e-3,Q4_K_M=1e-2. Limits are repeatable.",
        rich_help_panel=_LIMITS,
    ),
]
MinAgreementOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PART|TYPE=PART,...", help="Top-1 agreement: 0.97.", rich_help_panel=_LIMITS
    ),
]
MaxNllOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LIMIT|TYPE=LIMIT,...",
        help="How much less likely the true codes may be than for F16, in nats per code.",
        rich_help_panel=_LIMITS,
    ),
]
MinRetrievalOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PART|TYPE=PART,...",
        help="Part of the sentences that are closest to their own recording.",
        rich_help_panel=_LIMITS,
    ),
]
MaxWerOption = Annotated[
    list[str] | None,
    typer.Option(metavar="RATE|TYPE=RATE,...", help="Word error rate.", rich_help_panel=_LIMITS),
]
NoWorseThanOption = Annotated[
    Path | None,
    typer.Option(
        metavar="REPORT.json",
        help="Limits from an earlier run's results, times --margin.",
        rich_help_panel=_LIMITS,
    ),
]
MarginOption = Annotated[
    float,
    typer.Option(help="Factor for divergence and changed codes.", min=1.0, rich_help_panel=_LIMITS),
]
ReportsOption = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Write the report as .json, .md or .html; repeatable.",
        rich_help_panel=OUTPUT,
    ),
]


def register(app: typer.Typer) -> None:
    app.command("evaluate")(evaluate)


def evaluate(
    context: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE|DIR...",
            help="Converted or quantized files of one model, folders of them, or "
            "hf:OWNER/REPO:NAME.gguf on the Hugging Face hub.",
        ),
    ],
    types: Annotated[
        list[str] | None,
        typer.Option("--types", metavar="LIST", help="In a folder, only files of these types."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Compare with this checkpoint, in PyTorch, and verify the files. Default: compare "
            "with the first of the files in F16, BF16 or F32, on llama.cpp.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    config: ConfigOption = None,
    lora: LoraOption = None,
    lora_alpha: LoraAlphaOption = None,
    data: DataOption = None,
    utterances: UtterancesOption = None,
    seed: SeedOption = 0,
    threads: Annotated[
        int,
        typer.Option(
            help="Threads for llama.cpp. Default (0): one per usable core.",
            min=0,
            max=1024,
            rich_help_panel=_MEASURING,
        ),
    ] = 0,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Read the output of --save-reference instead of computing it again.",
            rich_help_panel=_MEASURING,
        ),
    ] = None,
    save_reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Save the logits and the codes of the reference, for other runs.",
            rich_help_panel=_MEASURING,
        ),
    ] = None,
    listen: Annotated[
        bool,
        typer.Option(
            "--listen",
            help="Also let every file speak the utterances of --data, or --sentences, and measure "
            "the speech.",
            rich_help_panel=_LISTENING,
        ),
    ] = False,
    sentences: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.txt",
            help="Texts, one a line; the F16 file speaks the recordings to compare others with.",
            rich_help_panel=_LISTENING,
        ),
    ] = None,
    voice: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The voice of --sentences: a recording, or codes. Default: the model chooses.",
            rich_help_panel=_LISTENING,
        ),
    ] = None,
    codec: CodecOption = None,
    asr: Annotated[
        str | None,
        typer.Option(
            "--asr",
            metavar="CMD",
            help="A speech recognizer: a command that gets the path of a wav file (at {}, or last) "
            "and prints the words.",
            rich_help_panel=_LISTENING,
        ),
    ] = None,
    max_kl: MaxKlOption = None,
    min_agreement: MinAgreementOption = None,
    max_nll: MaxNllOption = None,
    min_retrieval: MinRetrievalOption = None,
    max_wer: MaxWerOption = None,
    no_worse_than: NoWorseThanOption = None,
    margin: MarginOption = 1.1,
    report: ReportsOption = None,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="If everything passed, remove the folder's other files of the same source.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    json_: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Measure and judge the loss of quantizing (exit code 1: a file is wrong, or beyond a limit).

    Compares files on stock llama.cpp with the checkpoint: KL divergence, error, top-1 agreement by
    head and level, greedy decoding, speed; with --listen, also the speech. Measurements are saved
    beside each file (NAME.measurements.json), and nothing is measured twice.
    """
    from valle_convert.files import check_outputs
    from valle_convert.quantize.evaluate import evaluate as evaluate_files
    from valle_convert.quantize.forms import check_reports
    from valle_convert.quantize.limits import gates_of
    from valle_convert.quantize.options import ListenOptions, MeasureOptions, RunLog

    requires(context, _NEEDS)
    excludes(context, {"save_reference": "reference"})
    limits = {
        "max_kl": max_kl,
        "min_agreement": min_agreement,
        "max_nll": max_nll,
        "min_retrieval": min_retrieval,
        "max_wer": max_wer,
    }
    merged, adapters = split_loras(lora)
    reports, local = report or [], [local_gguf(path) for path in files]
    read = [*local, checkpoint, config, *(one.path for one in adapters), data, no_worse_than]
    read += [sentences, voice, Path(codec) if codec else None, reference]
    check_reports(reports)
    check_outputs({f"--report {one}": one for one in reports}, inputs=read, force=force)
    check_outputs({"--save-reference": save_reference}, inputs=read, force=force)
    result = evaluate_files(
        _given(files, local, types, (checkpoint, config, merged, lora_alpha), force=force),
        gates_of(limits, no_worse_than, margin),
        MeasureOptions(data, utterances, seed, adapters, threads, reference, save_reference),
        ListenOptions(sentences, voice, codec=codec, asr=asr) if listen else None,
        prunes=prune,
        reports=reports,
        command=shlex.join(["valle-convert", *sys.argv[1:]]),
        log=RunLog(console.progress_bar, console.log),
    )
    finish(result, reports, as_json=json_, force=force)


def _given(
    files: list[Path],
    local: list[Path],
    types: list[str] | None,
    reference: tuple[Path | None, Path | None, list[str], float | None],
    *,
    force: bool,
) -> Given:
    from valle_convert.api import read_checkpoint
    from valle_convert.quantize.evaluate import Given
    from valle_convert.quantize.types import parse_types

    path, config, lora, lora_alpha = reference
    checkpoint = None
    if path is None:
        refuse_idle("there is no --checkpoint", {"--lora": lora})
    else:
        checkpoint = read_checkpoint(
            path, config=config, lora=lora, lora_alpha=lora_alpha, progress=console.progress_bar
        )
    return Given(
        tuple(local),
        parse_types(",".join(types)) if types else (),
        checkpoint,
        keep=files == local,  # nothing is written into the cache of the hub
        force=force,
    )


def finish(result: EvaluationReport, reports: list[Path], *, as_json: bool, force: bool) -> None:
    """Print a result, write its reports, and exit with its code unless that is 0."""
    _show(result, as_json=as_json)
    code = _write_reports(result, reports, force=force)
    if result.exit_code or code:
        raise typer.Exit(result.exit_code or code)


def _write_reports(result: EvaluationReport, reports: list[Path], *, force: bool) -> int:
    """Write every report that can be written; returns the exit code."""
    from valle_convert.quantize.forms import write_report

    code = EXIT_OK
    for one in reports:
        try:
            write_report(result, one, force=force)
        except ValleConvertError as error:
            console.error(str(error))
            code = EXIT_ENVIRONMENT
    return code


def _show(result: EvaluationReport, *, as_json: bool) -> None:
    if as_json:
        console.data_json(result.to_json())
        return
    from valle_convert.quantize.tables import fitting, heard, summary

    # A pipe gets all columns, a terminal the first ones that fit.
    width = shutil.get_terminal_size().columns
    header, rows = fitting(result, width) if sys.stdout.isatty() else summary(result)
    console.data(console.table(rows, header=header))
    for title, (columns, cells) in list(heard(result))[:1]:  # a report has all of them
        console.log(f"{title}:\n{console.table(cells, header=columns)}")
    for line in result.facts():
        console.log(line)
    if result.recommendation():
        console.data(result.recommendation())
    console.data(result.verdict())
