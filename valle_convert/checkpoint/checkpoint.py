"""An open checkpoint: named tensors and what is known about them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from valle_convert.checkpoint.folder import HubOrigin
from valle_convert.checkpoint.source import CarriedVocabulary, TensorSource
from valle_convert.errors import InputError
from valle_convert.files import sha256_of


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, with what the user said about it."""

    path: Path  # the file of the weights, or the index of several
    container: str  # how the weights are stored, in words
    tensors: TensorSource  # the weights by name, with any LoRA merged
    config: Mapping[str, Any]  # the training project's description of the model
    config_source: str
    symmap: Mapping[str, int] | None  # phoneme string to id, if the file has it
    stats: Mapping[str, Any]  # training counters, if the file has them
    lora: str | None = None  # which LoRAs were merged, in words, or None
    #: Further input files (config, LoRA) that no output may replace.
    companions: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()  # what was chosen on the way to the weights
    given: Path | None = None  # the file or folder as the user named it, or None if it is `path`
    shards: tuple[Path, ...] = ()  # the files of the weights, if there are several
    folder_title: str = ""  # the model's name according to the folder of the weights
    vocabulary: CarriedVocabulary | None = None  # strings and merges, if an export has them
    assumed: tuple[str, ...] = ()  # values that the file lacks, assumed as in the published models
    lost: tuple[str, ...] = ()  # parts of the training project's checkpoint that the file lacks
    #: The names of the rows, by table, if they have names.
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: More on where the weights come from; the converted file stores it as `valle.source.*` under
    #: these names.
    origin: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    #: The repository and commit on the Hugging Face hub, if the files come from there.
    hub: HubOrigin | None = None

    @property
    def weights(self) -> tuple[Path, ...]:
        return self.shards or (self.path,)

    @property
    def n_bytes(self) -> int:
        known = self.hub.n_bytes if self.hub else {}
        return sum(known.get(path) or path.stat().st_size for path in self.weights)

    @property
    def title(self) -> str:
        """The model's name, if its config does not have one."""
        return self.folder_title or self.path.stem

    @property
    def inputs(self) -> tuple[Path, ...]:
        return (self.path, *self.weights, *self.companions)

    def sha256(self) -> str:
        """The SHA-256 of the file of the weights, 64 hexadecimal digits.

        For several files, the SHA-256 of what `sha256sum` prints for them, sorted by name.
        """
        digests = [sha256_of(path) for path in self.weights]
        for path, digest in zip(self.weights, digests, strict=True):
            said = self.hub.sha256.get(path, digest) if self.hub else digest
            if said != digest:
                raise InputError(
                    f"{path} is damaged: its sha256 is {digest}, expected {said}; "
                    f"remove it, and {path.resolve()}, and run the command again."
                )
        if len(digests) == 1:
            return digests[0]
        lines = zip(digests, self.weights, strict=True)
        listing = "".join(f"{digest}  {path.name}\n" for digest, path in lines)
        return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()
