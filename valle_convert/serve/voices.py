"""Voices by name: a folder of recordings or codes, with transcripts beside them.

A client's name is looked up among the files of the folder; only the name of a new voice, which has
a narrow form, becomes a path.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from valle_convert.audio import SavedCodes, read_codes, write_codes
from valle_convert.audio.files import decode_audio
from valle_convert.errors import InputError, ValleConvertError
from valle_convert.files import read_json_object, read_small_file, sha256_of
from valle_convert.model.spec import CodeFormat
from valle_convert.serve.refusal import Refusal, bad_value
from valle_convert.speech.speaker import AnySpeaker

#: In order of preference, if a name has several.
_SUFFIXES = (".npz", ".wav", ".flac", ".ogg", ".mp3")
_NEW_NAME = re.compile(r"[^\W_][\w .-]{0,63}", re.ASCII)
_MAX_VOICES = 1000
_MAX_TEXT_BYTES = 1 << 14
#: The most of a voice that any model uses.
_MAX_UPLOAD_SECONDS = 60.0

#: The file that maps other names, such as OpenAI's, and "default", to voices.
NAMES_FILE = "names.json"
#: Names that clients send by default; they speak in the default voice.
OPENAI_NAMES = frozenset(
    "alloy ash ballad cedar coral echo fable marin nova onyx sage shimmer verse".split()
)
_ENCODED = ".encoded"


@dataclass(frozen=True)
class Voice:
    """A file of the folder, with its transcript if there is one."""

    path: Path
    text: str | None


class Voices:
    """The voices of a server; without a folder there are none, and the model chooses."""

    def __init__(self, folder: Path | None, *, model: CodeFormat, seconds: float | None) -> None:
        self.folder, self._model = folder, model
        self._seconds = seconds
        self._encoded: dict[Path, tuple[str, SavedCodes]] = {}

    def check(self) -> None:
        """Reject a folder whose file of names has a name without a voice."""
        names = self.names()
        for name, voice in self._mapped().items():
            if voice not in names:
                raise InputError(
                    f"{NAMES_FILE} maps {name!r} to {voice!r}, which is not a voice in "
                    f"{self.folder}."
                )

    def names(self) -> Mapping[str, Path]:
        """The file of each voice."""
        if self.folder is None:
            return {}
        order = {suffix: n for n, suffix in enumerate(_SUFFIXES)}
        found = [one for one in self.folder.iterdir() if one.suffix.lower() in order]
        found.sort(key=lambda one: (one.stem, -order[one.suffix.lower()]))
        return {one.stem: one for one in found if one.is_file() and one.name[0] != "."}

    def find(self, name: str | None) -> Voice | None:
        """The voice of that name, or the default; None leaves it to the model."""
        names = self.names()
        mapped = self._mapped()
        if name is None or (name in OPENAI_NAMES and name not in {*names, *mapped}):
            name = mapped.get("default") or next(iter(names), None)
            if name is None:
                return None
        path = names.get(mapped.get(name, name))
        if path is None:
            raise Refusal(
                404,
                f"There is no voice {name[:64]!r}; GET /v1/audio/voices lists them.",
                "voice_not_found",
                "voice",
            )
        return Voice(path, self._text_of(path))

    def load(self, voice: Voice, speaker: AnySpeaker) -> Path | SavedCodes:
        """A voice for a speaker; a recording is encoded once. In the worker's thread."""
        if voice.path.suffix.lower() == ".npz":
            return voice.path
        digest = sha256_of(voice.path)
        known = self._encoded.get(voice.path)
        if known is None or known[0] != digest:
            known = digest, self._from_disk(voice.path, digest, speaker)
            self._encoded[voice.path] = known
        return known[1]

    def add(self, name: str, recording: bytes, text: str, speaker: AnySpeaker) -> None:
        """Encode a recording, and store its codes. In the worker's thread."""
        folder = self.check_new(name)
        rate = speaker.codec_description.sample_rate
        audio = decode_audio(
            BytesIO(recording), "The recording", rate, max_seconds=_MAX_UPLOAD_SECONDS
        )
        codes, _ = speaker.encode(audio, self._seconds, "the recording")
        if text:
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
        write_codes(folder / f"{name}.npz", codes)

    def remove(self, name: str) -> None:
        """Remove codes; recordings stay."""
        path = self.names().get(name)
        if path is None:
            raise Refusal(404, f"There is no voice {name[:64]!r}.", "voice_not_found", "name")
        if path.suffix != ".npz":
            message = (
                f"The voice {name!r} is a recording of the server's own; its owner can remove it."
            )
            raise bad_value("name", message, "voice_not_removable")
        path.unlink(missing_ok=True)
        path.with_suffix(".txt").unlink(missing_ok=True)

    def check_new(self, name: str) -> Path:
        """Check the name of a new voice; returns its folder."""
        names = self.names()
        if not _NEW_NAME.fullmatch(name):
            raise bad_value("name", "A name has 1 to 64 letters, digits, spaces, dots and dashes.")
        if name in names:
            raise bad_value("name", f"There is already a voice {name!r}.", "voice_exists")
        if len(names) >= _MAX_VOICES or self.folder is None:
            raise bad_value("name", "The server takes no more voices.", "too_many_voices")
        return self.folder

    def _mapped(self) -> Mapping[str, str]:
        path = self.folder / NAMES_FILE if self.folder else None
        if path is None or not path.exists():
            return {}
        found = read_json_object(path, "file of names", _MAX_TEXT_BYTES)
        if not all(isinstance(one, str) for one in found.values()):
            raise InputError(f"{path} maps a name to something other than the name of a voice.")
        return found

    def _text_of(self, path: Path) -> str | None:
        text = path.with_suffix(".txt")
        if not text.exists():
            return None
        try:
            return read_small_file(text, "text", _MAX_TEXT_BYTES).decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise InputError(f"{text} is not UTF-8; save it as UTF-8.") from error

    def _from_disk(self, path: Path, digest: str, speaker: AnySpeaker) -> SavedCodes:
        """Codes stored by an earlier run, or new ones."""
        kept = path.parent / _ENCODED / f"{path.stem}-{digest[:16]}-{self._seconds}.npz"
        with suppress(ValleConvertError):
            return read_codes(kept, self._model)
        codes, _ = speaker.encode(path, self._seconds, path.name)
        with suppress(OSError, ValleConvertError):  # the folder may be read-only
            kept.parent.mkdir(exist_ok=True)
            write_codes(kept, codes, force=True)
        return codes
