"""The state of this machine, and which commands work on it.

In: the machine. Out: a frozen `DoctorReport`; nothing is printed or raised. torch is not imported
(versions come from package metadata), and llama.cpp is loaded only after it passed its self-test in
a child process.
"""

import importlib.metadata
import platform
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import valle_convert
from valle_convert.errors import ValleConvertError
from valle_convert.extras import install
from valle_convert.families import families
from valle_convert.llama.cpu import (
    cmake_args,
    cpu_features,
    cpu_name,
    features_of_interest,
    usable_cores,
)
from valle_convert.llama.library import find_library, load_library
from valle_convert.llama.probe import ProbeResult, prove_library
from valle_convert.llama.programs import PROGRAMS, Program, find_program
from valle_convert.llama.tuning import Fastest, kept_settings

DISTRIBUTION = "valle-convert"
LLAMA = "llama.cpp"  # the library, as a requirement of commands
#: Commands without further requirements, and those that only some families support.
_ALWAYS = (
    "convert repair lora export inspect imatrix compare merge check-manifest codec doctor".split()
)
_ABILITIES = {"evaluate --listen": "listen", "transcribe": "transcribe", "utterances": "utterances"}


def needs() -> dict[str, tuple[str, ...]]:
    """What commands need beyond the required packages: llama.cpp (`LLAMA`) and extras.

    Without llama-quantize, `quantize` uses the same routine of the library.
    """
    found: dict[str, tuple[str, ...]] = {
        **dict.fromkeys(_ALWAYS, ()),
        "convert (from hf:...)": ("hub",),
        "publish": ("hub",),
        **dict.fromkeys(("tokenize", "quantize", "verify", "evaluate", "scan"), (LLAMA,)),
        "evaluate --report FILE.html": (LLAMA, "report"),
        "voice": ("speech",),
    }
    for family in reversed(families()):
        speaks = (LLAMA, *family.needs)
        of = f" ({family.title})" if family.name else ""
        found |= {f"speak{of}": speaks, f"serve{of}": (*speaks, "serve")}
        for language, extras in family.needs_for.items():
            found[f"speak ({family.title}, {language})"] = (*speaks, *extras)
        for command, ability in _ABILITIES.items():
            if ability in family.abilities:
                found[f"{command}{of}"] = speaks
    return found


@dataclass(frozen=True)
class PackageReport:
    name: str
    wanted: str  # the supported versions, such as `>=2.10`; empty for any
    installed: str | None  # the installed version; None if missing
    extra: str  # the extra that requires it (`llama`, `dev`); empty if always required

    @property
    def problem(self) -> str | None:
        if self.installed is None:
            return f"{self.name} is not installed; pip install '{self.name}{self.wanted}'"
        if not SpecifierSet(self.wanted).contains(self.installed, prereleases=True):
            return (
                f"{self.name} is {self.installed}, expected {self.wanted}; "
                f"pip install '{self.name}{self.wanted}'"
            )
        return None


@dataclass(frozen=True)
class LlamaReport:
    path: Path | None  # the shared library; None if not found
    binding_version: str | None  # the version of llama-cpp-python; None if not installed
    system_info: str | None  # llama.cpp's build features; None if not loaded
    devices: tuple[str, ...]  # what it can compute on; a BLAS library is one
    probe: ProbeResult | None  # result of the self-test; None if it failed or could not run
    problem: str | None  # why it cannot be used, and the remedy; None if it works


@dataclass(frozen=True)
class ProgramReport:
    name: str
    found: Program | None
    problem: str | None


@dataclass(frozen=True)
class CommandReport:
    name: str
    missing: tuple[str, ...]


@dataclass(frozen=True)
class DoctorReport:
    version: str
    python: str
    system: str
    cpu: str
    cores: int
    cpu_features: tuple[str, ...]
    packages: tuple[PackageReport, ...]
    llama: LlamaReport
    programs: tuple[ProgramReport, ...]
    commands: tuple[CommandReport, ...]
    install: str  # the command that installs what is missing
    tuned: tuple[Fastest, ...]  # the fastest settings that were found for files on it

    @property
    def ok(self) -> bool:
        return not any(command.missing for command in self.commands)


def examine(probe: Callable[[], ProbeResult] = prove_library) -> DoctorReport:
    """Examine this machine; the first self-test of llama.cpp takes about a second."""
    packages = examine_packages()
    llama = examine_llama(probe)
    programs = tuple(examine_program(name) for name in PROGRAMS)
    return DoctorReport(
        version=valle_convert.__version__,
        python=platform.python_version(),
        system=platform.platform(),
        cpu=cpu_name(),
        cores=usable_cores(),
        cpu_features=features_of_interest(cpu_features()),
        packages=packages,
        llama=llama,
        programs=programs,
        commands=examine_commands(packages, llama),
        install=f'CMAKE_ARGS="{" ".join(cmake_args())}" {install("llama", "speech")}',
        tuned=tuple(kept_settings()),
    )


def examine_packages() -> tuple[PackageReport, ...]:
    """Every package in this project's metadata, required ones first, then by extra."""
    try:
        about = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return ()  # run from a clone that was never installed
    requirements = about.get_all("Requires-Dist") or []
    extras = about.get_all("Provides-Extra") or []
    return packages_of([Requirement(one) for one in requirements], extras)


def packages_of(
    requirements: Iterable[Requirement], extras: Iterable[str]
) -> tuple[PackageReport, ...]:
    found = []
    for extra in ("", *sorted(extras)):
        for one in requirements:
            # A requirement without an extra holds for all extras.
            is_common = one.marker is None or one.marker.evaluate({"extra": ""})
            if is_common is (extra == "") and (
                one.marker is None or one.marker.evaluate({"extra": extra})
            ):
                installed = _installed_version(one.name)
                found.append(PackageReport(one.name, str(one.specifier), installed, extra))
    return tuple(sorted(found, key=lambda package: (package.extra, package.name)))


def examine_llama(probe: Callable[[], ProbeResult]) -> LlamaReport:
    path = find_library()
    version = _installed_version("llama-cpp-python")
    try:
        result = probe()
        library = load_library()
        system_info, devices = library.system_info(), tuple(library.devices())
    except ValleConvertError as error:
        return LlamaReport(path, version, None, (), None, str(error))
    return LlamaReport(path, version, system_info, devices, result, None)


def examine_program(name: str) -> ProgramReport:
    try:
        return ProgramReport(name, find_program(name), None)
    except ValleConvertError as error:
        return ProgramReport(name, None, str(error))


def examine_commands(
    packages: tuple[PackageReport, ...], llama: LlamaReport
) -> tuple[CommandReport, ...]:
    """The problems of each command; all commands need the required packages."""
    problems: dict[str, list[str]] = defaultdict(list)
    found = [(one.extra, one.problem) for one in packages]
    for need, problem in [*found, (LLAMA, llama.problem)]:
        if problem is not None:
            problems[need].append(problem)
    return tuple(
        CommandReport(name, tuple(chain.from_iterable(problems[one] for one in ("", *needed))))
        for name, needed in needs().items()
    )


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
