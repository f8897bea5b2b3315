"""`valle-convert quantize` and `check-manifest`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import typer

from valle_convert.cli import console
from valle_convert.cli.options import (
    FORCE,
    JSON,
    MODEL,
    OUTPUT,
    SOURCE,
    QuantizerOptions,
    arg,
    flag,
    local_gguf,
    opt,
)
from valle_convert.errors import EXIT_FAILED_CHECK, EXIT_OK, InputError

_TYPES, _NAMES = "Types", "Names and metadata"


def _list_types(given: bool) -> None:
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
    console.data_table(rows, header=("type", "bits", "most matrices", ""))
    raise typer.Exit


def quantize(
    *,
    source: Path = SOURCE,
    out: Path = arg("OUTDIR|OUT.gguf", "A folder, or one file, which needs a TYPE."),
    type_: str | None = arg("[TYPE]", "The type of OUT.gguf.", None),
    types: list[str] | None = opt(
        "Types for a folder, such as Q8_0,Q6_K,Q4_K_M; repeatable.", "LIST", _TYPES
    ),
    list_types: bool = opt(  # noqa: ARG001 - its callback ends the program
        "List the types and exit.", panel=_TYPES, default=False, callback=_list_types, is_eager=True
    ),
    tensor_types: list[str] | None = opt(
        "Types of single tensors, such as ffn_down=Q8_0; or a file of such pairs, as `scan` writes "
        "and llama-quantize's --tensor-type-file reads; repeatable.",
        "PATTERN=TYPE|FILE",
        _TYPES,
        ("--tensor-types", "--tensor-type"),
    ),
    pure: bool = flag("Give every matrix the type itself.", _TYPES),
    allow_requantize: bool = flag("Accept a quantized input.", _TYPES),
    no_fallback: bool = flag(
        "Reject types whose block size does not divide the rows of some tensor.", _TYPES
    ),
    quantizer: QuantizerOptions,
    imatrix: str = opt(
        "Importance matrix: a GGUF file; or a folder of utterances, to make one for all types; "
        "auto makes one from random codes for the types that need one. Making one needs the "
        "checkpoint.",
        "auto|FILE|DIR|none",
        MODEL,
        default="auto",
    ),
    name_files: Literal["type", "convention"] = opt(
        "type: NAME-Q8_0.gguf. convention: the GGUF naming convention, also in the metadata.",
        panel=_NAMES,
        default="type",
    ),
    quantized_by: str | None = opt("general.quantized_by.", "NAME", _NAMES),
    base_model: str | None = opt(
        "general.base_model.*, a model on the hub. Default: from the input.", "OWNER/NAME", _NAMES
    ),
    log: Path | None = opt("Save the output of llama-quantize.", "FILE", OUTPUT),
    dry_run: bool = flag("Predict types and sizes; leave no file.", OUTPUT),
    resume: bool = flag("Keep the files of the folder that were made in the same way.", OUTPUT),
    json_: bool = JSON,
    force: bool = FORCE,
) -> int:
    """Quantize with llama-quantize.

    Each file is compared with its source. A folder gets one file per type, manifest.json and
    SHA256SUMS. `evaluate` measures the loss. For a model of several files, give the main file.
    """
    from valle_convert.quantize.identity import Identity
    from valle_convert.quantize.options import FolderOptions, MakeOptions, RunLog
    from valle_convert.quantize.run import quantize as quantize_files
    from valle_convert.quantize.types import parse_types

    _check_types(out, type_, types)
    patterns, files = _tensor_types(tensor_types or [])
    options = MakeOptions(
        types=parse_types(",".join(types or [type_ or ""])),
        tool=quantizer.llama_quantize,
        tensor_types=patterns,
        allow_requantize=allow_requantize,
        pure=pure,
        threads=quantizer.threads or 0,
        imatrix=imatrix,
        identity=Identity(name_files, quantized_by, base_model),
        allow_fallback=not no_fallback,
        inputs=(*quantizer.files, *files),
    )
    source = local_gguf(source, or_checkpoint=True)
    read = (source, quantizer.checkpoint, options.imatrix_path, *options.inputs)
    with _kept_log(log, out, read, force=force) as keep:
        result = quantize_files(
            source,
            out,
            options,
            FolderOptions(resume=resume, force=force, dry_run=dry_run),
            checkpoint=quantizer.checkpoint_of(source),
            log=RunLog(console.progress_bar, console.log, keep),
        )
        if json_:
            console.data_json(result.to_json())
        else:
            header, rows = result.table()
            console.data_table(rows, header=header)
            for line in result.facts():
                console.log(line)
            console.data(result.verdict())
    return result.exit_code


def _check_types(out: Path, type_: str | None, types: list[str] | None) -> None:
    if not (type_ or types):
        raise typer.BadParameter("give --types LIST, or one TYPE after OUT.gguf.")
    if type_ is not None and out.suffix != ".gguf":
        raise typer.BadParameter(
            f"TYPE is for one file, but {out} does not end in .gguf. For a folder, use --types "
            f"{type_}."
        )


def _tensor_types(given: Sequence[str]) -> tuple[tuple[str, ...], list[Path]]:
    """Pairs of pattern and type, given ones before those of files, and the files."""
    from valle_convert.quantize.types import check_tensor_type, read_tensor_types

    pairs = [check_tensor_type(one) for one in given if "=" in one]
    files = [Path(one) for one in given if "=" not in one]
    for one in files:
        if not one.exists():
            raise InputError(
                f"There is no list of tensor types {one}; expected PATTERN=TYPE, or a file of them."
            )
        pairs += read_tensor_types(one)
    return tuple(pairs), files


@contextmanager
def _kept_log(
    log: Path | None, out: Path, read: Sequence[Path | None], *, force: bool
) -> Iterator[Callable[[list[str]], object]]:
    """Yield a sink for the tool's output, which is written at the end in any case."""
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


def check_manifest(
    path: Path = arg("DIR|manifest.json", "The output folder of `quantize` or `merge`."),
    require_passed: bool = flag("Fail also if the last `evaluate` of a model did not pass."),
    json_: bool = JSON,
) -> int:
    """Compare a folder with its manifest and SHA256SUMS. Exit code 1 if they differ."""
    from valle_convert.quantize.measurements import check_folder

    result = check_folder(path, require_passed=require_passed, progress=console.progress_bar)
    if json_:
        console.data_json(result.to_json())
    else:
        for finding in result.findings:
            console.data(f"{finding.name}: {finding.problem}")
        console.data(result.verdict())
    return EXIT_OK if result.passed else EXIT_FAILED_CHECK
