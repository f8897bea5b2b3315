"""How a run ends, and what it leaves when it does not: verdicts, reports, the log, `again:`."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PROJECT, Cli, error_of

from valle_convert.cli import quantize as command
from valle_convert.quantize.manifest import check_manifest, read_manifest
from valle_convert.quantize.tool import Quantizer

QUICK = ("--threads", "1")
MEASURED = ("--threads", "1", "--utterances", "1")
FORMS = ("md", "html", "json")


def outcomes(folder: Path) -> dict[str, str]:
    listed = read_manifest(folder / "manifest.json")
    return {one.name: one.judgement.outcome for one in listed if one.is_model}


@pytest.fixture
def breaking(tmp_path: Path, program: Quantizer) -> Path:
    """A tool that plans everything, and fails at Q5_0."""
    tool = tmp_path / "tool"
    tool.write_text(
        '#!/bin/sh\ncase "$*" in *--dry-run*) ;; *Q5_0*) exit 7;; esac\n'
        f'exec "{program.command[0]}" "$@"\n'
    )
    tool.chmod(0o755)
    return tool


# ------------------------------------------------------------------ the verdict in the manifest


def test_the_manifest_has_the_verdict_of_the_last_run_that_judged_a_file(
    cli: Cli, gguf_256: Path, checkpoint_256: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = ("quantize", gguf_256, out, "--types", "Q8_0,Q4_0", "--resume")
    judged = (*run, "--checkpoint", checkpoint_256, *MEASURED)
    assert cli(*run, *QUICK).code == 0
    assert set(outcomes(out).values()) == {"not judged"}
    unjudged = cli("check-manifest", out, "--require-passed")
    assert unjudged.code == 1
    assert "wide-Q4_0.gguf: not judged" in unjudged.out
    assert cli("check-manifest", out).code == 0

    assert cli(*judged, "--max-kl", "Q8_0=1,Q4_0=1e-9").code == 1
    assert outcomes(out) == {"wide-Q8_0.gguf": "passed", "wide-Q4_0.gguf": "failed"}
    failed = cli("check-manifest", out, "--require-passed", "--json")
    assert failed.code == 1
    (finding,) = json.loads(failed.out)["findings"]
    assert finding["name"] == "wide-Q4_0.gguf"
    assert finding["problem"] == "failed (limits: max_kl 1e-09)"

    # What is kept and not looked at stays as it was judged; a limit asks for a judgement.
    assert cli(*run, *QUICK).code == 0
    assert outcomes(out) == {"wide-Q8_0.gguf": "passed", "wide-Q4_0.gguf": "failed"}
    assert cli(*run, *QUICK, "--max-kl", "1").code == 3
    assert set(outcomes(out).values()) == {"not judged"}

    assert cli(*judged).code == 0
    passed = cli("check-manifest", out, "--require-passed")
    assert passed.code == 0, passed
    assert "PASSED" in passed.out


def test_a_run_that_breaks_off_leaves_no_verdict_of_an_earlier_one(
    cli: Cli, gguf_256: Path, tmp_path: Path, breaking: Path
) -> None:
    out = tmp_path / "out"
    run = ("quantize", gguf_256, out, "--llama-quantize", breaking, "--max-kl", 1, *MEASURED)
    assert cli(*run, "--types", "Q8_0,Q4_0").code == 0
    assert set(outcomes(out).values()) == {"passed"}
    error_of(cli(*run, "--types", "Q5_0,Q8_0", "--resume", "--force"), 3)
    assert outcomes(out) == {"wide-Q8_0.gguf": "not judged", "wide-Q4_0.gguf": "passed"}
    assert check_manifest(out).passed
    assert not check_manifest(out, require_passed=True).passed


def test_a_manifest_without_a_model_has_not_passed(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"schema_version": 1, "files": []}')
    (tmp_path / "SHA256SUMS").touch()
    assert check_manifest(tmp_path).passed
    assert not check_manifest(tmp_path, require_passed=True).passed


# ---------------------------------------------- what cannot be written, and what was left before


def test_the_verdict_is_shown_where_reports_and_log_cannot_be_written(
    cli: Cli, gguf_256: Path, tmp_path: Path, program: Quantizer
) -> None:
    beside, out, tool = tmp_path / "beside", tmp_path / "out", tmp_path / "tool"
    # The folder of the reports goes away while the tool is at work.
    tool.write_text(
        f'#!/bin/sh\ncase "$*" in *--dry-run*) ;; *) rm -rf "{beside}";; esac\n'
        f'exec "{program.command[0]}" "$@"\n'
    )
    tool.chmod(0o755)
    run = ("quantize", gguf_256, out, "--types", "Q8_0", "--force", "--llama-quantize", tool)
    written = ("--log", beside / "log", "--report", beside / "r.json")
    for limit, verdict, code in (("1", "PASSED", 3), ("1e-12", "FAILED", 1)):
        beside.mkdir()
        result = cli(*run, *written, "--max-kl", limit, *MEASURED)
        assert result.code == code, result
        assert verdict in result.out
        assert "KL mean" in result.out
        errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 2
        names = (f"The report {beside / 'r.json'}", f"The log {beside / 'log'}")
        for line, name in zip(errors, names, strict=True):
            assert line.startswith(f"error: {name} could not be written: ")
            assert "nothing was kept" not in line
            assert line.endswith("everything else is done, and the result is printed above.")
        assert check_manifest(out).passed
        assert set(outcomes(out).values()) == {verdict.lower()}


def test_what_was_measured_is_not_lost_with_the_folder(gguf_256: Path, tmp_path: Path) -> None:
    from valle_convert.quantize.folder import UnsettledFolder
    from valle_convert.quantize.options import Options, RunLog
    from valle_convert.quantize.run import quantize
    from valle_convert.quantize.types import parse_types

    out, said = tmp_path / "out", list[str]()

    def talk(text: str) -> None:
        said.append(text)
        if text.startswith("measured "):
            out.rename(tmp_path / "elsewhere")

    options = Options(parse_types("Q8_0"), threads=1, n_utterances=1)
    with pytest.raises(UnsettledFolder, match="The files are made and judged") as raised:
        quantize(gguf_256, out, options, log=RunLog(talk=talk))
    assert raised.value.report.files[0].measured is not None
    assert outcomes(tmp_path / "elsewhere") == {"wide-Q8_0.gguf": "not judged"}
    told = [line for line in said if line.startswith("measuring 1 file takes about ")]
    assert len(told) == 1


@pytest.mark.parametrize("form", [*FORMS, "log"])
def test_what_an_earlier_run_said_is_gone_where_a_run_breaks_off(
    cli: Cli, gguf_256: Path, tmp_path: Path, breaking: Path, form: str
) -> None:
    path = tmp_path / f"r.{form}"
    option = ("--log" if form == "log" else "--report", path)
    run = ("quantize", gguf_256, tmp_path / "o.gguf", *QUICK, *option)
    for failing, code in (
        (("Q9",), 2),
        (("Q8_0", "--no-worse-than", tmp_path / "absent.json"), 2),
        (("Q5_0", "--llama-quantize", breaking), 3),
    ):
        assert cli(*run, "Q8_0", "--force").code == 0
        assert path.exists()
        assert cli(*run, *failing).code == 2  # without --force nothing goes
        assert path.exists()
        error_of(cli(*run, *failing, "--force"), code)
        left = path.read_text() if path.exists() else ""
        assert "Q8_0" not in left.upper()


@pytest.mark.parametrize("form", [*FORMS, "log"])
def test_nothing_but_a_report_is_removed_by_a_run_that_is_refused(
    cli: Cli, gguf_256: Path, tmp_path: Path, form: str
) -> None:
    path, earlier = tmp_path / f"mine.{form}", tmp_path / "earlier.json"
    path.write_text('{"schema_version": 1, "verdict": "mine"}')
    option = ("--log" if form == "log" else "--report", path)
    run = ("quantize", gguf_256, tmp_path / "o.gguf", "--force", *QUICK)
    error_of(cli(*run, "Q9", *option), 2)
    assert "mine" in path.read_text()
    link = tmp_path / f"link.{form}"
    link.symlink_to(path)
    error_of(cli(*run, "Q9", option[0], link), 2)
    assert link.is_symlink()
    # A report that the run reads is an input.
    assert cli(*run, "Q8_0", "--report", earlier).code == 0
    before = earlier.read_bytes()
    error_of(cli(*run, "Q8_0", "--report", earlier, "--no-worse-than", earlier), 2)
    assert earlier.read_bytes() == before


# ------------------------------------------------------------------------------ again:


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell in which `valle-convert` is this very code."""
    program = tmp_path / "bin" / "valle-convert"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH="{PROJECT}" exec "{sys.executable}" -m valle_convert "$@"\n'
    )
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}


