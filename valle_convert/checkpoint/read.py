"""The one way in: a path, and what the user says about it, become a `Checkpoint`.

    path or hf:... -> folder.find_weights -> containers.read_container -> LoRA merged -> Checkpoint

What was taken although it is not quite as the training project writes it (names of wrapped modules,
containers of other trainers, values without a meaning) is said in `notes`, and stands in the
converted file.

Plain values beside the weights, such as a trainer's parameters, are a config where there is no
other, and stand under one that lies beside the file. A checkpoint may have none at all: its family
says whether it needs one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from valle_convert.checkpoint.checkpoint import Checkpoint
from valle_convert.checkpoint.config import load_config, plain_keys, read_config
from valle_convert.checkpoint.containers import Container, holds_model, read_container
from valle_convert.checkpoint.folder import (
    DiskTree,
    Found,
    Tree,
    find_adapter,
    find_weights,
    found_file,
)
from valle_convert.checkpoint.hf_export import (
    CONFIG_FILE,
    FORMAT,
    LOST,
    TOKENIZER_FILE,
    Export,
    is_export,
    read_export,
)
from valle_convert.checkpoint.hub import HubTree, is_on_hub, parse_location
from valle_convert.checkpoint.lora import (
    LoraFile,
    LoraPairs,
    LoraScale,
    MergedTensors,
    PlainNames,
    adapted_weights,
    has_adapters,
    lora_words,
)
from valle_convert.checkpoint.names import is_model, is_refused_by_name
from valle_convert.checkpoint.plain_values import is_plain
from valle_convert.checkpoint.source import TensorSource, TensorSpec
from valle_convert.errors import InputError, UnsupportedModelError
from valle_convert.files import read_json_object
from valle_convert.progress import Progress, silent

#: Beside an adapter that PEFT has saved.
_PEFT_CONFIG = "adapter_config.json"
_MAX_JSON_BYTES = 1 << 20


def read_checkpoint(
    path: Path,
    *,
    config: Path | None = None,
    lora: Sequence[LoraFile] = (),
    lora_alpha: float | None = None,
    progress: Progress = silent,
    headers_in: Path | None = None,
) -> Checkpoint:
    """Open a checkpoint without reading its weights."""
    tree, place = _locate(path, progress, headers_in)
    if tree.is_folder(place):
        found = find_weights(tree, place, lambda one: _holds_model(tree, one))
    else:
        found = found_file(tree, place)
    file = tree.get(found.weights)
    contents = read_container(file, tree, found.weights)
    _check_model(contents, tree.name(found.weights))
    inside = contents.extras.get("config")
    companions: list[Path] = []
    export = _read_export(contents, tree, found, config, companions)
    tensors = contents.tensors
    container = contents.container
    if export is not None:
        tensors, inside, container = export.tensors, export.config, f"{FORMAT}, {container}"
    said = read_config(file, inside, contents.plain, config, tree, found)
    companions += said.files
    if isinstance(tree, HubTree):
        _beside(tree, found, TOKENIZER_FILE)  # which is looked for beside the weights
    source = said.source
    if export is not None:
        source = source.replace("inside the checkpoint", "assumed")
    tensors, merged = _merge_lora(
        file, tensors, contents.lora, said.keys, lora, lora_alpha, progress
    )
    companions += [one.path for one in lora]
    lenient = (*contents.notes, *said.notes, *(() if export is None else export.notes))
    return Checkpoint(
        path=file,
        container=container,
        tensors=tensors,
        config=said.keys,
        config_source=source,
        symmap=_symmap(file, contents.extras),
        stats=_stats(contents.extras),
        lora=merged,
        companions=tuple(companions),
        notes=(*_notes_of(tree), *found.notes, *lenient),
        given=path,
        shards=contents.shards,
        folder_title=_title_of(tree, found),
        assumed=() if export is None else export.assumed,
        lost=() if export is None else LOST,
        words={} if export is None else export.words,
        origin=({} if export is None else {"format": FORMAT})
        | ({"revision": tree.commit} if isinstance(tree, HubTree) else {})
        | ({"notes": lenient} if lenient else {}),
        hub=tree.origin if isinstance(tree, HubTree) else None,
    )


def _holds_model(tree: Tree, place: PurePath) -> bool:
    # Of the hub, nothing is downloaded to look into it.
    return not isinstance(tree, DiskTree) or holds_model(tree, place)


def _check_model(contents: Container, where: str) -> None:
    """Refuse what is no model at all, before a config is asked for that could not help."""
    names = list(contents.tensors.specs)
    if is_model(names) or is_refused_by_name(names):
        return
    if contents.lora is not None or has_adapters(names):
        raise InputError(
            f"{where} holds a LoRA alone; give the checkpoint that it was trained on, and this one "
            "with --lora."
        )
    shown = f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
    raise InputError(
        f"{where} holds no model of a family that is known here: its tensors are "
        f"{shown or 'none'}; give the file of the weights."
    )


def _read_export(
    contents: Container, tree: Tree, found: Found, config: Path | None, companions: list[Path]
) -> Export | None:
    """What the container holds, where it is an export of Hugging Face."""
    if not is_export(contents.tensors):
        return None
    files = [_beside(tree, found, name) for name in (CONFIG_FILE, TOKENIZER_FILE)]
    companions += [path for path in files if path is not None]
    return read_export(
        contents.tensors,
        tree.get(found.weights),
        config=files[0],
        tokenizer=files[1],
        given={} if config is None else load_config(config, found),
        title=_title_of(tree, found),
    )


def _beside(tree: Tree, found: Found, name: str) -> Path | None:
    """A file in the folder of the weights, if it is there."""
    folder = found.weights.parent
    return tree.get(folder / name) if name in tree.files(folder) else None


def _title_of(tree: Tree, found: Found) -> str:
    """A model's name; at the root of a repository, the repository's."""
    if not found.title and isinstance(tree, HubTree):
        return tree.origin.repository.rpartition("/")[2]
    return found.title


def _locate(path: Path, progress: Progress, headers_in: Path | None) -> tuple[Tree, PurePath]:
    """Where a path of the user leads: the disk or a commit on the hub, and the place there."""
    if is_on_hub(path):
        tree = HubTree(parse_location(str(path)), progress=progress, headers_in=headers_in)
        return tree, tree.resolve()
    return DiskTree(), path


def _notes_of(tree: Tree) -> tuple[str, ...]:
    if not isinstance(tree, HubTree):
        return ()
    return (f"{tree.name(PurePosixPath('.'))} is at commit {tree.commit}", *tree.notes)


def _stats(extras: Mapping[str, Any]) -> Mapping[str, Any]:
    """The counters that can be shown; nothing is computed from them."""
    stats = extras.get("stats")
    if not isinstance(stats, Mapping):
        return {}
    return {str(key): value for key, value in stats.items() if is_plain(value)}


def _symmap(path: Path, extras: Mapping[str, Any]) -> Mapping[str, int] | None:
    try:
        symmap = plain_keys(extras.get("userdata") or {})[0].get("symmap")
    except ValueError as error:
        raise InputError(
            f"{path}: the entry 'userdata' is refused: {error}; export the checkpoint again."
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


def _merge_lora(
    path: Path,
    tensors: TensorSource,
    beside: TensorSource | None,
    config: Mapping[str, Any],
    given: Sequence[LoraFile],
    alpha: float | None,
    progress: Progress,
) -> tuple[TensorSource, str | None]:
    """Add adapters: one beside the checkpoint's tensors or among them, and given ones."""
    inside = beside if beside is not None and beside.specs else None
    if inside is None and has_adapters(tensors.specs):
        inside = tensors
    if inside is None and not given:
        if alpha is not None:
            raise InputError(f"--lora-alpha is given, but {path} has no LoRA, and --lora is not.")
        return tensors, None
    base = PlainNames(tensors)
    adapters: list[LoraPairs] = []
    words: list[str] = []
    if inside is not None:
        scale = _lora_scale(config, str(path))
        adapters.append(LoraPairs(inside, scale.with_alpha(alpha), base.specs))
        words.append(lora_words("inside the checkpoint", adapters[-1], 1.0))
    for one in given:
        adapters.append(open_lora(one, base.specs, alpha=alpha, progress=progress))
        words.append(lora_words(one.path.name, adapters[-1], one.factor))
    return MergedTensors(base, adapters), ", ".join(words)


