"""`valle-convert speak GGUF TEXT`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from valle_convert.cli import console
from valle_convert.cli.options import (
    OUTPUT,
    VOICE,
    CodecOption,
    ForceOption,
    GgufArgument,
    GpuLayersOption,
    JsonOption,
    KeptLoraOption,
    LanguageOption,
    ParallelOption,
    SettingsOption,
    TemperatureOption,
    ThreadsOption,
    TuneChoice,
    TuneOption,
    excludes,
    paths_of,
    requires,
)
from valle_convert.cli.remote import local_gguf
from valle_convert.cli.spoken import Report
from valle_convert.cli.watch import SpeechProgress, stop_on_interrupt
from valle_convert.errors import EXIT_INTERRUPTED, InputError
from valle_convert.wording import plural

if TYPE_CHECKING:
    from valle_convert.audio import AudioWriter
    from valle_convert.families.bundle import Bundle
    from valle_convert.families.family import AnyFamily
    from valle_convert.speech.results import SpeakOptions, Spoken
    from valle_convert.speech.speaker import AnySpeaker, Watch

TaskChoice = Literal["tts", "vc", "ns", "sr"]
_DECODING = "Decoding"

# Without a text or a task on a recording, saved codes are decoded by the codec alone.
_SPEAKS = "text task=vc|ns|sr"
_NEEDS = {
    **dict.fromkeys(("voice", "phonemes"), "text"),
    "voice_text": "voice",
    "source": "task=vc|ns|sr",
    **dict.fromkeys(("save_codes", "keep_partial", "language", "temperature", "seed"), _SPEAKS),
    **dict.fromkeys(("settings", "lora", "threads", "tune", "parallel", "gpu_layers"), _SPEAKS),
    **dict.fromkeys(("float_", "raw"), "out"),
}
_EXCLUDES = {
    "codes": "task=vc|ns|sr",
    "voice": "task=ns|sr",
    "parallel": "codes phonemes task=vc|ns|sr",
    "json_": "out=-",
}

#: Of a text by stdin: about a day of speech.
_MAX_TEXT_BYTES = 1 << 20


@dataclass(frozen=True)
class _Request:
    """What is to be made of what.

    Attributes:
        task: `tts`, or one that answers the recording `source`.
        text: to be said; `-` stands for stdin.
        codes: saved ones, to be sounded, or raised where there is a text.
    """

    task: TaskChoice
    text: str | None
    is_phonemes: bool
    voice: Path | None
    source: Path | None
    codes: Path | None
    codec: str | None
    lora: list[str] | None
    threads: int | None
    tune: TuneChoice
    parallel: int
    gpu_layers: int

    @property
    def recordings(self) -> list[Path]:
        return [one for one in (self.voice, self.source) if one is not None]


@dataclass(frozen=True)
class _Target:
    """What is written: sound, codes, or both."""

    sound: Path | None
    codes: Path | None
    as_float: bool
    raw: bool
    force: bool
    keep_partial: bool


def register(app: typer.Typer) -> None:
    app.command("speak")(speak)


def speak(
    context: typer.Context,
    gguf: GgufArgument,
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="[TEXT]",
            help="The text to speak; - reads it from stdin. Optional with --codes and with the "
            "tasks ns and sr.",
        ),
    ] = None,
    voice: Annotated[
        Path | None,
        typer.Option(
            "--voice",
            metavar="FILE",
            help="The voice to speak in: a recording (wav, flac, ogg, mp3), saved codes (.npz), or "
            "a voice file of VALL-E's own project. By default, the model chooses.",
            rich_help_panel=VOICE,
        ),
    ] = None,
    voice_text: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Transcript of --voice, for models that continue it.",
            rich_help_panel=VOICE,
        ),
    ] = None,
    phonemes: Annotated[
        bool,
        typer.Option("--phonemes", help="TEXT is IPA, and one sentence.", rich_help_panel=VOICE),
    ] = False,
    language: LanguageOption = None,
    task: Annotated[
        TaskChoice,
        typer.Option(
            help="tts speaks TEXT. The others process the recording --source: vc speaks its TEXT "
            "in another --voice with the same timing, ns removes noise, sr removes speech.",
            rich_help_panel=VOICE,
        ),
    ] = "tts",
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Recording or saved codes for the tasks vc, ns and sr.",
            rich_help_panel=VOICE,
        ),
    ] = None,
    codes: Annotated[
        Path | None,
        typer.Option(
            "--codes",
            metavar="FILE",
            help="Saved codes (.npz). Without TEXT, decode them to audio; with TEXT, keep level 0 "
            "and generate the other levels again.",
            rich_help_panel=VOICE,
        ),
    ] = None,
    codec: CodecOption = None,
    lora: KeptLoraOption = None,
    threads: ThreadsOption = None,
    tune: TuneOption = "auto",
    parallel: ParallelOption = 1,
    gpu_layers: GpuLayersOption = 0,
    temperature: TemperatureOption = 1.0,
    seed: Annotated[
        int | None,
        typer.Option(help="Repeats a run. Default: random.", min=0, rich_help_panel=_DECODING),
    ] = None,
    settings: SettingsOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT.wav",
            allow_dash=True,
            help="The audio file: .wav, .flac, .ogg, .mp3 or .opus; - streams wav to stdout.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    save_codes: Annotated[
        Path | None,
        typer.Option(metavar="OUT.npz", help="Also write the codes.", rich_help_panel=OUTPUT),
    ] = None,
    float_: Annotated[
        bool,
        typer.Option(
            "--float", help="32-bit float samples instead of 16-bit.", rich_help_panel=OUTPUT
        ),
    ] = False,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Stream samples without a header: little endian, mono.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    keep_partial: Annotated[
        bool,
        typer.Option(
            "--keep-partial",
            help="Write the finished part on the first Ctrl-C; the second one aborts.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    json_: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Speak a text with a converted model, on stock llama.cpp.

    Long texts are spoken sentence by sentence. Settings that the model does not use are rejected.
    """
    from valle_convert.decode import SamplingOptions
    from valle_convert.families.bundle import open_bundle
    from valle_convert.speech.results import SpeakOptions
    from valle_convert.speech.settings import parse_settings, with_settings

    requires(context, _NEEDS)
    excludes(context, _EXCLUDES)
    if out is not None and str(out) == "-":
        out = Path("/dev/stdout")
    request = _Request(
        task, text, phonemes, voice, source, codes, codec, lora, threads, tune, parallel, gpu_layers
    )
    target = _Target(out, save_codes, float_, raw, force, keep_partial)
    _check(request, target)
    values = parse_settings(settings or [])
    options = SpeakOptions(
        language=language,
        voice_text=voice_text,
        sampling=SamplingOptions(temperature),
        seed=seed,
    )
    options = with_settings(options, values)
    bundle = open_bundle(local_gguf(gguf))
    refuse_foreign(bundle.family, values, _foreign(bundle.family, request, voice_text))
    report = _carry_out(bundle, request, target, options)
    report.show(as_json=json_)
    if not report.is_whole:
        raise typer.Exit(EXIT_INTERRUPTED)


