"""What fuzzing found, each as the smallest input that shows it."""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from make_checkpoint import Shape, config_of

from fuzz import formats, seeds
from valle_convert.api import plan_conversion
from valle_convert.checkpoint.plain_values import load_yaml, to_plain
from valle_convert.checkpoint.read import read_checkpoint
from valle_convert.checkpoint.safetensors_file import SafetensorsFile
from valle_convert.encodec.sources import open_encodec
from valle_convert.errors import InputError
from valle_convert.gguf_file.loadable import gemma_dangers
from valle_convert.gguf_file.read import GgufFile
from valle_convert.npz_file import read_npz
from valle_convert.quantize.limits import read_earlier
from valle_convert.quantize.manifest import check_manifest, read_manifest
from valle_convert.tokenizer.choose import open_tokenizer


def test_what_yaml_names_twice_is_taken_twice() -> None:
    assert load_yaml("a: &a [1, 2]\nb: {c: *a, d: *a}") == {
        "a": [1, 2],
        "b": {"c": [1, 2], "d": [1, 2]},
    }


def saved(path: Path, **more: object) -> Path:
    state = {"sep": torch.arange(12.0), "b": torch.arange(8.0)}
    torch.save({"module": state, "config": config_of(Shape()), **more}, path)
    return path


def circle() -> object:
    made: list[object] = []
    made.append(made)
    return made


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (circle(), "contains itself"),
        (10**30, "more than 64 bits"),
        (torch.zeros(2), "a Tensor, expected a plain value"),
        ([[0] * 1000] * 1000, "expands to more"),
    ],
)
def test_a_pickled_config_is_of_plain_values(value: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        to_plain(value)
    config = config_of(Shape()) | {"name": value}
    saved(tmp_path / "x.pth", config=config)
    if words in ("contains itself", "expands to more"):
        with pytest.raises(InputError, match=f"'config' is rejected: .*{words}"):
            read_checkpoint(tmp_path / "x.pth")
        return
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    if isinstance(value, int):
        assert f"name (a whole number of {words}" in checkpoint.notes[0]
    else:
        assert checkpoint.config["name"] == [0, 0]


def test_a_version_that_is_a_long_list_is_cut(tmp_path: Path) -> None:
    config = config_of(Shape()) | {"version": [0] * 300}
    saved(tmp_path / "x.pth", config=config)
    with pytest.raises(InputError, match=r"has version \[0, 0") as refused:
        plan_conversion(tmp_path / "x.pth")
    assert len(str(refused.value).replace(str(tmp_path), "")) < 320


def test_a_counter_that_cannot_be_shown_is_left_out(tmp_path: Path) -> None:
    stats = {"global_step": 3, "losses": torch.ones(10_000)}
    path = saved(tmp_path / "x.pth", stats=stats)
    assert read_checkpoint(path).stats == {"global_step": 3}


def changed(mark: bytes, nth: int, field: int, value: bytes) -> Callable[[list[bytes]], None]:
    """Another field behind the nth mark: in the table, or before an entry."""

    def change(fields: list[bytes]) -> None:
        at = [i for i, one in enumerate(fields) if one == mark][nth] + field
        assert len(fields[at]) == len(value)
        fields[at] = value

    return change


ZIPS = {
    "a folder by its attributes": changed(b"PK\1\2", 0, 15, struct.pack("<I", 0x10)),
    "a place below zero": changed(b"PK\1\2", 0, 16, struct.pack("<I", 0x7FFFFFF0)),
    "no entry there": changed(b"PK\3\4", 1, 0, b"PK\3\5"),
    "other flags": changed(b"PK\3\4", 1, 2, struct.pack("<H", 0)),
    "another method": changed(b"PK\3\4", 1, 3, struct.pack("<H", 8)),
    "a longer name": changed(b"PK\3\4", 1, 9, struct.pack("<H", 60)),
}


@pytest.mark.parametrize("change", ZIPS.values(), ids=ZIPS.keys())
def test_a_zip_says_the_same_of_an_entry_in_both_places(
    change: Callable[[list[bytes]], None], tmp_path: Path
) -> None:
    fields = formats.zip_fields(saved(tmp_path / "right.pth").read_bytes())
    change(fields)
    (tmp_path / "x.pth").write_bytes(b"".join(fields))
    with pytest.raises(InputError, match=r"readers read|is truncated or damaged|is damaged"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("old", "new"),
    [("\0hidden", None), ("\0hidden", "\0other"), ("", "[EMPTY_700]"), ("a\0b", "a")],
)
def test_tokens_that_llama_cpp_cuts_or_names_alike_are_told(old: str, new: str | None) -> None:
    file = GgufFile(Path("x.gguf"), seeds.converted())
    keys = dict(file.keys)
    tokens = list(keys["tokenizer.ggml.tokens"])
    tokens[700] = tokens[0] + old if old.startswith("\0") else old
    if new is not None:
        tokens[701] = tokens[0] + new if new.startswith("\0") else new
    keys["tokenizer.ggml.tokens"] = tokens
    file.keys = keys
    assert any("have the text of another token" in one for one in gemma_dangers(file))


@pytest.mark.parametrize("shape", ["[1e999]", "[NaN]", "[[]]"])
def test_a_manifest_with_a_size_that_is_no_number_is_refused(shape: str, tmp_path: Path) -> None:
    text = seeds.manifest()["manifest.json"].decode()
    tree = json.loads(text)
    tree["files"][0]["tensors"][0]["shape"] = "SHAPE"
    (tmp_path / "manifest.json").write_text(json.dumps(tree).replace('"SHAPE"', shape))
    with pytest.raises(InputError, match="is not a manifest of this program"):
        read_manifest(tmp_path / "manifest.json")


@pytest.mark.parametrize("n", ["1e999", "1" + "0" * 400])
def test_a_report_with_a_number_beyond_all_numbers_is_refused(n: str, tmp_path: Path) -> None:
    names = ("kl_mean", "kl_p99", "kl_max", "nmse", "n_rows")
    numbers = ", ".join(f'"{name}": {n}' for name in names)
    quality = f'{{"all": {{"best_code": 0.5, {numbers}}}}}'
    files = f'[{{"type": "Q8_0", "quality": {quality}}}]'
    (tmp_path / "x.json").write_text(f'{{"sequences": "x", "files": {files}}}')
    with pytest.raises(InputError, match="is not a report of"):
        read_earlier(tmp_path / "x.json")


def test_an_archive_that_says_an_entry_is_larger_than_it_all_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", b"x" * 100)
    fields = formats.zip_fields(buffer.getvalue())
    at = fields.index(b"PK\1\2")
    fields[at + 8] = struct.pack("<I", 0xFFFFFFF0)
    (tmp_path / "x.npz").write_bytes(b"".join(fields))
    with pytest.raises(InputError, match="is no file"):
        read_npz(tmp_path / "x.npz", ["a"], max_bytes=1 << 20, what="file")


def test_a_piece_that_sentencepiece_does_not_find_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(seeds.sentencepiece_model().replace(b"</s>", b"<!s>"))
    with pytest.raises(InputError, match=r"eos_id is 2, which is the piece '<!s>', but Sent"):
        open_tokenizer(tmp_path / "x.model")


def test_other_names_of_the_marks_are_taken_where_the_model_says_so(tmp_path: Path) -> None:
    message = formats.proto_message(seeds.sentencepiece_model())
    renamed = [
        (number, wire, value.replace(b"</s>", b"<!s>") if number == 1 else value)
        for number, wire, value in message
    ]
    (at,) = [i for i, (number, _, _) in enumerate(renamed) if number == 2]
    number, wire, options = renamed[at]
    renamed[at] = (number, wire, options + formats.proto_bytes([(47, 2, b"<!s>")]))
    (tmp_path / "x.model").write_bytes(formats.proto_bytes(renamed))
    opened = open_tokenizer(tmp_path / "x.model")
    for setting in opened.oracle().settings:
        (ids,) = opened.oracle().encode_batch(["ab"], setting)
        assert (ids[-1] == 2) == setting.add_special


def test_a_shard_whose_name_is_too_long_is_missing(tmp_path: Path) -> None:
    for name, data in seeds.codec_folder(shards=True).items():
        (tmp_path / name).write_bytes(data)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-1.", "x" * 300 + "."))
    with pytest.raises(InputError, match=r"names 'x+, expected names of weight files"):
        open_encodec(tmp_path)


def test_a_header_without_metadata_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.sft").write_bytes(formats.safetensors_of(b'{"__metadata__": null}', b""))
    assert not SafetensorsFile(tmp_path / "x.sft").specs


def test_a_manifest_whose_file_has_too_long_a_name_finds_it_missing(tmp_path: Path) -> None:
    for name, data in seeds.manifest().items():
        (tmp_path / name).write_bytes(data)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"m.gguf"', f'"{"x" * 300}"'))
    assert not check_manifest(tmp_path).passed
