"""Folders: which file holds the weights, and where its config is.

    ckpt/ar+nar/latest                                   the tag, in the training project's folders
    ckpt/ar+nar/<tag>/state.sft or state.pth             its own back end
    ckpt/ar+nar/<tag>/mp_rank_00_model_states.pt         DeepSpeed
    anything/*.index.json                                shards
    anything/model.safetensors or fp32.sft or one file   everything else
    anything/data.pkl, data/                             an unpacked file of torch.save

A `Tree` lists names and gives files, of the disk or (`hub.py`) of the hub. If several local files
may be the weights, their content decides. Optimizer files are never opened or downloaded.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from valle_convert.checkpoint.names import averages_note, is_averaged
from valle_convert.checkpoint.safetensors_file import SafetensorsHeader
from valle_convert.errors import InputError, UnsupportedModelError, ValleConvertError
from valle_convert.files import os_faults, read_small_file
from valle_convert.wording import listing

SAFETENSORS_SUFFIXES = (".sft", ".safetensors")
TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".th", ".tar")
INDEX_SUFFIX = ".index.json"
#: An entry of a file of torch.save, and of a folder that one was unpacked into.
PICKLE = "data.pkl"
CONFIGS = ("config.yaml", "config.yml")

#: The beginning of a path on the Hugging Face hub.
HUB_PREFIX = "hf:"
LATEST = "latest"
#: A folder of torch.distributed.checkpoint, as FSDP saves sharded states.
_DISTRIBUTED = ".metadata"
_STATES = ("state.sft", "state.pth")
_DEEPSPEED = re.compile(r"mp_rank_(\d+)_model_states\.pt")
#: Files beside weights that are not weights: the optimizer's, and adapters.
_NO_WEIGHTS = re.compile(
    r"(optimizer|scheduler|rng_state|random_states|scaler|training_args|lora|adapter_model"
    r"|(bf16_|fp16_)?zero_pp_rank_).*|.*_optim_states\.pt"
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.(safetensors|bin)$")
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin", "lora.sft", "lora.pth")
_MAX_TAG_BYTES = 4096
# Above the weights: the tag's folder, the model's, `ckpt`, and the one of the whole training.
_CONFIG_DEPTH = 4
_USUAL = (
    *(f"fp32{one}" for one in SAFETENSORS_SUFFIXES + TORCH_SUFFIXES),
    *("model.safetensors", "pytorch_model.bin"),
)


@dataclass(frozen=True)
class HubOrigin:
    """Where on the hub the files of a checkpoint come from."""

    repository: str
    revision: str
    sha256: Mapping[Path, str]  # by local file, if the hub gives one
    n_bytes: Mapping[Path, int]  # the size of each file, by the hub's list


class Tree:
    """Folders and files on the disk; `hub.HubTree` has those of a commit on the hub."""

    notes: tuple[str, ...] = ()  # what the user should know about the source of the files

    @property
    def origin(self) -> HubOrigin | None:
        """Where the files requested so far come from, if not from the disk."""
        return None

    def is_folder(self, path: PurePath) -> bool:
        return os.path.isdir(path)  # noqa: PTH112 - no exception for a closed folder

    def files(self, folder: PurePath) -> list[str]:
        """The names of the files in a folder, sorted."""
        return [name for name, is_folder in _entries(folder) if not is_folder]

    def folders(self, folder: PurePath) -> list[str]:
        """The names of the folders in a folder, sorted."""
        return [name for name, is_folder in _entries(folder) if is_folder]

    def get(self, path: PurePath) -> Path:
        """A file, as a local path."""
        return Path(path)

    def header(self, path: PurePath) -> SafetensorsHeader | None:
        """The header of a safetensors file that `get` does not download, else None."""
        del path
        return None

    def name(self, path: PurePath) -> str:
        """The path in a form that the user can give back."""
        return str(path)


def _entries(folder: PurePath) -> list[tuple[str, bool]]:
    """The names in a folder, and whether each is a folder."""
    found: list[tuple[str, bool]] = []
    with os_faults(f"The folder {folder} cannot be read"), os.scandir(folder) as entries:
        for entry in entries:
            # A circular link, or one to a closed place, is neither file nor folder.
            with suppress(OSError):
                is_folder = entry.is_dir()
                if not is_folder or not _leads_back(entry):
                    found.append((entry.name, is_folder))
    return sorted(found)


def _leads_back(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a link to its own folder, or to one beside it."""
    if not entry.is_symlink():
        return False
    target, folder = Path(entry.path).resolve(), Path(entry.path).parent.resolve()
    return folder.is_relative_to(target) or target.parent == folder


