import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf_bytes import entry, whole
from support import GOLDEN_VERSION_7, Cli, Convert, error_of, with_keys

from valle_convert.families.bundle import open_files
from valle_convert.gguf_file.compare import Comparison, compare_files
from valle_convert.gguf_file.header import Key
from valle_convert.gguf_file.read import GgufFile


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
