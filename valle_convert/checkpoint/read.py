"""The one way in: a path, and what the user says about it, become a `Checkpoint`.

    path or hf:... -> folder.find_weights -> file or index -> container -> LoRA merged -> Checkpoint

The first bytes of the file tell its container, and its name must not tell another one.
A config comes from inside the file (where the weights lie under `model`, it is the plain values
beside them), or from `config.yaml` beside a file that has none (above it, for the state of a
training); keys given by the user (`--config`) override both, and where each came from is kept.
A checkpoint may have no config at all: its family says whether it needs one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from valle_convert.checkpoint.folder import (
    INDEX_SUFFIX,
    SAFETENSORS_SUFFIXES,
    TORCH_SUFFIXES,
    DiskTree,
    Found,
    Tree,
    find_config,
    find_weights,
    found_file,
    is_deepspeed,
    is_shard,
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
from valle_convert.checkpoint.hub import HubOrigin, HubTree, is_on_hub, parse_location
from valle_convert.checkpoint.lora import (
    LoraFile,
    LoraPairs,
    LoraScale,
    MergedTensors,
    PlainNames,
    adapted_weights,
    has_adapters,
)
from valle_convert.checkpoint.plain_values import check_plain, is_plain, load_yaml
from valle_convert.checkpoint.safetensors_file import SafetensorsFile
from valle_convert.checkpoint.sharded import ShardedTensors
from valle_convert.checkpoint.source import CarriedVocabulary, TensorSource, TensorSpec
from valle_convert.checkpoint.torch_file import TorchTensors, load_torch_file
from valle_convert.errors import InputError, UnsupportedModelError
from valle_convert.files import check_input_file, os_fault, read_small_file, sha256_of
from valle_convert.progress import Progress, silent
from valle_convert.wording import plural

_SUPPORTED = "supported are .sft, .safetensors, .pth and .pt, and folders with one of them"
_MAX_CONFIG_BYTES = 1 << 20
_HASH_CHUNK = 4 << 20
#: The count of batches, where a trainer saves its counters beside the weights.
_BATCHES = "batch_idx_train"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a checkpoint, and what the user said about it, tells.

    Attributes:
        path: the file of the weights, or the index of several.
        container: how the weights are stored, in words.
        tensors: the weights by name, with any LoRA merged.
        config: the training project's description of the model.
        config_source: where `config` came from, in words.
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
        """Every file of weights."""
        return self.shards or (self.path,)

    @property
    def title(self) -> str:
        """What the model is called, if its config does not say."""
        return self.folder_title or self.path.stem

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file that was read."""
        return (self.path, *self.weights, *self.companions)

    def sha256(self, advance: Callable[[int], object] = lambda _n: None) -> str:
        """The SHA-256 of the file of the weights, 64 hexadecimal digits.

        Of several files it is that of what `sha256sum` prints of them, in the order of their names.

        Args:
            advance: gets the size of each chunk that was read.

        Raises:
            InputError: the Hugging Face hub gives another one for a file.
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


@dataclass(frozen=True)
class _Contents:
    """One container, parsed: a checkpoint's or a LoRA's."""

    container: str
    tensors: TensorSource
    extras: Mapping[str, Any]  # config, userdata, stats ...
    lora: TensorSource | None = None
    shards: tuple[Path, ...] = ()


def read_checkpoint(
    path: Path,
    *,
    config: Path | None = None,
    lora: Sequence[LoraFile] = (),
    lora_alpha: float | None = None,
    progress: Progress = silent,
    headers_in: Path | None = None,
) -> Checkpoint:
    """Open a checkpoint without reading its weights.

    Args:
        path: a `.pth`, `.pt`, `.sft` or `.safetensors` file of the VALL-E family, the index of
            several, or a folder that holds one of them: a training's, its parent, a state's; or a
            place on the Hugging Face hub, see `checkpoint.hub`.
        config: YAML or JSON whose keys override the config inside the file.
        lora: files of LoRAs to merge into the weights.
        lora_alpha: the LoRA's alpha, where its file does not say.
        progress: shows downloads.
        headers_in: a folder for stand-ins of safetensors on the hub that hold the header alone, so
            that nothing else of them is downloaded; their weights cannot be read.

    Raises:
        InputError: a file is missing, damaged, dangerous, or not what it says it is; or a folder
            holds several models.
        UnsupportedModelError: the file is whole, but of a kind that is refused by name.
        EnvironmentFault: the hub cannot be reached, or does not let this user in.
    """
    tree, place = _locate(path, progress, headers_in)
    found = find_weights(tree, place) if tree.is_folder(place) else found_file(tree, place)
    file = tree.get(found.weights)
    contents = _read_container(file, tree, found.weights)
    companions: list[Path] = []
    export = _read_export(contents, tree, found, config, companions)
    if export is not None:
        name = f"{FORMAT}, {contents.container}"
        extras = {"config": export.config}
        contents = replace(contents, container=name, tensors=export.tensors, extras=extras)
    model_config, config_source = _find_config(
        file, contents.extras, config, tree, found, companions
    )
    if isinstance(tree, HubTree):
        _beside(tree, found, TOKENIZER_FILE)  # which is looked for beside the weights
    if export is not None:
        config_source = config_source.replace("inside the checkpoint", "assumed")
    tensors, merged = _merge_lora(file, contents, model_config, lora, lora_alpha, progress)
    companions += [one.path for one in lora]
    return Checkpoint(
        path=file,
        container=contents.container,
        tensors=tensors,
        config=model_config,
        config_source=config_source,
        symmap=_symmap(file, contents.extras),
        stats=_stats(contents.extras),
        lora=merged,
        companions=tuple(companions),
        notes=(*_notes_of(tree), *found.notes),
        given=path,
        shards=contents.shards,
        folder_title=_title_of(tree, found),
        assumed=() if export is None else export.assumed,
        lost=() if export is None else LOST,
        words={} if export is None else export.words,
        origin=({} if export is None else {"format": FORMAT})
        | ({"revision": tree.commit} if isinstance(tree, HubTree) else {}),
        hub=tree.origin if isinstance(tree, HubTree) else None,
    )


def _read_export(
    contents: _Contents, tree: Tree, found: Found, config: Path | None, companions: list[Path]
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


# ---------------------------------------------------------------------------- containers


def _read_container(path: Path, tree: Tree, place: PurePath) -> _Contents:
    """Parse a file, and the shards beside it where it is an index.

    Args:
        path: of the file.
        tree: where it was found.
        place: its place there.
    """
    head = _first_bytes(path)
    suffix = path.suffix.lower()
    if head.startswith(b"PK\x03\x04"):
        if suffix in SAFETENSORS_SUFFIXES:  # else it goes by many names: .bin, .ckpt, none
            _check_suffix(path, suffix, TORCH_SUFFIXES, "a file of torch.save")
        return _read_torch(path, is_deepspeed=is_deepspeed(place.name))
    # A safetensors header begins with its length, and its JSON with a brace.
    if len(head) > 8 and head[8:9] == b"{" and not place.name.endswith(INDEX_SUFFIX):
        _check_suffix(path, suffix, SAFETENSORS_SUFFIXES, "a safetensors file")
        _refuse_shard(tree, place)
        file = SafetensorsFile(path)
        return _Contents("safetensors", file, _extras(path, file.metadata))
    if place.name.endswith(INDEX_SUFFIX):
        names = tree.files(place.parent)

        def beside(name: str) -> Path | None:
            return tree.get(place.parent / name) if name in names else None

        shards = ShardedTensors(path, beside)
        extras = _extras(path, shards.metadata)
        return _Contents("safetensors, sharded", shards, extras, shards=shards.paths)
    raise InputError(_explain_unknown(path, head, suffix))


def _first_bytes(path: Path) -> bytes:
    check_input_file(path)
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError as error:
        raise os_fault(f"{path} cannot be read", error) from error


def _refuse_shard(tree: Tree, place: PurePath) -> None:
    if not is_shard(place.name):
        return
    indexes = [name for name in tree.files(place.parent) if name.endswith(INDEX_SUFFIX)]
    if indexes:
        raise InputError(
            f"{tree.name(place)} is one shard of several; give their index, "
            f"{tree.name(place.parent / indexes[0])}."
        )


def _check_suffix(path: Path, suffix: str, expected: tuple[str, ...], what: str) -> None:
    if suffix not in expected:
        raise InputError(
            f"{path} is {what} by its content, but its name ends in {suffix or 'no extension'}; "
            f"rename it to end in {' or '.join(expected)} if that is what it is."
        )


def _explain_unknown(path: Path, head: bytes, suffix: str) -> str:
    if not head:
        return f"{path} is empty (0 bytes); copy or download the checkpoint again."
    if head.startswith(b"GGUF"):
        return (
            f"{path} is a GGUF file already, where a checkpoint is expected; "
            "`valle-convert inspect` shows what is in it."
        )
    if head.startswith(b"version https://git-lfs"):
        return f"{path} is a pointer of Git LFS, not the weights themselves; run `git lfs pull`."
    if head[:1] == b"\x80":
        return (
            f"{path} is a bare pickle (the format of torch.save before torch 1.6), which is not "
            "read; load it with that torch and save it again in the zip format."
        )
    if head[:1] in b"<{" or all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
        return f"{path} is a text file, where a checkpoint is expected; {_SUPPORTED}."
    if suffix in SAFETENSORS_SUFFIXES + TORCH_SUFFIXES:
        return (
            f"{path} does not begin like a {suffix} file and seems damaged; "
            "copy or download it again."
        )
    return f"{path} is of no known checkpoint format; {_SUPPORTED}."


def _extras(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the metadata of safetensors says of the model."""
    extras: dict[str, Any] = {}
    for key in ("config", "userdata", "stats"):
        if key not in metadata:
            continue
        try:
            extras[key] = json.loads(metadata[key])
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: the metadata entry {key!r} is not valid JSON ({error}); "
                "export the checkpoint again."
            ) from error
    return extras


