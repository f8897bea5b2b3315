"""`valle-convert voice RECORDING OUT.npz`."""

from pathlib import Path

from valle_convert.cli import console
from valle_convert.cli.options import CODEC, FORCE, arg, local_gguf, opt
from valle_convert.wording import plural


def voice(
    *,
    recording: Path = arg("RECORDING", "The voice: wav, flac, ogg or mp3."),
    out: Path = arg("OUT.npz", "Its codes."),
    model: Path | None = opt(
        "The model that will speak; it determines the length. Default: three seconds of eight "
        "levels, as for the published models.",
        "GGUF",
    ),
    codec: str | None = CODEC,
    seconds: float | None = opt(
        "Length of the recording to use, from its first sound on.", "N", min=0.1
    ),
    force: bool = FORCE,
) -> None:
    """Encode a voice once.

    --voice of `speak` and --voices of `serve` take the result.
    """
    from valle_convert.audio import (
        SavedCodes,
        check_codes_target,
        open_codec,
        prompt_audio,
        read_audio,
        write_codes,
    )
    from valle_convert.decode.options import MAX_RECORDING_SECONDS
    from valle_convert.families.bundle import open_bundle
    from valle_convert.files import check_input_file, check_outputs
    from valle_convert.speech.results import SpeakOptions

    check_codes_target(out)
    check_outputs({"OUT": out}, inputs=[recording], force=force)
    check_input_file(recording, "recording")
    bundle = None if model is None else open_bundle(local_gguf(model))
    if seconds is None and (bundle is None or "prompt_seconds" in bundle.family.speaks_with):
        seconds = SpeakOptions().prompt_seconds
    opened = open_codec(codec, None if bundle is None else bundle.model)
    rate = opened.description.sample_rate
    heard = read_audio(recording, rate, max_seconds=MAX_RECORDING_SECONDS)
    audio, notices = prompt_audio(heard, seconds, str(recording))
    codes = SavedCodes(opened.encode(audio), opened.description, opened.codebook_size)
    write_codes(out, codes, force=force, sources=[recording])
    console.notes(notices)
    frames, levels = codes.codes.shape
    console.log(f"wrote {out}: {plural(frames, 'frame')} of {plural(levels, 'level')}")
