"""`valle-convert quantize`, `imatrix`, `compare`, `check-manifest`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from contextlib import ExitStack
from functools import partial
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
    is_given,
    paths_of,
    refuse_idle,
    split_loras,
)
from valle_convert.cli.remote import local_gguf
from valle_convert.errors import (
    EXIT_ENVIRONMENT,
    EXIT_FAILED_CHECK,
    EXIT_OK,
    ValleConvertError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from valle_convert.checkpoint import Checkpoint
    from valle_convert.quantize.report import FileReport, QuantizeReport

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Utterances as .npz files (phonemes, response, prompt, language; of a VALL-E X, voice "
        "files); without them, seeded random ones.",
        show_default=False,
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of random utterances.", min=0)]


def register(app: typer.Typer) -> None:
    app.command("quantize")(quantize)
    app.command("imatrix")(imatrix)
    app.command("compare")(compare)
    app.command("check-manifest")(check_manifest)


def _list_types(given: bool) -> None:
    """Print every type on a line, and end."""
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
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="A converted .gguf file in F16, BF16 or F32, or a checkpoint, which is converted "
            "first.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUTDIR|OUT.gguf",
            help="A folder, or one file whose TYPE follows.",
            show_default=False,
        ),
    ],
    type_: Annotated[
        str | None, typer.Argument(metavar="[TYPE]", help="Of OUT.gguf.", show_default=False)
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--types",
            metavar="LIST",
            help="Such as Q8_0,Q6_K,Q4_K_M; may be given several times; see --list-types.",
            show_default=False,
        ),
    ] = None,
    list_types: Annotated[  # noqa: ARG001 - its callback does it
        bool,
        typer.Option(
            "--list-types", callback=_list_types, is_eager=True, help="List the types and end."
        ),
    ] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="What quality is measured against, in PyTorch; without it, the input file.",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
    lora: LoraOption = None,
    lora_alpha: LoraAlphaOption = None,
    imatrix: Annotated[
        str,
        typer.Option(
            "--imatrix",
            metavar="auto|FILE|none",
            help="Importance matrix. auto makes one of the checkpoint: with --data for all types, "
            "else for those that need one.",
        ),
    ] = "auto",
    imatrix_utterances: Annotated[
        int, typer.Option(help="Random utterances for an importance matrix.", min=1)
    ] = 32,
    data: DataOption = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=TYPE",
            help="As in llama-quantize, such as ffn_down=Q8_0; may be given several times.",
            show_default=False,
        ),
    ] = None,
    tensor_types: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="More of them: a file as llama-quantize's --tensor-type-file takes it, and as "
            "--scan writes it.",
            show_default=False,
        ),
    ] = None,
    pure: Annotated[
        bool, typer.Option("--pure", help="No mixtures: every matrix gets the type itself.")
    ] = False,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Take an input that is quantized already.")
    ] = False,
    no_fallback: Annotated[
        bool,
        typer.Option("--no-fallback", help="Refuse types that some tensor's rows do not fit."),
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure quality and speed.")
    ] = True,
    utterances: Annotated[
        int | None,
        typer.Option(
            help="How many utterances to measure quality on, at most. Without it, all of --data, "
            "or 2 random ones.",
            min=1,
            show_default=False,
        ),
    ] = None,
    max_kl: Annotated[
        str | None,
        typer.Option(
            metavar="LIMIT|TYPE=LIMIT,...",
            help="Mean KL divergence allowed, in nats: 0.01, or Q8_0=1e-3,Q4_K_M=1e-2.",
            show_default=False,
        ),
    ] = None,
    min_agreement: Annotated[
        str | None,
        typer.Option(
            metavar="PART|TYPE=PART,...",
            help="Part of the best codes to keep: 0.97, or by type.",
            show_default=False,
        ),
    ] = None,
    scan: Annotated[
        bool,
        typer.Option(
            "--scan",
            help="Measure how much each matrix minds each type. Without --types, choose a type for "
            "each by it: the best mixture of --target-bits, or the smallest within --max-kl.",
        ),
    ] = False,
    scan_types: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Tensor types that --scan tries. Without it, Q2_K,Q3_K,Q4_K,Q5_K,Q6_K,Q8_0.",
            show_default=False,
        ),
    ] = None,
    target_bits: Annotated[
        float | None,
        typer.Option(
            help="Bits a weight of the mixture that --scan chooses, over all matrices.",
            min=1,
            max=16,
            show_default=False,
        ),
    ] = None,
    listen: Annotated[
        bool,
        typer.Option(
            "--listen",
            help="Let every file speak the sentences of --data or --sentences, and measure what is "
            "said: how likely the true codes are, which sentence is heard, how far the sound is "
            "off.",
        ),
    ] = False,
    sentences: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.txt",
            help="Texts for --listen, one a line; the F16 file speaks what files are held against.",
            show_default=False,
        ),
    ] = None,
    voice: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The voice of --sentences: a recording, or codes. Without it, the model chooses.",
            show_default=False,
        ),
    ] = None,
    prompt_seconds: Annotated[
        float,
        typer.Option(
            help="How much of the --voice of --sentences is used; a shorter one is repeated.",
            min=0.1,
            max=60,
        ),
    ] = 3.0,
    codec: CodecOption = None,
    asr: Annotated[
        str | None,
        typer.Option(
            "--asr",
            metavar="CMD",
            help="A recogniser for --listen: a command that gets the path of a wav (at {}, or "
            "last) and prints the words.",
            show_default=False,
        ),
    ] = None,
    listen_temperature: Annotated[
        float,
        typer.Option(help="Of the AR for --listen, where it is not greedy; 0: only greedy.", min=0),
    ] = 0.6,
    max_nll: Annotated[
        str | None,
        typer.Option(
            metavar="LIMIT|TYPE=LIMIT,...",
            help="How much less likely than to the F16 file the true codes may be, in nats a code "
            "(--listen).",
            show_default=False,
        ),
    ] = None,
    min_retrieval: Annotated[
        str | None,
        typer.Option(
            metavar="PART|TYPE=PART,...",
            help="Part of the sentences that have to be said right (--listen).",
            show_default=False,
        ),
    ] = None,
    max_wer: Annotated[
        str | None,
        typer.Option(
            metavar="RATE|TYPE=RATE,...",
            help="Word error rate allowed (--listen, --asr).",
            show_default=False,
        ),
    ] = None,
    no_worse_than: Annotated[
        Path | None,
        typer.Option(
            metavar="REPORT.json",
            help="Allow what an earlier run measured, by --margin.",
            show_default=False,
        ),
    ] = None,
    margin: Annotated[
        float,
        typer.Option(help="Factor by which divergence and changed codes may be worse.", min=1.0),
    ] = 1.1,
    seed: SeedOption = 0,
    threads: Annotated[
        int,
        typer.Option(
            help="For llama-quantize and measuring; 0 for their own choice.", min=0, max=1024
        ),
    ] = 0,
    llama_quantize: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|library",
            help="The program to use; `library` for the routine in llama-cpp-python. Without it, "
            "$LLAMA_QUANTIZE, then PATH, then what `make llama-tools` built, then the library.",
            show_default=False,
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep llama-quantize's log.", show_default=False),
    ] = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Write the report as .json, .md or .html; may be given several times.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Predict types and sizes; write nothing.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Keep files of the folder that were made in the same way, by its manifest, and "
            "make the rest.",
        ),
    ] = False,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="After a verdict that passed, remove the folder's other files of the same source, "
            "by its manifest.",
        ),
    ] = False,
    name_files: Annotated[
        Literal["type", "convention"],
        typer.Option(
            help="How files of a folder are called: type (name-Q8_0.gguf), or by the GGUF naming "
            "convention (VALL-E-ar-nar-len-229M-v5.0-Q8_0.gguf), with the keys that say the same.",
        ),
    ] = "type",
    quantized_by: Annotated[
        str | None, typer.Option(help="general.quantized_by.", show_default=False)
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="general.base_model.*: the model on the hub. Without it, what the input says.",
            show_default=False,
        ),
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option("--license", help="general.license, an SPDX word.", show_default=False),
    ] = None,
    json_: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Quantize with llama-quantize, measure what it costs, and judge it (exit code 1: too much).

    A VALL-E X is quantized as a set: IN is the file of its AR, and so is what is made.

    A folder gets one file a type, manifest.json and SHA256SUMS. Quality is measured on
    stock llama.cpp against the checkpoint: KL divergence, error and best codes by head and level;
    with --listen, also by what is said.
    """
    from valle_convert.api import read_checkpoint
    from valle_convert.families.bundle import paths_of as paths_of_parts
    from valle_convert.files import check_outputs, made_folder
    from valle_convert.gguf_file.read import is_gguf
    from valle_convert.quantize.forms import check_reports, remove_old
    from valle_convert.quantize.identity import Identity
    from valle_convert.quantize.limits import parse_limits
    from valle_convert.quantize.options import Options
    from valle_convert.quantize.run import quantize as quantize_one
    from valle_convert.quantize.types import (
        TENSOR_TYPES_SUFFIX,
        check_tensor_type,
        parse_types,
        read_tensor_types,
    )

    reports = report or []
    if force:
        remove_old([*reports, *([log] if log else [])], no_worse_than)
    matrix = Path(imatrix) if imatrix not in ("auto", "none") else None
    read = [
        *(source, checkpoint, config, *paths_of(lora), data, no_worse_than, matrix),
        *(sentences, voice, Path(codec) if codec else None, tensor_types),
    ]
    if (type_ is not None and types) or not (type_ or types or scan):
        raise typer.BadParameter("give --types LIST, or one TYPE after OUT.gguf.")
    if type_ is not None and out.suffix != ".gguf":
        raise typer.BadParameter(
            f"a TYPE goes with one file, and {out} does not end in .gguf; write {out}.gguf {type_} "
            f"for a file, or {out} --types {type_} for a folder."
        )
    _check_needs(
        ("--scan", scan, {"--scan-types": scan_types, "--target-bits": target_bits}),
        (
            "--listen",
            listen,
            {
                "--sentences": sentences,
                "--asr": asr,
                "--codec": codec,
                "--max-nll": max_nll,
                "--min-retrieval": min_retrieval,
                "--listen-temperature": is_given(context, "listen_temperature"),
            },
        ),
        ("--sentences", sentences, {"--voice": voice}),
        ("--voice", voice, {"--prompt-seconds": is_given(context, "prompt_seconds")}),
        ("--no-worse-than", no_worse_than, {"--margin": is_given(context, "margin")}),
        ("--asr", asr, {"--max-wer": max_wer}),
    )
    if target_bits is not None and (type_ or types):
        raise typer.BadParameter("--target-bits chooses the types itself; leave out --types.")
    merged, adapters = split_loras(lora)
    options = Options(
        types=()
        if scan and not (types or type_)
        else parse_types(",".join(types or [type_ or ""])),
        tool=llama_quantize,
        tensor_types=(
            *(check_tensor_type(item) for item in tensor_type or []),
            *(read_tensor_types(tensor_types) if tensor_types else ()),
        ),
        tensor_types_file=tensor_types,
        allow_requantize=allow_requantize,
        pure=pure,
        threads=threads,
        imatrix=imatrix,
        data=data,
        measure=measure,
        n_utterances=utterances,
        n_imatrix=imatrix_utterances,
        seed=seed,
        adapters=adapters,
        identity=Identity(name_files, quantized_by, base_model, license_),
        max_kl=parse_limits(max_kl, "--max-kl"),
        min_agreement=parse_limits(min_agreement, "--min-agreement", highest=1.0),
        listen=listen,
        sentences=sentences,
        voice=voice,
        prompt_seconds=prompt_seconds,
        codec=codec,
        asr=asr,
        listen_temperature=listen_temperature,
        max_nll=parse_limits(max_nll, "--max-nll"),
        min_retrieval=parse_limits(min_retrieval, "--min-retrieval", highest=1.0),
        max_wer=parse_limits(max_wer, "--max-wer"),
        scan=scan,
        scan_types=tuple(one.strip() for one in (scan_types or "").split(",") if one.strip()),
        target_bits=target_bits,
        no_worse_than=no_worse_than,
        margin=margin,
        allow_fallback=not no_fallback,
        resume=resume,
        prune=prune,
        force=force,
        dry_run=dry_run,
        command=_again(sys.argv[1:], force=force),
    )
    with ExitStack() as held:
        # Reports and log may lie in the folder that is to come.
        if any(target.parent == out for target in [*reports, *([log] if log else [])]):
            held.enter_context(made_folder(out))
        written = {"--log": log} | {f"--report {one}": one for one in reports}
        _check_beside(written, out)
        single = out.suffix == ".gguf"
        check_outputs({"OUT": out if single else None, **written}, inputs=read, force=force)
        check_reports(reports, force=force)
        source = local_gguf(source, or_checkpoint=True)
        if checkpoint is None and not is_gguf(source):
            checkpoint = source
        if checkpoint is None:
            given = {"--config": config, "--lora": merged, "--lora-alpha": lora_alpha}
            refuse_idle("there is no checkpoint", given)
        reference = (
            None
            if checkpoint is None
            else read_checkpoint(
                checkpoint,
                config=config,
                lora=merged,
                lora_alpha=lora_alpha,
                progress=console.progress_bar,
            )
        )
        parts, others = _parts_of(source, reference)
        read += others
        made = list(paths_of_parts(out, parts).values())
        made += [] if options.types else [out.with_suffix(TENSOR_TYPES_SUFFIX)]
        outputs = {f"OUT ({path.name})": path for path in made if single}
        check_outputs({**outputs, **written}, inputs=read, force=force)
        code = _carry_out(
            partial(quantize_one, source, out, options, checkpoint=reference),
            reports,
            log,
            force=force,
            as_json=json_,
        )
    if code:
        raise typer.Exit(code)