def _read_torch(path: Path, *, is_deepspeed: bool) -> _Contents:
    loaded = load_torch_file(path, plain_only=is_deepspeed)
    if not isinstance(loaded, Mapping):
        raise InputError(
            f"{path} holds a {type(loaded).__name__}, where a dict of tensors, or one with the key "
            "'module', is expected; save the checkpoint with the training project's export."
        )
    if isinstance(loaded.get("model"), Mapping) and "module" not in loaded:
        return _trainer_contents(path, loaded)
    if "module" not in loaded and "lora" not in loaded:
        return _Contents("torch", TorchTensors(path, loaded), {})
    parts: dict[str, TensorSource] = {}
    for key in ("module", "lora"):
        state = {} if loaded.get(key) is None else loaded[key]
        if not isinstance(state, Mapping):
            raise InputError(
                f"{path}: the entry {key!r} is a {type(state).__name__}, where a dict of tensors "
                "is expected; save the checkpoint with the training project's export."
            )
        parts[key] = TorchTensors(path, state)
    extras = {key: loaded[key] for key in ("config", "userdata", "stats") if key in loaded}
    if not is_deepspeed:
        lora = parts["lora"] if parts["lora"].specs else None
        return _Contents("torch", parts["module"], extras, lora)
    if not any(spec.n_elements for spec in parts["module"].specs.values()):
        raise UnsupportedModelError(
            f"{path} is a state of DeepSpeed without the weights, which its optimizer's files hold "
            "(ZeRO stage 3); export it to .sft with the training project first."
        )
    extras.setdefault("stats", {"global_step": loaded.get("global_steps")})
    return _Contents("torch, DeepSpeed", parts["module"], extras)


