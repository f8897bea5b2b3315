"""`valle-convert transcribe GGUF SPEECH`."""

import time
from pathlib import Path

from valle_convert.cli import console
from valle_convert.cli.options import CODEC, GGUF, GPU_LAYERS, JSON, THREADS, arg, local_gguf, opt


def transcribe(
    *,
    gguf: Path = GGUF,
    speech: list[Path] = arg(
        "SPEECH...",
        "Recordings (wav, flac, ogg, mp3) or saved codes (.npz). With several, each line is the "
        "path, a tab and the phonemes; with --json, a list.",
    ),
    codec: str | None = CODEC,
    language: str | None = opt(
        "en, de, fr, ja, zh or ko. Default: the model's first language.", "CODE"
    ),
    max_phonemes: int = opt("Longest transcript.", "N", default=900, min=1, max=20_000),
    threads: int | None = THREADS,
    gpu_layers: int = GPU_LAYERS,
    json_: bool = JSON,
) -> None:
    """Transcribe recordings to phonemes."""
    from valle_convert.audio import open_codec
    from valle_convert.audio.codes import is_codes_path
    from valle_convert.families.bundle import open_bundle
    from valle_convert.files import check_input_file
    from valle_convert.llama.context import Settings
    from valle_convert.speech.speaker import Watch

    begin = time.perf_counter()
    bundle = open_bundle(local_gguf(gguf))
    hear = bundle.family.ability("transcribe")
    several = len(speech) > 1
    for path in speech if several else ():
        check_input_file(path, "recording")
    opened = None if all(map(is_codes_path, speech)) else open_codec(codec, bundle.model)
    found, how = [], Settings(n_threads=threads, n_gpu_layers=gpu_layers)
    with bundle.family.speaker(bundle, codec=opened, settings=how) as speaker:
        loaded = time.perf_counter() - begin
        watch = Watch(progress=console.progress_bar)
        for path in speech:
            heard = hear(speaker, path, language, max_phonemes, watch=watch)
            found.append(
                {
                    "file": str(path),
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
            )
            if not json_:
                console.data(f"{path}\t{heard.phonemes}" if several else heard.phonemes)
            label = f"{path}: " if several else "note: "
            for notice in heard.notices:
                console.log(f"{label}{notice}")
            if heard.end == "limit":
                console.log(f"{label}cut off after {max_phonemes} phonemes (--max-phonemes)")
    if json_:
        console.data_json(found if several else found[0])
