"""The user's options: one object for making files, one for folders, one for measuring, one for
listening. Each is passed only to the code that reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from valle_convert.checkpoint.lora import LoraFile
from valle_convert.progress import Progress, silent
from valle_convert.quantize.identity import Identity
from valle_convert.quantize.types import FileType

AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class MakeOptions:
    """How files are made.

    Attributes:
        tool: a path of llama-quantize, "library", or None to search.
        tensor_types: pattern=type, checked; the first match wins.
        threads: 0 for llama-quantize's own choice.
        imatrix: "auto", "none", or a path: an importance matrix for every type, or a folder of
            utterances to make one from. "auto" makes one from random codes for the types that
            require one.
        allow_fallback: whether a tensor that the type cannot hold may get another one.
        inputs: further files that were read for these options.
    """

    types: tuple[FileType, ...] = ()
    tool: str | None = None
    tensor_types: tuple[str, ...] = ()
    allow_requantize: bool = False
    pure: bool = False
    threads: int = 0
    imatrix: str = AUTO
    identity: Identity = field(default_factory=Identity)
    allow_fallback: bool = True
    inputs: tuple[Path, ...] = ()

    @property
    def imatrix_path(self) -> Path | None:
        return None if self.imatrix in (AUTO, NONE) else Path(self.imatrix)


@dataclass(frozen=True)
class FolderOptions:
    """Existing files: `resume` keeps those that were made in the same way, `force` overwrites the
    others; `dry_run` writes nothing.
    """

    resume: bool = False
    force: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class MeasureOptions:
    """How files are measured.

    Attributes:
        data: a folder of utterances; None for seeded ones.
        n_utterances: the maximum; None for all given ones, or two seeded ones.
        adapters: LoRAs kept apart, applied to the files.
        threads: 0 for llama.cpp's choice.
        reference, save_reference: a file of the reference's results to read, or to write.
    """

    data: Path | None = None
    n_utterances: int | None = None
    seed: int = 0
    adapters: tuple[LoraFile, ...] = ()
    threads: int = 0
    reference: Path | None = None
    save_reference: Path | None = None


@dataclass(frozen=True)
class ListenOptions:
    """How files are listened to.

    Attributes:
        sentences: texts to speak, one a line; None for the measured utterances.
        voice: of the texts; None leaves it to the model.
        codec: a file, or a name on the hub.
        asr: the command of a recognizer.
        temperature: of the AR if codes are drawn; 0 for greedy decoding only.
    """

    sentences: Path | None = None
    voice: Path | None = None
    prompt_seconds: float = 3.0
    codec: str | None = None
    asr: str | None = None
    temperature: float = 0.6


@dataclass(frozen=True)
class RunLog:
    """The outputs of a run: progress, messages, and the log of each run of llama-quantize."""

    progress: Progress = silent
    talk: Callable[[str], object] = lambda _text: None
    keep_log: Callable[[list[str]], object] = lambda _lines: None