@dataclass(frozen=True)
class Found:
    weights: PurePath  # the file, or the index of several
    title: str  # the model's name, if its config does not have one
    #: Whether they are a training state, whose config is in a folder above.
    is_training: bool = False
    notes: tuple[str, ...] = ()  # what was chosen on the way, in words


def is_on_hub(path: PurePath) -> bool:
    return str(path).startswith(HUB_PREFIX)


def locate(path: Path, *, headers_only: bool = False) -> tuple[Tree, PurePath]:
    """The disk or a commit on the hub that a path leads to, and the place there."""
    if not is_on_hub(path):
        return Tree(), path
    from valle_convert.checkpoint.hub import HubTree, parse_location

    tree = HubTree(parse_location(str(path)), headers_only=headers_only)
    return tree, tree.resolve()


def find_weights(tree: Tree, folder: PurePath, holds_model: Callable[[PurePath], bool]) -> Found:
    found = _look_into(tree, folder, tree.files(folder), holds_model)
    if found is not None:
        return found
    below = dict(_models_below(tree, folder, depth=2))
    models = list(below)
    if len(models) > 1:
        models = [one for one in models if _is_model(tree, one, below[one], holds_model)] or models
    if len(models) == 1:
        found = _look_into(tree, models[0], below[models[0]], holds_model)
    if found is not None:
        return found
    if models:
        raise InputError(
            f"{tree.name(folder)} holds {len(models)} models, expected one: "
            f"{listing(one.relative_to(folder) for one in models)}; give one of these folders."
        )
    if find_adapter(tree, folder) is not None:
        raise InputError(
            f"{tree.name(folder)} holds only a LoRA; give the checkpoint that it was trained on, "
            "and add this one with --lora."
        )
    raise InputError(
        f"{tree.name(folder)} holds no checkpoint; expected a training folder "
        f"(latest, state.sft, mp_rank_00_model_states.pt), *{INDEX_SUFFIX}, or "
        "a file of safetensors or torch.save."
    )


def find_adapter(tree: Tree, folder: PurePath) -> PurePath | None:
    """The file of a LoRA in a folder, by the names of PEFT and the training project."""
    names = tree.files(folder)
    return next((folder / name for name in _ADAPTERS if name in names), None)


def found_file(tree: Tree, path: PurePath) -> Found:
    """The weights in a file that the user named; a training state is recognized by its name."""
    if _DEEPSPEED.fullmatch(path.name):
        _state(tree, path.parent, [one for one in tree.files(path.parent) if one not in _STATES])
    elif path.name not in _STATES:
        is_index = path.name.endswith(INDEX_SUFFIX)
        # transformers gives every file this name; `model.sft` is the user's own choice.
        if path.name in {"model.safetensors", f"model{INDEX_SUFFIX}"}:
            return Found(path, _title(path.parent))
        return Found(path, path.name.removesuffix(INDEX_SUFFIX) if is_index else path.stem)
    return Found(path, _title(path.parent.parent), is_training=True)


def find_config(tree: Tree, found: Found) -> PurePath | None:
    """The config.yaml beside the weights or, for a training, above them.

    The published models have `models/config.<name>.yaml` for `models/ckpt/<name>`.
    """
    folder = found.weights.parent
    for _ in range(_CONFIG_DEPTH if found.is_training else 1):
        names = tree.files(folder) if tree.is_folder(folder) else []
        for name in CONFIGS:
            if name in names:
                return folder / name
        if folder == folder.parent:
            break
        folder = folder.parent
    for folder in found.weights.parents:
        if folder.name == "ckpt" and folder != found.weights.parent:
            title, names = _title(found.weights.parent), tree.files(folder.parent)
            own = (one.replace("config.", f"config.{title}.") for one in CONFIGS)
            return next((folder.parent / name for name in own if name in names), None)
    return None


def is_deepspeed(name: str) -> bool:
    return _DEEPSPEED.fullmatch(name) is not None


def is_shard(name: str) -> bool:
    return _SHARD.search(name) is not None