def commands(folder: Path, err: str) -> dict[str, str]:
    """The command in every form in which it is printed."""
    (told,) = re.findall(r"^again: (.*)$", err, re.MULTILINE)
    (block,) = re.findall(r"^```sh\n(.*)\n```$", (folder / "r.md").read_text(), re.MULTILINE)
    (code,) = re.findall(r"<code>(valle-convert .*?)</code>", (folder / "r.html").read_text())
    in_json = json.loads((folder / "r.json").read_text())["command"]
    return {"terminal": told, "md": block, "html": html.unescape(code), "json": in_json}


def test_again_runs_as_it_is_printed(gguf_256: Path, tmp_path: Path, shell: dict[str, str]) -> None:
    source = "a |'$`*_<b>\n\\ \udcff.gguf"
    (tmp_path / source).symlink_to(gguf_256)
    types = ["--types", "Q8_0", "--tensor-type", r"blk\.(0|1)\.ffn_up=q4_0"]
    reports = [word for form in FORMS for word in ("--report", f"r.{form}")]
    arguments = [source, "out x", *types, *QUICK, *reports, "--log", "l.txt"]
    first = ["valle-convert", "quantize", *arguments]
    done = subprocess.run(
        first, cwd=tmp_path, env=shell, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "out x").glob("*.gguf")
    before = made.read_bytes()
    found = commands(tmp_path, done.stderr)
    assert len(set(found.values())) == 1, found
    made.unlink()
    again = subprocess.run(
        ["bash", "-c", found["md"]], cwd=tmp_path, env=shell, capture_output=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert made.read_bytes() == before
    assert commands(tmp_path, again.stderr.decode())["md"] == found["md"]


words = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"])
) | st.binary().map(lambda data: os.fsdecode(data.replace(b"\0", b"")))


