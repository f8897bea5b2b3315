"""`valle-convert CHECKPOINT OUT.gguf`: the main job."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from valle_convert.cli import console
from valle_convert.cli.options import (
    CheckpointArgument,
    CodecOption,
    ConfigOption,
    ForceOption,
    JsonOption,
    LoraAlphaOption,
    LoraOption,
    OutType,
    TokenizerOption,
    paths_of,
)

if TYPE_CHECKING:
    from valle_convert.gguf_file.plan import GgufPlan, PlannedFile
    from valle_convert.gguf_file.vallex import SetPlan
    from valle_convert.verify.report import Report


#: How much a conversion checks of its own result.
VerifyChoice = Literal["quick", "full", "none"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("convert")(convert)


def convert(
    checkpoint: CheckpointArgument,
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUT.gguf",
            help="The file to write. May be left out with --dry-run.",
            show_default=False,
        ),
    ] = None,
    out_type: Annotated[
        OutType,
        typer.Option(
            "--outtype",
            help="Number format of the matrices; auto keeps the checkpoint's. Norms stay float32.",
        ),
    ] = "auto",
    config: ConfigOption = None,
    lora: LoraOption = None,
    lora_alpha: LoraAlphaOption = None,
    tokenizer: TokenizerOption = None,
    codec: CodecOption = None,
    metadata: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="JSON with values for the general.* keys: author, license, description, "
            "source.url, tags and the others of the GGUF specification.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="general.name; else that of the file, else of the config.", show_default=False
        ),
    ] = None,
    verify: Annotated[
        VerifyChoice,
        typer.Option(
            help="What to check of the result: quick (structure, tensors, tokenizer), full (the "
            "logits of every head too), none."
        ),
    ] = "quick",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; read no weights, write nothing.")
    ] = False,
    json_: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Convert a checkpoint to GGUF. This is the main job, and needs no command name.

    The result is an ordinary `gemma` model for stock llama.cpp; what is VALL-E about it stands
    in its valle.* keys. Of a VALL-E X (vallex-checkpoint.pt) it is a set of `mpt` files: OUT.gguf
    (the AR), OUT-nar.gguf, and OUT-nar-1.gguf to OUT-nar-7.gguf beside it.

    Nothing is left behind where the conversion fails, and a file that does not pass its own
    verification is kept, with exit code 1.
    """
    from valle_convert.api import plan_conversion, plan_vallex, read_checkpoint
    from valle_convert.files import check_outputs
    from valle_convert.gguf_file.metadata import GeneralMetadata
    from valle_convert.model.vallex import is_vallex

    if out is None and not dry_run:
        raise typer.BadParameter(
            "Give the file to write, or --dry-run to see the plan.", param_hint="OUT.gguf"
        )
    if out is not None and not dry_run:
        check_outputs(
            {"OUT.gguf": out},
            inputs=[checkpoint, config, *paths_of(lora), tokenizer, metadata],
            force=force,
        )
    opened = read_checkpoint(
        checkpoint,
        config=config,
        lora=lora or (),
        lora_alpha=lora_alpha,
        progress=console.progress_bar,
    )
    general = GeneralMetadata.read(metadata, name)
    if is_vallex(opened):
        _refuse_for_sets({"--tokenizer": tokenizer, "--lora": lora, "--lora-alpha": lora_alpha})
        plan_of_set = plan_vallex(opened, out_type=out_type, codec=codec, metadata=general)
        if out is not None and not dry_run:
            names = {f"OUT.gguf ({path.name})": path for path in plan_of_set.files(out)}
            check_outputs(names, inputs=[*opened.inputs, config, metadata], force=force)
        if dry_run:
            _show_set(plan_of_set, out or Path("OUT.gguf"), as_json=json_)
        else:
            assert out is not None  # noqa: S101 - for the type checker; told apart above
            _convert_set(plan_of_set, out, verify, force=force, as_json=json_)
        return
    plan = plan_conversion(
        opened,
        out_type=out_type,
        tokenizer=tokenizer,
        codec=codec,
        metadata=general,
    )
    if dry_run:
        _show_plan(plan, as_json=json_)
        return
    assert out is not None  # noqa: S101 - for the type checker; told apart above
    carry_out(plan, out, verify, force=force, as_json=json_)


