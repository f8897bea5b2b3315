"""What other trainers, wrappers and people write: the same model, and what was done is said."""

import argparse
import datetime as dt
import json
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from checkpoint.containers import (
    arrays_of,
    torch_state,
    write_config,
    write_shards,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_checkpoint import Shape, config_of, userdata
from safetensors.numpy import save_file
from support import Cli, describe, error_of

from valle_convert import read_checkpoint
from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.plain_values import load_yaml
from valle_convert.errors import InputError
from valle_convert.gguf_file.read import GgufFile

SHAPE = Shape(dim=32, layers=1, levels=2, audio_tokens=10)
WEIGHTS = arrays_of(SHAPE)
MANY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
State = dict[str, torch.Tensor]


def state() -> State:
    return torch_state(WEIGHTS)


def read(path: Path, **options: Any) -> Checkpoint:
    """A checkpoint that has to have the weights of `SHAPE`, and a config that fits."""
    checkpoint = read_checkpoint(path, **options)
    describe(checkpoint)
    assert set(checkpoint.tensors.specs) == set(WEIGHTS)
    for name, values in WEIGHTS.items():
        np.testing.assert_array_equal(checkpoint.tensors.read(name), values)
    return checkpoint


def metadata(config: dict[str, Any] | None = None) -> dict[str, str]:
    return {"config": json.dumps(config or config_of(SHAPE)), "userdata": json.dumps(userdata())}


def save(path: Path, value: object, **options: Any) -> Path:
    """A file of torch.save with a config.yaml beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_config(path.parent, SHAPE)
    torch.save(value, path, **options)
    return path


# ---------------------------------------------------------------------------------- names

WRAPPERS = [
    "_orig_mod",
    "module",
    "_forward_module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "base_model.model",
]


@MANY
@given(data=st.data(), kind=st.sampled_from([".sft", ".pth", "shards"]))
def test_wrappers_come_off_at_any_level(tmp_path: Path, data: st.DataObject, kind: str) -> None:
    front = data.draw(st.lists(st.sampled_from(WRAPPERS), max_size=3))
    depth, wrapper = data.draw(st.integers(0, 3)), data.draw(st.sampled_from(WRAPPERS))
    only = data.draw(st.sampled_from(["", "model.", "resps_emb."]))

    def wrapped(name: str) -> str:
        parts = name.split(".")
        if name.startswith(only):
            parts.insert(min(depth, len(parts) - 1), wrapper)
        return ".".join([*front, *parts])

    names = {wrapped(name): values for name, values in WEIGHTS.items()}
    shutil.rmtree(tmp_path / "m", ignore_errors=True)
    (tmp_path / "m").mkdir()
    if kind == ".sft":
        path = tmp_path / "m" / "m.sft"
        save_file(names, path, metadata())
    elif kind == ".pth":
        path = save(tmp_path / "m" / "m.pth", {"module": OrderedDict(torch_state(names))})
    else:
        path = shards(tmp_path / "m", names, ".safetensors")
    checkpoint = read(path)
    assert any("without what wraps them" in note for note in checkpoint.notes)
    assert checkpoint.origin["notes"]


def shards(folder: Path, arrays: dict[str, Any], suffix: str) -> Path:
    write_config(folder, SHAPE)
    return write_shards(folder, arrays, metadata={"format": "pt"}, suffix=suffix)


@pytest.mark.parametrize("prefix", ["model.", "net.", "vall_e.lm.", "student._orig_mod."])
def test_what_a_trainer_puts_in_front_of_all_names_comes_off(prefix: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", {"state_dict": {prefix + k: v for k, v in state().items()}})
    assert f"{prefix}sep is sep" in " ".join(read(path).notes)


def test_two_names_that_would_become_one_are_refused(tmp_path: Path) -> None:
    save_file(WEIGHTS | {"module.sep": WEIGHTS["sep"]}, tmp_path / "a.sft", metadata())
    with pytest.raises(InputError, match=r"module\.sep and sep \(sep\)"):
        read_checkpoint(tmp_path / "a.sft")
    two = {
        f"{one}.{name}": values for one in ("first", "second") for name, values in WEIGHTS.items()
    }
    save_file(two, tmp_path / "b.sft", metadata())
    with pytest.raises(InputError, match=r"2 models .* 'first\.', 'second\.'"):
        read_checkpoint(tmp_path / "b.sft")


def test_a_component_is_a_whole_one(tmp_path: Path, cli: Cli) -> None:
    """Whatever only looks like a wrapper is a tensor that nobody expects."""
    arrays = WEIGHTS | {"modules.x": WEIGHTS["sep"], "a_module.y": WEIGHTS["sep"]}
    save_file(arrays, tmp_path / "a.sft", metadata())
    message = error_of(cli("inspect", tmp_path / "a.sft"), 2)
    assert "unexpected: a_module.y [32], modules.x [32]" in message


AVERAGES: dict[str, Callable[[], dict[str, Any]]] = {
    "a dict beside": lambda: {"model": state(), "model_ema": state()},
    "another dict beside": lambda: {"state_dict": state(), "ema_state_dict": state()},
    "names beside": lambda: {"state_dict": beside("ema.", "")},
    "names of ema-pytorch": lambda: (
        beside("ema_model.", "online_model.")
        | {"initted": torch.tensor(True), "step": torch.tensor([7])}
    ),
}


def beside(averaged: str, plain: str) -> State:
    own = {plain + name: values for name, values in state().items()}
    return own | {averaged + name: values * 2 for name, values in state().items()}


@pytest.mark.parametrize("kind", AVERAGES)
def test_averages_beside_the_weights_are_left_out_and_said(kind: str, tmp_path: Path) -> None:
    checkpoint = read(save(tmp_path / "a.pt", AVERAGES[kind]()))
    assert any("averaged (EMA) weights beside the weights" in note for note in checkpoint.notes)


def test_averages_in_a_file_beside_are_left_out_and_said(tmp_path: Path) -> None:
    save(tmp_path / "m" / "model_ema.pt", state())
    save(tmp_path / "m" / "weights.pt", state())
    checkpoint = read(tmp_path / "m")
    assert checkpoint.path.name == "weights.pt"
    assert "left out: model_ema.pt" in " ".join(checkpoint.notes)


def test_averages_alone_are_the_weights(tmp_path: Path) -> None:
    read(save(tmp_path / "a.pt", {"ema": state(), "epoch": 3}))
    # torch.optim.swa_utils.AveragedModel
    averaged = {f"module.{name}": values for name, values in state().items()}
    read(save(tmp_path / "b.pt", averaged | {"n_averaged": torch.tensor(3)}))


# ----------------------------------------------------------------------------- containers

TRAINERS = {
    "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
    "optimizer_states": [{"state": {}, "param_groups": []}],
    "lr_schedulers": [],
    "scheduler_state_dict": {"base": torch.zeros(2)},
    "rng_state": torch.zeros(5, dtype=torch.uint8),
    "loss": torch.tensor(0.5),
    "epoch": 3,
    "scaler": {"scale": torch.ones(1)},
    "callbacks": {"best": torch.zeros(1)},
    "pytorch-lightning_version": "2.4.0",
}


@MANY
@given(
    keys=st.lists(
        st.sampled_from(["state_dict", "model_state_dict", "model", "net", "module", "generator"]),
        max_size=3,
    ),
    others=st.sets(st.sampled_from(sorted(TRAINERS))),
    suffix=st.sampled_from([".pth", ".pt", ".ckpt", ".bin", ".th", ".pth.tar", "", ".weights"]),
    legacy=st.booleans(),
)
def test_the_weights_are_found_wherever_they_lie(
    tmp_path: Path, keys: list[str], others: set[str], suffix: str, legacy: bool
) -> None:
    value: dict[str, Any] = state()
    for depth, key in enumerate(keys):
        value = {key: value} | ({name: TRAINERS[name] for name in others} if not depth else {})
    path = save(tmp_path / f"a{suffix}", value, _use_new_zipfile_serialization=not legacy)
    read(path)
    path.unlink()


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_of_either_kind(suffix: str, tmp_path: Path) -> None:
    assert "sharded" in read(shards(tmp_path, WEIGHTS, suffix)).container
    read(tmp_path)


def test_a_container_is_told_by_its_content(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.pth", metadata())
    assert read(tmp_path / "a.pth").notes[0].startswith("a.pth is a safetensors file by its")
    save(tmp_path / "a.sft", state())
    assert read(tmp_path / "a.sft").notes[0].startswith("a.sft is a file of torch.save by its")


@pytest.mark.parametrize(
    "others",
    [
        ["optimizer.pt", "scheduler.pt", "rng_state.pth"],
        ["state_of_something.pth", "x.pt"],
        ["training_args.bin", "random_states_0.pth"],
    ],
)
def test_of_several_files_the_one_with_a_model_is_taken(others: list[str], tmp_path: Path) -> None:
    path = save(tmp_path / "m" / "weights.bin", state())
    for name in others:
        torch.save({"x": torch.zeros(2)}, tmp_path / "m" / name)
    assert read(tmp_path / "m").path == path
    message = "holds no model of a known family"
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path / "m" / others[-1])


def test_several_models_in_one_file_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", {"generator": state(), "second": {"inner": state()}})
    with pytest.raises(InputError, match=r"holds 2 models \(generator, second\.inner\)"):
        read_checkpoint(path)
    path = save(tmp_path / "a.pt", {"a": {"x": torch.zeros(1)}, "b": {"y": torch.zeros(1)}})
    with pytest.raises(InputError, match=r"2 dicts of tensors without a known model \(a, b\)"):
        read_checkpoint(path)
    shared = state()
    read(save(tmp_path / "b.pt", {"model": shared, "state_dict": shared}))


def test_an_unpacked_file_is_packed_again(tmp_path: Path) -> None:
    with zipfile.ZipFile(save(tmp_path / "archive.pth", {"module": state()})) as archive:
        archive.extractall(tmp_path / "out")
    (tmp_path / "archive.pth").unlink()
    inner = tmp_path / "out" / "archive"
    write_config(inner, SHAPE)
    for path in (tmp_path / "out", inner, inner / "data.pkl"):
        checkpoint = read(path)
        assert "archive is an unpacked file of torch.save" in checkpoint.notes
        assert len(checkpoint.sha256()) == 64
    (inner / "data" / "3").write_bytes(b"short")
    with pytest.raises(InputError, match=r"is damaged|cannot be read"):
        read(inner)


# ---------------------------------------------------------------------------------- links


@pytest.mark.parametrize("up", range(4))
def test_links_in_a_circle_are_passed_over(up: int, tmp_path: Path) -> None:
    folder = tmp_path / "root" / "ckpt" / "m" / "1000"
    save(folder / "state.pth", {"module": state()})
    (folder.parent / "latest").write_text("1000")
    shutil.move(folder / "config.yaml", tmp_path / "root" / "config.yaml")
    place = [folder, *folder.parents][up]
    (place / "self").symlink_to("self")
    (place / "above").symlink_to("..")
    (place / "here").symlink_to(".")
    (place / "gone").symlink_to("nowhere")
    for path in (folder / "state.pth", folder, folder.parent, folder.parent.parent):
        assert read(path).path == folder / "state.pth"
    config = tmp_path / "c.yaml"
    config.write_text("name: mine")
    assert read(folder, config=config).config["name"] == "mine"


# -------------------------------------------------------------------------------- configs


class Unknown:
    """Something that no reader of a config knows."""


def told(config: object, tmp_path: Path) -> Checkpoint:
    """The config inside a file of torch.save."""
    torch.save({"module": state(), "config": config, "userdata": userdata()}, tmp_path / "a.pth")
    return read(tmp_path / "a.pth")


FORMS: dict[str, Callable[[Any], Any]] = {
    "numpy": lambda n: np.asarray(n)[()],
    "int32": lambda n: np.int32(n) if type(n) is int else n,
    "a 0-d array": np.asarray,
    "a 0-d tensor": torch.tensor,
    "a whole float": lambda n: float(n) if type(n) is int else n,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_value_is_what_it_says(form: str, tmp_path: Path) -> None:
    def formed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: formed(inner) for key, inner in value.items()}
        return FORMS[form](value) if isinstance(value, bool | int | float) else value

    plain = described(told(config_of(SHAPE), tmp_path))
    assert described(told(formed(config_of(SHAPE)), tmp_path)) == plain


def described(checkpoint: Checkpoint) -> tuple[object, object]:
    description = describe(checkpoint)
    return description.model.config, description.assumed


@pytest.mark.parametrize(
    "value",
    [
        PosixPath("training/ckpt/fp32.sft"),
        dt.datetime(2024, 1, 2, tzinfo=dt.UTC),
        argparse.Namespace(x=1),
        np.arange(3),
        np.zeros(5000),
        torch.zeros(70, 70),
        {1, 2},
        1 << 80,
        Unknown(),
        "8e-1",
        None,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("key", ["path", "comment"])
def test_what_nothing_reads_stops_nothing(key: str, value: object, tmp_path: Path) -> None:
    config = config_of(SHAPE) | {key: value}
    config["size"][key] = value
    checkpoint = told(config, tmp_path)
    notes = " ".join((*checkpoint.notes, *describe(checkpoint).notes))
    if key == "comment":
        assert "comment" in notes
    if isinstance(value, Unknown):
        assert "Unknown" in notes


def test_a_switch_that_is_absent_has_the_training_projects_default_and_is_said(
    tmp_path: Path, cli: Cli
) -> None:
    config = config_of(SHAPE)
    config.pop("version")
    experimental = config["experimental"]
    for key in ("unified_position_ids", "noncausal_masks", "audio_embedding_sums"):
        experimental.pop(key)
    save_file(WEIGHTS, tmp_path / "a.sft", metadata(config))
    model = describe(read_checkpoint(tmp_path / "a.sft")).model.config
    assert (model.positions, model.nar_attention, model.sum_prompt) == ("unified", "causal", False)
    out = tmp_path / "a.gguf"
    result = cli(tmp_path / "a.sft", out)
    assert result.code == 0, result.err
    assert "assumed, since the file lacks it: unified_position_ids true" in result.err
    assert "unified_position_ids true" in GgufFile(out).keys["valle.source.assumed"]
    assert "version 5" in GgufFile(out).keys["valle.source.assumed"]
    assert "unified_position_ids true" in cli("inspect", tmp_path / "a.sft").err
    assert cli("verify", tmp_path / "a.sft", out, "--level", "structure").code == 0
    config["experimental"] = None
    save_file(WEIGHTS, tmp_path / "b.sft", metadata(config))
    assert len(describe(read_checkpoint(tmp_path / "b.sft")).assumed) == 4
    config |= {"noncausal_mask": True, "size": {"head": 2, **config["size"]}}
    del config["size"]["heads"]
    save_file(WEIGHTS, tmp_path / "c.sft", metadata(config))
    description = describe(read_checkpoint(tmp_path / "c.sft"))
    assert "heads 16" in description.assumed
    unread = "keys of the config that nothing reads: noncausal_mask, size.head"
    assert unread in description.notes


def test_the_users_config_goes_before_the_check(tmp_path: Path) -> None:
    torch.save({"module": state(), "config": [Unknown()]}, tmp_path / "a.pth")
    given = tmp_path / "c.yaml"
    given.write_text(yaml.safe_dump(config_of(SHAPE)))
    assert "are passed over: all of it" in " ".join(read(tmp_path / "a.pth", config=given).notes)
    wrong = config_of(SHAPE) | {"capabilities": Unknown()}
    torch.save({"module": state(), "config": wrong}, tmp_path / "b.pth")
    read(tmp_path / "b.pth", config=given)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["config.yaml", "config.yml"])
def test_a_config_in_any_encoding_with_a_mark(name: str, encoding: str, tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.sft")
    text = yaml.safe_dump({"models": [config_of(SHAPE)]}).replace("0.8", "8e-1")
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read(tmp_path / "a.sft").config["experimental"]["masking_ratio"] == 0.8


def test_utf_16_without_a_mark_is_named(tmp_path: Path, cli: Cli) -> None:
    save_file(WEIGHTS, tmp_path / "a.sft")
    (tmp_path / "config.yaml").write_bytes("version: 5".encode("utf-16-le"))
    assert "like UTF-16 without a mark" in error_of(cli("inspect", tmp_path / "a.sft"), 2)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_of_yaml_is_a_number_however_it_is_written(value: float) -> None:
    assert load_yaml(f"x: {value!r}") == {"x": value}
    assert load_yaml(f"x: {value:e}") == {"x": float(f"{value:e}")}
    assert load_yaml(f"x: {value:.0e}") == {"x": float(f"{value:.0e}")}


# ----------------------------------------------------------------------------------- LoRAs

TARGET = "model.layers.0.self_attn.q_proj"
DOWN, UP = np.full((4, 32), 0.5, np.float32), np.ones((32, 4), np.float32)


def peft(folder: Path, adapter: str = "", prefix: str = "base_model.model.", **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    pair = {"lora_A": DOWN, "lora_B": UP}
    arrays = {f"{prefix}{TARGET}.{side}{adapter}.weight": one for side, one in pair.items()}
    save_file(arrays, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "fan_in_fan_out": False}
    (folder / "adapter_config.json").write_text(json.dumps(config | more))
    return folder


def merged(path: Path, lora: Path) -> Any:
    return read_checkpoint(path, lora=lora).tensors.read(f"{TARGET}.weight")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_file(WEIGHTS, tmp_path / "base.sft", metadata())
    return tmp_path / "base.sft"


@pytest.mark.parametrize("adapter", ["", ".default", ".mine"])
@pytest.mark.parametrize("prefix", ["base_model.model.", "", "net.", "module.base_model.model."])
def test_a_lora_of_peft_is_taken(adapter: str, prefix: str, base: Path, tmp_path: Path) -> None:
    folder = peft(tmp_path / "peft", adapter, prefix)
    expected = WEIGHTS[f"{TARGET}.weight"] + 8 / 4 * (UP @ DOWN)
    for path in (folder, folder / "adapter_model.safetensors"):
        np.testing.assert_allclose(merged(base, path), expected, atol=1e-6)
    scaled = WEIGHTS[f"{TARGET}.weight"] + 8 / 2 * (UP @ DOWN)
    np.testing.assert_allclose(
        merged(base, peft(folder, adapter, prefix, use_rslora=True)), scaled, atol=1e-6
    )


def test_a_lora_inside_a_model_that_peft_wraps_is_merged(tmp_path: Path) -> None:
    arrays = {}
    for name, values in WEIGHTS.items():
        own = f"{TARGET}.base_layer.weight" if name == f"{TARGET}.weight" else name
        arrays[f"base_model.model.{own}"] = values
    arrays |= {
        f"base_model.model.{TARGET}.lora_A.default.weight": DOWN,
        f"base_model.model.{TARGET}.lora_B.default.weight": UP,
    }
    save_file(arrays, tmp_path / "a.sft", metadata())
    config = tmp_path / "alpha.yaml"
    config.write_text("lora: {alpha: 8}")
    checkpoint = read_checkpoint(tmp_path / "a.sft", config=config)
    describe(checkpoint)
    expected = WEIGHTS[f"{TARGET}.weight"] + 8 / 4 * (UP @ DOWN)
    np.testing.assert_allclose(checkpoint.tensors.read(f"{TARGET}.weight"), expected, atol=1e-6)


@pytest.mark.parametrize(
    "more",
    [
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}},
        {"peft_type": "IA3"},
        {"modules_to_save": ["sep"]},
        {"fan_in_fan_out": True},
        {"lora_bias": True},
        {"use_qalora": True},
        {"trainable_token_indices": [1]},
        {"alora_invocation_tokens": [1]},
        {"init_lora_weights": "pissa"},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_peft_computes_otherwise_is_refused_by_name(
    more: dict[str, Any], base: Path, tmp_path: Path, cli: Cli
) -> None:
    folder = peft(tmp_path / "peft", **more)
    message = error_of(cli(base, tmp_path / "o.gguf", "--lora", folder), 2)
    assert next(iter(more)) in message
    assert "merge_and_unload" in message


# ---------------------------------------------------------------------------------- others


@pytest.mark.parametrize(
    "name", ["model.rotary_emb.inv_freq", "model.layers.0.cos_cached", "metrics.accuracy"]
)
def test_saved_buffers_are_left_out(name: str, tmp_path: Path) -> None:
    buffer = np.zeros((8, 4), np.float32)
    save_file(WEIGHTS | {name: buffer}, tmp_path / "a.sft", metadata())
    dropped = describe(read_checkpoint(tmp_path / "a.sft")).dropped
    assert name in {one.source for one in dropped}
