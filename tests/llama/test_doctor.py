import os
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support import PROJECT, run_program, run_python

from valle_convert.cli.app import COMMANDS
from valle_convert.doctor import (
    DISTRIBUTION,
    LLAMA,
    LlamaReport,
    PackageReport,
    examine,
    examine_commands,
    needs,
    packages_of,
)
from valle_convert.errors import EnvironmentFault
from valle_convert.llama.probe import ProbeResult

WORKING = LlamaReport(
    Path("libllama.so"), "0.3.36", "CPU : AVX2 = 1", (), ProbeResult(True, 0.0), None
)
NUMPY = PackageReport("numpy", ">=1.26", "2.4.6", "")


def test_this_machine_is_described() -> None:
    report = examine()
    packages = {package.name: package for package in report.packages}
    assert packages["numpy"].problem is None
    assert packages["llama-cpp-python"].extra == "llama"
    assert report.llama.problem is None
    assert report.llama.path is not None
    assert report.llama.devices[0].startswith("CPU: ")
    assert report.llama.path.is_file()
    assert "CPU" in (report.llama.system_info or "")
    assert [command.name for command in report.commands] == list(needs())
    assert report.cores >= 1


def test_a_library_that_kills_its_probe_is_reported_and_never_loaded() -> None:
    """In a child, so that nothing else can have loaded it."""
    program = (
        "import sys\n"
        "from valle_convert.doctor import examine\n"
        "from valle_convert.llama.probe import run_probe\n"
        "kill = 'import os; os.kill(os.getpid(), 11)'\n"
        "report = examine(lambda: run_probe([sys.executable, '-c', kill]))\n"
        "assert 'SIGSEGV' in report.llama.problem, report.llama\n"
        "assert report.llama.binding_version and report.llama.system_info is None\n"
        "broken = {command.name for command in report.commands if command.missing}\n"
        "assert broken >= {'verify', 'speak'} and 'convert' not in broken, broken\n"
        "assert not report.ok\n"
        "assert not {'llama_cpp', 'torch'} & set(sys.modules), 'loaded'\n"
    )
    child = run_python("-c", program)
    assert (child.returncode, child.stderr) == (0, "")


def test_nothing_found_is_a_report_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_library() -> ProbeResult:
        raise EnvironmentFault("no library")

    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    monkeypatch.setenv("LLAMA_QUANTIZE", str(tmp_path / "absent"))
    report = examine(no_library)
    assert report.llama.path is None
    assert report.llama.problem == "no library"
    missing = {command.name: command.missing for command in report.commands}
    assert missing["convert"] == missing["inspect"] == ()
    assert missing["speak"] == ("no library",)
    assert missing["quantize"] == ("no library",)
    programs = {program.name: program.problem for program in report.programs}
    assert "not an executable program" in (programs["llama-quantize"] or "")


def test_the_command_that_builds_llama_is_shown_if_it_does_not_work(
    tmp_path: Path,
) -> None:
    assert "CMAKE_ARGS" not in run_program("doctor").stdout
    without = run_program("doctor", env=os.environ | {"LLAMA_CPP_LIB_PATH": str(tmp_path)})
    assert without.returncode == 3
    assert "CMAKE_ARGS" in without.stdout


def test_requirements_are_read_as_pip_writes_them() -> None:
    lines = [
        "numpy<1000,>=1.26",
        "tqdm",
        'tomli>=2; python_version < "3"',
        "nothing-here>=1; sys_platform != 'never' and extra == \"dev\"",
        "numpy>=1; extra == 'speech'",
        "nothing-there; sys_platform == 'never' and extra == 'dev'",
    ]
    packages = packages_of([Requirement(line) for line in lines], ["speech", "dev"])
    assert [(one.extra, one.name, one.wanted) for one in packages] == [
        ("", "numpy", "<1000,>=1.26"),
        ("", "tqdm", ""),
        ("dev", "nothing-here", ">=1"),
        ("speech", "numpy", ">=1"),
    ]
    assert [one.name for one in packages if one.problem] == ["nothing-here"]


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        (None, "torch is not installed; pip install 'torch>=2.10'"),
        ("2.9.1+cpu", "torch is 2.9.1.cpu, expected >=2.10"),
        ("2.10", None),
        ("2.11rc1", None),
        ("2.13.0+cpu", None),
    ],
)
def test_versions_are_compared_as_numbers(installed: str | None, words: str | None) -> None:
    problem = PackageReport("torch", ">=2.10", installed, "").problem
    if words is None:
        assert problem is None
    else:
        assert problem is not None
        assert words.replace(".cpu", "+cpu") in problem


def test_a_missing_package_stops_every_command_and_one_of_an_extra_none() -> None:
    missing = PackageReport("gguf", ">=0.17", None, "")
    commands = examine_commands((NUMPY, missing), WORKING)
    assert all("gguf is not installed" in command.missing[0] for command in commands)
    for extra, some in (
        ("speech", {"voice", "speak", "evaluate --listen", "serve (VALL-E X)"}),
        ("vallex", {"speak (VALL-E X)", "serve (VALL-E X)", "speak (VALL-E X, Japanese)"}),
        ("dev", set()),
    ):
        missing = PackageReport("something", ">=1", None, extra)
        stopped = {c.name for c in examine_commands((NUMPY, missing), WORKING) if c.missing}
        assert some <= stopped == {name for name, needed in needs().items() if extra in needed}


def test_every_command_is_listed_and_needs_what_there_is() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {need for needed in needs().values() for need in needed}
    assert found <= {LLAMA, *project["optional-dependencies"]}
    assert {name.split()[0] for name in needs()} == COMMANDS.keys()
    assert project["name"] == DISTRIBUTION
