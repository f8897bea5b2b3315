"""What a conversion writes: the contract's keys, every weight, and the same bytes each time."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support import (
    GOLDEN_NAMES,
    GOLDEN_VALLEX,
    GOLDEN_VERSION_7,
    PROJECT,
    Convert,
    golden_checkpoint,
)

from valle_convert import plan_conversion, write_gguf
from valle_convert.errors import InputError
from valle_convert.families.bundle import open_files
from valle_convert.families.family import Choices
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
