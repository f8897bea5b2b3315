"""The commands as people type them."""

import json
import math
import os
import re
from pathlib import Path

import pytest
import soundfile
from make_checkpoint import Shape, config_of, tensor_shapes, userdata
from support import (
    GOLDEN_NAMES,
    GOLDEN_VERSION_7,
    Cli,
    Convert,
    error_of,
    golden_checkpoint,
    run_python,
    with_keys,
)

from valle_convert import __version__
from valle_convert.audio import read_codes
from valle_convert.families.vallex.symbols import symbol_ids
from valle_convert.gguf_file.header import Key
from valle_convert.gguf_file.read import GgufFile

HEAVY = ("torch", "tokenizers", "llama_cpp", "transformers")


def modules_after(code: str) -> set[str]:
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    return set(run_python("-c", code, check=True).stdout.splitlines())


def test_help_imports_nothing_heavy() -> None:
    loaded = modules_after("import valle_convert.cli.app")
    assert loaded.isdisjoint({*HEAVY, "numpy", "gguf", "yaml"})


def test_converting_safetensors_imports_no_torch(tmp_path: Path) -> None:
    path = golden_checkpoint("ar-nar-len")
    loaded = modules_after(
        "import sys\nfrom valle_convert.cli import main\n"
        f"sys.argv = ['valle-convert', {str(path)!r}, {str(tmp_path / 'o')!r}, '--verify=none']\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 0"
    )
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_a_dry_run_prints_the_whole_plan_and_writes_nothing(
    name: str, tmp_path: Path, cli: Cli
) -> None:
    path = golden_checkpoint(name)
    shown = cli(path, "--dry-run")
    assert shown.code == 0
    for words in ("token_embd.weight", "prompt.7", "blk.1.ffn_down.weight", "valle.head.names"):
        assert words in shown.out
    plan = json.loads(cli(path, tmp_path / "o.gguf", "--dry-run", "--json").out)
    assert list(tmp_path.iterdir()) == []
    assert cli(path, tmp_path / "o.gguf", "--verify", "none").code == 0
    assert plan["files"]["o.gguf"]["bytes"] == (tmp_path / "o.gguf").stat().st_size


def test_a_dry_run_reads_no_weights(tmp_path: Path, cli: Cli) -> None:
    # A hole of 200 GB where the weights are: reading it would take minutes.
    path, shape = tmp_path / "hole.sft", Shape(dim=8192, layers=60, heads=64)
    metadata = {"config": json.dumps(config_of(shape)), "userdata": json.dumps(userdata())}
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, size in tensor_shapes(shape).items():
        start, end = end, end + 4 * math.prod(size)
        header[name] = {"dtype": "F32", "shape": list(size), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded)
    os.truncate(path, 8 + len(encoded) + end)
    assert end > 150e9
    assert f"{60 * 9 + 2} tensors" in cli(path, "--dry-run").out
    if os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize < end:
        assert "bytes free" in error_of(cli(path, tmp_path / "o.gguf"), 3)
        assert [one.name for one in tmp_path.iterdir()] == ["hole.sft"]


def test_metadata_comes_from_a_file_and_a_name_that_is_given_wins(tmp_path: Path, cli: Cli) -> None:
    metadata = tmp_path / "m.json"
    metadata.write_text('{"name": "file", "general.license": "mit", "tags": ["a", "b"]}')
    out = tmp_path / "o.gguf"
    path = golden_checkpoint("ar-nar-len")
    assert cli(path, out, "--metadata", metadata, "--name", "N").code == 0
    keys = GgufFile(out).keys
    assert keys["general.license"] == "mit"
    assert keys["general.tags"] == ["a", "b"]
    assert keys["general.name"] == "N"


@pytest.mark.parametrize("name", [*GOLDEN_NAMES, GOLDEN_VERSION_7])
def test_inspect_shows_a_checkpoint_and_its_file_alike(
    name: str, converted: Convert, cli: Cli
) -> None:
    one = json.loads(cli("inspect", golden_checkpoint(name), "--json").out)
    other = json.loads(cli("inspect", converted(name, "f32"), "--json").out)
    assert one["sizes"] == other["sizes"]
    assert one["behaviour"] == other["behaviour"]
    assert one["provenance"]["global_step"] == other["provenance"]["valle.source.global_step"]
    rows = [
        [(p["kind"], p["name"], p["first_row"], p["n_rows"]) for p in x["rows"]]
        for x in (one, other)
    ]
    assert rows[0] == rows[1]
    shown = cli("inspect", converted(name, "f16"))
    of_family = ("duration", "level.1") if name == GOLDEN_VERSION_7 else ("response.mask",)
    for words in ("positions", "attention", "F16", "valle.source.sha256", *of_family):
        assert words in shown.out