def _trainer_contents(path: Path, loaded: Mapping[str, Any]) -> _Contents:
    """The weights and the plain parameters; states of the training stay on the disk."""
    plain = {
        key: value
        for key, value in loaded.items()
        if isinstance(key, str) and isinstance(value, str | bool | int | float)
    }
    stats = {"global_step": plain[_BATCHES]} if _BATCHES in plain else {}
    tensors = TorchTensors(path, loaded["model"])
    return _Contents("torch", tensors, {"config": plain, "stats": stats})


# -------------------------------------------------------------------------------- config


def _find_config(
    path: Path,
    extras: Mapping[str, Any],
    given: Path | None,
    tree: Tree,
    found: Found,
    companions: list[Path],
) -> tuple[Mapping[str, Any], str]:
    inside = _mapping(path, extras, "config")
    place = find_config(tree, found) if inside is None else None
    config: Mapping[str, Any]
    if inside is not None:
        config, source = inside, "inside the checkpoint"
    elif place is not None:
        beside = tree.get(place)
        where = "beside" if place.parent == found.weights.parent else "above"
        config, source = load_config(beside, found), f"{place.name} {where} the checkpoint"
        companions.append(beside)
    else:
        config, source = {}, "none" if given is None else ""
    if given is not None:
        config = overlay(config, load_config(given, found))
        companions.append(given)
        source = f"{source}, overridden by {given.name}" if source else given.name
    return config, source


