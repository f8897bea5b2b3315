"""Version 7 through every command: it does what the others do, or refuses in one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from make_checkpoint import PUBLISHED_SIZES, Shape, make_checkpoint
from support import Cli

from valle_convert import Choices, plan_conversion, write_gguf
from valle_convert.errors import InputError
from valle_convert.families.bundle import open_bundle, open_files
from valle_convert.families.v5.files import read_model
from valle_convert.gguf_file.read import GgufFile
from valle_convert.verify.run import verify

#: Rows that K-quants divide into.
WIDE = Shape(
    version=7, dim=256, heads=4, layers=1, ffn=1, levels=2, capabilities=("nar", "len", "lang")
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("version-7") / "wide.sft"
    make_checkpoint(path, WIDE)
    return path


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Path:
    path = checkpoint.with_name("wide-F16.gguf")
    write_gguf(plan_conversion(checkpoint, Choices("f16")), path)
    return path


def test_a_matrix_is_made_of_both_files_and_used(
    checkpoint: Path, model: Path, tmp_path: Path, cli: Cli
) -> None:
    matrix = tmp_path / "m.gguf"
    made = cli("imatrix", checkpoint, "-o", matrix, "--utterances", 1, "--json")
    assert made.code == 0, made.err
    files = [matrix, tmp_path / "m-audio.gguf"]
    assert json.loads(made.out)["files"] == [str(path) for path in files]
    linear = {
        part: {name for name, one in file.tensors.items() if len(one.shape) == 2}
        for part, file in open_files(model).files.items()
    }
    for path, names in zip(files, linear.values(), strict=True):
        found = {name.removesuffix(".in_sum2") for name in GgufFile(path).tensors}
        # Tables are looked up, and not multiplied; the heads lie in the second file.
        assert found & names >= {name for name in names if "ffn" in name or "attn" in name}
        assert ("token_embd.weight.in_sum2" in GgufFile(path).tensors) == (path == files[1])
    out = tmp_path / "out"
    used = cli("quantize", model, out, "--types", "IQ2_XXS", "--imatrix", matrix)
    assert used.code == 0, used.err


def test_a_scan_chooses_types_for_the_tensors_of_both_files(
    checkpoint: Path, tmp_path: Path, cli: Cli
) -> None:
    listing, out = tmp_path / "chosen.txt", tmp_path / "chosen.gguf"
    result = cli(
        *("scan", checkpoint, listing, "--types", "Q2_K,Q8_0", "--json"),
        *("--target-bits", 5, "--utterances", 1, "--threads", 1),
    )
    assert result.code == 0, result.err
    report = json.loads(result.out)
    scanned = {one["tensor"]: one["kl"] for one in report["scan"]}
    assert min(scanned.values()) > 0
    assert all(name.endswith("weight") for name in scanned)  # others are never made
    assert any("blk.0.ffn_up.weight" in name for name in scanned)
    assert any("a.level.1.ffn_up.weight" in name for name in scanned)
    made = cli("quantize", checkpoint, out, report["chosen"]["type"], "--tensor-types", listing)
    assert made.code == 0, made.err
    judged = cli("evaluate", out, "--checkpoint", checkpoint, "--utterances", 1, "--json")
    (file,) = json.loads(judged.out)["files"]
    assert 4 < file["bits_per_weight"] < 6
    assert file["verified"]["outcome"] == "passed"


def test_inspect_tells_sizes_and_rows_of_both_files(model: Path, cli: Cli) -> None:
    found = json.loads(cli("inspect", model, "--json").out)
    assert found["sizes"].items() >= {"width": 256, "decoders' feed-forward width": 512}.items()
    assert found["behaviour"]["duration"] == "in seconds"
    text = json.dumps(found["rows"])
    assert all(name in text for name in ("phonemes", "response.1", "level.1", "length"))


def test_a_decoder_of_version_5_takes_no_file_of_version_7(model: Path) -> None:
    for path in open_files(model).paths:
        with pytest.raises(InputError, match=r"family 'vall-e-7', expected one of version 5 or 6"):
            read_model(GgufFile(path, allow_part=True))


@pytest.mark.slow
def test_the_larger_published_size_converts_verifies_and_speaks(tmp_path: Path, cli: Cli) -> None:
    """24 layers of 1024, 0.5 billion weights."""
    source, out, codes = tmp_path / "larger.sft", tmp_path / "out.gguf", tmp_path / "codes.npz"
    make_checkpoint(source, PUBLISHED_SIZES["nemo-larger"], dtype="bf16")
    plan = plan_conversion(source, Choices("q8_0"))
    write_gguf(plan, out)
    bundle = open_bundle(out)
    assert (bundle.model.config.n_layer, bundle.model.config.n_embd) == (24, 1024)
    assert bundle.model.codec.name == "nemo-44khz"
    report = verify(plan, bundle, levels=["structure", "tensors", "logits"])
    assert report.passed, report.verdict()
    said = cli("speak", out, "Hi.", "--save-codes", codes, "--set", "max_steps=2,max_seconds=0.5")
    assert said.code == 0, said.err
    with np.load(codes) as saved:
        assert saved["codes"].shape == (round(0.5 * 44_100 / 512), 8)
