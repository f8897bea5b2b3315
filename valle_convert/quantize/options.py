"""What the user of `quantize` wants, and who hears of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from valle_convert.progress import Progress, silent
from valle_convert.quantize.plan import Settings
from valle_convert.quantize.recipes import STOCK
from valle_convert.quantize.types import FileType

N_UTTERANCES = 2
N_IMATRIX_UTTERANCES = 32
AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class Options:
    """What the user wants.

    Attributes:
        types: which files to make.
        tool: a path of llama-quantize, "library", or None to search.
        settings: recipe, tensor types, threads.
        imatrix: "auto", "none", or the path of a file. "auto" makes one of the checkpoint: with
            given utterances for every type, else for those that cannot be made without.
        data: a folder of utterances; None for seeded ones.
        measure: whether quality and speed are measured.
        n_utterances: how many are measured; of given ones, at most so many.
        n_imatrix: seeded utterances that an importance matrix is made of; given ones all count.
        seed: of seeded utterances.
        max_kl, min_agreement: limits; None for the measured ones of each type.
        allow_fallback: whether a tensor that the type cannot hold may get another one.
        resume: keep files that are there and were made in the same way.
        force: whether existing files may be replaced.
        dry_run: plan only.
    """

    types: tuple[FileType, ...]
    tool: str | None = None
    settings: Settings = field(default_factory=lambda: Settings(STOCK))
    imatrix: str = AUTO
    data: Path | None = None
    measure: bool = True
    n_utterances: int = N_UTTERANCES
    n_imatrix: int = N_IMATRIX_UTTERANCES
    seed: int = 0
    max_kl: float | None = None
    min_agreement: float | None = None
    allow_fallback: bool = True
    resume: bool = False
    force: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Listener:
    """Who hears of a run: bars, sentences, and the log of each run of llama-quantize."""

    progress: Progress = silent
    talk: Callable[[str], object] = lambda _text: None
    keep_log: Callable[[list[str]], object] = lambda _lines: None
