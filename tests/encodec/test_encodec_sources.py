"""Every kind of file that holds an EnCodec gives the same codec; what is none is refused."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from checkpoint.containers import write_shards
from checkpoint.small_hub import SmallHub
from encodec_files import GOLDEN_ENCODEC, golden_tensors, with_meta_names, with_old_names
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import EncodecModel

from valle_convert.encodec.sources import open_encodec
from valle_convert.encodec.weights import EncodecWeights
from valle_convert.errors import InputError

GOLDEN_FOLDER = GOLDEN_ENCODEC / "hf"


def assert_is_golden(codec: EncodecWeights) -> None:
    expected = open_encodec(GOLDEN_FOLDER)
    assert codec.spec == expected.spec
    for entry in expected.tensors:
        np.testing.assert_array_equal(codec.read(entry.name), expected.read(entry.name))


def test_the_weights_are_those_that_transformers_computes_with() -> None:
    model = EncodecModel.from_pretrained(GOLDEN_FOLDER)
    codec = open_encodec(GOLDEN_FOLDER)
    # Parametrized layers compute their weight when it is asked for.
    for entry in codec.tensors:
        value: Any = model
        for part in entry.transformers_name.split("."):
            value = value[int(part)] if part.isdigit() else getattr(value, part)
        assert tuple(value.shape) == entry.shape
        np.testing.assert_array_equal(codec.read(entry.name), value.detach().numpy())


def in_a_pickle(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def in_metas_file(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    torch.save(tensors, folder / "encodec_24khz-d7cc33bc.th")
    return folder / "encodec_24khz-d7cc33bc.th"


def whole(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def in_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    (folder / "model.safetensors").unlink()
    write_shards(folder, {name: tensor.numpy() for name, tensor in tensors.items()}, 3)
    return folder


@pytest.mark.parametrize(
    ("save", "rename"),
    [
        (whole, with_old_names),
        (in_shards, dict),
        (in_shards, with_old_names),
        (in_a_pickle, with_old_names),
        (in_metas_file, with_meta_names),
    ],
)
def test_every_kind_of_file_and_both_namings_are_read(
    folder: Path, save: Callable[..., Path], rename: Callable[..., dict[str, torch.Tensor]]
) -> None:
    codec = open_encodec(save(folder, rename(golden_tensors())))
    assert_is_golden(codec)
    assert ("rate, padding" in "".join(codec.notes)) == (save is in_metas_file)


@pytest.mark.parametrize("name", ["encodec.th", "pytorch_model.bin"])
def test_bare_pickles_of_older_torch_are_read(folder: Path, name: str) -> None:
    rename = with_meta_names if name.endswith(".th") else with_old_names
    (folder / "model.safetensors").unlink()
    tensors = rename(golden_tensors())
    torch.save(tensors, folder / name, _use_new_zipfile_serialization=False)
    assert (folder / name).read_bytes()[:1] == b"\x80"
    assert_is_golden(open_encodec(folder / name if name.endswith(".th") else folder))
    (folder / name).write_bytes((folder / name).read_bytes()[:5_000])
    with pytest.raises(InputError, match="download it again"):
        open_encodec(folder / name if name.endswith(".th") else folder)


def test_a_model_in_the_hubs_cache_is_opened_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "models--facebook--encodec_24khz"
    snapshot = cached / "snapshots" / ("a" * 40)
    shutil.copytree(GOLDEN_FOLDER, snapshot)
    (snapshot / "README.md").write_text("---\ntags:\n- audio\nlicense: mit\n---\n# EnCodec\n")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    codec = open_encodec("facebook/encodec_24khz")
    assert_is_golden(codec)
    assert codec.license == "mit"
    assert codec.url == "https://huggingface.co/facebook/encodec_24khz"


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_model_on_the_hub_is_of_one_commit_and_then_in_the_cache(
    folder: Path, empty_hub: SmallHub, weights: str
) -> None:
    torch.save(golden_tensors(), folder / "pytorch_model.bin")
    files = {name: (folder / name).read_bytes() for name in ("config.json", weights)}
    commit = empty_hub.add("someone/codec", files | {"other.msgpack": b"no"})
    assert_is_golden(open_encodec("someone/codec"))
    asked = {one.path.split("?")[0] for one in empty_hub.requests if "/resolve/" in one.path}
    assert {path.rpartition("/")[2] for path in asked} == set(files)
    assert sum(commit in path for path in asked) >= len(files) - 1
    before = len(empty_hub.requests)
    assert_is_golden(open_encodec("hf:someone/codec"))
    assert len(empty_hub.requests) == before
    empty_hub.add("someone/other", {"README.md": b"nothing"})
    with pytest.raises(InputError, match=r"has no file or folder config\.json"):
        open_encodec("someone/other")


@pytest.mark.parametrize("source", ["./none", "/none/there", "a/b/c", "none", "none/codec.gguf"])
def test_what_is_not_there_is_no_name_on_the_hub(source: str) -> None:
    with pytest.raises(InputError, match="There is no codec"):
        open_encodec(source)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"encodec"', "[" * 100_000])
def test_a_config_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        open_encodec(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": "16"}, "hidden_size is '16': Expected `int`, got `str`"),
        ({"num_filters": -2, "kernel_size": True}, r"num_filters is -2.*kernel_size is True"),
        ({"num_filters": 10**12}, "num_filters is 1000000000000"),
        ({"upsampling_ratios": [8, 0]}, "upsampling_ratios"),
        ({"upsampling_ratios": 8}, "upsampling_ratios is 8: Expected `array`"),
        ({"target_bandwidths": []}, "target_bandwidths"),
        ({"target_bandwidths": ["6"]}, "target_bandwidths"),
        ({"normalize": 1}, "normalize is 1: Expected `bool`"),
        ({"pad_mode": 3}, "pad_mode is 3"),
        ({"hidden_size": "\udfff"}, "hidden_size is"),
        ({"num_lstm_layers": 10**6}, "num_lstm_layers"),
        ({"codebook_size": 1}, "codebook_size is 1: Expected `int` >= 2"),
        ({"codebook_size": "x" * 999, "pad_mode": "x" * 999}, r"size is 'x{39}: "),
        ({"model_type": "bert"}, r"model_type 'bert', expected encodec.*\.npz"),
        ({"model_type": None}, "type None"),
        ({"codebook_dim": 8}, "codebook_dim is 8"),
        ({"use_causal_conv": False}, "use_causal_conv is false"),
        ({"trim_right_ratio": 0.5}, r"trim_right_ratio is 0\.5"),
        ({"normalize": True}, "normalize is true"),
        ({"chunk_length_s": 1.0}, r"chunk_length_s is 1\.0"),
        ({"pad_mode": "circular"}, 'pad_mode is "circular"'),
    ],
    ids=str,
)
def test_a_config_of_what_is_not_computed_is_refused(
    configured: Callable[..., Path], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        open_encodec(configured(**changes))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_tensors_under_metas_names_open_or_are_refused(
    tmp_path: Path, data: st.DataObject
) -> None:
    tensors = with_meta_names(golden_tensors())
    for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), min_size=1, max_size=3)):
        shape = data.draw(st.one_of(st.none(), st.lists(st.integers(0, 9), max_size=4)))
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = torch.zeros(shape)
    torch.save(tensors, tmp_path / "any.th")
    with suppress(InputError):
        open_encodec(tmp_path / "any.th")


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("decoder.layers.15.conv.bias", None, "missing: decoder.layers.15.conv.bias"),
        ("quantizer.layers.7.codebook.embed", None, "missing: quantizer.layers.7.codebook.embed"),
        ("text_encoder.weight", torch.zeros(3), "unknown: 'text_encoder.weight'"),
        ("encoder.layers.0.conv.bias", torch.zeros(3), "is [3], expected ["),
        (
            "decoder.layers.0.conv.bias",
            torch.zeros(32, dtype=torch.int32),
            "is int32, expected float32 or",
        ),
    ],
)
def test_a_wrong_tensor_is_named(
    folder: Path, name: str, tensor: torch.Tensor | None, words: str
) -> None:
    tensors = {**golden_tensors(), name: tensor}
    whole(folder, {key: value for key, value in tensors.items() if value is not None})
    with pytest.raises(InputError) as refusal:
        open_encodec(folder)
    assert words in str(refusal.value)
    assert name in str(refusal.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "name",
    [
        "quantizer.layers.2.codebook.embed",
        "encoder.layers.3.conv.parametrizations.weight.original1",
    ],
)
def test_values_that_are_no_numbers_are_refused_when_they_are_read(
    folder: Path, name: str, value: float
) -> None:
    tensors = golden_tensors()
    tensors[name].view(-1)[5] = value
    codec = open_encodec(whole(folder, tensors))
    with pytest.raises(InputError, match="are not finite"):
        [codec.read(entry.name) for entry in codec.tensors]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"RIFF1234", "begins with b'RIFF'"),
        (b"lmgg" + bytes(10), "at least 40"),
        (b"lmgg" + bytes(36), "audio_channels is 0"),
    ],
)
def test_a_file_that_is_no_codec_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "codec.bin"
    path.write_bytes(data)
    with pytest.raises(InputError, match=words):
        open_encodec(path)


def test_the_published_48_khz_model_is_refused_by_name(configured: Callable[..., Path]) -> None:
    changes = {"audio_channels": 2, "sampling_rate": 48_000, "norm_type": "time_group_norm"}
    changes |= {"normalize": True, "chunk_length_s": 1.0, "use_causal_conv": False}
    words = r"channels is 2, expected 1, .*, and 3 more\..*--voice CODES\.npz"
    with pytest.raises(InputError, match=words) as refused:
        open_encodec(configured(**changes))
    assert len(str(refused.value).replace(str(configured()), "")) < 200


def test_files_of_other_codecs_are_refused_with_what_is_possible(tmp_path: Path) -> None:
    (tmp_path / "codec.nemo").write_bytes(b"./model_config.yaml" + bytes(600))
    state = {"quantizer.quantizers.0.codebook.weight": torch.zeros(1024, 8)}
    torch.save({"state_dict": state, "metadata": {"kwargs": {}}}, tmp_path / "weights_44khz.pth")
    torch.save(state, tmp_path / "bare.pth")
    for name in ("codec.nemo", "weights_44khz.pth", "bare.pth"):
        with pytest.raises(InputError, match=rf"{name}.*use codes") as refused:
            open_encodec(tmp_path / name)
        assert len(str(refused.value).replace(str(tmp_path), "")) < 200
    norm = {"encoder.model.0.conv.norm.weight": torch.ones(2)}
    torch.save(with_meta_names(golden_tensors()) | norm, tmp_path / "encodec_48khz.th")
    with pytest.raises(InputError, match=r"another model: .*norm"):
        open_encodec(tmp_path / "encodec_48khz.th")
    with pytest.raises(InputError, match=r"pass the folder .*hf with config\.json"):
        open_encodec(GOLDEN_FOLDER / "model.safetensors")


@pytest.mark.parametrize("state", [[1, 2], {}, {"best_state": {}, "xp.cfg": ""}, {"a": 1}])
def test_other_files_of_torch_are_refused(tmp_path: Path, state: object) -> None:
    torch.save(state, tmp_path / "other.th")
    with pytest.raises(InputError, match=r"other\.th"):
        open_encodec(tmp_path / "other.th")
