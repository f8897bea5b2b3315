"""`valle-convert inspect FILE`: the contents of a file; and `compare`, of two GGUF files."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valle_convert.cli import console
from valle_convert.cli.options import JSON, ReadOptions, arg, flag, local_gguf
from valle_convert.errors import EXIT_FAILED_CHECK, EXIT_OK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from valle_convert.inspect import Summary


def inspect(
    *,
    file: Path = arg(
        "FILE",
        "A checkpoint, a GGUF file, a codec's .bin, or a folder of GGUF files (one line each). Of "
        "safetensors on the hub, only the header is downloaded.",
    ),
    reading: ReadOptions,
    json_: bool = JSON,
) -> None:
    """Show the contents of a file or folder.

    Shows sizes, capabilities, tables and heads, tokenizer, types, bytes and provenance.
    """
    from valle_convert.inspect import inspect_file, models_in

    is_folder = os.path.isdir(file)  # noqa: PTH112 - no exception for a closed folder
    models = models_in(file) if is_folder else []
    given, lora = models or [file], reading.loras
    summaries = [inspect_file(one, config=reading.config, lora=lora) for one in given]
    if models:
        _show_folder(file, summaries, as_json=json_)
    elif json_:
        console.data_json(asdict(summaries[0]))
    else:
        _show(summaries[0])


def compare(
    first: Path = arg("A.gguf", "A GGUF file, or hf:OWNER/REPO:NAME.gguf on the hub."),
    second: Path = arg("B.gguf", "The file to compare it with."),
    exit_code: bool = flag("End with exit code 1 if the files differ."),
    json_: bool = JSON,
) -> int:
    """Show the differences of two GGUF files.

    Compares key by key and tensor by tensor. For models of several files, give the main files.
    """
    from valle_convert.families.bundle import files_at
    from valle_convert.gguf_file.compare import compare_files

    files = [files_at(local_gguf(path)) for path in (first, second)]
    result = compare_files(*files, progress=console.progress_bar)
    if json_:
        console.data_json(result.to_json())
    else:
        for line in result.lines():
            console.data(line)
    return EXIT_FAILED_CHECK if exit_code and not result.same else EXIT_OK


def _show(summary: Summary) -> None:
    console.data(f"{summary.path}: {summary.kind}, {console.n_bytes(summary.n_bytes)}")
    for title in ("sizes", "behaviour", "tokenizer", "provenance"):
        values: Mapping[str, Any] = getattr(summary, title)
        known = [(name, _words(value)) for name, value in values.items() if value is not None]
        if known:
            console.data(f"\n{title}")
            console.data_table(known)
    if summary.rows:
        console.data("\ntables and heads")
        rows = [
            (one.kind, one.name, f"{one.first_row:,}", f"{one.n_rows:,}", one.source)
            for one in summary.rows
        ]
        console.data_table(rows, header=("kind", "name", "first row", "rows", "source"))
    console.data("\nweights")
    groups = [
        (one.name, one.type, *(f"{n:,}" for n in (one.n_tensors, one.n_weights, one.n_bytes)))
        for one in summary.groups
    ]
    console.data_table(groups, header=("group", "type", "tensors", "weights", "bytes"))
    console.notes(summary.notes)


def _show_folder(folder: Path, summaries: list[Summary], *, as_json: bool) -> None:
    from valle_convert.quantize.measurements import measurements_in

    if as_json:
        console.data_json([asdict(one) for one in summaries])
        return
    verdicts = {name: one.outcome for one in measurements_in(folder) for name in one.sha256}
    rows = []
    for one in summaries:
        main = max(one.groups, key=lambda group: group.n_weights, default=None)
        kind = one.provenance.get("valle.quantize.type") or (main.type if main else "")
        name = Path(one.path).name
        size = console.n_bytes(one.n_bytes)
        rows.append((name, str(kind), size, verdicts.get(name, "not measured"), one.kind))
    console.data_table(rows, header=("file", "type", "size", "verdict", ""))


def _words(value: Any) -> str:  # noqa: ANN401 - a value of a report
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)
