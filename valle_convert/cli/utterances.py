"""`valle-convert utterances` and `voice`: recordings to codes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from valle_convert.cli import console
from valle_convert.cli.options import (
    CODEC,
    FORCE,
    JSON,
    LANGUAGE,
    MODEL,
    VOICE,
    arg,
    flag,
    local_gguf,
    opt,
)
from valle_convert.errors import InputError
from valle_convert.wording import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from valle_convert.audio.utterances import Recorded


def utterances(
    *,
    audio: list[Path] | None = arg(
        "[AUDIO]...", "Recordings (wav, flac, ogg, mp3), or codes (.npz).", None
    ),
    out: Path = arg("OUTDIR", "Output folder, one .npz file per utterance."),
    model: Path = opt(
        "A converted file; its tokenizer, levels and languages are used.",
        "GGUF",
        MODEL,
        default=...,
    ),
    text: list[str] | None = opt(
        "Transcript of a recording; once per AUDIO, in the same order.", "TEXT", VOICE
    ),
    list_: Path | None = opt(
        "Instead of AUDIO and --text: one path, tab and transcript per line; paths are relative to "
        "this file.",
        "FILE.tsv",
        VOICE,
    ),
    voice: Path | None = opt(
        "Voice prompt for all utterances: a recording or saved codes. Default: none.",
        "FILE",
        VOICE,
    ),
    codec: str | None = CODEC,
    phonemes: bool = flag("The texts are IPA.", VOICE),
    language: str | None = LANGUAGE,
    json_: bool = JSON,
    force: bool = FORCE,
) -> None:
    """Turn recordings and transcripts into utterances.

    `evaluate`, `imatrix` and `scan` take them with --data. Nothing is written unless all recordings
    and texts are usable.
    """
    from valle_convert.families.bundle import open_bundle
    from valle_convert.files import check_input_file

    recorded = _recorded(audio or [], text or [], list_)
    for path in [*(one.path for one in recorded), *([voice] if voice else [])]:
        check_input_file(path, "recording")
    bundle = open_bundle(local_gguf(model))
    made = bundle.family.ability("utterances")(
        bundle,
        recorded,
        out,
        codec=codec,
        voice=voice,
        language=language,
        is_phonemes=phonemes,
        force=force,
        inputs=[one for one in (list_, Path(codec) if codec else None) if one is not None],
        progress=console.progress_bar,
    )
    others = len({path.name for path in out.glob("*.npz")} - {one.name for one in made})
    _show(made, out, others, as_json=json_)


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
    write_codes(out, codes, force=force, inputs=[recording])
    console.notes(notices)
    frames, levels = codes.codes.shape
    console.log(f"wrote {out}: {plural(frames, 'frame')} of {plural(levels, 'level')}")


def _recorded(audio: Sequence[Path], texts: Sequence[str], listed: Path | None) -> list[Recorded]:
    from valle_convert.audio.utterances import Recorded, read_list

    if listed is not None:
        return read_list(listed)
    if not audio:
        raise typer.BadParameter("give recordings and OUTDIR, or --list.", param_hint="AUDIO")
    if len(audio) != len(texts):
        raise InputError(
            f"{plural(len(audio), 'recording')} and {plural(len(texts), 'text')}; give --text once "
            "per recording (the last argument is the output folder)."
        )
    return [Recorded(path, said) for path, said in zip(audio, texts, strict=True)]


def _show(made: Sequence[Any], out: Path, others: int, *, as_json: bool) -> None:
    if as_json:
        console.data_json(
            {
                "folder": str(out),
                "utterances": [
                    {
                        "file": one.name,
                        "source": str(one.recording),
                        "language": one.said.language,
                        "phonemes": one.said.phonemes,
                        "ids": len(one.arrays["phonemes"]),
                        "frames": len(one.arrays["response"]),
                        "notices": list(one.notices),
                    }
                    for one in made
                ],
            }
        )
    else:
        for one in made:
            ids, frames = len(one.arrays["phonemes"]), len(one.arrays["response"])
            console.data(
                f"{one.name}: {plural(ids, 'id')}, {plural(frames, 'frame')} ({one.said.language})"
            )
    console.notes(notice for one in made for notice in one.notices)
    if others:
        console.log(f"note: {out} has {plural(others, 'other .npz file')}, which --data reads too")