def _carry_out(
    work: Callable[..., QuantizeReport],
    reports: Sequence[Path],
    log: Path | None,
    *,
    force: bool,
    as_json: bool,
) -> int:
    """Do the work, show what came of it, and only then write reports and log; the exit code."""
    from valle_convert.quantize.folder import UnsettledFolder
    from valle_convert.quantize.forms import LogFile, write_report
    from valle_convert.quantize.options import RunLog

    kept_log = LogFile(log, force=force)
    last: dict[str, Callable[[], None]] = {f"The log {log}": kept_log.write}
    problems: list[str] = []
    try:
        result = work(log=RunLog(console.progress_bar, console.talk, kept_log.keep))
    except UnsettledFolder as fault:
        result, problems = fault.report, [str(fault)]
    except BaseException:
        for problem in _unwritten(last):
            console.talk(f"{problem}.")
        raise
    _show(result, as_json=as_json)
    late = {f"The report {one}": partial(write_report, result, one, force=force) for one in reports}
    done = "everything else is done, and the result is printed above."
    problems += [f"{one}; {done}" for one in _unwritten(late | last)]
    for problem in problems:
        console.error(problem)
    return result.exit_code or (EXIT_ENVIRONMENT if problems else EXIT_OK)


def _unwritten(writers: Mapping[str, Callable[[], None]]) -> Iterator[str]:
    """Write all of them, and say of which it failed, and why."""
    from valle_convert.files import describe_os_error

    for name, write in writers.items():
        try:
            write()
        except (ValleConvertError, OSError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            why = describe_os_error(cause) if isinstance(cause, OSError) else str(error).rstrip(".")
            yield f"{name} could not be written: {why}"


def _again(arguments: Sequence[str], *, force: bool) -> str:
    """The command for a shell, such that it replaces what it has made."""
    command, *others = arguments
    return " ".join(
        map(_quoted, ["valle-convert", command, *([] if force else ["--force"]), *others])
    )


def _quoted(word: str) -> str:
    """A word for a shell, on one line and in UTF-8, whatever is in it."""
    if word.isprintable():
        return shlex.quote(word)
    octal = "".join(
        chr(byte) if 32 < byte < 127 and chr(byte) not in "\\'" else f"\\{byte:03o}"
        for byte in os.fsencode(word)
    )
    return f"$'{octal}'"


def _parts_of(source: Path, checkpoint: Checkpoint | None) -> tuple[list[str], list[Path]]:
    """Names of the files that the source is or becomes, and every file that is read for it."""
    from valle_convert.families import family_of
    from valle_convert.families.bundle import open_files
    from valle_convert.families.family import Choices
    from valle_convert.gguf_file.read import is_gguf

    inputs = [] if checkpoint is None else list(checkpoint.inputs)
    if is_gguf(source):
        files = open_files(source)
        return list(files.files), [*inputs, *files.paths]
    assert checkpoint is not None  # noqa: S101 - the source itself, then
    return list(family_of(checkpoint).describe(checkpoint, Choices()).contents), inputs


def _check_beside(written: Mapping[str, Path | None], folder: Path) -> None:
    """Refuse a log or report that has the name of what is made in the folder."""
    from valle_convert.quantize.manifest import MANIFEST, SUMS
    from valle_convert.quantize.types import TENSOR_TYPES_SUFFIX

    for name, target in written.items():
        if target is None or target.parent != folder:
            continue
        made = (".gguf", TENSOR_TYPES_SUFFIX)
        if target.name.endswith(made) or target.name in (MANIFEST, SUMS):
            raise typer.BadParameter(f"{name} is {target}, which is made of quantized files.")


def imatrix(
    checkpoint: CheckpointArgument,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="OUT.gguf", help="The file to write.")
    ],
    config: ConfigOption = None,
    lora: LoraOption = None,
    lora_alpha: LoraAlphaOption = None,
    data: DataOption = None,
    utterances: Annotated[int, typer.Option(help="How many random utterances.", min=1)] = 32,
    seed: SeedOption = 0,
    json_: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Make an importance matrix for llama-quantize by running the PyTorch reference.

    Every mode of the model is run over the utterances, and the mean square of each input column
    of each matrix is written in llama.cpp's own format. A model of several networks gets a file
    for each: a VALL-E X OUT.gguf for its AR and OUT-nar.gguf for its NAR.
    """
    from valle_convert.api import read_checkpoint
    from valle_convert.files import check_outputs
    from valle_convert.quantize.examples import Examples
    from valle_convert.quantize.imatrix import make_imatrices
    from valle_convert.quantize.source import Reference

    check_outputs({"--out": out}, inputs=[checkpoint, config, *paths_of(lora), data], force=force)
    source = read_checkpoint(
        checkpoint,
        config=config,
        lora=lora or (),
        lora_alpha=lora_alpha,
        progress=console.progress_bar,
    )
    reference = Reference.of(source)
    examples: Examples[Any] = Examples.choose(
        reference.family,
        reference.description.model,
        data,
        None if data else utterances,
        seed=seed,
    )
    console.talk(f"importance matrix of {examples.description}")
    files = make_imatrices(reference, examples, out, force=force, progress=console.progress_bar)
    made, words, paths = list(files.values()), examples.description, list(files)
    n_matrices, n_passes = sum(len(one.entries) for one in made), made[0].chunk_count
    if json_:
        console.data_json(
            {
                "file": str(out),
                "files": list(map(str, paths)),
                "matrices": n_matrices,
                "passes": n_passes,
                "sequences": words,
            }
        )
    else:
        shown = " and ".join(map(str, paths))
        console.data(f"{shown}: {n_matrices} matrices over {n_passes} passes")


def compare(
    first: Annotated[Path, typer.Argument(metavar="A.gguf", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="B.gguf", show_default=False)],
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="End with exit code 1 where the files differ.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Say what differs between two GGUF files, key by key and tensor by tensor.

    Of models of several files, given by their main files, every file is compared.
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
    if exit_code and not result.same:
        raise typer.Exit(EXIT_FAILED_CHECK)


def check_manifest(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="DIR|manifest.json", help="What `quantize` wrote.", show_default=False
        ),
    ],
    require_passed: Annotated[
        bool,
        typer.Option(
            "--require-passed",
            help="Fail, too, where a model has not passed the last run that was to judge it.",
        ),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Hold the files of a folder against its manifest and SHA256SUMS (exit code 1: they differ)."""
    from valle_convert.quantize.manifest import check_manifest as check

    result = check(path, require_passed=require_passed, progress=console.progress_bar)
    if json_:
        console.data_json(result.to_json())
    else:
        for finding in result.findings:
            console.data(f"{finding.name}: {finding.problem}")
        console.data(result.verdict())
    if not result.passed:
        raise typer.Exit(EXIT_FAILED_CHECK)


