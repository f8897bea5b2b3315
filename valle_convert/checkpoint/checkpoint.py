"""An open checkpoint: named tensors, and everything else that is known of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from valle_convert.checkpoint.hub import HubOrigin
from valle_convert.checkpoint.source import CarriedVocabulary, TensorSource
from valle_convert.errors import InputError
from valle_convert.files import sha256_of


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a checkpoint, and what the user said about it, tells.

    Attributes:
        path: the file of the weights, or the index of several.
        container: how the weights are stored, in words.
        tensors: the weights by name, with any LoRA merged.
        config: the training project's description of the model.
        symmap: phoneme string to id, where the file carries it.
        stats: training counters, where the file carries them.
        lora: what was merged, in words; None where nothing was.
        companions: further input files (config, LoRA), which no output may replace.
        notes: what was chosen on the way to the weights.
        given: the file or folder as the user named it; None where it is `path`.
        shards: the files of the weights, where they are several.
        folder_title: what the folder of the weights calls the model.
        vocabulary: strings and merges, where an export carries them.
        assumed: what the file does not say, and is taken to be as in the published models.
        lost: what the training project's checkpoint had, and the file has no more.
        words: by table, what the names of its rows say, where they have names.
        origin: more on where the weights come from; it stands in the converted file, under
            `valle.source.` and these names.
        hub: the repository and commit on the Hugging Face hub, where the files come from there.
    """

    path: Path
    container: str
    tensors: TensorSource
    config: Mapping[str, Any]
    config_source: str
    symmap: Mapping[str, int] | None
    stats: Mapping[str, Any]
    lora: str | None = None
    companions: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    given: Path | None = None
    shards: tuple[Path, ...] = ()
    folder_title: str = ""
    vocabulary: CarriedVocabulary | None = None
    assumed: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    origin: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    hub: HubOrigin | None = None

    @property
    def weights(self) -> tuple[Path, ...]:
        return self.shards or (self.path,)

    @property
    def title(self) -> str:
        """What the model is called, if its config does not say."""
        return self.folder_title or self.path.stem

    @property
    def inputs(self) -> tuple[Path, ...]:
        return (self.path, *self.weights, *self.companions)

    def sha256(self, advance: Callable[[int], object] = lambda _n: None) -> str:
        """The SHA-256 of the file of the weights, 64 hexadecimal digits.

        Of several files it is that of what `sha256sum` prints of them, in the order of their names.
        """
        digests = [sha256_of(path, advance) for path in self.weights]
        for path, digest in zip(self.weights, digests, strict=True):
            said = self.hub.sha256.get(path, digest) if self.hub else digest
            if said != digest:
                raise InputError(
                    f"{path} is damaged: its sha256 is {digest}, and the Hugging Face hub gives "
                    f"{said}; remove it, and {path.resolve()}, and run the command again."
                )
        if len(digests) == 1:
            return digests[0]
        lines = zip(digests, self.weights, strict=True)
        listing = "".join(f"{digest}  {path.name}\n" for digest, path in lines)
        return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()
