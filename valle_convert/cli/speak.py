"""`valle-convert speak GGUF TEXT`."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from valle_convert.cli import console
from valle_convert.cli.options import (
    DECODING,
    FORCE,
    GGUF,
    JSON,
    LANGUAGE,
    MODEL,
    OUTPUT,
    VOICE,
    arg,
    flag,
    local_gguf,
    opt,
)
from valle_convert.cli.speak_options import DecodingOptions, EngineOptions
from valle_convert.cli.speak_report import SpeakReport, SpeechProgress, stop_on_interrupt
from valle_convert.errors import EXIT_INTERRUPTED, EXIT_OK, InputError

if TYPE_CHECKING:
    from valle_convert.audio import AudioWriter
    from valle_convert.families.bundle import Bundle
    from valle_convert.speech.results import SpeakOptions, Spoken
    from valle_convert.speech.speaker import AnySpeaker, Watch

#: Of a text on stdin: about a day of speech.
_MAX_TEXT_BYTES = 1 << 20


@dataclass(frozen=True)
class RequestOptions:
    text: str | None = arg(
        "[TEXT]",
        "The text to speak; - reads it from stdin. Optional with --codes and with the tasks ns and "
        "sr.",
        None,
    )
    voice: Path | None = opt(
        "The voice to speak in: a recording (wav, flac, ogg, mp3), saved codes (.npz), or a voice "
        "file of the model's own project. Default: the model chooses.",
        "FILE",
        VOICE,
    )
    voice_text: str | None = opt(
        "Transcript of --voice, for models that continue it.", "TEXT", VOICE
    )
    phonemes: bool = flag("TEXT is IPA, and one sentence.", VOICE)
    language: str | None = LANGUAGE
    task: Literal["tts", "vc", "ns", "sr"] = opt(
        "tts speaks TEXT. The others process the recording --source: vc speaks its TEXT in another "
        "--voice with the same timing, ns removes noise, sr removes speech.",
        panel=VOICE,
        default="tts",
    )
    source: Path | None = opt(
        "Recording or saved codes for the tasks vc, ns and sr.", "FILE", VOICE
    )
    codes: Path | None = opt(
        "Saved codes (.npz). Without TEXT, decode them to audio; with TEXT, keep level 0 and "
        "generate the other levels again.",
        "FILE",
        VOICE,
    )
    lora: list[str] | None = opt(
        "A GGUF adapter (see `lora`) for llama.cpp to apply at run time; repeatable.",
        "FILE.gguf[@SCALE]",
        MODEL,
    )

    @property
    def recordings(self) -> list[Path]:
        return [one for one in (self.voice, self.source) if one is not None]

    def foreign(self, bundle: Bundle) -> list[str]:
        """Options that the model's family does not use."""
        family = bundle.family
        used = {
            f"--task {self.task}": self.task == "tts" or self.task in family.abilities,
            "--lora": not self.lora or "lora" in family.abilities,
            "--voice-text": not self.voice_text or "voice_text" in family.speaks_with,
        }
        return [name for name, is_used in used.items() if not is_used]


@dataclass(frozen=True)
class TargetOptions:
    out: Path | None = opt(
        "The audio file: .wav, .flac, .ogg, .mp3 or .opus; - streams wav to stdout.",
        "OUT.wav",
        OUTPUT,
        ("--out", "-o"),
        allow_dash=True,
    )
    save_codes: Path | None = opt("Also write the codes.", "OUT.npz", OUTPUT)
    keep_partial: bool = flag(
        "Write the finished part on the first Ctrl-C; the second one aborts.", OUTPUT
    )
    json_: bool = JSON
    force: bool = FORCE

    @property
    def sound(self) -> Path | None:
        is_stdout = self.out is not None and str(self.out) == "-"
        return Path("/dev/stdout") if is_stdout else self.out

    def sink(self, inputs: list[Path]) -> AudioWriter | None:
        from valle_convert.audio import AudioWriter

        if self.sound is None:
            return None
        return AudioWriter(self.sound, force=self.force, inputs=inputs)


