"""docs/ci.md as it stands: the workflow is taken out of it and run."""

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
(BLOCK,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
JOB: dict[str, Any] = yaml.safe_load(BLOCK)["jobs"]["quantize"]
#: What an action's cache refuses in a key, and how long one may be.
KEY = re.compile(r"[^,]{1,512}")
#: The limits of the page are for trained models; a random one of two layers is held to these.
BEARABLE, UNBEARABLE = "1", "1e-12"


@pytest.fixture
def project(checkpoint_256: Path, tmp_path: Path) -> Path:
    """A checkout with a model, and a program that is this very code."""
    (tmp_path / "models").mkdir()
    shutil.copy(checkpoint_256, tmp_path / "models" / "model.sft")
    program = tmp_path / ".venv" / "bin" / "valle-convert"
    program.parent.mkdir(parents=True)
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH="{PROJECT}" exec "{sys.executable}" -m valle_convert "$@"\n'
    )
    program.chmod(0o755)
    return tmp_path


def workflow(project: Path, types: str, max_kl: str) -> tuple[dict[str, int], str]:
    """Run the steps as a runner does, each in a shell of its own, until one fails."""
    summary = project / "summary"
    environment = {**JOB["env"], "TYPES": types, "MAX_KL": max_kl}
    environment["GITHUB_STEP_SUMMARY"] = str(summary)
    codes: dict[str, int] = {}
    for step in JOB["steps"]:
        if any(codes.values()) and step.get("if") != "always()":
            continue
        if "run" not in step or step["name"] == "Set up":
            continue  # setting up is the Makefile's own target, and takes minutes
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(shell, cwd=project, env={**os.environ, **environment}, check=False)
        codes[step["name"]] = done.returncode
    return codes, summary.read_text() if summary.exists() else ""


def test_the_workflow_is_two_commands_that_fail_as_often_as_the_verdict_is_no(
    project: Path,
) -> None:
    codes, summary = workflow(project, "Q8_0,Q4_0", f"Q8_0={BEARABLE},Q4_0={BEARABLE}")
    assert codes == {"Quantize": 0, "Evaluate": 0, "Summary": 0}
    assert "| Q4_0 |" in summary
    made = {path: path.stat().st_mtime_ns for path in project.glob("build/quantized/*.gguf")}
    assert len(made) == 2
    for _ in range(2):
        codes, summary = workflow(project, "Q8_0", UNBEARABLE)
        assert codes == {"Quantize": 0, "Evaluate": 1, "Summary": 0}
        assert "FAILED: model-Q8_0.gguf" in summary
    assert {path: path.stat().st_mtime_ns for path in made} == made
    codes, _ = workflow(project, "Q8_0", BEARABLE)
    assert codes["Evaluate"] == 0
    assert [path.name for path in project.glob("build/quantized/*.gguf")] == ["model-Q8_0.gguf"]


def test_the_limits_of_the_page_name_its_types_and_its_cache_has_keys() -> None:
    limits = [part.partition("=")[0] for part in JOB["env"]["MAX_KL"].split(",")]
    assert limits == JOB["env"]["TYPES"].split(",")
    (cache,) = [step["with"] for step in JOB["steps"] if "cache" in str(step.get("uses"))]
    for key in (cache["key"], cache["restore-keys"]):
        assert KEY.fullmatch(re.sub(r"\$\{\{.*?\}\}", "d41d8cd9", key)), key
