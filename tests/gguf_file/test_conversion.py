"""What a conversion writes: the contract's keys, every weight, and the same bytes each time."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_bytes import entry, whole
from support import (
    GOLDEN_NAMES,
    GOLDEN_VALLEX,
    GOLDEN_VERSION_7,
    PROJECT,
    Cli,
    Convert,
    error_of,
    golden_checkpoint,
    with_keys,
)

from valle_convert import plan_conversion, write_gguf
from valle_convert.errors import InputError
from valle_convert.families.bundle import open_files
from valle_convert.families.family import Choices
from valle_convert.gguf_file.compare import Comparison, compare_files
from valle_convert.gguf_file.header import Key
from valle_convert.gguf_file.read import GgufFile

#: The keys of every model, whatever its family; of those about its source, what all sources have.
ALWAYS = re.compile(
    r"valle\.(format_version|languages|tokenizer\.true_ids|converter\.version"
    r"|(codec|table|digest)\..+|head\.(names|first_rows|row_counts)|source\.(name|sha256))"
)


def documented_types() -> dict[str, str]:
    """The type of each key in the table of docs/gguf-keys.md."""
    found = {}
    page = (PROJECT / "docs" / "gguf-keys.md").read_text(encoding="utf-8")
    for first_cell, second_cell in re.findall(r"^\| (`valle\..+?) \| (.+?) \|", page, re.MULTILINE):
        first, *others = re.findall(r"`(.+?)`", first_cell)
        names = [first, *(first.rpartition(".")[0] + other for other in others)]
        types = second_cell.split(", ")
        found |= dict(zip(names, types * len(names) if len(types) == 1 else types, strict=True))
    return found


@pytest.mark.parametrize("name", [*GOLDEN_NAMES, GOLDEN_VALLEX, GOLDEN_VERSION_7])
def test_every_key_has_its_documented_type(name: str, converted: Convert) -> None:
    documented, found = documented_types(), {}
    for file in open_files(converted(name, "f32")).files.values():
        found |= {key: kind for key, kind in file.key_types.items() if key.startswith("valle.")}
    assert len(found) > 20
    assert found == {key: documented.get(key) for key in found}
    assert {key for key in documented if ALWAYS.fullmatch(key)} <= found.keys()


def test_an_output_type_is_known_in_capitals_and_another_is_refused_with_the_choices() -> None:
    path = golden_checkpoint("ar-nar-len")
    plans = [plan_conversion(path, Choices(name)) for name in ("F16", "f16")]
    assert plans[0].main.tensors == plans[1].main.tensors
    with pytest.raises(
        InputError, match="no output type 'q4_k'; there are auto, f32, f16, bf16, q8_0"
    ):
        plan_conversion(path, Choices("q4_k"))


def test_a_type_mixed_checkpoint_is_kept_without_loss(
    tmp_path: Path, small_checkpoint: Callable[..., Path]
) -> None:
    import torch

    path = small_checkpoint("a.pth")
    loaded = torch.load(path, weights_only=True)
    module = loaded["module"]
    module["model.layers.0.mlp.up_proj.weight"] = module["model.layers.0.mlp.up_proj.weight"].half()
    module["sep"] = module["sep"].bfloat16()
    torch.save(loaded, path)
    write_gguf(plan_conversion(path), tmp_path / "out.gguf")
    tensors = GgufFile(tmp_path / "out.gguf").tensors
    assert tensors["blk.0.ffn_up.weight"].ggml_type.name == "F16"
    assert tensors["token_embd.weight"].ggml_type.name == "F32"


# Comparing two files


def compared(first: Path, second: Path) -> Comparison:
    return compare_files(open_files(first).files, open_files(second).files)


@pytest.fixture
def golden(converted: Convert) -> Path:
    return converted("ar-nar-len", "f16")


def test_a_changed_key_is_named_with_both_values(golden: Path, tmp_path: Path) -> None:
    name = GgufFile(golden).keys["general.name"]
    keys = [Key("general.name", "another", "string"), Key("extra", 5, "u32")]
    other = with_keys(golden, tmp_path / "other.gguf", *keys, drop=["general.tags"])
    found = compared(golden, other)
    assert {key.name: (key.first, key.second) for key in found.keys} == {
        "general.name": (repr(name), "'another'"),
        "general.tags": ("2 values: ['text-to-speech', 'vall-e']", None),
        "extra": (None, "5"),
    }
    assert not found.tensors


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e-44, 1e-30, 1.0, 3e19, 3e38])
def test_numbers_of_every_size_are_measured(size: float, tmp_path: Path) -> None:
    paths = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    values = [np.array([size, size], np.float32), np.array([size, -size], np.float32)]
    for path, two in zip(paths, values, strict=True):
        path.write_bytes(whole(tensors=[entry("a", [2], 0, 0)], data=two.tobytes()))
    (found,) = compare_files(*({"": GgufFile(path)} for path in paths)).tensors
    assert found.max_error == 2 * float(values[0][0])
    assert found.snr_db == pytest.approx(10 * math.log10(2 / 4), rel=1e-12)


def test_another_number_format_is_told_with_its_noise(cli: Cli, converted: Convert) -> None:
    f32, f16, q8 = (converted("ar-nar-len", kind) for kind in ("f32", "f16", "q8_0"))
    noise = {
        kind: [tensor.snr_db for tensor in compared(f32, path).tensors if tensor.snr_db is not None]
        for kind, path in (("f16", f16), ("q8_0", q8))
    }
    assert min(noise["f16"]) > 60 > max(noise["q8_0"]) > 40
    result = cli("compare", f32, q8, "--json", "--exit-code")
    assert result.code == 1
    value = json.loads(result.out)
    assert value["same"] is False
    assert all(tensor["first"].startswith("F32") for tensor in value["tensors"])
    assert cli("compare", f32, q8).code == 0


def test_tensors_of_other_shapes_are_named(converted: Convert) -> None:
    found = compared(converted("ar-nar-len", "f16"), converted("v6-text-head", "f16"))
    (one,) = [tensor for tensor in found.tensors if tensor.name == "token_embd.weight"]
    assert one.first != one.second
    assert (one.first or "").startswith("F16 [")


def test_sets_are_compared_part_by_part(converted: Convert, tmp_path: Path, cli: Cli) -> None:
    model = converted(GOLDEN_VERSION_7, "f16")
    for path in open_files(model).paths:
        shutil.copy(path, tmp_path)
    run = ("compare", model, tmp_path / model.name, "--exit-code", "--json")
    assert cli(*run).code == 0
    audio = open_files(tmp_path / model.name).files["audio"]
    contents = bytearray(audio.path.read_bytes())
    contents[audio.tensors["a.level.1.ffn_up.weight"].start + 1] ^= 1
    audio.path.write_bytes(contents)
    found = cli(*run)
    assert found.code == 1, found
    (tensor,) = json.loads(found.out)["tensors"]
    assert tensor["name"] == "audio: a.level.1.ffn_up.weight"
    audio.path.unlink()
    assert "-audio.gguf of the set of" in error_of(cli(*run), 2)
