"""One checkpoint in every form in which people have them."""

import json
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
import yaml
from make_checkpoint import DTYPES, Shape, config_of, make_checkpoint, tensors, userdata
from safetensors.numpy import save_file
from support import GOLDEN, describe
from verify.old_files import matrices

from valle_convert import read_checkpoint
from valle_convert.checkpoint import Checkpoint

EXPORT = GOLDEN / "hf-export"
Arrays = dict[str, np.ndarray[Any, Any]]


def arrays_of(shape: Shape, dtype: str = "f32") -> Arrays:
    """The tensors that `make_checkpoint` writes."""
    return {name: values.astype(DTYPES[dtype][1]) for name, values in tensors(shape)}


def same_weights(path: Path, shape: Shape, dtype: str = "f32") -> Checkpoint:
    """A checkpoint that has to have the weights of `arrays_of`."""
    checkpoint = read_checkpoint(path)
    describe(checkpoint)
    expected = arrays_of(shape, dtype)
    assert set(checkpoint.tensors.specs) == set(expected)
    for name, values in expected.items():
        found = checkpoint.tensors.read(name)
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found.view(np.uint8), values.view(np.uint8))
    return checkpoint


def torch_state(arrays: Arrays) -> dict[str, torch.Tensor]:
    def tensor(values: np.ndarray[Any, Any]) -> torch.Tensor:
        if values.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(values.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(values.copy())

    return {name: tensor(values) for name, values in arrays.items()}


def lora_file(
    path: Path,
    sizes: Mapping[str, tuple[int, int]],
    *,
    seed: int = 1,
    dtype: Any = np.float32,
    **config: Any,
) -> Path:
    """An adapter of matrices of these sizes, as the training project writes it."""
    config = {"rank": 4, "alpha": 6.0, **config}
    draw, tensors = np.random.default_rng(seed), {}
    for name, (rows, columns) in sizes.items():
        sides = {"A": (config["rank"], columns), "B": (rows, config["rank"])}
        for side, size in sides.items():
            tensors[f"{name}.lora_{side}"] = (0.2 * draw.standard_normal(size)).astype(dtype)
    save_file(tensors, path, {"config": json.dumps(config)})
    return path


def write_config(folder: Path, *shapes: Shape, key: str = "models") -> None:
    """A config.yaml as the training project has them: the models under a key."""
    configs = [config_of(shape) | {"name": f"model{i}"} for i, shape in enumerate(shapes)]
    content = {"dataset": {"workers": 2}, key: configs if key == "models" else configs[0]}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))


def local_training(folder: Path, shape: Shape, dtype: str = "f32", suffix: str = ".sft") -> Path:
    """The folder of the training project's own back end; its state has no config, no symmap."""
    inner = folder / "1000"
    inner.mkdir(parents=True)
    (folder / "latest").write_text("1000")
    arrays, stats = arrays_of(shape, dtype), {"global_step": 1000 + shape.seed}
    if suffix == ".sft":
        save_file(arrays, inner / "state.sft", {"stats": json.dumps(stats)})
    else:
        torch.save({"module": torch_state(arrays), "stats": stats}, inner / "state.pth")
    (inner / "optimizer.pth").write_bytes(b"\x80\x04never opened")
    write_config(folder, shape)
    return folder


def deepspeed_training(folder: Path, shape: Shape, dtype: str = "f32", **more: Any) -> Path:
    """The folder of DeepSpeed: much beside the weights in the state, and the optimizer's files."""
    inner = folder / "global_step1000"
    inner.mkdir(parents=True)
    (folder / "latest").write_text("global_step1000\n")
    arrays = arrays_of(shape, dtype)
    state = {
        "module": OrderedDict(torch_state(arrays)),
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [OrderedDict((k, torch.Size(v.shape)) for k, v in arrays.items())],
        "frozen_param_shapes": None,
        "shared_params": {},
        "lr_scheduler": None,
        "data_sampler": None,
        "sparse_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": 1000 + shape.seed,
        "global_samples": 16_000,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "ds_config": {"train_micro_batch_size_per_gpu": 8, "fp16": {"enabled": True}},
        "ds_version": "0.15.1",
        **more,
    }
    torch.save(state, inner / "mp_rank_00_model_states.pt")
    for name in ("bf16_zero_pp_rank_0", "zero_pp_rank_0"):
        (inner / f"{name}_mp_rank_00_optim_states.pt").write_bytes(b"\x80\x04never opened")
    write_config(folder, shape)
    return folder


def sharded(folder: Path, shape: Shape, dtype: str = "f32", n_shards: int = 3) -> Path:
    """Shards, and the index of them."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"config": json.dumps(config_of(shape)), "userdata": json.dumps(userdata())}
    return write_shards(folder, arrays_of(shape, dtype), n_shards, metadata)


def write_shards(
    folder: Path,
    arrays: Arrays,
    n_shards: int = 2,
    metadata: dict[str, str] | None = None,
    suffix: str = ".safetensors",
) -> Path:
    """The tensors dealt out in turn, and the index of the shards."""
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    files = [f"{stem}-{i + 1:05}-of-{n_shards:05}{suffix}" for i in range(n_shards)]
    places = {name: files[i % n_shards] for i, name in enumerate(arrays)}
    for file in files:
        part = {name: values for name, values in arrays.items() if places[name] == file}
        if suffix == ".safetensors":
            save_file(part, folder / file, metadata)
        else:
            torch.save(torch_state(part), folder / file)
    index = folder / f"{stem}{suffix}.index.json"
    size = sum(values.nbytes for values in arrays.values())
    index.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": places}))
    return index


def plain(path: Path, shape: Shape, dtype: str = "f32") -> Path:
    """The form that everything else is compared with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_checkpoint(path, shape, dtype=dtype)
    return path


def write_export(folder: Path, shape: Shape, dtype: str = "f32", *, named: bool = True) -> Path:
    """An export as the original writes it, of a random checkpoint."""
    folder.mkdir(parents=True)
    own = arrays_of(shape, dtype)
    embedding, heads, names = matrices(own, seed=7)
    bias = np.random.default_rng(7).standard_normal(len(names)).astype(embedding.dtype)
    arrays = {"model.embed_tokens.weight": embedding, "lm_head.weight": heads, "lm_head.bias": bias}
    arrays |= {name: values for name, values in own.items() if name.startswith("model.")}
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    shutil.copy(EXPORT / "config.json", folder / "config.json")
    document = json.loads((EXPORT / "tokenizer.json").read_text())
    vocabulary = {name: id_ for name, id_ in document["model"]["vocab"].items() if id_ < 256}
    if named:
        vocabulary |= {name: id_ for id_, name in enumerate(names) if id_ >= 256}
    document["model"]["vocab"] = vocabulary
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder
