"""`valle-convert quantize` and `check-manifest`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from valle_convert.cli import console
from valle_convert.cli.options import (
    MODEL,
    OUTPUT,
    ConfigOption,
    ForceOption,
    JsonOption,
    LoraAlphaOption,
    LoraOption,
    excludes,
    paths_of,
    refuse_idle,
)
from valle_convert.cli.remote import local_gguf
from valle_convert.errors import EXIT_FAILED_CHECK

if TYPE_CHECKING:
    from valle_convert.checkpoint import Checkpoint
    from valle_convert.quantize.run import MakeReport

_TYPES, _NAMES = "Types", "Names and metadata"

QuantizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATH|library",
        help="The llama-quantize to run; `library` for the same routine in llama-cpp-python. "
        "Default: $LLAMA_QUANTIZE, then PATH, then the build of `make llama-tools`, then the "
        "library.",
        rich_help_panel=MODEL,
    ),
]
QuantizeThreadsOption = Annotated[
    int,
    typer.Option(
        "--threads",
        help="Threads. Default (0): chosen by llama.cpp.",
        min=0,
        max=1024,
        rich_help_panel=MODEL,
    ),
]
SourceArgument = Annotated[
    Path,
    typer.Argument(
        metavar="IN",
        help="A converted .gguf file in F16, BF16 or F32, or a checkpoint, which is first "
        "converted.",
    ),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        metavar="CHECKPOINT",
        help="The checkpoint that IN was converted from.",
        rich_help_panel=MODEL,
    ),
]


def register(app: typer.Typer) -> None:
    app.command("quantize")(quantize)
    app.command("check-manifest")(check_manifest)


def _list_types(given: bool) -> None:
    """Print one type per line, and exit."""
    if not given:
        return
    from valle_convert.quantize.types import COMMON, FILE_TYPES

    rows = [
        (
            one.name,
            f"{one.base.bits:.4g}" if one.base else "",
            one.base.name if one.base else "as they are",
            one.note or ("a usual choice" if one.name in COMMON else ""),
        )
        for one in FILE_TYPES.values()
    ]
    console.data(console.table(rows, header=("type", "bits", "most matrices", "")))
    raise typer.Exit


def quantize(
    context: typer.Context,
    source: SourceArgument,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUTDIR|OUT.gguf", help="A folder, or one file, which needs a TYPE."
        ),
    ],
    type_: Annotated[
        str | None, typer.Argument(metavar="[TYPE]", help="The type of OUT.gguf.")
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--types",
            metavar="LIST",
            help="Types for a folder, such as Q8_0,Q6_K,Q4_K_M; repeatable.",
            rich_help_panel=_TYPES,
        ),
    ] = None,
    list_types: Annotated[  # noqa: ARG001 - its callback does it
        bool,
        typer.Option(
            "--list-types",
            callback=_list_types,
            is_eager=True,
            help="List the types and exit.",
            rich_help_panel=_TYPES,
        ),
    ] = False,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=TYPE",
            help="As in llama-quantize, such as ffn_down=Q8_0; repeatable.",
            rich_help_panel=_TYPES,
        ),
    ] = None,
    tensor_types: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A file of such pairs, as written by `scan` and read by llama-quantize's "
            "--tensor-type-file.",
            rich_help_panel=_TYPES,
        ),
    ] = None,
    pure: Annotated[
        bool,
        typer.Option("--pure", help="Give every matrix the type itself.", rich_help_panel=_TYPES),
    ] = False,
    allow_requantize: Annotated[
        bool,
        typer.Option(
            "--allow-requantize", help="Accept a quantized input.", rich_help_panel=_TYPES
        ),
    ] = False,
    no_fallback: Annotated[
        bool,
        typer.Option(
            "--no-fallback",
            help="Reject types whose block size does not divide the rows of some tensor.",
            rich_help_panel=_TYPES,
        ),
    ] = False,
    checkpoint: CheckpointOption = None,
    config: ConfigOption = None,
    lora: LoraOption = None,
    lora_alpha: LoraAlphaOption = None,
    imatrix: Annotated[
        str,
        typer.Option(
            metavar="auto|FILE|DIR|none",
            help="Importance matrix: a file; or a folder of utterances, to make one for all types; "
            "auto makes one from random codes for the types that need one. Making one needs "
            "the checkpoint.",
            rich_help_panel=MODEL,
        ),
    ] = "auto",
    threads: QuantizeThreadsOption = 0,
    llama_quantize: QuantizeOption = None,
    name_files: Annotated[
        Literal["type", "convention"],
        typer.Option(
            help="type: NAME-Q8_0.gguf. convention: the GGUF naming convention, also in the "
            "metadata.",
            rich_help_panel=_NAMES,
        ),
    ] = "type",
    quantized_by: Annotated[
        str | None, typer.Option(help="general.quantized_by.", rich_help_panel=_NAMES)
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="general.base_model.*, a model on the hub. Default: from the input.",
            rich_help_panel=_NAMES,
        ),
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option("--license", help="general.license, an SPDX id.", rich_help_panel=_NAMES),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Save the output of llama-quantize.", rich_help_panel=OUTPUT
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Predict types and sizes; write nothing.", rich_help_panel=OUTPUT
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Keep the files of the folder that were made in the same way.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    json_: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Quantize with llama-quantize, and compare each file with its source.

    A folder gets one file per type, manifest.json and SHA256SUMS. `evaluate` measures the loss. For
    a model of several files, give the main ones.
    """
    from valle_convert.quantize.identity import Identity
    from valle_convert.quantize.options import FolderOptions, MakeOptions, RunLog
    from valle_convert.quantize.run import quantize as quantize_files
    from valle_convert.quantize.types import check_tensor_type, parse_types, read_tensor_types

    _check_types(context, out, type_, types)
    listed = read_tensor_types(tensor_types) if tensor_types else ()
    options = MakeOptions(
        types=parse_types(",".join(types or [type_ or ""])),
        tool=llama_quantize,
        tensor_types=(*map(check_tensor_type, tensor_type or []), *listed),
        allow_requantize=allow_requantize,
        pure=pure,
        threads=threads,
        imatrix=imatrix,
        identity=Identity(name_files, quantized_by, base_model, license_),
        allow_fallback=not no_fallback,
        inputs=tuple(one for one in (config, *paths_of(lora), tensor_types) if one),
    )
    existing = FolderOptions(resume=resume, force=force, dry_run=dry_run)
    source = local_gguf(source, or_checkpoint=True)
    read = (source, checkpoint, options.imatrix_path, *options.inputs)
    with _kept_log(log, out, read, force=force) as keep:
        reference = checkpoint_of(source, checkpoint, config, lora, lora_alpha)
        run = RunLog(console.progress_bar, console.log, keep)
        result = quantize_files(source, out, options, existing, checkpoint=reference, log=run)
        _show(result, as_json=json_)
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _check_types(
    context: typer.Context, out: Path, type_: str | None, types: list[str] | None
) -> None:
    excludes(context, {"types": "type_"})
    if not (type_ or types):
        raise typer.BadParameter("give --types LIST, or one TYPE after OUT.gguf.")
    if type_ is not None and out.suffix != ".gguf":
        raise typer.BadParameter(
            f"a TYPE goes with one file, and {out} does not end in .gguf; write {out}.gguf {type_} "
            f"for a file, or {out} --types {type_} for a folder."
        )


