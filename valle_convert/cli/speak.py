"""`valle-convert speak GGUF TEXT`."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from valle_convert.cli import console
from valle_convert.cli.options import (
    CodecOption,
    ForceOption,
    GgufArgument,
    JsonOption,
    KeptLoraOption,
    LanguageOption,
    ThreadsOption,
    is_given,
    paths_of,
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

ModeChoice = Literal["auto", "ar", "nar-len"]
TaskChoice = Literal["tts", "vc", "ns", "sr"]
CacheChoice = Literal["f32", "f16"]

#: Parameters that are not called as the field of `SpeakOptions` that they go into.
_FIELDS = {
    **dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "top_no"), "sampling"),
    "nar_temperature": "nar_sampling",
    "repetition_penalty": "repetition",
    "repetition_penalty_decay": "repetition",
    "guidance_rescale": "guidance",
    "steps": "max_steps",
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
    cache_type: CacheChoice

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
            help="What to say; - reads it from stdin. May be left out with --codes and with the "
            "tasks ns and sr.",
        ),
    ] = None,
    lora: KeptLoraOption = None,
    voice: Annotated[
        Path | None,
        typer.Option(
            "--voice",
            metavar="FILE",
            help="A recording of the voice to speak in (wav, flac, ogg, mp3), its codes "
            "(.npz), or a voice file of the model's own project. Without it, the model chooses.",
        ),
    ] = None,
    voice_text: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What a recording or codes given as --voice say, for models that go on with it.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT.wav",
            allow_dash=True,
            help="The sound: .wav, .flac, .ogg, .mp3 or .opus; - for a wav on stdout, sentence by "
            "sentence.",
        ),
    ] = None,
    save_codes: Annotated[
        Path | None,
        typer.Option(metavar="OUT.npz", help="The codes it is made of."),
    ] = None,
    codes: Annotated[
        Path | None,
        typer.Option(
            "--codes",
            metavar="FILE",
            help="Saved codes (.npz): sound them; or, with TEXT, keep their level 0 and "
            "decode the levels above it anew.",
        ),
    ] = None,
    task: Annotated[
        TaskChoice,
        typer.Option(
            help="tts speaks TEXT. On the recording --source, vc says its TEXT with its timing in "
            "another --voice, ns takes the noise out and sr the speech."
        ),
    ] = "tts",
    source: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The recording (or codes) for vc, ns, sr."),
    ] = None,
    codec: CodecOption = None,
    phonemes: Annotated[
        bool, typer.Option("--phonemes", help="TEXT is IPA already, and one sentence.")
    ] = False,
    language: LanguageOption = None,
    mode: Annotated[
        ModeChoice, typer.Option(help="auto takes nar-len where the model has durations.")
    ] = "auto",
    steps: Annotated[int, typer.Option(help="Of demasking (nar-len).", min=1, max=1000)] = 25,
    guidance: Annotated[
        float, typer.Option(help="Strength; 0 is off. Demasking takes at least 2.5.")
    ] = 0.0,
    guidance_rescale: Annotated[
        float, typer.Option(help="How far the spread of guided logits is brought back, 0 to 1.")
    ] = 0.75,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            help="Of one sentence, at most. Without it, the model's own limit: 12, or 16 frames a "
            "symbol."
        ),
    ] = None,
    duration_padding: Annotated[
        float, typer.Option(help="Factor on the model's durations (nar-len).")
    ] = 1.05,
    prompt_seconds: Annotated[
        float, typer.Option(help="How much of the voice is used; a shorter one is repeated.")
    ] = 3.0,
    context_history: Annotated[
        int, typer.Option(help="How many sentences before are given along as context.")
    ] = 0,
    temperature: Annotated[float, typer.Option(help="Of level 0; 0 is the best code.")] = 1.0,
    nar_temperature: Annotated[float, typer.Option(help="Of the levels above.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Keep so many codes; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep codes of this probability together.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Keep codes this likely beside the best.")] = 0.0,
    top_no: Annotated[
        float, typer.Option(help="Keep logits so many deviations from the best; 0 keeps all.")
    ] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="1 does nothing (ar).")] = 1.0,
    repetition_penalty_decay: Annotated[
        float, typer.Option(help="Power of the distance, times the penalty (ar).")
    ] = 0.0,
    length_penalty: Annotated[
        float | None,
        typer.Option(help="Above 0 is longer (ar). Without it, 0; with --best-of, 1."),
    ] = None,
    best_of: Annotated[int, typer.Option(help="Draw so many, and keep the most probable one.")] = 1,
    accent: Annotated[
        str | None,
        typer.Option(metavar="WORD", help="Speak all of the text in the accent of en, zh or ja."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Gives the same speech again; else a new one.", min=0),
    ] = None,
    threads: ThreadsOption = None,
    cache_type: Annotated[
        CacheChoice,
        typer.Option(help="Of keys and values; f16 is faster (nar-len) and a little less exact."),
    ] = "f32",
    float_: Annotated[
        bool, typer.Option("--float", help="Write 32-bit floats instead of 16-bit integers.")
    ] = False,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="With -o - or a pipe: samples without a header, little endian, one channel.",
        ),
    ] = False,
    keep_partial: Annotated[
        bool,
        typer.Option(
            "--keep-partial",
            help="On Ctrl-C, write what there is; a second Ctrl-C leaves nothing.",
        ),
    ] = False,
    json_: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Speak a text with a converted model, on stock llama.cpp.

    Level 0 of the codes is decoded from left to right (ar) or by demasking (nar-len), the levels
    above it in one pass each, and a codec turns them into sound. Long texts are spoken sentence by
    sentence, and a pipe gets each as soon as it is done. Voices are given as recordings of any
    format, rate and number of channels. Options that a model has no use for are refused.
    """
    from valle_convert.decode import Guidance, Repetition, SamplingOptions
    from valle_convert.families.bundle import open_bundle
    from valle_convert.speech.results import SpeakOptions

    if out is not None and str(out) == "-":
        if json_:
            raise typer.BadParameter("the sound goes to stdout already.", param_hint="--json")
        out = Path("/dev/stdout")
    request = _Request(task, text, phonemes, voice, source, codes, codec, lora, threads, cache_type)
    target = _Target(out, save_codes, float_, raw, force, keep_partial)
    _check(request, target)
    bundle = open_bundle(local_gguf(gguf))
    refuse_foreign(context, bundle.family)
    options = SpeakOptions(
        mode=mode,
        language=language,
        voice_text=voice_text,
        accent=accent,
        sampling=SamplingOptions(temperature, top_k, top_p, min_p, top_no),
        # A filter of level 0 does the levels above no good at their own temperature of 0.
        nar_sampling=SamplingOptions(nar_temperature),
        repetition=Repetition(repetition_penalty, repetition_penalty_decay),
        guidance=Guidance(guidance, guidance_rescale),
        max_steps=steps,
        best_of=best_of,
        length_penalty=length_penalty,
        max_seconds=max_seconds,
        duration_padding=duration_padding,
        prompt_seconds=prompt_seconds,
        context_history=context_history,
        seed=seed,
    )
    report = _carry_out(bundle, request, target, options)
    report.show(as_json=json_)
    if not report.is_whole:
        raise typer.Exit(EXIT_INTERRUPTED)


