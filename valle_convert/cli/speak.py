"""`valle-convert speak GGUF TEXT` and `valle-convert transcribe GGUF SPEECH`."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from valle_convert.cli import console, interrupt
from valle_convert.cli.options import (
    ForceOption,
    JsonOption,
    KeptLoraOption,
    paths_of,
)
from valle_convert.cli.remote import local_gguf
from valle_convert.errors import EXIT_INTERRUPTED, InputError
from valle_convert.progress import Advance

if TYPE_CHECKING:
    from valle_convert.audio import AudioWriter, WrittenAudio
    from valle_convert.families.bundle import Bundle
    from valle_convert.families.v5.speech import Speaker
    from valle_convert.families.vallex.speech import VallexSpeaker, VallexSpeakOptions
    from valle_convert.speech.results import Heard, Piece, SpeakOptions, Spoken

ModeChoice = Literal["auto", "ar", "nar-len"]
TaskChoice = Literal["tts", "vc", "ns", "sr"]
CacheChoice = Literal["f32", "f16"]

#: Options that mean nothing to the other family; given all the same, they are refused.
_OF_VALLEX_ONLY = ("voice_text", "best_of", "accent")
_NOT_OF_VALLEX = (
    "task source lora steps guidance guidance_rescale duration_padding prompt_seconds "
    "context_history repetition_penalty repetition_penalty_decay"
).split()

GgufArgument = Annotated[
    Path,
    typer.Argument(
        metavar="GGUF",
        help="A converted file, quantized or not; or hf:OWNER/REPO:NAME.gguf on the Hugging Face "
        "hub.",
        show_default=False,
    ),
]
CodecOption = Annotated[
    str | None,
    typer.Option(
        "--codec",
        metavar="FILE|DIR|NAME",
        help="An EnCodec: a .gguf, .bin or .th file, a folder with its config.json and weights, or "
        "its name on the Hugging Face hub. Without it, facebook/encodec_24khz.",
        show_default=False,
    ),
]
LanguageOption = Annotated[
    str | None,
    typer.Option(
        "--language", metavar="WORD", help="Such as en, de, fr, ja, zh, ko.", show_default=False
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        help="Without it, one for each core that may be used.",
        min=1,
        max=1024,
        show_default=False,
    ),
]

#: Of a text by stdin: about a day of speech.
_MAX_TEXT_BYTES = 1 << 20


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("speak")(speak)
    app.command("transcribe")(transcribe)


def speak(
    context: typer.Context,
    gguf: GgufArgument,
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="[TEXT]",
            help="What to say; - reads it from stdin. May be left out with --codes and with the "
            "tasks ns and sr.",
            show_default=False,
        ),
    ] = None,
    lora: KeptLoraOption = None,
    voice: Annotated[
        Path | None,
        typer.Option(
            "--voice",
            metavar="FILE",
            help="A recording of the voice to speak in (wav, flac, ogg, mp3), its codes "
            "(.npz), or a voice file of VALL-E X (.npz). Without it, the model chooses.",
            show_default=False,
        ),
    ] = None,
    voice_text: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="VALL-E X: what a recording or codes given as --voice say.",
            show_default=False,
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
            show_default=False,
        ),
    ] = None,
    save_codes: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.npz",
            help="The codes it is made of.",
            show_default=False,
        ),
    ] = None,
    codes: Annotated[
        Path | None,
        typer.Option(
            "--codes",
            metavar="FILE",
            help="Saved codes (.npz): sound them; or, with TEXT, keep their level 0 and "
            "decode the levels above it anew.",
            show_default=False,
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
        typer.Option(
            metavar="FILE", help="The recording (or codes) for vc, ns, sr.", show_default=False
        ),
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
            help="Of one sentence, at most. Without it, 12; VALL-E X: 16 frames a symbol.",
            show_default=False,
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
        typer.Option(
            help="Above 0 is longer (ar). Without it, 0; VALL-E X: power of the length in "
            "--best-of, 1.",
            show_default=False,
        ),
    ] = None,
    best_of: Annotated[
        int, typer.Option(help="VALL-E X: draw so many, keep the most probable one.")
    ] = 1,
    accent: Annotated[
        str | None,
        typer.Option(
            metavar="WORD",
            help="VALL-E X: speak all of the text in the accent of en, zh or ja.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Gives the same speech again; else a new one.", min=0, show_default=False
        ),
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
    format, rate and number of channels.
    """
    given = dict(locals())
    if out is not None and str(out) == "-":
        if json_:
            raise typer.BadParameter("the sound goes to stdout already.", param_hint="--json")
        out = Path("/dev/stdout")
    _check_request(task, text, source, codes, voice, out, save_codes)
    from valle_convert.audio import check_codes_target, write_codes
    from valle_convert.families.bundle import open_bundle
    from valle_convert.files import check_outputs, is_stream
    from valle_convert.speech.common import is_codes_file

    gguf = local_gguf(gguf)
    bundle = open_bundle(gguf)
    is_set = len(bundle.files) > 1
    _check_family(context, is_set)
    inputs = list(bundle.paths)
    inputs += [one for one in (voice, source, codes) if one is not None]
    codec_files = [Path(codec)] if codec is not None else []
    check_outputs(
        {"--out": None if out is None or is_stream(out) else out, "--save-codes": save_codes},
        inputs=[*inputs, *codec_files, *paths_of(lora)],
        force=force,
    )
    if save_codes is not None:
        check_codes_target(save_codes)
    sink = _sink(out, inputs, as_float=float_, raw=raw, force=force)
    _tell_threads(threads)
    options = (_vallex_options if is_set else _options)(given)
    said = _read_text(text)
    recordings = [one for one in (voice, source) if one is not None]
    needs_codec = out is not None or not all(is_codes_file(one) for one in recordings)
    begin = time.perf_counter()
    console.talk(f"loading {gguf}" + (" and the codec" if needs_codec else ""))
    with _open_speaker(bundle, codec, threads, needs_codec, cache_type, lora) as speaker:
        loaded = time.perf_counter() - begin
        if codes is not None and said is None:
            assert sink is not None  # noqa: S101 - for the type checker; told apart above
            _sound(speaker, codes, sink, loaded, as_json=json_)
            return
        with sink or nullcontext(), _stop_on_interrupt(keep_partial) as should_stop:
            spoken = _run(
                speaker,
                task,
                said,
                voice,
                source,
                codes,
                options,
                phonemes,
                _Watch(speaker.frame_rate, sink),
                should_stop,
            )
    written = None if sink is None else sink.written
    keeps_codes = save_codes is not None and len(spoken.codes) > 0
    if save_codes is not None and keeps_codes:
        write_codes(save_codes, spoken.saved_codes, force=force, sources=inputs)
    if json_:
        kept = save_codes if keeps_codes else None
        console.data_json(_spoken_json(spoken, written, kept, loaded))
    _tell(spoken, written, save_codes if keeps_codes else None)
    if not spoken.is_whole:
        raise typer.Exit(EXIT_INTERRUPTED)