def checkpoint_of(
    source: Path,
    checkpoint: Path | None,
    config: Path | None,
    lora: list[str] | None,
    lora_alpha: float | None,
) -> Checkpoint | None:
    from valle_convert.api import read_checkpoint
    from valle_convert.gguf_file.read import is_gguf

    path = source if checkpoint is None and not is_gguf(source) else checkpoint
    if path is None:
        given = {"--config": config, "--lora": lora, "--lora-alpha": lora_alpha}
        refuse_idle("there is no checkpoint", given)
        return None
    return read_checkpoint(
        path, config=config, lora=lora or (), lora_alpha=lora_alpha, progress=console.progress_bar
    )


@contextmanager
def _kept_log(
    log: Path | None, out: Path, read: tuple[Path | None, ...], *, force: bool
) -> Iterator[Callable[[list[str]], object]]:
    """Gives a sink for lines of the tool, which are written at the end in any case."""
    from valle_convert.files import check_outputs, made_folder, write_text_atomically
    from valle_convert.quantize.manifest import MANIFEST, SUMS

    lines: list[str] = []
    with ExitStack() as held:
        if log is not None:
            if log.parent == out:
                held.enter_context(made_folder(out))  # the log may be in the new folder
            if log.suffix == ".gguf" or log.name in (MANIFEST, SUMS):
                raise typer.BadParameter(f"--log is {log}, the name of an output.")
        single = out.suffix == ".gguf"
        check_outputs({"OUT": out if single else None, "--log": log}, inputs=read, force=force)
        try:
            yield lines.extend
        finally:
            if log is not None and lines:
                write_text_atomically(log, "\n".join([*lines, ""]), force=force)


def _show(result: MakeReport, *, as_json: bool) -> None:
    if as_json:
        console.data_json(result.to_json())
        return
    header, rows = result.table()
    console.data(console.table(rows, header=header))
    for line in result.facts():
        console.log(line)
    console.data(result.verdict())


def check_manifest(
    path: Annotated[
        Path, typer.Argument(metavar="DIR|manifest.json", help="The result of `quantize`.")
    ],
    require_passed: Annotated[
        bool,
        typer.Option(
            "--require-passed", help="Fail also if the last `evaluate` of a model did not pass."
        ),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Compare the files of a folder with its manifest and SHA256SUMS (exit code 1: they differ)."""
    from valle_convert.quantize.measurements import check_folder

    result = check_folder(path, require_passed=require_passed, progress=console.progress_bar)
    if json_:
        console.data_json(result.to_json())
    else:
        for finding in result.findings:
            console.data(f"{finding.name}: {finding.problem}")
        console.data(result.verdict())
    if not result.passed:
        raise typer.Exit(EXIT_FAILED_CHECK)