# ------------------------------------------------------------------------------ arguments


def _check(request: _Request, target: _Target) -> None:
    """Refuse what does not go together, before anything is opened."""
    task, text, codes = request.task, request.text, request.codes
    if target.sound is None and (target.codes is None or (codes is not None and text is None)):
        raise typer.BadParameter("give the file to write with -o OUT.wav.", param_hint="--out")
    if task == "tts":
        if request.source is not None:
            raise typer.BadParameter("only the tasks vc, ns and sr take it.", param_hint="--source")
        if text is None and codes is None:
            raise typer.BadParameter("give the text to say.", param_hint="TEXT")
        if text is None and target.codes is not None:
            raise typer.BadParameter("without TEXT, --codes stay.", param_hint="--save-codes")
        return
    if codes is not None:
        raise typer.BadParameter(f"the task {task} takes --source.", param_hint="--codes")
    if request.source is None:
        raise typer.BadParameter(f"the task {task} needs a recording.", param_hint="--source")
    if task == "vc" and (request.voice is None or text is None):
        raise typer.BadParameter(
            "the task vc needs a --voice, and as TEXT what the recording says.", param_hint="--task"
        )
    if task in ("ns", "sr") and request.voice is not None:
        raise typer.BadParameter(f"the task {task} takes only --source.", param_hint="--voice")