def transcribe(
    gguf: GgufArgument,
    speech: Annotated[
        Path,
        typer.Argument(
            metavar="SPEECH",
            help="A recording (wav, flac, ogg, mp3), or its codes (.npz).",
            show_default=False,
        ),
    ],
    codec: CodecOption = None,
    language: LanguageOption = None,
    max_phonemes: Annotated[int, typer.Option(help="Where to end.", min=1, max=20_000)] = 900,
    threads: ThreadsOption = None,
    json_: JsonOption = False,
) -> None:
    """Print the phonemes of a recording, as the model hears them."""
    from valle_convert.decode import TranscribeOptions
    from valle_convert.families.bundle import open_bundle
    from valle_convert.speech.common import is_codes_file

    begin = time.perf_counter()
    bundle = open_bundle(local_gguf(gguf))
    bundle.family.ability("transcribe")
    with _open_speaker(bundle, codec, threads, not is_codes_file(speech)) as speaker:
        loaded = time.perf_counter() - begin
        heard = speaker.transcribe(
            speech,
            language,
            TranscribeOptions(max_phonemes),
            progress=console.progress_bar,
        )
    if json_:
        console.data_json(_heard_json(heard, loaded))
    else:
        console.data(heard.phonemes)
    for notice in heard.notices:
        console.talk(f"note: {notice}")
    if heard.end == "limit":
        console.talk(f"note: there is more than the {max_phonemes} phonemes of --max-phonemes")


# ------------------------------------------------------------------------------ arguments


