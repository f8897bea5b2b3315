"""docs/ci.md as it stands: the Makefile and the workflow are taken out of it and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import PROJECT

PAGE = (PROJECT / "docs" / "ci.md").read_text(encoding="utf-8")
#: What an action's cache refuses in a key, and how long one may be.
KEY = re.compile(r"[^,]{1,512}")
#: The limits of the page are for trained models; a random one of two layers is held to these.
BEARABLE, UNBEARABLE = "1", "1e-12"


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def install(folder: Path) -> None:
    """A program in `folder`/.venv, which is this very code."""
    program = folder / ".venv" / "bin" / "valle-convert"
    program.parent.mkdir(parents=True)
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH="{PROJECT}" exec "{sys.executable}" -m valle_convert "$@"\n'
    )
    program.chmod(0o755)
    (folder / ".venv" / ".installed").touch()


@pytest.fixture
def project(checkpoint_256: Path, tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    shutil.copy(checkpoint_256, tmp_path / "models" / "model.sft")
    return tmp_path


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_makefile_fails_as_often_as_the_verdict_is_no(project: Path) -> None:
    install(project / "valle-convert")
    (project / "Makefile").write_text(block("make"))
    make = ["make", "quantized", "TYPES=Q8_0"]
    for _ in range(2):
        failed = run([*make, f"MAX_KL={UNBEARABLE}"], project)
        assert failed.returncode == 2
        assert "FAILED" in failed.stdout
    passed = run([*make, f"MAX_KL={BEARABLE}"], project)
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert "kept model-Q8_0.gguf" in passed.stderr
    assert "up to date" in run(make, project).stdout or run(make, project).returncode == 0
    checked = run(["make", "check-quantized"], project)
    assert checked.returncode == 0, checked.stderr
    # Neither the stamp nor the manifest speaks for files that fail now.
    (project / "models" / "model.sft").touch()
    assert run([*make, f"MAX_KL={UNBEARABLE}"], project).returncode == 2
    assert not (project / "build" / "quantized.ok").exists()
    checked = run(["make", "check-quantized"], project)
    assert checked.returncode == 2
    assert "model-Q8_0.gguf: failed" in checked.stdout


def test_the_limits_of_the_page_name_the_types_of_the_page() -> None:
    for text in (block("make"), block("yaml")):
        (types,) = re.findall(r"TYPES:?=? *:?=? *([A-Z0-9_,]+)$", text, re.MULTILINE)
        (limits,) = re.findall(r"MAX_KL:?=? *:?=? *(\S+=\S+)$", text, re.MULTILINE)
        assert [part.partition("=")[0] for part in limits.split(",")] == types.split(",")


def expand(text: str, values: dict[str, str]) -> str:
    """The `${{ }}` of a workflow; an expression that is not known is an error."""

    def value(match: re.Match[str]) -> str:
        expression = match[1].strip()
        return "d41d8cd9" if expression.startswith("hashFiles(") else values[expression]

    return re.sub(r"\$\{\{(.*?)\}\}", value, text)


def workflow(project: Path, types: str, max_kl: str) -> tuple[list[tuple[str, int]], Path]:
    """Run the steps as a runner does, each in a shell of its own, until one fails."""
    job: dict[str, Any] = yaml.safe_load(block("yaml"))["jobs"]["quantize"]
    assert job["env"]["CHECKPOINT"] == "models/model.sft"
    environment = {**job["env"], "TYPES": types, "MAX_KL": max_kl}
    values = {"runner.os": "Linux", "runner.arch": "X64"}
    values |= {f"env.{name}": value for name, value in environment.items()}
    output, summary = project / "output", project / "summary"
    codes: list[tuple[str, int]] = []
    for step in job["steps"]:
        failed = any(code for _, code in codes)
        if failed and step.get("if") != "always()":
            continue
        with_ = step.get("with", {})
        if str(step.get("uses", "")).startswith("actions/cache@"):
            for key in [with_["key"], *with_.get("restore-keys", "").splitlines()]:
                assert KEY.fullmatch(expand(key, values)), key
        if "run" not in step or step["name"] == "Set up":
            continue  # setting up is the Makefile's own target, and takes half an hour
        output.touch()
        done = run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", expand(step["run"], values)],
            project,
            **environment,
            GITHUB_OUTPUT=str(output),
            GITHUB_STEP_SUMMARY=str(summary),
        )
        codes.append((step["name"], done.returncode))
        if "id" in step:
            pairs = (line.partition("=") for line in output.read_text().splitlines())
            values |= {f"steps.{step['id']}.outputs.{name}": value for name, _, value in pairs}
    return codes, summary


def test_the_workflow_passes_and_shows_its_report(project: Path) -> None:
    install(project)
    codes, summary = workflow(project, "Q8_0,Q4_0", f"Q8_0={BEARABLE},Q4_0={BEARABLE}")
    assert [code for _, code in codes] == [0] * 4, codes
    assert "| Q8_0 |" in summary.read_text()


def test_the_workflow_fails_where_the_verdict_is_no_and_still_shows_its_report(
    project: Path,
) -> None:
    install(project)
    codes, summary = workflow(project, "Q8_0", UNBEARABLE)
    assert dict(codes)["Quantize, measure, judge"] == 1
    assert "Check what was made" not in dict(codes)
    assert "FAILED" in summary.read_text()


def test_the_workflow_shows_no_report_of_a_run_before(project: Path) -> None:
    install(project)
    (project / "build").mkdir()
    (project / "build" / "report.md").write_text("# Quantized: model.sft\n\n**PASSED: 1 file**\n")
    codes, summary = workflow(project, "Q9", BEARABLE)
    assert dict(codes)["Quantize, measure, judge"] == 2
    assert summary.read_text() == "The run has not finished.\n"


def test_what_the_workflow_sets_up_with_is_a_target_of_the_makefile() -> None:
    job = yaml.safe_load(block("yaml"))["jobs"]["quantize"]
    (step,) = [step for step in job["steps"] if step.get("name") == "Set up"]
    (targets,) = re.findall(r"^make (.+)$", step["run"], re.MULTILINE)
    makefile = (PROJECT / "Makefile").read_text()
    for target in targets.split():
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