def is_plain_name(name: object) -> bool:
    """Whether an untrusted name is that of a file, without a path."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 255
        and name not in (".", "..")
        and name.isprintable()
        and not set(name) & set("/\\")
    )


def _look_into(
    tree: Tree, folder: PurePath, names: list[str], holds_model: Callable[[PurePath], bool]
) -> Found | None:
    """The weights among the files of a folder, or None."""
    if LATEST in names:
        return _at_latest(tree, folder)
    state = _state(tree, folder, names)
    if state is not None:
        return Found(folder / state, _title(folder.parent), is_training=True)
    if _DISTRIBUTED in names and any(name.endswith(".distcp") for name in names):
        raise UnsupportedModelError(
            f"{tree.name(folder)} is a sharded state (torch.distributed.checkpoint); merge it with "
            "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER OUT.pt`."
        )
    if PICKLE in names and "data" in tree.folders(folder):
        return Found(folder / PICKLE, folder.name)
    for kind, choices in _choices(names):
        held = choices
        if len(choices) > 1:
            held = [name for name in choices if holds_model(folder / name)] or choices
        plain = [name for name in held if not is_averaged(name)] or held
        if len(plain) == 1:
            others = [name for name in held if name not in plain]
            notes = (averages_note(others),) if others else ()
            return Found(folder / plain[0], _title(folder), notes=notes)
        if choices:
            raise InputError(
                f"{tree.name(folder)} holds {len(plain)} {kind}, expected one: "
                f"{listing(plain)}; give one of these files."
            )
    shards = [name for name in names if is_shard(name)]
    if shards:
        raise InputError(
            f"{tree.name(folder)} holds shards ({shards[0]} ...) but no *{INDEX_SUFFIX}; "
            "copy or download it too."
        )
    return None


def _is_model(
    tree: Tree, folder: PurePath, names: list[str], holds_model: Callable[[PurePath], bool]
) -> bool:
    """Whether a folder holds a model's weights, or several files that may be."""
    try:
        found = _look_into(tree, folder, names, holds_model)
    except ValleConvertError:
        return True
    return found is not None and holds_model(found.weights)


def _at_latest(tree: Tree, folder: PurePath) -> Found:
    """The state that `latest` names."""
    path = folder / LATEST
    raw = read_small_file(tree.get(path), "file", _MAX_TAG_BYTES)
    tag = raw.decode("utf-8", errors="replace").strip()
    if not is_plain_name(tag):
        raise InputError(
            f"{tree.name(path)} holds {tag!r:.80}, expected the name of a folder beside it, "
            "such as 1000; give the folder of the state to convert."
        )
    inner = folder / tag
    if not tree.is_folder(inner):
        there = listing(tree.folders(folder)) or "none"
        raise InputError(
            f"{tree.name(path)} names the folder {tag}, which does not exist; found {there}. "
            "Give the folder of the state to convert."
        )
    state = _state(tree, inner, tree.files(inner))
    if state is None:
        raise InputError(
            f"{tree.name(inner)}, which {LATEST} names, holds none of {', '.join(_STATES)} and "
            "mp_rank_00_model_states.pt; give the folder of another state."
        )
    note = f"{tree.name(path)} names {tag}"
    return Found(inner / state, _title(folder), is_training=True, notes=(note,))


def _state(tree: Tree, folder: PurePath, names: list[str]) -> str | None:
    """The file of the training state in a tag's folder."""
    states = [name for name in names if name in _STATES]
    ranks = [name for name in names if _DEEPSPEED.fullmatch(name)]
    if len(states) + bool(ranks) > 1:
        raise InputError(
            f"{tree.name(folder)} holds {', '.join(states + ranks[:1])}, expected one state; "
            "give the file to convert."
        )
    if len(ranks) > 1:
        raise UnsupportedModelError(
            f"{tree.name(folder)} holds a DeepSpeed model split over {len(ranks)} ranks "
            f"({ranks[0]} to {ranks[-1]}), expected one; export it to .sft with the "
            "training project first."
        )
    return next(iter(states + ranks), None)


def _choices(names: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Kinds of files that hold weights, the surest first; the first kind found must be one file.

    The training project's exports are called fp32, those of transformers model.
    """
    files = [
        name
        for name in names
        if name.lower().endswith(SAFETENSORS_SUFFIXES + TORCH_SUFFIXES)
        and not _NO_WEIGHTS.fullmatch(name)
        and not is_shard(name)
    ]
    indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
    yield "indexes and files of weights", indexes + [name for name in files if name in _USUAL]
    yield "files of weights", files


def _models_below(tree: Tree, folder: PurePath, depth: int) -> Iterator[tuple[PurePath, list[str]]]:
    """The nearest folders inside that hold weights, and the names of their files."""
    for name in tree.folders(folder):
        inner = folder / name
        try:
            names = tree.files(inner)
        except ValleConvertError:
            continue  # no permission
        if _is_model(tree, inner, names, lambda _: True):
            yield inner, names
        elif depth > 1:
            yield from _models_below(tree, inner, depth - 1)


def _title(folder: PurePath) -> str:
    """The name of a model's folder; `ckpt` does not count."""
    path = folder
    if folder.name in ("", "..") and isinstance(folder, Path):
        path = folder.resolve()  # the root of a repository on the hub has no name
    return path.parent.name if path.name == "ckpt" and path.parent.name else path.name
