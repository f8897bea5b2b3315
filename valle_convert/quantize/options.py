"""What a user wants: one object for making files, one for folders, one for measuring, one for
listening. Each is given only to the code that reads it.
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
        tensor_types: pattern=type, checked; the first that matches wins.
        threads: 0 for llama-quantize's own choice.
        imatrix: "auto", "none", or a path: an importance matrix, which every type is made with, or
            a folder of utterances to make one of. "auto" makes one of random codes for those types
            that cannot be made without.
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
        """What is read for an importance matrix."""
        return None if self.imatrix in (AUTO, NONE) else Path(self.imatrix)


@dataclass(frozen=True)
class FolderOptions:
    """What happens to files that are there.

    Attributes:
        resume: keep those that were made in the same way.
        force: overwrite the others.
        dry_run: write nothing.
    """

    resume: bool = False
    force: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class MeasureOptions:
    """What files are measured on.

    Attributes:
        data: a folder of utterances; None for seeded ones.
        n_utterances: how many, at most; None for all that are given, or for two seeded ones.
        adapters: LoRAs kept apart, with which files are measured and verified.
        threads: 0 for a choice by llama.cpp.
        reference: a file of what the reference computes; None to compute it.
        save_reference: where to keep that.
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
    """Who listens to what files say.

    Attributes:
        sentences: texts to speak, one a line; None for the utterances that are measured on.
        voice: whose voice the texts are spoken in; None leaves it to the model.
        codec: a file, or a name on the hub.
        asr: the command of a recogniser; None for none.
        temperature: of the AR where codes are drawn; 0 for greedy decoding only.
    """

    sentences: Path | None = None
    voice: Path | None = None
    prompt_seconds: float = 3.0
    codec: str | None = None
    asr: str | None = None
    temperature: float = 0.6


@dataclass(frozen=True)
class RunLog:
    """Where a run reports: its progress, sentences, and the log of each run of llama-quantize."""

    progress: Progress = silent
    talk: Callable[[str], object] = lambda _text: None
    keep_log: Callable[[list[str]], object] = lambda _lines: None
