"""`valle-convert CHECKPOINT OUT.gguf`, the main job; `repair`, and `export`, its reverse."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from valle_convert.cli import console
from valle_convert.cli.options import (
    BIASES,
    CHECKPOINT,
    CODEC_NAME,
    FORCE,
    GGUF,
    JSON,
    MODEL,
    OUTPUT,
    TOKENIZER,
    ReadOptions,
    arg,
    flag,
    local_gguf,
    opt,
)
from valle_convert.errors import EXIT_OK
from valle_convert.wording import plural

if TYPE_CHECKING:
    from valle_convert.families.bundle import Plan
    from valle_convert.gguf_file.plan import PlannedFile
    from valle_convert.verify.report import Report


#: How thoroughly a conversion checks its own result.
VerifyChoice = Literal["quick", "full", "none"]
VERIFY = opt(
    "Checks of the result: quick (structure, tensors, tokenizer), full (also the logits of every "
    "head) or none. Default: quick, as far as this machine can; if it cannot run the checks that "
    "you ask for, the exit code is 3.",
    panel=OUTPUT,
)


def convert(
    *,
    checkpoint: Path = CHECKPOINT,
    out: Path | None = arg("OUT.gguf", "Output file; optional with --dry-run.", None),
    outtype: Literal["auto", "f32", "f16", "bf16", "q8_0"] = opt(
        "Number format of the matrices; auto keeps the checkpoint's. Norms are float32.",
        panel=OUTPUT,
        default="auto",
    ),
    reading: ReadOptions,
    tokenizer: Path | None = TOKENIZER,
    codec_name: str | None = CODEC_NAME,
    metadata: Path | None = opt(
        "JSON with values for general.* keys of the GGUF specification: author, license, "
        "description, source.url, tags, ...",
        "FILE.json",
        OUTPUT,
    ),
    name: str | None = opt(
        "general.name. Default: from the file name or the config.", "TEXT", OUTPUT
    ),
    verify: VerifyChoice | None = VERIFY,
    dry_run: bool = flag("Print the plan; read no weights, write nothing.", OUTPUT),
    json_: bool = JSON,
    force: bool = FORCE,
) -> int:
    """Convert a checkpoint to GGUF. The command name may be omitted.

    OUT.gguf is a model that stock llama.cpp loads; everything specific to VALL-E is in valle.*
    keys. A model of several networks becomes several files: OUT-audio.gguf, or OUT-nar.gguf and
    OUT-nar-1.gguf to OUT-nar-7.gguf, appear beside it.

    A failed conversion leaves no files. If the result fails its checks, it is kept and the exit
    code is 1.
    """
    from valle_convert.api import plan_conversion
    from valle_convert.families.family import Choices
    from valle_convert.files import check_outputs, protected
    from valle_convert.gguf_file.metadata import GeneralMetadata

    if out is None and not dry_run:
        raise typer.BadParameter(
            "give the file to write, or --dry-run to see the plan.", param_hint="OUT.gguf"
        )
    with protected([checkpoint, *reading.files, tokenizer, metadata]):
        if out is not None and not dry_run:
            check_outputs({"OUT.gguf": out}, force=force)
        opened = reading.read(checkpoint)
        general = GeneralMetadata.read(metadata, name)
        plan = plan_conversion(opened, Choices(outtype, tokenizer, codec_name, general))
        if out is None or dry_run:
            _show_plan(plan, out or Path("OUT.gguf"), as_json=json_)
            return EXIT_OK
        return _carry_out(plan, out, verify, force=force, as_json=json_)


def repair(
    *,
    old: Path = arg(
        "OLD.gguf",
        "A VALL-E that llama.cpp's converter wrote as a `llama` model, quantized or not.",
    ),
    out: Path = arg("NEW.gguf", "Output file."),
    config: Path | None = opt(
        "YAML or JSON that overrides the config. Default: the file's own values, else those of the "
        "published models.",
        "FILE",
        MODEL,
    ),
    biases: Path | None = BIASES,
    tokenizer: Path | None = TOKENIZER,
    verify: VerifyChoice | None = VERIFY,
    json_: bool = JSON,
    force: bool = FORCE,
) -> int:
    """Repair a GGUF file of llama.cpp's LLaMA converter.

    Such a file loads but generates garbage. Quantized rows are copied, not quantized again; only if
    tables and heads have different types, both become float16. What the old file lacks is assumed
    to be as in the published models and reported; --config overrides it.
    """
    from valle_convert.api import plan_repair
    from valle_convert.families.family import Choices
    from valle_convert.files import check_outputs, protected

    with protected([old, config, biases, tokenizer]):
        check_outputs({"NEW.gguf": out}, force=force)
        plan = plan_repair(
            local_gguf(old), config=config, biases=biases, choices=Choices(tokenizer=tokenizer)
        )
        return _carry_out(plan, out, verify, force=force, as_json=json_)


def export(
    *,
    gguf: Path = GGUF,
    folder: Path = arg("DIR", "Output folder, made if it is missing; the file is DIR/fp32.sft."),
    dtype: Literal["auto", "f32", "f16", "bf16"] = opt(
        "Number format; auto keeps that of the file, and turns quantized types into f32.",
        panel=OUTPUT,
        default="auto",
    ),
    json_: bool = JSON,
    force: bool = FORCE,
) -> None:
    """Convert a GGUF file back to a checkpoint.

    DIR/fp32.sft, the training project's own name for an export of any number format, has the
    checkpoint's weights, config and vocabulary, bit for bit, except tensors that only training
    uses. A quantized GGUF gives its dequantized weights.
    """
    from valle_convert.families.bundle import open_files

    bundle = open_files(local_gguf(gguf))
    done = bundle.family.ability("export")(
        bundle, folder, dtype=dtype, force=force, progress=console.progress_bar
    )
    n_bytes = done.stat().st_size
    console.log(f"wrote {done}: {console.n_bytes(n_bytes)}")
    if json_:
        console.data_json({"file": str(done), "bytes": n_bytes})


def _carry_out(
    plan: Plan, out: Path, verify: VerifyChoice | None, *, force: bool, as_json: bool
) -> int:
    from valle_convert.api import write_gguf

    _log_choices(plan)
    start = time.perf_counter()
    sizes = write_gguf(plan, out, force=force, progress=console.progress_bar)
    seconds = time.perf_counter() - start
    others = f" and {plural(len(sizes) - 1, 'file')} beside it" if len(sizes) > 1 else ""
    total = sum(sizes.values())
    console.log(f"wrote {out}{others}: {console.n_bytes(total)} in {seconds:.1f} s")
    report = _verify(plan, out, verify or "quick")
    if as_json:
        console.data_json(
            {
                "file": str(out),
                "files": {str(path): size for path, size in sizes.items()},
                "bytes": total,
                "seconds": round(seconds, 3),
                "tokenizer": {"source": plan.tokenizer.source, "reason": plan.tokenizer.reason},
                "verification": report.to_json() if report else None,
            }
        )
    if report is not None:
        console.log(report.verdict())
        # The user did not ask for the default, which depends on this machine.
        if report.failures or (verify and report.exit_code):
            return report.exit_code
    return EXIT_OK


def _verify(plan: Plan, out: Path, choice: VerifyChoice) -> Report | None:
    if choice == "none":
        return None
    from valle_convert.families.bundle import open_files
    from valle_convert.verify.run import LEVELS, N_TEXTS_QUICK, QUICK
    from valle_convert.verify.run import verify as run

    full = choice == "full"
    return run(
        plan,
        open_files(out),
        levels=LEVELS if full else QUICK,
        n_texts=None if full else N_TEXTS_QUICK,
        progress=console.progress_bar,
    )


def _log_choices(plan: Plan) -> None:
    checkpoint = plan.checkpoint
    console.notes(checkpoint.notes)
    console.log(f"config: {checkpoint.config_source}")
    tokenizer = plan.tokenizer
    console.log(f"tokenizer: {tokenizer.source} ({tokenizer.reason}; {tokenizer.agreement})")
    if checkpoint.lora:
        console.log(f"LoRA merged: {checkpoint.lora}")
    for assumed in (*checkpoint.assumed, *plan.description.assumed):
        console.log(f"assumed, since the file lacks it: {assumed} (--config overrides it)")
    for lost in checkpoint.lost:
        console.log(f"missing in this file and in the result: {lost}")
    for dropped in plan.description.dropped:
        console.log(f"left out: {dropped.source} ({dropped.reason})")
    console.notes(plan.description.notes)


def _show_plan(plan: Plan, out: Path, *, as_json: bool) -> None:
    if as_json:
        console.data_json(_plan_json(plan, out))
        return
    for path, file in plan.at(out).items():
        console.data(f"file {path.name}\n")
        _show_file(file)
        console.data("")
    console.data("left out")
    console.data(
        console.table([(d.source, d.reason) for d in plan.description.dropped]) or "nothing"
    )
    _log_choices(plan)


def _show_file(plan: PlannedFile) -> None:
    from valle_convert.gguf_file.write import header_of

    size = len(header_of(plan)) + plan.data_bytes
    console.data("keys")
    console.data_table([(key.name, key.type, _brief(key.value, key.deferred)) for key in plan.keys])
    console.data("\ntensors")
    rows = []
    for tensor in plan.tensors:
        shape = " x ".join(str(n) for n in tensor.shape)
        source = tensor.spans[0].source if len(tensor.spans) == 1 else ""
        rows.append((tensor.name, tensor.ggml_type.name, shape, f"{tensor.n_bytes:,}", source))
        if len(tensor.spans) > 1:
            rows += [
                (f"  {span.label}", "", f"rows {span.first_row}+{span.n_rows}", "", span.source)
                for span in tensor.spans
            ]
    console.data_table(rows, header=("name", "type", "shape", "bytes", "source"))
    console.data(
        f"\n{plural(len(plan.tensors), 'tensor')}, {plan.n_weights:,} weights, {size:,} bytes"
    )


def _plan_json(plan: Plan, out: Path) -> dict[str, Any]:
    return {
        "checkpoint": str(plan.checkpoint.path),
        "container": plan.checkpoint.container,
        "config_source": plan.checkpoint.config_source,
        "lora": plan.checkpoint.lora,
        "tokenizer": {
            "source": plan.tokenizer.source,
            "reason": plan.tokenizer.reason,
            "sha256": plan.tokenizer.file.sha256,
        },
        "files": {path.name: _file_json(file) for path, file in plan.at(out).items()},
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
                "spans": [
                    {
                        "label": span.label,
                        "source": span.source,
                        "first_row": span.first_row,
                        "rows": span.n_rows,
                    }
                    for span in tensor.spans
                ],
            }
            for tensor in plan.tensors
        ],
    }


def _brief(value: object, deferred: bool) -> str:
    if deferred:
        return "(known when the weights are read)"
    if isinstance(value, list) and len(value) > 6:
        return f"[{len(value):,}] {', '.join(map(repr, value[:4]))}, ..."
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 100 else text[:97] + "..."