# ------------------------------------------------------------------------------ arguments


def _check(request: _Request, target: _Target) -> None:
    """Refuse a command line that lacks something, before anything is opened."""
    task, text = request.task, request.text
    if target.sound is None and target.codes is None:
        raise typer.BadParameter("give the file to write with -o OUT.wav.", param_hint="--out")
    if task == "tts":
        if text is None and request.codes is None:
            raise typer.BadParameter("give the text to speak.", param_hint="TEXT")
    elif request.source is None:
        raise typer.BadParameter(f"the task {task} needs a recording.", param_hint="--source")
    elif task == "vc" and (request.voice is None or text is None):
        raise typer.BadParameter(
            "the task vc needs --voice, and as TEXT the words of the recording.",
            param_hint="--task",
        )


def _foreign(family: AnyFamily, request: _Request, voice_text: str | None) -> list[str]:
    """Options that the model's family does not use."""
    task, can = request.task, family.abilities
    foreign = [f"--task {task}"] if task != "tts" and task not in can else []
    foreign += ["--lora"] if request.lora and "lora" not in can else []
    foreign += ["--voice-text"] if voice_text and "voice_text" not in family.speaks_with else []
    return foreign


def refuse_foreign(
    family: AnyFamily, values: Mapping[str, object], others: Sequence[str] = ()
) -> None:
    """Refuse settings that the model's family does not use, and other options."""
    from valle_convert.speech.settings import settings

    foreign = list(others)
    foreign += [
        f"--set {name}" for name in values if settings()[name].field not in family.speaks_with
    ]
    if foreign:
        raise InputError(
            f"{', '.join(foreign)} {'does' if len(foreign) == 1 else 'do'} not apply to "
            f"{family.title}; leave {'it' if len(foreign) == 1 else 'them'} out."
        )


def _read_text(text: str | None) -> str | None:
    if text != "-":
        return text
    data = sys.stdin.buffer.read(_MAX_TEXT_BYTES + 1)
    if len(data) > _MAX_TEXT_BYTES:
        raise InputError(
            f"The text on stdin has more than {_MAX_TEXT_BYTES:,} bytes, about a day of speech; "
            "split it."
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"The text on stdin is not UTF-8 (byte {error.start}); save it as UTF-8."
        ) from error


