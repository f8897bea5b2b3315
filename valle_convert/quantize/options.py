"""What a user wants of `quantize`, which files a run reads, and where it reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.lora import LoraFile
from valle_convert.progress import Progress, silent
from valle_convert.quantize.identity import Identity
from valle_convert.quantize.types import FileType

AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class Options:
    """What the user wants.

    Attributes:
        tool: a path of llama-quantize, "library", or None to search.
        tensor_types: pattern=type, checked; the first that matches wins.
        tensor_types_file: that some of them were read from.
        allow_requantize: whether quantized tensors may be quantized again.
        threads: for llama-quantize and for measuring; 0 for their own choice.
        imatrix: "auto", "none", or the path of a file. "auto" makes one of the checkpoint: with
            given utterances for every type, else for those that cannot be made without.
        data: a folder of utterances; None for seeded ones.
        n_utterances: how many are measured, at most; None for all that are given, or for two
            seeded ones.
        n_imatrix: seeded utterances that an importance matrix is made of; given ones all count.
        identity: what files are called, and say of themselves.
        adapters: LoRAs kept apart, with which files are measured and checked.
        max_kl, min_agreement: limits by type, as `limits.parse_limits` gives them.
        listen: whether files speak, and what they say is measured.
        sentences: texts to speak, one a line; None for the given utterances.
        voice: whose voice the texts are spoken in; None leaves it to the model.
        prompt_seconds: how much of the voice is used.
        asr: the command of a recogniser; None for none.
        listen_temperature: of the AR where codes are drawn.
        max_nll, min_retrieval, max_wer: limits of what is said, by type.
        no_worse_than: the JSON report of an earlier run.
        margin: by what factor this one may be worse.
        allow_fallback: whether a tensor that the type cannot hold may get another one.
        resume: keep files that are there and were made in the same way.
        prune: after a verdict that passed, remove the files of the same source that the folder's
            manifest lists and that are not of this run.
        scan: whether every matrix is tried in every type of `scan_types`.
        scan_types: names of tensor types; empty for the usual ones.
        target_bits: a weight, of the mixture that a scan chooses where `types` is empty; None for
            the smallest one within the limit of divergence.
        command: that all of this was given in, for the report.
    """

    types: tuple[FileType, ...] = ()
    tool: str | None = None
    tensor_types: tuple[str, ...] = ()
    tensor_types_file: Path | None = None
    allow_requantize: bool = False
    pure: bool = False
    threads: int = 0
    imatrix: str = AUTO
    data: Path | None = None
    measure: bool = True
    n_utterances: int | None = None
    n_imatrix: int = 32
    seed: int = 0
    adapters: tuple[LoraFile, ...] = ()
    identity: Identity = field(default_factory=Identity)
    max_kl: Mapping[str, float] = field(default_factory=dict)
    min_agreement: Mapping[str, float] = field(default_factory=dict)
    listen: bool = False
    sentences: Path | None = None
    voice: Path | None = None
    prompt_seconds: float = 3.0
    codec: str | None = None
    asr: str | None = None
    listen_temperature: float = 0.6
    max_nll: Mapping[str, float] = field(default_factory=dict)
    min_retrieval: Mapping[str, float] = field(default_factory=dict)
    max_wer: Mapping[str, float] = field(default_factory=dict)
    no_worse_than: Path | None = None
    margin: float = 1.1
    allow_fallback: bool = True
    resume: bool = False
    prune: bool = False
    force: bool = False
    scan: bool = False
    scan_types: tuple[str, ...] = ()
    target_bits: float | None = None
    dry_run: bool = False
    command: str = ""

    @property
    def chooses(self) -> bool:
        """Whether a scan chooses the types."""
        return self.scan and not self.types


def inputs_of(path: Path, checkpoint: Checkpoint | None, options: Options) -> Iterator[Path]:
    """Every file that a run reads, which nothing that it writes may replace."""
    yield path
    yield from checkpoint.inputs if checkpoint is not None else ()
    yield from (one.path for one in options.adapters)
    yield from options.data.glob("*.npz") if options.data is not None else ()
    if options.imatrix not in (AUTO, NONE):
        yield Path(options.imatrix)
    more = (
        *(options.tensor_types_file, options.no_worse_than),
        *(options.sentences, options.voice, options.codec),
    )
    yield from (Path(one) for one in more if one is not None)


@dataclass(frozen=True)
class RunLog:
    """Where a run reports: its progress, sentences, and the log of each run of llama-quantize."""

    progress: Progress = silent
    talk: Callable[[str], object] = lambda _text: None
    keep_log: Callable[[list[str]], object] = lambda _lines: None
