"""A path and the user's options become a `Checkpoint`.

    path or hf:... -> folder.find_weights -> containers.read_container -> LoRA merged -> Checkpoint

`notes` lists deviations from the training project's own files (wrapped modules, containers of other
trainers, values without a meaning); the converted file stores them.

Plain values beside the weights, such as hyperparameters, are used as a config below a config file.
A checkpoint may have no config; its family decides whether it needs one.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from valle_convert.checkpoint.config import Config, load_config, plain_keys, read_config
from valle_convert.checkpoint.containers import Container, holds_model, read_container
from valle_convert.checkpoint.folder import Found, HubOrigin, Tree, find_weights, found_file, locate
from valle_convert.checkpoint.hf_export import (
    CONFIG_FILE,
    FORMAT,
    LOST,
    TOKENIZER_FILE,
    Export,
    is_export,
    read_export,
)
from valle_convert.checkpoint.lora import LoraFile, has_adapters, merge_loras
from valle_convert.checkpoint.names import is_model, is_refused_by_name
from valle_convert.checkpoint.plain_values import to_plain
from valle_convert.checkpoint.source import CarriedVocabulary, TensorSource
from valle_convert.errors import InputError
from valle_convert.files import sha256_of
from valle_convert.wording import listing


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
    row_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
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


def read_checkpoint(
    path: Path,
    *,
    config: Path | None = None,
    lora: Sequence[LoraFile] = (),
    headers_only: bool = False,
) -> Checkpoint:
    """Open a checkpoint without reading its weights."""
    tree, place = locate(path, headers_only=headers_only)
    if tree.is_folder(place):
        found = find_weights(tree, place, partial(holds_model, tree))
    else:
        found = found_file(tree, place)
    file = tree.get(found.weights)
    contents = read_container(file, tree, found.weights)
    _check_model(contents, tree.name(found.weights))
    companions: list[Path] = []
    given = None if config is None else load_config(config, found)
    # Without an export, the file has the checkpoint's own tensors and config.
    export = Export(contents.tensors, contents.extras.get("config"))
    if exported := is_export(contents.tensors):
        export = _read_export(contents, tree, found, given, companions)
    origin = "assumed" if exported else "inside the checkpoint"
    chosen = read_config(file, export.config, contents.plain, given, tree, found, origin=origin)
    companions += chosen.files
    if not headers_only:
        _beside(tree, found, TOKENIZER_FILE)  # downloads it; it is looked up beside the weights
    tensors, merged, more = merge_loras(file, export.tensors, contents.lora, chosen.keys, lora)
    companions += [one.path for one in lora]
    hub = tree.origin
    deviations = (*contents.notes, *chosen.notes, *export.notes, *more)
    return Checkpoint(
        path=file,
        container=f"{FORMAT}, {contents.kind}" if exported else contents.kind,
        tensors=tensors,
        config=chosen.keys,
        config_source=chosen.source,
        symmap=_symmap(file, contents.extras),
        stats=_stats(contents.extras),
        lora=merged,
        companions=tuple(companions),
        notes=(*tree.notes, *found.notes, *deviations),
        given=path,
        shards=contents.shards,
        folder_title=_title_of(tree, found),
        assumed=export.assumed,
        lost=LOST if exported else (),
        row_names=export.row_names,
        origin=({"format": FORMAT} if exported else {})
        | ({"revision": hub.revision} if hub else {})
        | ({"notes": deviations} if deviations else {}),
        hub=hub,
    )


def _check_model(contents: Container, where: str) -> None:
    """Reject input without a model, before a config is asked for that could not help."""
    names = list(contents.tensors.specs)
    if is_model(names) or is_refused_by_name(names):
        return
    if contents.lora is not None or has_adapters(names):
        raise InputError(
            f"{where} holds only a LoRA; give the checkpoint that it was trained on, and add this "
            "one with --lora."
        )
    raise InputError(
        f"{where} holds no model of a known family: its tensors are "
        f"{listing([f'{one:.40}' for one in names], 2) or 'none'}; give the file of the weights."
    )


def _read_export(
    contents: Container, tree: Tree, found: Found, given: Config | None, companions: list[Path]
) -> Export:
    """The content of a container that is a Hugging Face export."""
    files = [_beside(tree, found, name) for name in (CONFIG_FILE, TOKENIZER_FILE)]
    companions += [path for path in files if path is not None]
    return read_export(
        contents.tensors,
        tree.get(found.weights),
        config=files[0],
        tokenizer=files[1],
        given={} if given is None else given.keys,
        title=_title_of(tree, found),
    )


def _beside(tree: Tree, found: Found, name: str) -> Path | None:
    """A file in the folder of the weights, if it exists."""
    folder = found.weights.parent
    return tree.get(folder / name) if name in tree.files(folder) else None


def _title_of(tree: Tree, found: Found) -> str:
    """A model's name; at the root of a repository, the repository's."""
    if not found.title and tree.origin:
        return tree.origin.repository.rpartition("/")[2]
    return found.title


def _stats(extras: Mapping[str, Any]) -> Mapping[str, Any]:
    """The counters, which are only shown."""
    stats = extras.get("stats")
    found = {}
    for key, value in stats.items() if isinstance(stats, Mapping) else ():
        with suppress(ValueError):
            plain, left_out = to_plain(value)
            if isinstance(key, str) and not left_out:
                found[key] = plain
    return found


def _symmap(path: Path, extras: Mapping[str, Any]) -> Mapping[str, int] | None:
    try:
        symmap = plain_keys(extras.get("userdata") or {})[0].get("symmap")
    except ValueError as error:
        raise InputError(
            f"{path}: the entry 'userdata' is rejected: {error}; export the checkpoint again."
        ) from error
    if symmap is None:
        return None
    if not isinstance(symmap, Mapping) or any(
        not isinstance(text, str) or not isinstance(token, int) for text, token in symmap.items()
    ):
        raise InputError(
            f"{path}: userdata.symmap does not map phoneme strings to whole numbers; "
            "export the checkpoint again."
        )
    return symmap