def _check_needs(*needs: tuple[str, object, dict[str, object]]) -> None:
    """Refuse options that mean nothing without another one."""
    for name, there, given in needs:
        # By identity: 0 is a value, and is equal to False.
        idle = [one for one, value in given.items() if value is not None and value is not False]
        if idle and not there:
            raise typer.BadParameter(f"{', '.join(idle)} means nothing without {name}; give both.")


def _show(result: QuantizeReport, *, as_json: bool) -> None:
    if as_json:
        console.data_json(result.to_json())
        return
    from valle_convert.quantize.report import SCAN_TITLE

    # A pipe takes all columns; a terminal takes what fits.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    header, rows = result.summary(width)
    console.data(console.table(rows, header=header))
    if result.scan:
        columns, cells = result.sensitivities()
        for file in result.files:
            columns.append(f"in {file.name}")
            for row in cells:
                row.append(_types_of(row[0], file))
        console.data(f"{SCAN_TITLE}:\n{console.table(cells, header=columns)}")
    for title, (columns, cells) in list(result.heard())[:1]:  # a report has all of them
        console.talk(f"{title}:\n{console.table(cells, header=columns)}")
    for line in result.facts():
        console.talk(line)
    if result.recommendation():
        console.data(result.recommendation())
    console.data(result.verdict())


def _types_of(matrix: str, file: FileReport) -> str:
    """What a matrix became in a file; networks of one model name their matrices alike."""
    found = [one.kind for one in file.tensors if one.name.rpartition(": ")[2] == matrix]
    return " and ".join(dict.fromkeys(found))