def _check_request(
    task: TaskChoice,
    text: str | None,
    source: Path | None,
    codes: Path | None,
    voice: Path | None,
    out: Path | None,
    save_codes: Path | None,
) -> None:
    """Refuse what does not go together, before anything is opened."""
    if out is None and (save_codes is None or (codes is not None and text is None)):
        raise typer.BadParameter("give the file to write with -o OUT.wav.", param_hint="--out")
    if task == "tts":
        if source is not None:
            raise typer.BadParameter("only the tasks vc, ns and sr take it.", param_hint="--source")
        if text is None and codes is None:
            raise typer.BadParameter("give the text to say.", param_hint="TEXT")
        if text is None and save_codes is not None:
            raise typer.BadParameter("without TEXT, --codes stay.", param_hint="--save-codes")
        return
    if codes is not None:
        raise typer.BadParameter(f"the task {task} takes --source.", param_hint="--codes")
    if source is None:
        raise typer.BadParameter(f"the task {task} needs a recording.", param_hint="--source")
    if task == "vc" and (voice is None or text is None):
        raise typer.BadParameter(
            "the task vc needs a --voice, and as TEXT what the recording says.", param_hint="--task"
        )
    if task in ("ns", "sr") and voice is not None:
        raise typer.BadParameter(f"the task {task} takes only --source.", param_hint="--voice")


def _sink(
    out: Path | None, inputs: list[Path], *, as_float: bool, raw: bool, force: bool
) -> AudioWriter | None:
    """Where the sound goes, not touched yet."""
    from valle_convert.audio import AudioWriter
    from valle_convert.files import is_stream

    if raw and (out is None or not is_stream(out)):
        raise typer.BadParameter("only -o -, a pipe or a device gets it.", param_hint="--raw")
    if out is None:
        return None
    return AudioWriter(
        out,
        force=force,
        sample_format="float32" if as_float else "int16",
        raw=raw,
        sources=inputs,
    )


def _tell_threads(threads: int | None) -> None:
    from valle_convert.llama.cpu import usable_cores

    cores = usable_cores()
    if threads is not None and threads > cores:
        console.talk(
            f"note: {threads} threads on {cores} usable cores wait for each other; --threads "
            f"{cores} is faster"
        )


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