@given(words)
def test_a_shell_reads_every_word_as_it_was(word: str) -> None:
    quoted = command._quoted(word)
    assert quoted.isprintable()
    done = subprocess.run(["bash", "-c", f"printf %s {quoted}"], capture_output=True, check=True)
    assert done.stdout == os.fsencode(word)


# --------------------------------------------------------------------------- on the command line


def test_a_type_after_a_folder_is_refused_and_both_right_forms_are_told(
    cli: Cli, gguf_256: Path, tmp_path: Path
) -> None:
    result = cli("quantize", gguf_256, tmp_path / "folder", "Q8_0", *QUICK)
    assert result.code == 2
    told = " ".join(result.err.split())
    assert "folder.gguf Q8_0 for a file" in told
    assert "folder --types Q8_0 for a folder" in told
    assert list(tmp_path.iterdir()) == []


def test_all_types_are_listed_a_line_each(cli: Cli) -> None:
    from valle_convert.quantize.types import FILE_TYPES

    result = cli("quantize", "--list-types")
    assert result.code == 0
    lines = result.out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(FILE_TYPES)


def test_a_folder_is_inspected_a_line_a_file(
    cli: Cli, gguf_256: Path, checkpoint_256: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = ("quantize", gguf_256, out, "--types", "Q8_0,Q4_K_M", "--max-kl", 1)
    assert cli(*run, *MEASURED).code == 0
    header, _, *rows = cli("inspect", out).out.splitlines()
    assert header.split() == ["file", "type", "size", "verdict"]
    assert [row.split()[:2] for row in rows] == [
        ["wide-Q4_K_M.gguf", "Q4_K_M"],
        ["wide-Q8_0.gguf", "Q8_0"],
    ]
    assert all(" passed " in row for row in rows)
    shown = json.loads(cli("inspect", out, "--json").out)
    assert [Path(one["path"]).name for one in shown] == ["wide-Q4_K_M.gguf", "wide-Q8_0.gguf"]
    # A checkpoint in a folder is what the folder stands for, as everywhere.
    (out / "model.sft").symlink_to(checkpoint_256)
    assert "checkpoint" in cli("inspect", out).out.splitlines()[0]
    (tmp_path / "empty").mkdir()
    assert "without a checkpoint" in error_of(cli("inspect", tmp_path / "empty"), 2)


def test_the_files_of_a_set_are_one_line(cli: Cli, tmp_path: Path) -> None:
    from support import GOLDEN_VALLEX, golden_checkpoint

    done = cli(golden_checkpoint(GOLDEN_VALLEX), tmp_path / "x.gguf", "--verify", "none")
    assert done.code == 0
    _, _, *rows = cli("inspect", tmp_path).out.splitlines()
    assert len(rows) == 1
    assert rows[0].startswith("x.gguf ")