def carry_out(
    plan: GgufPlan, out: Path, verify: VerifyChoice, *, force: bool, as_json: bool
) -> None:
    """Write a planned file, check it, and tell of both."""
    _tell_choices(plan)
    start = time.perf_counter()
    size = _write(plan, out, force=force)
    seconds = time.perf_counter() - start
    console.talk(f"wrote {out}: {console.n_bytes(size)} in {seconds:.1f} s")
    report = _verify(plan, out, verify)
    if as_json:
        console.data_json(
            {
                "file": str(out),
                "bytes": size,
                "seconds": round(seconds, 3),
                "tokenizer": {"source": plan.tokenizer.source, "reason": plan.tokenizer.reason},
                "verification": report.to_json() if report else None,
            }
        )
    _end_with(report, verify)


def _end_with(report: Report | None, choice: VerifyChoice) -> None:
    """Say the verdict, and end with its exit code where it is no."""
    if report is not None:
        console.talk(report.verdict())
        # The quick check is whatever this machine can do; what was asked for by name has to run.
        if report.failures or (choice == "full" and report.exit_code):
            raise typer.Exit(report.exit_code)


def _refuse_for_sets(given: dict[str, object]) -> None:
    for name, value in given.items():
        if value is not None:
            raise typer.BadParameter(
                "a VALL-E X takes none: its symbols are fixed, and no LoRA of it is known.",
                param_hint=name,
            )


def _convert_set(
    plan: SetPlan, out: Path, choice: VerifyChoice, *, force: bool, as_json: bool
) -> None:
    """Write the files of a VALL-E X, and check them."""
    from valle_convert.api import write_set
    from valle_convert.verify.run import LEVELS, N_TEXTS_QUICK, QUICK
    from valle_convert.verify.vallex import N_TEXTS, verify_set

    _tell_set(plan)
    start = time.perf_counter()
    sizes = write_set(plan, out, force=force, progress=console.progress_bar)
    seconds = time.perf_counter() - start
    total = console.n_bytes(sum(sizes.values()))
    names = [path.name for path in sizes]
    console.talk(
        f"wrote {out}, {names[1]} and {names[2]} to {names[-1]}: {total} in {seconds:.1f} s"
    )
    report = None
    if choice != "none":
        full = choice == "full"
        report = verify_set(
            plan,
            out,
            levels=LEVELS if full else QUICK,
            n_texts=N_TEXTS if full else N_TEXTS_QUICK,
            progress=console.progress_bar,
        )
    if as_json:
        console.data_json(
            {
                "file": str(out),
                "files": {str(path): size for path, size in sizes.items()},
                "bytes": sum(sizes.values()),
                "seconds": round(seconds, 3),
                "verification": report.to_json() if report else None,
            }
        )
    _end_with(report, choice)


def _write(plan: GgufPlan, out: Path, *, force: bool) -> int:
    from valle_convert.api import write_gguf

    return write_gguf(plan, out, force=force, progress=console.progress_bar)


def _verify(plan: GgufPlan, out: Path, choice: VerifyChoice) -> Report | None:
    if choice == "none":
        return None
    from valle_convert.gguf_file.read import GgufFile
    from valle_convert.verify.run import LEVELS, N_TEXTS, N_TEXTS_QUICK, QUICK
    from valle_convert.verify.run import verify as run

    full = choice == "full"
    return run(
        plan,
        GgufFile(out),
        levels=LEVELS if full else QUICK,
        n_texts=N_TEXTS if full else N_TEXTS_QUICK,
        progress=console.progress_bar,
    )


def _tell_choices(plan: GgufPlan) -> None:
    """Everything that was decided for the user."""
    checkpoint = plan.checkpoint
    for note in checkpoint.notes:
        console.talk(f"note: {note}")
    console.talk(f"config: {checkpoint.config_source}")
    console.talk(
        f"tokenizer: {plan.tokenizer.source} ({plan.tokenizer.reason}; {plan.tokenizer.agreement})"
    )
    if checkpoint.lora:
        console.talk(f"LoRA merged: {checkpoint.lora}")
    for assumed in (*checkpoint.assumed, *plan.description.assumed):
        console.talk(f"assumed, since the file does not say: {assumed} (else give --config)")
    for lost in checkpoint.lost:
        console.talk(f"lost on the way to this file, and not in the result: {lost}")
    for dropped in plan.description.dropped:
        console.talk(f"left out: {dropped.source} ({dropped.reason})")
    for note in plan.description.notes:
        console.talk(f"note: {note}")