def load_config(path: Path, found: Found) -> Mapping[str, Any]:
    """The keys of a config file, YAML or JSON.

    Args:
        path: of the file.
        found: tells the model where the file lists several.

    Raises:
        InputError: it cannot be read, or holds no keys.
    """
    try:
        # JSON is YAML, so one parser reads both.
        loaded = load_yaml(
            read_small_file(path, "config", _MAX_CONFIG_BYTES, pipe=True).decode("utf-8")
        )
    except ValueError as error:  # of the encoding, too
        reason = " ".join(str(error).split())
        raise InputError(f"The config {path} is neither YAML nor JSON: {reason}.") from error
    # The training project's own config.yaml has its models under a key, and other things beside.
    models = loaded.get("models") or loaded.get("model") if isinstance(loaded, dict) else None
    if isinstance(models, list) and models:
        loaded = _model_of(models, path, found)
    elif isinstance(models, dict):
        loaded = models
    if not isinstance(loaded, dict):
        raise InputError(
            f"The config {path} holds a {type(loaded).__name__}, where keys and values are "
            "expected, for example `version: 5`."
        )
    try:
        check_plain(loaded)
    except ValueError as error:
        raise InputError(f"The config {path} is refused: {error}; correct it.") from error
    return loaded


def _model_of(models: list[Any], path: Path, found: Found) -> object:
    """The one model of a config's list that the weights are of, by the name of their folder.

    A folder is called after its model, and what the training project appends: `ar+nar-llama-8`.
    """
    if len(models) == 1:
        return models[0]
    names = [str(model.get("name")) if isinstance(model, dict) else "" for model in models]
    fitting = [name for name in names if f"{found.title}-".startswith(f"{name}-")]
    longest = max(fitting, key=len, default=None)
    if longest is None or names.count(longest) > 1:
        raise InputError(
            f"The config {path} describes {len(models)} models ({', '.join(names)}), and none, or "
            f"more than one, is called like {found.title}; give a file with the right one with "
            "--config."
        )
    return models[names.index(longest)]


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with every key of `above` in place of its own, dicts merged key by key."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = overlay(old, value) if both else value  # type: ignore[arg-type]
    return merged


# ------------------------------------------------------------------------ the other keys