def refuse_foreign(context: typer.Context, family: AnyFamily) -> None:
    """Refuse what was given and the model's family has no use for."""
    from valle_convert.speech.results import SpeakOptions

    options = {one.name for one in fields(SpeakOptions)}
    task = context.params.get("task", "tts")
    foreign = [f"--task {task}"] if task != "tts" and task not in family.abilities else []
    for name in filter(lambda one: is_given(context, one), context.params):
        field = _FIELDS.get(name, name)
        is_foreign = field in options and field not in family.speaks_with
        if is_foreign or (name == "lora" and name not in family.abilities):
            foreign.append(f"--{name.replace('_', '-')}")
    if len(foreign) == 1:
        raise InputError(f"{foreign[0]} does not apply to {family.title}; leave it out.")
    if foreign:
        raise InputError(f"{', '.join(foreign)} do not apply to {family.title}; leave them out.")


def _read_text(text: str | None) -> str | None:
    if text != "-":
        return text
    data = sys.stdin.buffer.read(_MAX_TEXT_BYTES + 1)
    if len(data) > _MAX_TEXT_BYTES:
        raise InputError(
            f"The text on stdin has more than {_MAX_TEXT_BYTES:,} bytes, which is about a day of "
            "speech; give it in parts."
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"The text on stdin is not UTF-8 (byte {error.start}); save it as UTF-8."
        ) from error


# -------------------------------------------------------------------------------- running


def _carry_out(bundle: Bundle, request: _Request, target: _Target, options: SpeakOptions) -> Report:
    """Speak, and write what is wanted of it."""
    from valle_convert.audio import check_codes_target, open_codec, write_codes
    from valle_convert.audio.codes import is_codes_path
    from valle_convert.checkpoint.lora import lora_files
    from valle_convert.files import check_outputs, is_stream
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
    _tell_threads(request.threads)
    text = _read_text(request.text)
    needs_codec = target.sound is not None or not all(map(is_codes_path, request.recordings))
    begin = time.perf_counter()
    console.talk(f"loading {bundle.path}" + (" and the codec" if needs_codec else ""))
    with bundle.family.speaker(
        bundle,
        codec=open_codec(request.codec, bundle.model) if needs_codec else None,
        n_threads=request.threads,
        cache_type=request.cache_type,
        adapters=lora_files(request.lora),
    ) as speaker:
        loaded = time.perf_counter() - begin
        if request.codes is not None and text is None:
            assert sink is not None  # noqa: S101 - `_check` saw to it
            return _sound(speaker, request.codes, sink, loaded)
        progress = SpeechProgress(speaker.frame_rate, sink)
        with sink or nullcontext(), stop_on_interrupt(target.keep_partial) as should_stop:
            watch = Watch(progress, should_stop, progress.begins, progress.finished)
            spoken = _speak(speaker, bundle.family, request, text or "", options, watch)
    written = None if sink is None else sink.written
    codes = target.codes if len(spoken.codes) else None
    if codes is not None:
        write_codes(codes, spoken.saved_codes, force=target.force, sources=inputs)
    return Report(written, loaded, spoken=spoken, codes=codes)


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
        return speaker.raise_levels(
            request.codes, text, voice, options, is_phonemes=is_phonemes, watch=watch
        )
    return speaker.speak(
        text, voice, options, is_phonemes=is_phonemes, watch=watch, keep_audio=False
    )


def _sound(speaker: AnySpeaker, codes: Path, sink: AudioWriter, loaded: float) -> Report:
    """Saved codes to sound, as they are."""
    begin = time.perf_counter()
    audio = speaker.sound(codes)
    seconds = time.perf_counter() - begin
    with sink:
        sink.add(audio)
    return Report(sink.written, loaded, codec_seconds=seconds)


def _sink(target: _Target, inputs: list[Path]) -> AudioWriter | None:
    """Where the sound goes, not touched yet."""
    from valle_convert.audio import AudioWriter
    from valle_convert.files import is_stream

    if target.raw and (target.sound is None or not is_stream(target.sound)):
        raise typer.BadParameter("only -o -, a pipe or a device gets it.", param_hint="--raw")
    if target.sound is None:
        return None
    return AudioWriter(
        target.sound,
        force=target.force,
        sample_format="float32" if target.as_float else "int16",
        raw=target.raw,
        sources=inputs,
    )


def _tell_threads(threads: int | None) -> None:
    from valle_convert.llama.cpu import usable_cores

    cores = usable_cores()
    if threads is not None and threads > cores:
        console.talk(
            f"note: {threads} threads on {plural(cores, 'usable core')} wait for each other; "
            f"--threads {cores} is faster"
        )