def _check_family(context: typer.Context, is_set: bool) -> None:
    """Refuse options that the model's family has no use for."""
    foreign = _NOT_OF_VALLEX if is_set else _OF_VALLEX_ONLY
    # click has a class for where a value comes from, which typer does not offer.
    given = [
        f"--{name.replace('_', '-')}"
        for name in foreign
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if context.params["mode"] == "nar-len" and is_set:
        given.append("--mode nar-len")
    if given:
        listed = ", ".join(given)
        raise InputError(
            f"VALL-E X has no use for {listed}; leave it out."
            if is_set
            else f"Only VALL-E X takes {listed}, and this model is another; leave it out."
        )


def _options(given: dict[str, Any]) -> SpeakOptions:
    """What the command line says, for versions 5 and 6."""
    from valle_convert.decode import Guidance, SamplingOptions
    from valle_convert.speech.results import SpeakOptions

    same = ("mode", "language", "duration_padding", "prompt_seconds", "context_history", "seed")
    return SpeakOptions(
        sampling=SamplingOptions(
            **_filters(given),
            repetition_penalty=given["repetition_penalty"],
            repetition_penalty_decay=given["repetition_penalty_decay"],
            length_penalty=given["length_penalty"] or 0.0,
        ),
        # A filter of level 0 does the levels above no good at their own temperature of 0.
        nar_sampling=SamplingOptions(temperature=given["nar_temperature"]),
        guidance=Guidance(given["guidance"], given["guidance_rescale"]),
        max_steps=given["steps"],
        **{name: given[name] for name in same},
        **_unless_none(given, "max_seconds"),
    )


def _vallex_options(given: dict[str, Any]) -> VallexSpeakOptions:
    """What the command line says, for VALL-E X."""
    from valle_convert.decode import SamplingOptions
    from valle_convert.families.vallex.speech import VallexSpeakOptions

    same = ("language", "voice_text", "accent", "best_of", "seed")
    return VallexSpeakOptions(
        sampling=SamplingOptions(**_filters(given)),
        nar_sampling=SamplingOptions(temperature=given["nar_temperature"]),
        **{name: given[name] for name in same},
        **_unless_none(given, "max_seconds", "length_penalty"),
    )


def _filters(given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in ("temperature", "top_k", "top_p", "min_p", "top_no")}


def _unless_none(given: dict[str, Any], *names: str) -> dict[str, Any]:
    """Those that the user gave; the others keep their family's default."""
    return {name: given[name] for name in names if given[name] is not None}


# -------------------------------------------------------------------------------- running


def _open_speaker(
    bundle: Bundle,
    codec: str | None,
    threads: int | None,
    needs_codec: bool,
    cache_type: CacheChoice = "f32",
    lora: list[str] | None = None,
) -> Speaker | VallexSpeaker:
    """The speaker of a model, with its codec where that is needed."""
    from valle_convert.audio import open_codec
    from valle_convert.checkpoint.lora import lora_files

    opened = open_codec(codec, bundle.model) if needs_codec else None
    speaker: Speaker | VallexSpeaker = bundle.family.speaker(
        bundle, codec=opened, n_threads=threads, cache_type=cache_type, adapters=lora_files(lora)
    )
    return speaker


def _run(
    speaker: Speaker | VallexSpeaker,
    task: TaskChoice,
    text: str | None,
    voice: Path | None,
    source: Path | None,
    codes: Path | None,
    options: SpeakOptions | VallexSpeakOptions,
    is_phonemes: bool,
    watch: _Watch,
    should_stop: Callable[[], bool],
) -> Spoken:
    """The one call that does the work."""
    common: dict[str, Any] = {
        "options": options,
        "is_phonemes": is_phonemes,
        "progress": watch,
        "should_stop": should_stop,
    }
    if task == "tts" and codes is None:
        return speaker.speak(
            text or "",
            voice,
            **common,
            on_piece=watch.finished,
            on_sentences=watch.begins,
            keep_audio=False,
        )
    if codes is not None:
        spoken = speaker.raise_levels(codes, text or "", voice, **common)
    else:
        assert source is not None  # noqa: S101 - for the type checker; told apart before
        speaker = cast("Speaker", speaker)  # VALL-E X has no other task
        if task in ("ns", "sr"):
            spoken = speaker.clean(source, task, text or "", **common)
        else:
            assert voice is not None  # noqa: S101 - likewise
            spoken = speaker.convert(source, voice, text or "", **common)
    for piece in spoken.pieces:
        watch.finished(piece)
    return spoken


@contextmanager
def _stop_on_interrupt(keep: bool) -> Iterator[Callable[[], bool]]:
    """What decoders ask whether to stop; where something is to be kept, Ctrl-C makes it say yes.

    Only the first: then the signals are what they were, so that a second one aborts.
    """
    if not keep:
        yield lambda: False
        return
    stopped = False
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for one, handler in before.items():
            signal.signal(one, handler)

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopped
        del signum, frame
        stopped = True
        restore()
        # Not by way of a stream, which this signal may have interrupted in the middle of a line.
        os.write(2, b"stopping; once more to abort\n")

    for one in before:
        signal.signal(one, stop)
    try:
        yield lambda: stopped
    finally:
        restore()


class _Watch:
    """A `progress.Progress` on stderr that tells of sentences as well, and passes their sound on.

    Args:
        frame_rate: frames a second.
        sink: where the sound goes; None where codes alone are wanted.
    """

    def __init__(self, frame_rate: float, sink: AudioWriter | None) -> None:
        self._frame_rate, self._sink = frame_rate, sink
        self._n_done, self._lengths = 0, [1]
        self._began = time.perf_counter()

    def begins(self, phonemes: Sequence[str]) -> None:
        """Say what is going to be done, now that all of the text is known to be sayable."""
        self._lengths = [max(1, len(one)) for one in phonemes]
        if len(phonemes) > 1:
            console.talk(f"speaking {len(phonemes)} sentences, {sum(self._lengths)} phonemes")
        self._began = time.perf_counter()

    @contextmanager
    def __call__(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        with console.progress_bar(f"{self._name}, {label}", total, unit) as advance:
            if label != "frames":
                yield advance
                return
            done, begin = 0, time.perf_counter()
            bar = getattr(advance, "__self__", None)

            def advance_frames(n: int) -> None:
                nonlocal done
                done += n
                advance(n)
                if bar is not None:
                    seconds = done / self._frame_rate
                    factor = (time.perf_counter() - begin) / seconds
                    bar.set_postfix_str(
                        f"{seconds:.1f} s of audio, {factor:.2f} x real time", refresh=False
                    )

            yield advance_frames

    @property
    def _name(self) -> str:
        n = len(self._lengths)
        return f"sentence {self._n_done + 1}" + (f" of {n}" if n > 1 else "")

    def finished(self, piece: Piece) -> None:
        """Pass on a sentence that was spoken, and tell of it."""
        if self._sink is not None and piece.audio is not None:
            self._sink.add(piece.audio)
        name = self._name
        self._n_done += 1
        frames, levels = piece.codes.shape
        seconds = frames / self._frame_rate
        factor = piece.seconds.total / seconds if seconds else math.inf
        quoted = f": {piece.text[:60]}" if piece.text else ""
        console.talk(
            f"{name}: {frames} frames, {levels} levels, {seconds:.1f} s of audio, {factor:.2f} x "
            f"real time ({piece.mode}, {piece.language}){self._left()}{quoted}"
        )

    def _left(self) -> str:
        """The time that is left, if a phoneme of the rest takes what one took so far."""
        rest = sum(self._lengths[self._n_done :])
        if not rest:
            return ""
        took = time.perf_counter() - self._began
        left = took * rest / sum(self._lengths[: self._n_done])
        return f", {_duration(left)} left"


def _duration(seconds: float) -> str:
    """As people say it: `40 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _sound(
    speaker: Speaker | VallexSpeaker,
    codes: Path,
    sink: AudioWriter,
    loaded: float,
    *,
    as_json: bool,
) -> None:
    """Saved codes to sound, as they are."""
    begin = time.perf_counter()
    audio = speaker.sound(codes)
    seconds = time.perf_counter() - begin
    with sink:
        sink.add(audio)
    written = sink.written
    assert written is not None  # noqa: S101 - something was added
    if as_json:
        timings = {"load": round(loaded, 4), "codec": round(seconds, 4)}
        console.data_json({**_written_json(written), "timings": timings})
    _tell_written(written)


# -------------------------------------------------------------------------------- telling


def _tell(spoken: Spoken, written: WrittenAudio | None, codes: Path | None) -> None:
    if not spoken.is_whole:
        _note_kept(spoken, written, codes)
    for notice in spoken.notices:
        console.talk(f"note: {notice}")
    if written is not None:
        _tell_written(written)
    if codes is not None:
        console.talk(f"wrote {codes}: {len(spoken.codes)} frames of {spoken.n_levels} levels")
    factor = spoken.real_time_factor
    if math.isfinite(factor):
        console.talk(f"{factor:.2f} s of computing for a second of audio; seed {spoken.seed}")


def _note_kept(spoken: Spoken, written: WrittenAudio | None, codes: Path | None) -> None:
    """What an interrupted speech wrote, for the last line of the program."""
    kept = []
    if written is not None:
        kept.append(f"{written.path} ({written.seconds:.1f} s of audio)")
    if codes is not None:
        kept.append(f"{codes} ({len(spoken.codes)} frames)")
    interrupt.keep(*kept)


def _tell_written(written: WrittenAudio) -> None:
    console.talk(f"wrote {written.path}: {written.seconds:.1f} s of audio")
    if written.gain < 1:
        quieter = -20 * math.log10(written.gain)
        console.talk(
            f"note: it would have been clipped, and is {quieter:.1f} dB quieter instead; --float "
            "keeps every sample"
        )
    elif written.peak > 1:
        console.talk(f"note: samples go up to {written.peak:.2f}, beyond full scale")


def _spoken_json(
    spoken: Spoken, written: WrittenAudio | None, codes: Path | None, loaded: float
) -> dict[str, Any]:
    factor = spoken.real_time_factor
    return {
        **_written_json(written),
        "codes": None if codes is None else str(codes),
        "interrupted": not spoken.is_whole,
        "seed": spoken.seed,
        "real_time_factor": round(factor, 4) if math.isfinite(factor) else None,
        "timings": {"load": round(loaded, 4), **_timings(spoken.seconds)},
        "notices": list(spoken.notices),
        "sentences": [
            {
                "text": piece.text,
                "phonemes": piece.phonemes,
                "language": piece.language,
                "mode": piece.mode,
                "end": piece.end,
                "frames": piece.codes.shape[0],
                "levels": piece.codes.shape[1],
                "timings": _timings(piece.seconds),
            }
            for piece in spoken.pieces
        ],
    }


def _timings(seconds: object) -> dict[str, float]:
    return {stage: round(value, 4) for stage, value in vars(seconds).items()}


def _written_json(written: WrittenAudio | None) -> dict[str, Any]:
    if written is None:
        return {"file": None, "seconds": None, "peak": None, "gain": None}
    return {
        "file": str(written.path),
        "seconds": round(written.seconds, 4),
        "peak": written.peak,
        "gain": written.gain,
    }


def _heard_json(heard: Heard, loaded: float) -> dict[str, Any]:
    return {
        "phonemes": heard.phonemes,
        "ids": list(heard.ids),
        "language": heard.language,
        "end": heard.end,
        "notices": list(heard.notices),
        "timings": {
            "load": round(loaded, 4),
            "voice": round(heard.voice_seconds, 4),
            "decode": round(heard.decode_seconds, 4),
        },
    }
