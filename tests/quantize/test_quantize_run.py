from __future__ import annotations

import hashlib
import html.parser
import json
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from make_checkpoint import Shape, make_checkpoint
from support import Cli, error_of

from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.manifest import check_manifest, read_manifest
from valle_convert.quantize.types import COMMON, FILE_TYPES
from valle_convert.verify.structure import check_structure

QUICK = ("--threads", "1", "--no-measure")
MEASURED = ("--threads", "1", "--utterances", "1")


def schema() -> dict[str, Any]:
    path = resources.files("valle_convert.quantize") / "data" / "report.schema.json"
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def quick(cli: Cli, gguf_256: Path, tmp_path: Path) -> Path:
    """A folder with two files, not measured."""
    folder = tmp_path / "quick"
    assert cli("quantize", gguf_256, folder, "--types", "Q8_0,Q4_0", *QUICK).code == 0
    return folder


# ------------------------------------------------------------------------ files of a folder


def test_the_common_eight_are_made_at_once_and_each_is_what_it_says(
    cli: Cli, gguf_256: Path, checkpoint_256: Path, tmp_path: Path
) -> None:
    from valle_convert import plan_conversion
    from valle_convert.families.bundle import open_bundle
    from valle_convert.gguf_file.read import GgufFile

    result = cli("quantize", gguf_256, tmp_path / "out", "--types", ",".join(COMMON), *QUICK)
    assert result.code == 0, result.err
    plan = plan_conversion(checkpoint_256)
    for name in COMMON:
        file = GgufFile(tmp_path / "out" / f"wide-{name}.gguf")
        assert file.keys["general.file_type"] == FILE_TYPES[name].number
        # llama.cpp loads it, and every key of the conversion is as it was.
        bundle = open_bundle(file.path)
        assert all(check.passed for check in check_structure(plan, bundle, with_llama=True))
    assert check_manifest(tmp_path / "out").passed


