"""Training folders of both back ends give the weights of the state that `latest` names."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch.distributed.checkpoint as dcp
from checkpoint.containers import (
    arrays_of,
    deepspeed_training,
    local_training,
    same_weights,
    torch_state,
    write_config,
)
from make_checkpoint import Shape
from safetensors.numpy import save_file
from support import Cli, describe, error_of
from verify.random_shapes import random_dtype, random_shape

from valle_convert import read_checkpoint

SHAPE = Shape(dim=32, layers=1, levels=2, audio_tokens=10)
Make = Callable[..., Path]
MAKERS: dict[str, Make] = {
    "local, .sft": local_training,
    "local, .pth": lambda folder, shape, dtype="f32": local_training(folder, shape, dtype, ".pth"),
    "DeepSpeed": deepspeed_training,
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Make:
    return MAKERS[request.param]


def test_folder_parent_and_tags_folder_are_one_model(make: Make, tmp_path: Path) -> None:
    folder = make(tmp_path / "training" / "ckpt" / "ar+nar", SHAPE)
    (tag,) = [path for path in folder.iterdir() if path.is_dir()]
    (state,) = [path for path in tag.iterdir() if "optim" not in path.name]
    found = [
        read_checkpoint(path) for path in (folder, folder.parent, folder.parent.parent, tag, state)
    ]
    assert {one.path for one in found} == {state}
    assert {one.title for one in found} == {"ar+nar"}
    assert {one.stats["global_step"] for one in found} == {1000}
    same_weights(folder, SHAPE)


def test_a_folder_is_found_where_the_user_stands(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make(tmp_path / "ar+nar", SHAPE))
    assert read_checkpoint(Path()).title == "ar+nar"


@pytest.mark.parametrize("seed", range(6))
def test_any_shape_and_type_comes_out_as_it_went_in(make: Make, tmp_path: Path, seed: int) -> None:
    shape, dtype = Shape(**random_shape(seed)), random_dtype(seed)
    same_weights(make(tmp_path / "a", shape, dtype), shape, dtype)


@pytest.mark.parametrize("key", ["models", "model"])
@pytest.mark.parametrize("levels_up", range(4))
def test_the_config_lies_beside_or_above(tmp_path: Path, key: str, levels_up: int) -> None:
    folder = local_training(tmp_path / "root" / "ckpt" / "m", SHAPE)
    (folder / "config.yaml").unlink()
    place = [folder / "1000", folder, folder.parent, folder.parent.parent][levels_up]
    write_config(place, SHAPE, key=key)
    checkpoint = read_checkpoint(folder)
    assert checkpoint.companions == (place / "config.yaml",)
    assert describe(checkpoint).model.config.n_embd == 32


def test_of_several_models_in_a_config_the_folders_name_decides(tmp_path: Path) -> None:
    folder = local_training(tmp_path / "model1-llama-8", SHAPE)
    write_config(folder, Shape(dim=64), SHAPE)
    same_weights(folder, SHAPE)


def test_several_models_are_all_named(
    make: Make, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # of long paths, the message names the first only
    for name in ("first", "second"):
        make(Path("ckpt") / name, SHAPE)
    message = error_of(cli("ckpt", "out.gguf"), 2)
    assert "2 models, expected one: first, second;" in message
    assert not Path("out.gguf").exists()


def test_a_lora_beside_is_no_second_model(make: Make, tmp_path: Path) -> None:
    folder = make(tmp_path / "ckpt" / "m", SHAPE)
    (folder.parent / "lora").mkdir()
    save_file({"a.lora_A": np.zeros(2, np.float32)}, folder.parent / "lora" / "lora.sft")
    same_weights(folder.parent, SHAPE)


def test_a_file_of_the_folder_is_no_output(make: Make, tmp_path: Path, cli: Cli) -> None:
    folder = make(tmp_path / "m", SHAPE)
    message = error_of(cli(folder, folder / "latest", "--force"), 2)
    assert "a file of the input" in message
    assert (folder / "latest").read_text().strip() in [path.name for path in folder.iterdir()]


def second_rank(folder: Path) -> None:
    (first,) = folder.rglob("mp_rank_00_model_states.pt")
    shutil.copy(first, first.with_name("mp_rank_01_model_states.pt"))


def empty(folder: Path, shape: Shape) -> Path:
    """A state of ZeRO stage 3, whose weights lie in the files of the optimizer."""
    return deepspeed_training(folder, shape, module=torch_state({"sep": np.zeros(0, "f")}))


def distributed(folder: Path, shape: Shape) -> Path:
    """A sharded state of FSDP."""
    state = {"model": torch_state(arrays_of(shape))}
    dcp.save(state, checkpoint_id=folder / "pytorch_model_fsdp_0")
    return folder


def latest(tag: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "latest").write_text(tag, encoding="latin-1")


TAGS = ["../../etc", "/etc", "..", ".", "1000\n../x", "", "..\\x", "\xff\xfe\0", "1\0", "1" * 300]
REFUSED: list[tuple[Make, Callable[[Path], object], str]] = [
    (local_training, lambda f: (f / "config.yaml").unlink(), "nor a config.yaml beside it"),
    (local_training, lambda f: write_config(f, Shape(dim=64), SHAPE), "2 models (model0, model1)"),
    (local_training, lambda f: (f / "1000/state.pth").touch(), "state.pth, state.sft, expected"),
    (local_training, latest("7"), "names the folder 7, which does not exist; found 1000"),
    *((local_training, latest(tag), "expected the name of a folder beside it") for tag in TAGS),
    (deepspeed_training, second_rank, "split over 2 ranks"),
    (empty, lambda _: None, "ZeRO stage 3"),
    (distributed, lambda _: None, "merge it with `python -m torch.distributed.checkpoint"),
]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(("make", "change", "words"), REFUSED)
def test_a_folder_that_is_wrong_is_told_by_what_is_wrong_with_it(
    make: Make, change: Callable[[Path], object], words: str, tmp_path: Path, cli: Cli
) -> None:
    folder = make(tmp_path / "m", SHAPE)
    change(folder)
    assert words in error_of(cli(folder, tmp_path / "out.gguf"), 2)
    assert not (tmp_path / "out.gguf").exists()