def _tell_set(plan: SetPlan) -> None:
    """Everything that was decided for the user."""
    description = plan.description
    model = description.model
    console.talk(f"config: {plan.ar.checkpoint.config_source}")
    console.talk(
        f"attention heads: {model.ar.n_head}; activation factor: {model.activation_factor}"
    )
    for note in (*description.checkpoint.notes, *description.notes):
        console.talk(f"note: {note}")


def _show_set(plan: SetPlan, out: Path, *, as_json: bool) -> None:
    files = plan.files(out)
    description = plan.description
    if as_json:
        checkpoint = plan.ar.checkpoint
        console.data_json(
            {
                "checkpoint": str(checkpoint.path),
                "container": checkpoint.container,
                "config_source": checkpoint.config_source,
                "files": {path.name: _file_json(part) for path, part in files.items()},
                "dropped": [vars(one) for one in description.dropped],
                "notes": list(description.notes),
            }
        )
        return
    for path, part in files.items():
        console.data(f"file {path.name}\n")
        _show_file(part)
        console.data("")
    console.data("left out")
    console.data(console.table([(d.source, d.reason) for d in description.dropped]) or "nothing")
    _tell_set(plan)


def _show_plan(plan: GgufPlan, *, as_json: bool) -> None:
    if as_json:
        console.data_json(_plan_json(plan))
        return
    _show_file(plan)
    console.data("\nleft out")
    console.data(
        console.table([(d.source, d.reason) for d in plan.description.dropped]) or "nothing"
    )
    _tell_choices(plan)


def _show_file(plan: PlannedFile) -> None:
    from valle_convert.gguf_file.write import header_of

    size = len(header_of(plan)) + plan.data_bytes
    console.data("keys")
    console.data(
        console.table([(key.name, key.type, _brief(key.value, key.deferred)) for key in plan.keys])
    )
    console.data("\ntensors")
    rows = []
    for tensor in plan.tensors:
        shape = " x ".join(str(n) for n in tensor.shape)
        rows.append((tensor.name, tensor.ggml_type.name, shape, f"{tensor.n_bytes:,}", ""))
        rows[-1] = (*rows[-1][:4], tensor.parts[0].source if len(tensor.parts) == 1 else "")
        if len(tensor.parts) > 1:
            rows += [
                (f"  {part.label}", "", f"rows {part.first_row}+{part.n_rows}", "", part.source)
                for part in tensor.parts
            ]
    console.data(console.table(rows, header=("name", "type", "shape", "bytes", "source")))
    console.data(f"\n{len(plan.tensors)} tensors, {plan.n_weights:,} weights, {size:,} bytes")


def _plan_json(plan: GgufPlan) -> dict[str, Any]:
    return {
        "checkpoint": str(plan.checkpoint.path),
        "container": plan.checkpoint.container,
        "config_source": plan.checkpoint.config_source,
        "lora": plan.checkpoint.lora,
        "tokenizer": {
            "source": plan.tokenizer.source,
            "reason": plan.tokenizer.reason,
            "sha256": plan.tokenizer.sha256,
        },
        **_file_json(plan),
        "dropped": [{"source": d.source, "reason": d.reason} for d in plan.description.dropped],
        "notes": list(plan.description.notes),
    }


def _file_json(plan: PlannedFile) -> dict[str, Any]:
    from valle_convert.gguf_file.write import header_of

    header_bytes = len(header_of(plan))
    return {
        "header_bytes": header_bytes,
        "bytes": header_bytes + plan.data_bytes,
        "keys": [
            {
                "name": key.name,
                "type": key.type,
                "value": None if key.deferred else key.value,
                "known_when_written": key.deferred,
            }
            for key in plan.keys
        ],
        "tensors": [
            {
                "name": tensor.name,
                "type": tensor.ggml_type.name,
                "shape": list(tensor.shape),
                "offset": tensor.offset,
                "bytes": tensor.n_bytes,
                "parts": [
                    {
                        "label": part.label,
                        "source": part.source,
                        "first_row": part.first_row,
                        "rows": part.n_rows,
                    }
                    for part in tensor.parts
                ],
            }
            for tensor in plan.tensors
        ],
    }


def _brief(value: object, deferred: bool) -> str:
    """A value on part of a line."""
    if deferred:
        return "(known when the weights are read)"
    if isinstance(value, list) and len(value) > 6:
        return f"[{len(value):,}] {', '.join(map(repr, value[:4]))}, ..."
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 100 else text[:97] + "..."
