"""Audio and codes: `files` reads and writes audio, `codec` converts it to codes and back.

`codes` saves codes, `voice` turns a recording into a prompt.
"""

from valle_convert.audio.codec import (
    AudioCodec,
    EncodecCodec,
    check_codec_fits,
    open_codec,
    register_codec,
)
from valle_convert.audio.codes import SavedCodes, check_codes_target, read_codes, write_codes
from valle_convert.audio.files import Audio, AudioWriter, WrittenAudio, read_audio, write_wav
from valle_convert.audio.voice import fit_prompt, prompt_audio

__all__ = [
    "Audio",
    "AudioCodec",
    "AudioWriter",
    "EncodecCodec",
    "SavedCodes",
    "WrittenAudio",
    "check_codec_fits",
    "check_codes_target",
    "fit_prompt",
    "open_codec",
    "prompt_audio",
    "read_audio",
    "read_codes",
    "register_codec",
    "write_codes",
    "write_wav",
]