def speak(
    *,
    gguf: Path = GGUF,
    request: RequestOptions,
    engine: EngineOptions,
    decoding: DecodingOptions,
    seed: int | None = opt("Random seed, to repeat a run. Default: random.", "N", DECODING, min=0),
    target: TargetOptions,
) -> int:
    """Speak a text with a converted model, on stock llama.cpp.

    Long texts are spoken sentence by sentence. Settings that the model does not use are rejected.
    """
    from valle_convert.families.bundle import open_bundle

    _check(request, target)
    bundle = open_bundle(local_gguf(gguf))
    options = decoding.options(
        bundle.family,
        request.foreign(bundle),
        language=request.language,
        voice_text=request.voice_text,
        seed=seed,
    )
    report = _carry_out(bundle, request, engine, target, options)
    report.show(as_json=target.json_)
    return EXIT_OK if report.is_whole else EXIT_INTERRUPTED


def _check(request: RequestOptions, target: TargetOptions) -> None:
    task, text = request.task, request.text
    if target.out is None and target.save_codes is None:
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


def _read_text(text: str | None) -> str:
    if text != "-":
        return text or ""
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


def _carry_out(
    bundle: Bundle,
    request: RequestOptions,
    engine: EngineOptions,
    target: TargetOptions,
    options: SpeakOptions,
) -> SpeakReport:
    from valle_convert.audio import check_codes_target, write_codes
    from valle_convert.audio.codes import is_codes_path
    from valle_convert.checkpoint.lora import lora_files
    from valle_convert.files import check_outputs, is_stream
    from valle_convert.speech.speaker import Watch

    inputs = [*bundle.paths, *request.recordings, *([request.codes] if request.codes else [])]
    adapters = [one.path for one in lora_files(request.lora)]
    is_file = target.sound is not None and not is_stream(target.sound)
    check_outputs(
        {"--out": target.sound if is_file else None, "--save-codes": target.save_codes},
        inputs=[*inputs, *([Path(engine.codec)] if engine.codec else []), *adapters],
        force=target.force,
    )
    if target.save_codes is not None:
        check_codes_target(target.save_codes)
    sink = target.sink(inputs)
    if request.codes is not None and request.text is None:
        assert sink is not None  # noqa: S101 - `_check` saw to it
        return _decode(bundle, engine, request.codes, sink)
    text = _read_text(request.text)
    needs_codec = sink is not None or not all(map(is_codes_path, request.recordings))
    begin = time.perf_counter()
    console.log(f"loading {bundle.path}" + (" and the codec" if needs_codec else ""))
    with engine.speaker(bundle, request.lora, needs_codec=needs_codec) as speaker:
        speaker.check_options(options, engine.parallel)
        loaded = time.perf_counter() - begin
        progress = SpeechProgress(speaker.frame_rate, sink)
        with sink or nullcontext(), stop_on_interrupt(target.keep_partial) as should_stop:
            watch = Watch(progress, should_stop, progress.begins, progress.finished)
            spoken = _speak(speaker, bundle, request, text, options, watch)
    codes = target.save_codes if len(spoken.codes) else None
    if codes is not None:
        write_codes(codes, spoken.saved_codes, force=target.force, inputs=inputs)
    return SpeakReport(None if sink is None else sink.written, loaded, spoken=spoken, codes=codes)


def _decode(bundle: Bundle, engine: EngineOptions, codes: Path, sink: AudioWriter) -> SpeakReport:
    """Saved codes to audio; the model's weights are not read."""
    from valle_convert.audio import open_codec, read_codes

    begin = time.perf_counter()
    codec = open_codec(engine.codec, bundle.model)
    loaded = time.perf_counter()
    audio = codec.decode(read_codes(codes, bundle.model).codes)
    seconds = time.perf_counter() - loaded
    with sink:
        sink.add(audio)
    return SpeakReport(sink.written, loaded - begin, codec_seconds=seconds)


def _speak(
    speaker: AnySpeaker,
    bundle: Bundle,
    request: RequestOptions,
    text: str,
    options: SpeakOptions,
    watch: Watch,
) -> Spoken:
    task, voice = request.task, request.voice
    how: dict[str, Any] = {"is_phonemes": request.phonemes, "watch": watch}
    if task != "tts":
        answer = bundle.family.ability(task)
        answered: Spoken = answer(speaker, task, request.source, text, voice, options, **how)
        return answered
    if request.codes is not None:
        return speaker.regenerate_levels(request.codes, text, voice, options, **how)
    return speaker.speak(text, voice, options, **how, keep_audio=False)
