"""Voice prompts from recordings of any length."""

import numpy as np

from valle_convert.audio.files import Audio
from valle_convert.errors import InputError
from valle_convert.model.spec import Codes
from valle_convert.wording import plural

#: Length that the original project uses.
PROMPT_SECONDS = 3.0

#: A hundredth of a second above this (-50 dB) is sound; quiet rooms are below.
_AUDIBLE = 10 ** (-50 / 20)
_WINDOWS_PER_SECOND = 100
#: Less sound is not enough for a voice.
_MIN_SOUND_SECONDS = 0.2


def prompt_audio(audio: Audio, seconds: float | None, name: str) -> tuple[Audio, tuple[str, ...]]:
    """The prompt in a recording, and a notice if a part was left out.

    It is `seconds` from the first sound on; None takes all. `name` is for messages. A recording
    without sound is rejected.
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
            f"There is no speech in {name}: {sound:.1f} of {audio.seconds:.1f} seconds are above "
            f"-50 dB, expected at least {_MIN_SOUND_SECONDS}. Record it again, or make it louder."
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
            f"seconds from {start / audio.sample_rate:.1f} on are used as the voice"
        )
    return Audio(taken, audio.sample_rate), tuple(notices)


def fit_prompt(codes: Codes, n_frames: int, name: str) -> tuple[Codes, tuple[str, ...]]:
    """A prompt of exactly `n_frames`, cut or repeated, and a notice if it was changed."""
    found = len(codes)
    if found >= n_frames:
        notice = f"{name} has {plural(found, 'frame')}; the first {n_frames} are used as the voice"
        return codes[:n_frames], (notice,) if found > n_frames else ()
    repeated = np.tile(codes, (-(-n_frames // found), 1))[:n_frames]
    notice = (
        f"{name} has {plural(found, 'frame')} of sound, shorter than the {n_frames} frames that "
        "the model expects; it is repeated"
    )
    return repeated, (notice,)