def _mapping(path: Path, extras: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    value = extras.get(key)
    if value is None:
        return None
    try:
        check_plain(value)
    except ValueError as error:
        raise InputError(
            f"{path}: the entry {key!r} is refused: {error}; export the checkpoint again."
        ) from error
    if not isinstance(value, Mapping):
        raise InputError(
            f"{path}: the entry {key!r} is a {type(value).__name__}, where a dict is expected; "
            "export the checkpoint again."
        )
    return value


def _stats(extras: Mapping[str, Any]) -> Mapping[str, Any]:
    """The counters that can be shown; nothing is computed from them."""
    stats = extras.get("stats")
    if not isinstance(stats, Mapping):
        return {}
    return {str(key): value for key, value in stats.items() if is_plain(value)}


def _symmap(path: Path, extras: Mapping[str, Any]) -> Mapping[str, int] | None:
    symmap = (_mapping(path, extras, "userdata") or {}).get("symmap")
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
    contents: _Contents,
    config: Mapping[str, Any],
    given: Sequence[LoraFile],
    alpha: float | None,
    progress: Progress,
) -> tuple[TensorSource, str | None]:
    """Add adapters: one in the checkpoint's `lora` key or among its own tensors, and given ones."""
    inside = contents.lora
    if inside is None and has_adapters(contents.tensors.specs):
        inside = contents.tensors
    if inside is None and not given:
        if alpha is not None:
            raise InputError(f"--lora-alpha is given, but {path} has no LoRA, and --lora is not.")
        return contents.tensors, None
    base = PlainNames(contents.tensors)
    adapters: list[LoraPairs] = []
    words: list[str] = []
    if inside is not None:
        scale = _lora_scale(config, str(path))
        adapters.append(LoraPairs(inside, scale.with_alpha(alpha), base.specs))
        words.append(_lora_words("inside the checkpoint", adapters[-1], 1.0))
    for one in given:
        adapters.append(open_lora(one, base.specs, alpha=alpha, progress=progress))
        words.append(_lora_words(one.path.name, adapters[-1], one.factor))
    return MergedTensors(base, adapters), ", ".join(words)


def open_lora(
    given: LoraFile,
    specs: Mapping[str, TensorSpec],
    *,
    alpha: float | None = None,
    kept_apart: bool = False,
    progress: Progress = silent,
) -> LoraPairs:
    """Open the file of an adapter and check it against the weights of a model.

    Args:
        given: the file, or a checkpoint with an adapter in it.
        specs: the weights.
        alpha: of the adapter, where its file does not say.
        kept_apart: whether it is to be applied by llama.cpp, to the layers only.
        progress: shows what is downloaded.

    Raises:
        InputError: it is no such file, or is an adapter of another model.
        UnsupportedModelError: llama.cpp cannot apply it.
    """
    tree, place = _locate(given.path, progress, None)
    adapter = _read_container(tree.get(place), tree, place)
    # The file of an adapter alone has it under `lora` (torch) or as its only tensors.
    tensors = adapter.lora or adapter.tensors
    scale = _lora_scale(_mapping(given.path, adapter.extras, "config") or {}, str(given.path))
    others = [name for name in adapted_weights(tensors) if not name.startswith("model.layers.")]
    if kept_apart and others:
        raise UnsupportedModelError(
            f"{given.path} changes {', '.join(others[:5])}{' ...' if len(others) > 5 else ''}: "
            "tables and heads are rows of one matrix in a converted file, to which stock llama.cpp "
            "applies no adapter; merge it when you convert (--lora)."
        )
    return LoraPairs(tensors, scale.with_alpha(alpha), specs, given.factor)


def _lora_words(name: str, adapter: LoraPairs, factor: float) -> str:
    scaled = "" if factor == 1.0 else f", scale {factor:g}"
    return f"{name} ({plural(len(adapter.by_target), 'weight')}, alpha {adapter.alpha:g}{scaled})"


def _lora_scale(config: Mapping[str, Any], where: str) -> LoraScale:
    """The adapter's numbers: keys of the config itself, or of a dict `lora` in it."""
    nested = config.get("lora")
    return LoraScale.from_config(nested if isinstance(nested, Mapping) else config, where)