def open_lora(
    given: LoraFile,
    specs: Mapping[str, TensorSpec],
    *,
    alpha: float | None = None,
    kept_apart: bool = False,
    progress: Progress = silent,
) -> LoraPairs:
    """Open the file of an adapter and check it against the weights of a model."""
    tree, place = _locate(given.path, progress, None)
    if tree.is_folder(place):
        inner = find_adapter(tree, place)
        if inner is None:
            raise InputError(
                f"{given.path} is a directory without a LoRA in it; give the file itself."
            )
        place = inner
    adapter = read_container(tree.get(place), tree, place)
    # The file of an adapter alone has it under `lora` (torch) or as its only tensors.
    tensors = adapter.lora or adapter.tensors
    strange = [name for name in tensors.specs if "lora_" in name and not has_adapters([name])]
    if strange:
        raise UnsupportedModelError(
            f"{given.path} holds {', '.join(strange[:3])}, and only pairs of lora_A and lora_B of "
            "linear layers are supported; merge it with PEFT, and convert what it saves."
        )
    scale = _lora_scale(_adapter_config(adapter, tree, place), str(given.path))
    others = [name for name in adapted_weights(tensors) if not name.startswith("model.layers.")]
    if kept_apart and others:
        raise UnsupportedModelError(
            f"{given.path} changes {', '.join(others[:5])}{' ...' if len(others) > 5 else ''}: "
            "tables and heads are rows of one matrix in a converted file, to which stock llama.cpp "
            "applies no adapter; merge it when you convert (--lora)."
        )
    return LoraPairs(tensors, scale.with_alpha(alpha), specs, given.factor)


def _adapter_config(adapter: Container, tree: Tree, place: PurePath) -> Mapping[str, Any]:
    """What is said of an adapter, inside its file or beside it."""
    said = adapter.extras.get("config")
    if said is None and _PEFT_CONFIG in tree.files(place.parent):
        said = read_json_object(tree.get(place.parent / _PEFT_CONFIG), "file", _MAX_JSON_BYTES)
    try:
        return plain_keys(said or {})[0]
    except ValueError as error:
        raise InputError(f"{tree.name(place)}: its config is refused: {error}.") from error


def _lora_scale(config: Mapping[str, Any], where: str) -> LoraScale:
    """The adapter's numbers: keys of the config itself, or of a dict `lora` in it."""
    nested = config.get("lora")
    return LoraScale.from_config(nested if isinstance(nested, Mapping) else config, where)
