"""The workflows workflow/quantize.yml and workflow/release.yml, run as they are."""

import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from make_checkpoint import Shape, make_checkpoint
from support import PROJECT, install

ONE = (PROJECT / "workflow" / "quantize.yml").read_text(encoding="utf-8")
MATRIX = (PROJECT / "workflow" / "release.yml").read_text(encoding="utf-8")
JOB: dict[str, Any] = yaml.safe_load(ONE)["jobs"]["quantize"]
#: What an action's cache refuses in a key, and how long one may be.
KEY = re.compile(r"[^,]{1,512}")
#: The limits of the workflow are for trained models; a random one of two layers is held to these.
BEARABLE, UNBEARABLE = "1", "1e-12"


@pytest.fixture
def project(checkpoint_256: Path, tmp_path: Path) -> Path:
    """A checkout with a model, and a program that is this very code."""
    (tmp_path / "models").mkdir()
    shutil.copy(checkpoint_256, tmp_path / "models" / "model.sft")
    install(tmp_path / ".venv" / "bin")
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


def test_the_limits_of_the_workflow_name_its_types_and_its_cache_has_keys() -> None:
    limits = [part.partition("=")[0] for part in JOB["env"]["MAX_KL"].split(",")]
    assert limits == JOB["env"]["TYPES"].split(",")
    (cache,) = [step["with"] for step in JOB["steps"] if "cache" in str(step.get("uses"))]
    for key in (cache["key"], cache["restore-keys"]):
        assert KEY.fullmatch(re.sub(r"\$\{\{.*?\}\}", "d41d8cd9", key)), key


class Runner:
    """What the second workflow needs of GitHub: a folder a job, outputs, artifacts, and a cache.

    Attributes:
        root: has a repository that stands for the hub's, and a checkpoint for each model.
        cache: the keys that are there.
    """

    def __init__(self, root: Path, max_kl: str) -> None:
        self.root, self.max_kl, self.cache = root, max_kl, set[str]()
        self.workflow = yaml.safe_load(MATRIX)
        self.outputs: dict[str, str] = {}

    def run(self) -> list[str]:
        """Every job that is not left out, by name and whether it passed."""
        said: dict[str, str] = {}
        for name, job in self.workflow["jobs"].items():
            needs = job.get("needs", [])
            before = [said[one] for one in ([needs] if isinstance(needs, str) else needs)]
            if {"failed", "skipped"} & {*before} or not self._holds(job.get("if", "")):
                said[name] = "skipped"
                continue
            said[name] = "passed" if all(self.job(name)) else "failed"
        return [f"{name} {result}" for name, result in said.items()]

    def job(self, name: str) -> list[bool]:
        """Whether each of a job's matrix passed."""
        job = self.workflow["jobs"][name]
        matrix = job.get("strategy", {}).get("matrix", {})
        names = [f"matrix.{key}" for key in matrix]
        rows = itertools.product(*matrix.values())
        return [self._job(name, job, dict(zip(names, row, strict=True))) for row in rows]

    def _holds(self, condition: str) -> bool:
        return not condition or (
            condition == "needs.revision.outputs.known != 'true'"
            and self.outputs.get("needs.revision.outputs.known") != "true"
        )

    def _job(self, name: str, job: dict[str, Any], values: dict[str, str]) -> bool:
        folder = self.root / "-".join([name, *values.values()])
        shutil.rmtree(folder, ignore_errors=True)
        install(folder / ".venv" / "bin")
        values = {"matrix.type": "", "runner.os": "Linux", **values, **self.outputs}
        environment = {**self.workflow["env"], **expanded(job.get("env", {}), values)}
        if "CHECKPOINT" in environment:
            assert environment["CHECKPOINT"].startswith("hf:ecker/vall-e@")
            environment["CHECKPOINT"] = str(self.root / f"{environment['MODEL']}.sft")
        environment |= {
            "SOURCE": str(self.root / "source"),
            "MAX_KL": self.max_kl,
            "PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}",
            "GITHUB_OUTPUT": str(folder / "output"),
            "GITHUB_STEP_SUMMARY": str(self.root / "summary"),
        }
        failed = False
        for step in job["steps"]:
            if failed and step.get("if") != "always()":
                continue
            if "uses" in step:
                hit = self._action(step["uses"], expanded(step.get("with", {}), values), folder)
                (folder / "output").write_text(f"cache-hit={hit}\n")
            elif step.get("name") != "Set up":
                shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
                failed |= bool(
                    subprocess.run(
                        shell, cwd=folder, env=os.environ | environment, check=False
                    ).returncode
                )
            if "id" in step:
                key, _, value = (folder / "output").read_text().strip().partition("=")
                values[f"steps.{step['id']}.outputs.{key}"] = value
        for key, value in expanded(job.get("outputs", {}), values).items():
            self.outputs[f"needs.{name}.outputs.{key}"] = value
        return not failed

    def _action(self, uses: str, given: dict[str, str], folder: Path) -> str:
        artifacts = self.root / "artifacts"
        if uses.startswith("actions/cache/save@"):
            assert (folder / given["path"]).exists()
            self.cache.add(given["key"])
        elif uses.startswith("actions/upload-artifact@"):
            shutil.copytree(folder / given["path"], artifacts / given["name"], dirs_exist_ok=True)
        elif uses.startswith("actions/download-artifact@"):
            for one in artifacts.glob(given.get("pattern", given.get("name", ""))):
                shutil.copytree(one, folder / given["path"], dirs_exist_ok=True)
        return "true" if given.get("key") in self.cache else ""


def expanded(given: dict[str, Any], values: dict[str, str]) -> dict[str, str]:
    """The `${{ }}` of a workflow; an expression that is not known is an error."""

    def value(match: re.Match[str]) -> str:
        expression = match[1].strip()
        return "d41d8cd9" if expression.startswith("hashFiles(") else values[expression]

    return {key: re.sub(r"\$\{\{(.*?)\}\}", value, str(text)) for key, text in given.items()}


def commit(folder: Path) -> None:
    git = ["git", "-C", str(folder), "-c", "user.name=me", "-c", "user.email=me@example.org"]
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "weights"], check=True)


def test_a_matrix_of_jobs_is_merged_judged_and_run_once_a_revision(tmp_path: Path) -> None:
    runner = Runner(tmp_path, "Q8_0=1,Q4_K_M=1")
    subprocess.run(["git", "init", "-q", str(tmp_path / "source")], check=True)
    commit(tmp_path / "source")
    jobs = runner.workflow["jobs"]
    for model in jobs["source"]["strategy"]["matrix"]["model"]:
        make_checkpoint(tmp_path / f"{model}.sft", Shape(dim=64, layers=1, levels=2))
    types = jobs["quantize"]["strategy"]["matrix"]["type"]
    limits = [one.partition("=")[0] for one in runner.workflow["env"]["MAX_KL"].split(",")]
    assert limits == types
    passed = [f"{name} passed" for name in jobs]
    assert runner.run() == passed
    summary = (tmp_path / "summary").read_text()
    for kind in types:
        assert summary.count(f"| {kind} |") >= len(jobs["merge"]["strategy"]["matrix"]["model"])
    assert runner.run() == ["revision passed", *(f"{name} skipped" for name in [*jobs][1:])]
    commit(tmp_path / "source")
    assert runner.job("revision") == [True]
    assert runner._holds(jobs["source"]["if"])
    runner.max_kl = "Q8_0=1,Q4_K_M=1e-12"
    (tmp_path / "summary").unlink()
    assert runner.job("merge") == [False, False]
    assert "-Q4_K_M.gguf: KL mean" in (tmp_path / "summary").read_text()
