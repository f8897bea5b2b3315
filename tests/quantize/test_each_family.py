"""What commands do alike for a model of one file and for one of several."""

import json
from pathlib import Path

import pytest
from quantize.conftest import Family
from support import Cli, contents, error_of

from valle_convert import plan_conversion

QUICK = ("--utterances", 1, "--threads", 1)


def test_a_tensor_type_for_nothing_is_told(family: Family, tmp_path: Path, cli: Cli) -> None:
    run = ("quantize", family.source, tmp_path / "o.gguf", "Q8_0")
    patterns = "--tensor-type zzz=Q8_0 --tensor-type ffn_up=Q5_0 --tensor-type norm=Q8_0"
    result = cli(*run, *patterns.split())
    assert result.code == 0, result
    assert "the tensor type zzz=q8_0 matches no tensor" in result.err
    assert "the tensor type norm=q8_0 changes no tensor" in result.err
    assert "ffn_up=q5_0 " not in result.err


def test_another_checkpoint_is_refused(
    family: Family, folder: Path, tmp_path: Path, cli: Cli
) -> None:
    family.another(tmp_path / "other")
    other = ("--checkpoint", tmp_path / "other" / family.checkpoint.name)
    before = contents(folder)
    for run in (
        ("evaluate", folder, *other, *QUICK),
        ("quantize", family.source, tmp_path / "o", "--types", "IQ2_XXS", *other),
        ("scan", family.source, "--types", "Q8_0", *other, *QUICK),
    ):
        assert "another checkpoint" in error_of(cli(*run), 2)
    assert contents(folder) == before
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_the_baseline_is_f16_where_the_source_is_not(
    family: Family, kind: str, tmp_path: Path, cli: Cli
) -> None:
    source, made, report = (tmp_path / name for name in ("s.gguf", "made", "r.json"))
    convert = (family.checkpoint, source, "--outtype", kind, "--verify", "none")
    assert cli(*convert).code == 0
    assert cli("quantize", source, made, "--types", "Q8_0", "--threads", 1).code == 0
    run = ("evaluate", made, "--checkpoint", family.checkpoint, *QUICK, "--report", report)
    assert cli(*run).code == 0
    assert json.loads(report.read_text())["baseline"]["type"] == "F16"


def test_a_conversion_tells_what_it_leaves_out(family: Family, tmp_path: Path, cli: Cli) -> None:
    result = cli(family.checkpoint, tmp_path / "a.gguf", "--verify", "none")
    assert result.code == 0
    dropped = plan_conversion(family.checkpoint).description.dropped
    assert result.err.count("left out: ") == len(dropped)
    assert all(one.source in result.err for one in dropped)