# -------------------------------------------------------------------------------- running


def _carry_out(bundle: Bundle, request: _Request, target: _Target, options: SpeakOptions) -> Report:
    """Speak, and write what was asked for."""
    from valle_convert.audio import check_codes_target, open_codec, write_codes
    from valle_convert.audio.codes import is_codes_path
    from valle_convert.checkpoint.lora import lora_files
    from valle_convert.files import check_outputs, is_stream
    from valle_convert.llama.context import Settings
    from valle_convert.speech.speaker import Watch

    inputs = [*bundle.paths, *request.recordings, *([request.codes] if request.codes else [])]
    opened = [*([Path(request.codec)] if request.codec else []), *paths_of(request.lora)]
    is_file = target.sound is not None and not is_stream(target.sound)
    check_outputs(
        {"--out": target.sound if is_file else None, "--save-codes": target.codes},
        inputs=[*inputs, *opened],
        force=target.force,
    )
    if target.codes is not None:
        check_codes_target(target.codes)
    sink = _sink(target, inputs)
    if request.codes is not None and request.text is None:
        assert sink is not None  # noqa: S101 - `_check` saw to it
        return _decode(bundle, request, request.codes, sink)
    _note_threads(request.threads)
    text = _read_text(request.text)
    needs_codec = target.sound is not None or not all(map(is_codes_path, request.recordings))
    begin = time.perf_counter()
    console.log(f"loading {bundle.path}" + (" and the codec" if needs_codec else ""))
    with bundle.family.speaker(
        bundle,
        codec=open_codec(request.codec, bundle.model) if needs_codec else None,
        n_threads=request.threads,
        settings=Settings(n_gpu_layers=request.gpu_layers, n_parallel=request.parallel),
        tune=request.tune,
        adapters=lora_files(request.lora),
    ) as speaker:
        loaded = time.perf_counter() - begin
        progress = SpeechProgress(speaker.frame_rate, sink)
        with sink or nullcontext(), stop_on_interrupt(target.keep_partial) as should_stop:
            watch = Watch(progress, should_stop, progress.begins, progress.finished)
            spoken = _speak(speaker, bundle.family, request, text or "", options, watch)
    written = None if sink is None else sink.written
    codes = target.codes if len(spoken.codes) else None
    if codes is not None:
        write_codes(codes, spoken.saved_codes, force=target.force, sources=inputs)
    return Report(written, loaded, spoken=spoken, codes=codes)


def _decode(bundle: Bundle, request: _Request, codes: Path, sink: AudioWriter) -> Report:
    """Saved codes to audio; the model's weights are not read."""
    from valle_convert.audio import open_codec, read_codes

    begin = time.perf_counter()
    codec = open_codec(request.codec, bundle.model)
    loaded = time.perf_counter()
    audio = codec.decode(read_codes(codes, bundle.model).codes)
    seconds = time.perf_counter() - loaded
    with sink:
        sink.add(audio)
    return Report(sink.written, loaded - begin, codec_seconds=seconds)


def _speak(
    speaker: AnySpeaker,
    family: AnyFamily,
    request: _Request,
    text: str,
    options: SpeakOptions,
    watch: Watch,
) -> Spoken:
    """The one call that does the work."""
    voice, is_phonemes = request.voice, request.is_phonemes
    if request.task != "tts":
        answered: Spoken = family.ability(request.task)(
            *(speaker, request.task, request.source, text, voice, options),
            is_phonemes=is_phonemes,
            watch=watch,
        )
        return answered
    if request.codes is not None:
        return speaker.regenerate_levels(
            request.codes, text, voice, options, is_phonemes=is_phonemes, watch=watch
        )
    return speaker.speak(
        text, voice, options, is_phonemes=is_phonemes, watch=watch, keep_audio=False
    )


def _sink(target: _Target, inputs: list[Path]) -> AudioWriter | None:
    """Where the sound goes, not touched yet."""
    from valle_convert.audio import AudioWriter
    from valle_convert.files import is_stream

    if target.raw and (target.sound is None or not is_stream(target.sound)):
        raise typer.BadParameter("only for -o -, a pipe or a device.", param_hint="--raw")
    if target.sound is None:
        return None
    return AudioWriter(
        target.sound,
        force=target.force,
        sample_format="float32" if target.as_float else "int16",
        raw=target.raw,
        sources=inputs,
    )


def _note_threads(threads: int | None) -> None:
    from valle_convert.llama.cpu import usable_cores

    cores = usable_cores()
    if threads is not None and threads > cores:
        console.log(
            f"note: {threads} threads on {plural(cores, 'usable core')} wait for each other; "
            f"--threads {cores} is faster"
        )
