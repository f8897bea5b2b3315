"""Shards and their index are one checkpoint, or everything that is wrong with them is named."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint.containers import arrays_of, same_weights, sharded
from make_checkpoint import Shape
from safetensors.numpy import save_file
from support import Cli, error_of
from verify.random_shapes import random_dtype, random_shape

from valle_convert import read_checkpoint
from valle_convert.files import sha256_of

SHAPE = Shape(dim=32, layers=1, levels=2, audio_tokens=10)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return sharded(tmp_path / "m", SHAPE)


@pytest.mark.parametrize("seed", range(9))
def test_any_shape_type_and_number_of_shards(tmp_path: Path, seed: int) -> None:
    shape, dtype = Shape(**random_shape(seed)), random_dtype(seed)
    path = sharded(tmp_path, shape, dtype, n_shards=1 + seed)
    for given_path in (path, tmp_path):
        same_weights(given_path, shape, dtype)


def test_the_digest_is_that_of_the_listing_of_sha256sum(index: Path, tmp_path: Path) -> None:
    shards = sorted(index.parent.glob("*.safetensors"))
    listing = tmp_path / "SHA256SUMS"
    listing.write_text("".join(f"{sha256_of(path)}  {path.name}\n" for path in shards))
    checkpoint = read_checkpoint(index)
    assert checkpoint.sha256() == sha256_of(listing)
    assert set(checkpoint.inputs) == {index, *shards}


def changed(**changes: Any) -> Callable[[Path, dict[str, Any]], None]:
    return lambda _, index: index.update(changes)


def entry(name: str, value: Any) -> Callable[[Path, dict[str, Any]], None]:
    return lambda _, index: index["weight_map"].update({name: value})


def remove_shards(folder: Path, index: dict[str, Any]) -> None:
    del index["metadata"]
    (folder / "model-00002-of-00003.safetensors").unlink()


def remove_shard_and_invent_a_tensor(folder: Path, index: dict[str, Any]) -> None:
    remove_shards(folder, index)
    index["weight_map"]["a.weight"] = "model-00001-of-00003.safetensors"


def rename(folder: Path, _: dict[str, Any]) -> None:
    (folder / "model-00002-of-00003.safetensors").rename(folder / SHARD)


def unlist(_: Path, index: dict[str, Any]) -> None:
    del index["weight_map"]["sep"]


def hold_twice(folder: Path, _: dict[str, Any]) -> None:
    rest = {"sep": np.zeros(32, np.float32)}
    for path in folder.glob("*-00003-of-00003.safetensors"):
        arrays = arrays_of(SHAPE)
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        mine = {name: arrays[name] for name in arrays if index[name] == path.name}
        save_file(mine | rest, path)


def contradict(folder: Path, index: dict[str, Any]) -> None:
    path = folder / "model-00001-of-00003.safetensors"
    arrays = arrays_of(SHAPE)
    mine = {n: a for n, a in arrays.items() if index["weight_map"][n] == path.name}
    save_file(mine, path, {"config": "{}"})


def cut(folder: Path, _: dict[str, Any]) -> None:
    path = folder / "model-00001-of-00003.safetensors"
    os.truncate(path, path.stat().st_size - 1)


def make_folder(folder: Path, _: dict[str, Any]) -> None:
    path = folder / "model-00001-of-00003.safetensors"
    path.unlink()
    path.mkdir()


def break_link(folder: Path, _: dict[str, Any]) -> None:
    path = folder / "model-00001-of-00003.safetensors"
    path.unlink()
    path.symlink_to(folder / "gone")


SHARD = "model-00001-of-00003.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path, dict[str, Any]], None], tuple[str, ...]]] = {
    "a missing shard": (
        remove_shards,
        ("missing shards: model-00002-of-00003.safetensors",),
    ),
    "a missing shard and a missing tensor": (
        remove_shard_and_invent_a_tensor,
        ("missing shards: model-00002", f"missing tensors: a.weight (of {SHARD})"),
    ),
    "a shard under the name of another": (
        rename,
        ("missing shards: model-00002", "missing tensors: "),
    ),
    "a tensor in another shard": (
        entry("sep", "model-00002-of-00003.safetensors"),
        ("missing tensors: sep (of model-00002-of-00003.safetensors)",),
    ),
    "a tensor that is not listed": (unlist, (f"does not list: sep (in {SHARD})",)),
    "a tensor in two shards": (hold_twice, ("does not list: sep (in",)),
    "shards that contradict each other": (contradict, ("contradict each other", "'config'")),
    "a shard that was cut off": (cut, ("not a complete safetensors file",)),
    "a folder for a shard": (make_folder, ("missing shards: model-00001",)),
    "a link that leads nowhere": (break_link, ("is a link to", "which does not exist")),
    "a path below": (entry("sep", "a/b.safetensors"), ("names 'a/b.safetensors', expected",)),
    "a path of Windows": (entry("sep", "..\\b.safetensors"), ("expected names of weight files",)),
    "two lines": (entry("sep", "a\nb.safetensors"), ("expected names of weight files",)),
    "a NUL": (entry("sep", "a\0.safetensors"), ("expected names of weight files",)),
    "another file": (entry("sep", "config.json"), ("names 'config.json', expected names of",)),
    "a number": (entry("sep", 3), ("names 3, expected names of weight files",)),
    "no map": (changed(weight_map=None), ("has no weight_map",)),
    "an empty map": (changed(weight_map={}), ("has no weight_map",)),
    "a list for a map": (changed(weight_map=[1]), ("has no weight_map",)),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_what_is_wrong_is_named(case: str, index: Path, tmp_path: Path, cli: Cli) -> None:
    damage, words = DAMAGES[case]
    content = json.loads(index.read_text())
    damage(index.parent, content)
    index.write_text(json.dumps(content))
    for path in (index, index.parent):
        message = error_of(cli(path, tmp_path / "out.gguf"), 2)
        assert all(word in message for word in words), message
        assert len(message.replace(str(index), "")) < 320
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("content", ["", "[", "null", "[1]", "\xff", "[" * 100_000, '{"a": 1}'])
def test_an_index_that_is_none(content: str, index: Path, cli: Cli) -> None:
    index.write_text(content, encoding="latin-1")
    assert "The index" in error_of(cli("inspect", index), 2)


def test_an_index_is_looked_for_and_read_strictly(index: Path, cli: Cli) -> None:
    message = error_of(cli("inspect", index.with_name(SHARD)), 2)
    assert f"is one shard of several; give their index, {index}" in message
    text = index.read_text().replace('"weight_map": {', f'"weight_map": {{"sep": "{SHARD}", ')
    index.write_text(text)
    assert "it has 'sep' twice in one object" in error_of(cli("inspect", index), 2)
    index.unlink()
    assert "but no *.index.json" in error_of(cli("inspect", index.parent), 2)
