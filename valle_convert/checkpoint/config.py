"""The config of a checkpoint: where it is found, and its plain values.

It comes from inside the file, else from a config.yaml beside the file (above it, for a training
state). The user's keys override both before any of them is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valle_convert.checkpoint.folder import Found, Tree, find_config
from valle_convert.checkpoint.plain_values import load_yaml, to_plain
from valle_convert.errors import InputError
from valle_convert.files import decoded, read_small_file
from valle_convert.wording import listing

_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Config:
    keys: Mapping[str, Any]
    source: str
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def read_config(
    path: Path,
    inside: object,
    plain: Mapping[str, Any],
    given: Config | None,
    tree: Tree,
    found: Found,
    *,
    origin: str = "inside the checkpoint",
) -> Config:
    """The config of the weights in a file; `origin` names the source of `inside`."""
    keys: Mapping[str, Any] = {}
    source = ""
    files: list[Path] = []
    notes: list[str] = []
    if inside is not None:
        try:
            keys, left_out = plain_keys(inside)
        except ValueError as error:
            if given is None:
                raise InputError(
                    f"{path}: the entry 'config' is rejected: {error}; give the config with "
                    "--config, or export the checkpoint again."
                ) from error
            left_out = [f"all of it ({error})"]
        source = origin
        notes += _said(left_out, "the config inside the checkpoint")
    elif (place := find_config(tree, found)) is not None:
        beside = load_config(tree.get(place), found)
        keys = beside.keys
        where = "beside" if place.parent == found.weights.parent else "above"
        source = f"{place.name} {where} the checkpoint"
        files += beside.files
        notes += beside.notes
    if inside is None and plain:
        keys = overlay(plain, keys)
        source = source or origin
    if given is not None:
        keys = overlay(keys, given.keys)
        files += given.files
        source = f"{source}, overridden by {given.source}" if source else given.source
        notes += given.notes
    return Config(keys, source or "none", tuple(files), tuple(notes))


def _said(left_out: list[str], where: str) -> list[str]:
    if not left_out:
        return []
    return [f"keys of {where} without a plain value are passed over: {listing(left_out)}"]


def plain_keys(value: object) -> tuple[dict[str, Any], list[str]]:
    """A dict, or an object that holds one, as plain values; and what was left out of it."""
    plain, left_out = to_plain(value)
    if not isinstance(plain, dict):
        raise ValueError(  # noqa: TRY004 - as for every other bad value
            f"it is a {type(plain).__name__}, expected a dict"
        )
    return plain, left_out


def load_config(path: Path, found: Found) -> Config:
    """A config file, YAML or JSON. It may be a pipe, which can only be read once."""
    try:
        # JSON is YAML, so one parser reads both.
        loaded = load_yaml(decoded(read_small_file(path, "config", _MAX_BYTES, pipe=True)))
    except ValueError as error:  # includes encoding errors
        reason = " ".join(str(error).split())
        raise InputError(
            f"The config {path} is neither YAML nor JSON: {reason:.120}; "
            "give the config.yaml that the model was trained with."
        ) from error
    # The training project's own config.yaml has its models under a key, among other settings.
    models = loaded.get("models") or loaded.get("model") if isinstance(loaded, dict) else None
    if isinstance(models, list) and models:
        loaded = _model_of(models, path, found)
    elif isinstance(models, dict):
        loaded = models
    if not isinstance(loaded, dict):
        held = "nothing" if loaded is None else f"{loaded!r:.40}"
        raise InputError(
            f"The config {path} holds {held}, expected keys and values, for example `version: 5`."
        )
    try:
        keys, left_out = plain_keys(loaded)
    except ValueError as error:
        raise InputError(f"The config {path} is rejected: {error}; correct it.") from error
    return Config(keys, path.name, (path,), tuple(_said(left_out, path.name)))


def _model_of(models: list[Any], path: Path, found: Found) -> object:
    """The model in a config's list that the weights belong to, by the name of their folder.

    A folder's name is the model's name and a suffix of the training project: `ar+nar-llama-8`.
    """
    if len(models) == 1:
        return models[0]
    names = [str(model.get("name")) if isinstance(model, dict) else "" for model in models]
    fitting = [name for name in names if f"{found.title}-".startswith(f"{name}-")]
    longest = max(fitting, key=len, default=None)
    if longest is None or names.count(longest) > 1:
        raise InputError(
            f"The config {path} describes {len(models)} models ({', '.join(names)}), expected one "
            f"that matches {found.title}; give a file with one model with --config."
        )
    return models[names.index(longest)]


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` overridden by every key of `above`; dicts are merged key by key."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = overlay(old, value) if both else value  # type: ignore[arg-type]
    return merged