def test_two_runs_give_the_same_bytes_manifest_and_sums_too(
    cli: Cli, gguf_256: Path, quick: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    cli("quantize", gguf_256, again, "--types", "Q8_0,Q4_0", *QUICK)
    assert contents(quick) == contents(again)
    names = {"SHA256SUMS", "manifest.json", "wide-Q4_0.gguf", "wide-Q8_0.gguf"}
    assert set(contents(quick)) == names


def test_sha256sum_itself_accepts_the_sums(quick: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "SHA256SUMS"], cwd=quick, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_resume_keeps_what_was_made_in_the_same_way_and_makes_the_rest(
    cli: Cli, gguf_256: Path, quick: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in quick.glob("*.gguf")}
    types = "Q8_0,Q4_0,Q5_0"
    result = cli("quantize", gguf_256, quick, "--types", types, "--resume", "--json", *QUICK)
    assert result.code == 0, result.err
    statuses = {file["type"]: file["status"] for file in json.loads(result.out)["files"]}
    assert statuses == {"Q8_0": "kept", "Q4_0": "kept", "Q5_0": "made"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [file.name for file in read_manifest(quick / "manifest.json")] == [
        *("wide-Q4_0.gguf", "wide-Q5_0.gguf", "wide-Q8_0.gguf"),
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [("bytes", "bytes are not"), ("option", "other options"), ("tool", "by llama-quantize")],
)
def test_resume_with_force_makes_a_file_again_whose_hash_options_or_tool_differ_and_says_why(
    cli: Cli, gguf_256: Path, quick: Path, change: str, reason: str
) -> None:
    options = {
        "option": ["--tensor-type", "ffn_down=q8_0"],
        "tool": ["--llama-quantize", "library"],
    }
    path = quick / "wide-Q4_0.gguf"
    if change == "bytes":
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
    arguments = ["--types", "Q4_0", "--resume", "--json", *QUICK, *options.get(change, [])]
    before = contents(quick)
    assert reason in error_of(cli("quantize", gguf_256, quick, *arguments), 2)
    assert contents(quick) == before
    result = cli("quantize", gguf_256, quick, *arguments, "--force")
    assert json.loads(result.out)["files"][0]["status"] == "made"
    assert "wide-Q4_0.gguf is made again: it" in result.err
    assert reason in result.err
    assert check_manifest(quick).passed


def test_without_resume_or_force_nothing_is_overwritten(
    cli: Cli, gguf_256: Path, quick: Path
) -> None:
    before = contents(quick)
    result = cli("quantize", gguf_256, quick, "--types", "Q5_0,Q4_0", *QUICK)
    assert "--force" in error_of(result, 2)
    assert contents(quick) == before
    assert cli("quantize", gguf_256, quick, "--types", "Q4_0", "--force", *QUICK).code == 0


def test_one_file_is_one_file_and_its_log_is_kept(cli: Cli, gguf_256: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    log = tmp_path / "log.txt"
    result = cli("quantize", gguf_256, folder / "o.gguf", "q6_k", "--log", log, *QUICK)
    assert result.code == 0, result.err
    assert [path.name for path in folder.iterdir()] == ["o.gguf"]
    assert GgufFile(folder / "o.gguf").keys["valle.quantize.type"] == "Q6_K"
    assert "converting to q6_K" in log.read_text()


def test_a_checkpoint_is_converted_first(cli: Cli, checkpoint_256: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = cli("quantize", checkpoint_256, out, "--types", "Q8_0", *QUICK)
    assert result.code == 0, result.err
    assert "converting" in result.err
    header = GgufFile(out / "wide-Q8_0.gguf")
    sha256 = hashlib.sha256(checkpoint_256.read_bytes()).hexdigest()
    assert header.keys["valle.source.sha256"] == sha256
    assert sorted(contents(out)) == ["SHA256SUMS", "manifest.json", "wide-Q8_0.gguf"]


# ----------------------------------------------------------------------------------- plans


def test_a_dry_run_predicts_and_writes_nothing(
    cli: Cli, gguf_256: Path, quick: Path, tmp_path: Path
) -> None:
    arguments = ["--types", "Q8_0,Q4_0", "--dry-run", "--json"]
    result = cli("quantize", gguf_256, tmp_path / "absent", *arguments, "--threads", "1")
    report = json.loads(result.out)
    jsonschema.validate(report, schema())
    assert {file["name"]: file["bytes"] for file in report["files"]} == {
        path.name: path.stat().st_size for path in quick.glob("*.gguf")
    }
    assert not (tmp_path / "absent").exists()


def test_the_size_with_an_importance_matrix_that_is_not_made_yet_is_predicted_too(
    cli: Cli, gguf_256: Path, checkpoint_256: Path, tmp_path: Path
) -> None:
    common = ["--types", "Q2_K_S,Q8_0", "--checkpoint", checkpoint_256, "--imatrix-utterances", 1]
    planned = cli("quantize", gguf_256, tmp_path, *common, "--dry-run", "--json", *QUICK)
    made = cli("quantize", gguf_256, tmp_path / "out", *common, "--json", *QUICK)
    sizes = [
        {file["type"]: file["bytes"] for file in json.loads(one.out)["files"]}
        for one in (planned, made)
    ]
    assert sizes[0] == sizes[1]
    used = {file["type"]: file["imatrix"] for file in json.loads(made.out)["files"]}
    assert used == {"Q2_K_S": "wide-imatrix.gguf", "Q8_0": None}
    assert check_manifest(tmp_path / "out").n_files == 3


def test_a_tensor_that_does_not_fit_is_reported_and_no_fallback_refuses_it(
    cli: Cli, converted: Any, tmp_path: Path
) -> None:
    narrow = converted("ar-nar-len", "f16")
    arguments = ["--types", "Q4_K_M", *QUICK]
    result = cli("quantize", narrow, tmp_path / "a", *arguments, "--json")
    fallbacks = json.loads(result.out)["files"][0]["fallbacks"]
    assert {
        "tensor": "blk.0.attn_k.weight",
        "n_columns": 64,
        "wanted": "Q4_K",
        "given": "Q5_0",
    } in (fallbacks)
    refused = cli("quantize", narrow, tmp_path / "b", *arguments, "--no-fallback")
    assert "--no-fallback" in error_of(refused, 2)
    assert not (tmp_path / "b").exists()


# ------------------------------------------------------------------- quality and its verdict


@pytest.fixture(scope="module")
def measured(gguf_256: Path, checkpoint_256: Path, tmp_path_factory: Any) -> dict[str, Any]:
    """One measured run, and its reports."""
    from valle_convert.checkpoint import read_checkpoint
    from valle_convert.quantize.forms import FORMS
    from valle_convert.quantize.options import Options
    from valle_convert.quantize.run import quantize
    from valle_convert.quantize.types import parse_types

    folder = tmp_path_factory.mktemp("measured")
    report = quantize(
        gguf_256,
        folder,
        Options(
            parse_types("Q8_0,Q4_0,Q2_0"),
            threads=1,
            n_utterances=1,
        ),
        checkpoint=read_checkpoint(checkpoint_256),
    )
    return {"report": report, **{suffix: form(report) for suffix, form in FORMS.items()}}


def test_the_json_report_is_of_its_schema(measured: dict[str, Any]) -> None:
    jsonschema.validate(json.loads(measured[".json"]), schema())


def test_files_are_right_by_their_checkpoint(measured: dict[str, Any]) -> None:
    assert measured["report"].passed
    assert "3 right by their checkpoint" in measured["report"].verdict()
    outcomes = [file.verified and file.verified.outcome for file in measured["report"].files]
    assert outcomes == ["passed"] * 3


def test_fewer_bits_are_further_off_in_every_head(measured: dict[str, Any]) -> None:
    f16, q8, q4 = (
        file.measured.quality
        for file in (measured["report"].baseline, *measured["report"].files[:2])
    )
    assert set(q8) == {"all", "ar", "nar.1", "nar.2", "mask", "len", "stt"}
    for head in q8:
        assert f16[head].kl_mean < q8[head].kl_mean < q4[head].kl_mean
        assert f16[head].nmse < q8[head].nmse < q4[head].nmse
        assert q8[head].kl_mean <= q8[head].kl_p99 <= q8[head].kl_max
    assert f16["all"].nmse < 1e-5


def test_a_type_that_the_gguf_package_does_not_know_is_verified_all_the_same(
    measured: dict[str, Any],
) -> None:
    q2 = measured["report"].files[2]
    assert (q2.kind, q2.status, q2.note) == ("Q2_0", "made", "")
    assert q2.measured is not None
    assert q2.verified is not None


def test_the_markdown_report_has_a_row_a_type_and_a_row_a_head(measured: dict[str, Any]) -> None:
    text = measured[".md"]
    for word in ("| Q8_0 |", "| Q4_0 |", "| nar.2 |", "PyTorch", "no real speech"):
        assert word in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({row.count("|") for row in block.splitlines()}) == 1


class Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "data")]


def test_the_html_report_has_three_plots_and_needs_nothing_else(measured: dict[str, Any]) -> None:
    page = Page()
    page.feed(measured[".html"])
    assert page.tags.count("svg") == 3
    assert not set(page.tags) & {"script", "link", "img", "iframe", "object"}
    assert all(link.startswith("#") for link in page.links)
    for word in ("Q8_0", "nar.1", "milliseconds"):
        assert word in measured[".html"]


def test_names_in_the_html_report_are_escaped(measured: dict[str, Any]) -> None:
    from dataclasses import replace

    from valle_convert.quantize.html import to_html

    evil = replace(measured["report"], source="<script>alert(1)</script>")
    assert "<script" not in to_html(evil)


def test_limits_that_a_file_does_not_keep_are_exit_code_1_and_the_file_stays(
    cli: Cli, gguf_256: Path, checkpoint_256: Path, tmp_path: Path
) -> None:
    report = tmp_path / "r.json"
    arguments = ["Q4_0", "--checkpoint", checkpoint_256, "--max-kl", "1e-9", "--report", report]
    result = cli("quantize", gguf_256, tmp_path / "o.gguf", *arguments, *MEASURED)
    assert result.code == 1
    assert "FAILED" in result.out
    assert "KL mean" in result.out
    assert "NMSE: " not in result.out + result.err  # explained in reports and docs
    assert (tmp_path / "o.gguf").exists()
    said = json.loads(report.read_text())
    assert said["passed"] is False
    assert said["files"][0]["limits"]["max_kl"] == 1e-9


@pytest.mark.parametrize(
    "arguments",
    [
        ["Q8_0", "--max-kl", "1e-9", "--no-measure"],
        ["Q8_0", "--min-agreement", "0.5", "--no-measure"],
    ],
)
def test_a_limit_that_was_given_and_not_measured_is_exit_code_3(
    cli: Cli, gguf_256: Path, tmp_path: Path, arguments: list[str]
) -> None:
    result = cli("quantize", gguf_256, tmp_path / "o.gguf", *arguments, "--threads", 1, "--json")
    report = json.loads(result.out)
    assert (result.code, report["passed"]) == (3, False)
    assert report["verdict"].startswith("NOT MEASURED: ")


def test_limits_by_type_hold_for_their_types_alone(
    cli: Cli, gguf_256: Path, tmp_path: Path
) -> None:
    limits = ["--max-kl", "Q8_0=1,Q4_0=1e-12", "--types", "Q8_0,Q4_0"]
    result = cli("quantize", gguf_256, tmp_path / "out", *limits, *MEASURED, "--json")
    assert result.code == 1
    failed = {file["type"]: bool(file["failures"]) for file in json.loads(result.out)["files"]}
    assert failed == {"Q8_0": False, "Q4_0": True}


def test_a_run_is_no_worse_than_itself_and_worse_than_a_better_one(
    cli: Cli, gguf_256: Path, tmp_path: Path
) -> None:
    earlier = tmp_path / "earlier.json"
    common = ["quantize", gguf_256, tmp_path / "o.gguf", "Q4_0", *MEASURED]
    assert cli(*common, "--report", earlier).code == 0
    again = [*common, "--force", "--no-worse-than", earlier]
    assert cli(*again).code == 0
    report = json.loads(earlier.read_text())
    quality = report["files"][0]["quality"]["all"]
    quality["kl_mean"] /= 2
    earlier.write_text(json.dumps(report))
    assert "allowed" in cli(*again).out
    assert cli(*again).code == 1
    assert cli(*again, "--margin", 2.1).code == 0
    assert "same --data" in error_of(cli(*again, "--seed", 5), 2)
    new = cli("quantize", gguf_256, tmp_path / "n.gguf", "Q8_0", "--no-worse-than", earlier)
    assert "has not measured Q8_0" in error_of(new, 2)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": [{"type": "Q8_0"}]}', "\0"])
def test_what_is_no_report_of_an_earlier_run_is_refused(
    cli: Cli, gguf_256: Path, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    arguments = [tmp_path / "o.gguf", "Q8_0", "--no-worse-than", path]
    error_of(cli("quantize", gguf_256, *arguments), 2)


def test_a_copy_of_a_16_bit_file_is_right(cli: Cli, checkpoint_256: Path, tmp_path: Path) -> None:
    source = tmp_path / "bf16.gguf"
    assert cli(checkpoint_256, source, "--outtype", "bf16", "--verify", "none").code == 0
    arguments = ["COPY", "--checkpoint", checkpoint_256, *MEASURED]
    result = cli("quantize", source, tmp_path / "o.gguf", *arguments)
    assert result.code == 0, result.out


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_table_fits_the_terminal_and_the_reports_have_all_of_it(
    measured: dict[str, Any], width: int
) -> None:
    from valle_convert.cli import console

    report = measured["report"]
    header, rows = report.summary(width)
    assert max(map(len, console.table(rows, header=header).splitlines())) <= width
    assert {"type", "size, MiB", "verdict"} <= set(header)
    everything, _ = report.summary()
    assert len(everything) == 15
    for form in (".md", ".html"):
        for name in everything:
            assert f"{name}: " in measured[form]


def test_a_report_says_when_by_what_and_of_which_checkpoint(
    measured: dict[str, Any], checkpoint_256: Path
) -> None:
    report = json.loads(measured[".json"])
    digest = hashlib.sha256(checkpoint_256.read_bytes()).hexdigest()
    assert report["checkpoint"] == {"name": checkpoint_256.name, "sha256": digest}
    for form in (".md", ".html"):
        assert report["date"] in measured[form]
        assert digest in measured[form]
        assert f"valle-convert {report['converter_version']}" in measured[form]


def test_fallbacks_are_one_line_a_file(cli: Cli, converted: Any, tmp_path: Path) -> None:
    result = cli("quantize", converted("ar-nar-len", "f16"), tmp_path / "o.gguf", "Q4_K_M", *QUICK)
    (line,) = [line for line in result.err.splitlines() if "cannot be" in line]
    assert re.fullmatch(r"Q4_K_M: \d+ tensors \(rows of 64\) cannot be Q4_K.*: \d+ became .*", line)


def test_all_given_utterances_are_measured(cli: Cli, gguf_256: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(5):
        response = draw.integers(0, 64, (6, 3))
        np.savez(tmp_path / "data" / f"{i}.npz", phonemes=np.array([1, 40, 2]), response=response)
    arguments = ["Q8_0", "--data", tmp_path / "data", "--threads", 1, "--json"]
    result = cli("quantize", gguf_256, tmp_path / "o.gguf", *arguments)
    assert "5 given utterances" in json.loads(result.out)["sequences"]


def test_damaged_weights_are_found_whatever_the_limits(
    cli: Cli, gguf_256: Path, checkpoint_256: Path, tmp_path: Path
) -> None:
    # A file that says it comes of the checkpoint, with a layer's weights turned round.
    damaged = tmp_path / "damaged-f16.gguf"
    shutil.copy(gguf_256, damaged)
    header = GgufFile(damaged)
    tensor = header.tensors["blk.0.ffn_down.weight"]
    with damaged.open("r+b") as file:
        file.seek(header.data_start + tensor.offset)
        weights = np.frombuffer(file.read(tensor.n_bytes), np.float16)
        file.seek(header.data_start + tensor.offset)
        file.write(weights[::-1].tobytes())
    arguments = ["Q8_0", "--checkpoint", checkpoint_256, *MEASURED]
    result = cli("quantize", damaged, tmp_path / "o.gguf", *arguments)
    assert result.code == 1, result.err


def test_without_a_checkpoint_the_input_is_the_reference_and_that_is_said(
    cli: Cli, gguf_256: Path, tmp_path: Path
) -> None:
    result = cli("quantize", gguf_256, tmp_path / "o.gguf", "COPY", "--json", *MEASURED)
    report = json.loads(result.out)
    assert "no checkpoint was given" in report["reference"]
    quality = report["files"][0]["quality"]["all"]
    assert quality["kl_mean"] < 1e-12  # a copy of the reference itself
    assert quality["best_code"] == 1.0
    assert report["files"][0]["greedy"]["ar_equal"] == 1.0
    assert report["files"][0]["greedy"]["nar_equal"] == 1.0


def test_given_utterances_are_what_is_measured_and_what_importance_is_made_of(
    cli: Cli, gguf_256: Path, checkpoint_256: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    draw = np.random.default_rng(0)
    np.savez(
        data / "one.npz",
        phonemes=np.array([1, 40, 41, 42, 2]),
        response=draw.integers(0, 64, (20, 3)),
        prompt=draw.integers(0, 64, (12, 3)),
    )
    arguments = ["Q4_0", "--checkpoint", checkpoint_256, "--data", data, "--json", *MEASURED]
    result = cli("quantize", gguf_256, tmp_path / "o.gguf", *arguments)
    report = json.loads(result.out)
    assert "1 given utterance, " in report["sequences"]
    assert report["different_texts"] == 1
    assert report["files"][0]["imatrix"] == "wide-imatrix.gguf"


# -------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["o.gguf", "Q9"], "There is no type"),
        (["out", "--types", ","], "list of types is empty"),
        (["o.gguf", "--types", "Q8_0,Q4_0"], "give a folder"),
        (["o.gguf", "Q8_0", "--resume"], "--resume"),
        (["o.gguf", "Q8_0", "--tensor-types", "absent.txt"], "There is no list of tensor types"),
        (["o.gguf", "Q8_0", "--tensor-type", "attn"], "PATTERN=TYPE"),
        (["o.gguf", "Q8_0", "--llama-quantize", "/nowhere"], "no program that can be run"),
        (["o.gguf", "IQ2_XXS"], "without an importance matrix"),
        (["o.gguf", "IQ2_XXS", "--imatrix", "none"], "without an importance matrix"),
        (["o.gguf", "Q4_0", "--imatrix", "absent.gguf"], "There is no"),
        (["o.gguf", "Q8_0", "--report", "r.txt"], "tells its form"),
        (["o.gguf", "Q8_0", "--max-kl", "nan"], "--max-kl is nan"),
        (["o.gguf", "Q8_0", "--min-agreement", "97"], "from 0 to 1"),
        (["o.gguf", "Q8_0", "--max-kl", "Q8_O=1e-3"], "Did you mean Q8_0?"),
        (["o.gguf", "Q8_0", "--max-kl", "Q4_0=1e-3"], "not among the types"),
        (["o.gguf", "Q8_0", "--max-kl", "1e-3,1e-2"], "two limits"),
        (["o.gguf", "Q8_0", "--no-worse-than", "absent.json"], "There is no report"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_and_exit_code_2(
    cli: Cli,
    gguf_256: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in error_of(cli("quantize", gguf_256, *arguments), 2)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_file_that_is_no_model_of_ours_is_refused_unless_nothing_is_measured(
    cli: Cli, converted: Any, tmp_path: Path
) -> None:
    path = converted("ar-nar-len", "f16")
    header = GgufFile(path)
    other = tmp_path / "other.gguf"
    ours = [name for name in header.keys if name.startswith("valle.")]
    other.write_bytes(header.changed([], drop=ours) + path.read_bytes()[header.data_start :])
    assert "no converted VALL-E" in error_of(cli("quantize", other, tmp_path / "o.gguf", "Q8_0"), 2)
    assert cli("quantize", other, tmp_path / "o.gguf", "Q8_0", *QUICK).code == 0


def test_a_checkpoint_that_the_file_was_not_made_of_is_refused(
    cli: Cli, gguf_256: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.sft"
    make_checkpoint(other, Shape(dim=32, heads=2, layers=1, levels=2))
    result = cli("quantize", gguf_256, tmp_path / "o.gguf", "Q8_0", "--checkpoint", other)
    assert "another checkpoint" in error_of(result, 2)


def test_an_importance_matrix_of_another_model_is_refused(
    cli: Cli, gguf_256: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.sft"
    make_checkpoint(other, Shape(dim=32, heads=2, layers=1, levels=2, audio_tokens=16))
    made = cli("imatrix", other, "-o", tmp_path / "m.gguf", "--utterances", 1, "--json")
    assert json.loads(made.out)["passes"] > 5
    arguments = ["Q4_0", "--imatrix", tmp_path / "m.gguf", *QUICK]
    result = cli("quantize", gguf_256, tmp_path / "o.gguf", *arguments)
    assert "of another model" in error_of(result, 2)


def test_no_program_and_no_library_is_exit_code_3(
    cli: Cli, gguf_256: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    arguments = ["Q8_0", "--llama-quantize", "library", "--no-measure"]
    result = cli("quantize", gguf_256, tmp_path / "o.gguf", *arguments)
    assert "library was not found" in error_of(result, 3)


def test_a_full_disk_is_known_before(
    cli: Cli, gguf_256: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1_000_000))
    result = cli("quantize", gguf_256, tmp_path / "out", "--types", "Q8_0,Q4_0", *QUICK)
    assert "1,000,000 bytes free" in error_of(result, 3)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------- every type, slow


@pytest.mark.slow
def test_every_type_that_stock_llama_quantize_lists_is_made_and_judged(
    cli: Cli, gguf_256: Path, checkpoint_256: Path, tmp_path: Path
) -> None:
    result = cli(
        *("quantize", gguf_256, tmp_path / "out", "--types", ",".join(FILE_TYPES)),
        *("--checkpoint", checkpoint_256, "--imatrix-utterances", "2", "--json"),
        *MEASURED,
    )
    assert result.code == 0, result.err
    report = json.loads(result.out)
    jsonschema.validate(report, schema())
    assert [file["type"] for file in report["files"]] == list(FILE_TYPES)
    for file in report["files"]:
        path = tmp_path / "out" / file["name"]
        assert path.stat().st_size == file["bytes"]
        assert file["quality"] is not None
        assert not file["fallbacks"]


def test_types_given_one_by_one_are_all_made(cli: Cli, gguf_256: Path, tmp_path: Path) -> None:
    run = ("quantize", gguf_256, tmp_path / "out", "--types", "Q4_0", "--types", "Q8_0,F16", *QUICK)
    result = cli(*run, "--dry-run", "--json")
    assert result.code == 0, result.err
    assert [one["type"] for one in json.loads(result.out)["files"]] == ["Q4_0", "Q8_0", "F16"]
