"""The user's options: one object for making files, one for folders, one for measuring, one for
listening. Each is passed only to the code that reads it.
"""

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
    types: tuple[FileType, ...] = ()
    tool: str | None = None  # a path of llama-quantize, "library", or None to search
    tensor_types: tuple[str, ...] = ()  # pattern=type, checked; the first match wins
    allow_requantize: bool = False
    pure: bool = False
    threads: int = 0  # 0 for llama-quantize's own choice
    #: "auto", "none", or a path: an importance matrix for every type, or a folder of utterances to
    #: make one from. "auto" makes one from random codes for the types that require one.
    imatrix: str = AUTO
    identity: Identity = field(default_factory=Identity)
    allow_fallback: bool = True  # whether a tensor that the type cannot hold may get another one
    inputs: tuple[Path, ...] = ()  # further files that were read for these options

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
    data: Path | None = None  # a folder of utterances; None for seeded ones
    n_utterances: int | None = None  # the maximum; None for all given ones, or two seeded ones
    adapters: tuple[LoraFile, ...] = ()  # LoRAs kept apart, applied to the files
    threads: int = 0  # 0 for all usable cores, or one for a small model
    gpu_layers: int = 0  # layers that a GPU computes; -1 for all
    reference: Path | None = None  # a file of the reference's results to read
    save_reference: Path | None = None  # the same, to write


@dataclass(frozen=True)
class ListenOptions:
    sentences: Path | None = None  # texts to speak, one a line; None for the measured utterances
    voice: Path | None = None  # of the texts; None leaves it to the model
    codec: str | None = None  # a file, or a name on the hub
    asr: str | None = None  # the command of a recognizer


@dataclass(frozen=True)
class RunLog:
    """The outputs of a run: progress, messages, and the log of each run of llama-quantize."""

    progress: Progress = silent
    message: Callable[[str], object] = lambda _text: None
    keep_log: Callable[[list[str]], object] = lambda _lines: None