def test_tokenize_shows_ids_of_both_and_agrees(converted: Convert, cli: Cli) -> None:
    result = cli("tokenize", converted("ar-nar-len", "f32"), "həlˈoʊ wˈɜːld")
    assert result.code == 0
    llama, oracle = re.findall(r"(\[\d.*\])", result.out)
    assert llama == oracle
    assert json.loads(llama)[0] == 1
    assert json.loads(llama)[-1] == 2
    as_json = cli("tokenize", converted("ar-nar-len", "f32"), "a漢", "--no-special", "--json")
    assert json.loads(as_json.out)["llama_cpp"]["ids"] == [16, 0]
    assert "note: the vocabulary lacks 漢 (U+6F22)" in as_json.err
    assert cli("tokenize", converted("ar-nar-len", "f32")).code == 2


def test_tokenize_ends_with_1_where_the_two_differ(
    tmp_path: Path, converted: Convert, cli: Cli
) -> None:
    source, name = converted("ar-nar-len", "f32"), "tokenizer.ggml.tokens"
    tokens = list(GgufFile(source).keys[name])
    a, b = tokens.index("a"), tokens.index("b")
    tokens[a], tokens[b] = "b", "a"
    path = with_keys(source, tmp_path / "swapped.gguf", Key(name, tokens, "[string]"))
    result = cli("tokenize", path, "ab")
    assert result.code == 1
    assert "they differ" in result.err
    lines = tmp_path / "lines.txt"
    lines.write_text("s <mask>\nab\n")
    many = cli("tokenize", path, "--file", lines, "--parse-special")
    assert many.code == 1
    assert re.search(r"2 texts, \d+ tokens, 1 difference\n", many.out)


def test_the_version_is_shown(cli: Cli) -> None:
    assert cli("--version").out.strip() == f"valle-convert {__version__}"


# VALL-E X


def test_tokenize_knows_the_symbols_and_tells_what_is_none(vallex: Path, cli: Cli) -> None:
    result = cli("tokenize", vallex, "ðɛɹ_c.", "--json")
    assert result.code == 0
    found = json.loads(result.out)
    assert found["llama_cpp"]["ids"] == found["bpe"]["ids"] == symbol_ids("ðɛɹ_c.")
    assert "the vocabulary lacks c (U+0063)" in result.err


QUICK = "--temperature 0 --set max_seconds=0.2 --threads 1".split()


def test_text_and_a_voice_file_become_sound_and_codes(
    vallex: Path, codec: Path, voice_file: Path, tmp_path: Path, cli: Cli
) -> None:
    out, codes = tmp_path / "hello.wav", tmp_path / "hello.npz"
    given = ["-o", out, "--save-codes", codes, "--voice", voice_file, "--codec", codec]
    result = cli("speak", vallex, "[EN]Hello.[EN][ZH]你好。[ZH]", *given, "--json", *QUICK)
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert [one["phonemes"] for one in told["sentences"]] == ["hɛˈloʊ.", "ni↓↑xɑʊ↓↑."]
    assert [one["language"] for one in told["sentences"]] == ["en", "zh"]
    assert soundfile.info(out).frames == sum(one["frames"] for one in told["sentences"]) * 320
    assert len(read_codes(codes).codes) == sum(one["frames"] for one in told["sentences"])


def test_a_conversion_tells_what_it_chose_and_checks_itself(tmp_path: Path, cli: Cli) -> None:
    result = cli(golden_checkpoint("ar-nar-len"), tmp_path / "a.gguf")
    assert result.out == ""
    assert "tokenizer: built-in (no tokenizer.json lies beside the checkpoint" in result.err
    assert "PASSED: " in result.err


def test_a_full_verification_can_be_asked_for(tmp_path: Path, cli: Cli) -> None:
    path = golden_checkpoint("ar-nar-len")
    result = cli(path, tmp_path / "a.gguf", "--verify", "full", "--json")
    levels = json.loads(result.out)["verification"]["levels"]
    assert [level["name"] for level in levels] == ["structure", "tensors", "tokenizer", "logits"]
