"""A voice prompt of the length that the model likes, out of a recording of any length."""

from __future__ import annotations

import numpy as np

from valle_convert.audio.files import Audio
from valle_convert.errors import InputError
from valle_convert.model.spec import Codes
from valle_convert.wording import plural

#: What the checkpoints' own project takes of a recording.
PROMPT_SECONDS = 3.0

#: A hundredth of a second is heard as sound above this (-50 dB); quiet rooms are below.
_AUDIBLE = 10 ** (-50 / 20)
_WINDOWS_PER_SECOND = 100
#: Less sound than this tells nothing of a voice.
_MIN_SOUND_SECONDS = 0.2


def prompt_audio(audio: Audio, seconds: float | None, name: str) -> tuple[Audio, tuple[str, ...]]:
    """The part of a recording that serves as prompt: from the first sound on, so many seconds.

    Args:
        audio: the recording.
        seconds: at most so many; None for all of it.
        name: of the recording, for messages.

    Returns:
        The prompt, and notices of what was left out.

    Raises:
        InputError: the recording is silent, or has too little sound to tell a voice.
    """
    window = max(1, audio.sample_rate // _WINDOWS_PER_SECOND)
    n_windows = -(-len(audio.samples) // window)
    padded = np.resize(audio.samples[-1:], n_windows * window)
    padded[: len(audio.samples)] = audio.samples
    # Without its mean: a constant is silence.
    loudness = padded.reshape(n_windows, window).std(axis=1)
    audible = np.flatnonzero(loudness > _AUDIBLE)
    sound = len(audible) / _WINDOWS_PER_SECOND
    if sound < _MIN_SOUND_SECONDS:
        raise InputError(
            f"There is no speech in {name}: {audio.seconds:.1f} seconds with {sound:.1f} seconds "
            f"of sound above -50 dB, where at least {_MIN_SOUND_SECONDS} are needed; record it "
            "again, or make it louder."
        )
    if seconds is None:
        return audio, ()
    start = int(audible[0]) * window
    length = round(seconds * audio.sample_rate)
    taken = audio.samples[start : start + length]
    notices = []
    if len(audio.samples) > length:
        notices.append(
            f"{name} is {audio.seconds:.1f} seconds long; the {len(taken) / audio.sample_rate:.1f} "
            f"seconds from {start / audio.sample_rate:.1f} on serve as the voice"
        )
    return Audio(taken, audio.sample_rate), tuple(notices)


def fit_prompt(codes: Codes, n_frames: int, name: str) -> tuple[Codes, tuple[str, ...]]:
    """A prompt of exactly `n_frames`: its beginning, or it over and over.

    Returns:
        The codes, [n_frames, levels], and notices of what was done to them.
    """
    found = len(codes)
    if found >= n_frames:
        notice = f"{name} has {plural(found, 'frame')}; the first {n_frames} serve as the voice"
        return codes[:n_frames], (notice,) if found > n_frames else ()
    repeated = np.tile(codes, (-(-n_frames // found), 1))[:n_frames]
    notice = (
        f"{name} has {plural(found, 'frame')} of sound, fewer than the {n_frames} that the model "
        "likes; it is repeated"
    )
    return repeated, (notice,)
