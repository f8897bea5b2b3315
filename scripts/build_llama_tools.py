"""Build stock llama.cpp once: the library, `llama-quantize` and `llama-tokenize`.

In: the pin `llama-cpp-python==X` of constraints.txt. Out: `.cache/llama.cpp/X/bin` with the
programs, the libraries that they load, and `build.json`, the recipe. A copy stays in the user's
own cache, so that the next clone of the project does not compile.

The source package of llama-cpp-python holds all of llama.cpp in `vendor/llama.cpp`. `--install`
also installs the binding into this Python, with the libraries of this build in the place of its
own, so that llama.cpp is compiled once and programs and library are the same version.

`--print-cmake-args` prints the CMAKE_ARGS for this CPU, for those who install with pip alone.

Only the standard library is used: this runs before anything is installed.
"""

# ruff: noqa: T201, S603 - a script: it prints, and it runs cmake and pip.

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from valle_convert.llama.cpu import cmake_args  # noqa: E402 - found by the line above

PROGRAMS = ("llama-quantize", "llama-tokenize")
STAMP = "build.json"

# What the programs share parses arguments; without optimizing it, all compiles in 5/6 of the time.
UNOPTIMIZED = (
    "cmake_language(DEFER DIRECTORY ${CMAKE_SOURCE_DIR} "
    "CALL target_compile_options llama-common PRIVATE -O0)\n"
)
# Libraries and programs lie in one folder and find each other there.
RECIPE = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH=" + ("@loader_path" if sys.platform == "darwin" else "$ORIGIN"),
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
)


def main() -> int:
    """Read the arguments and do the one thing asked for; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Build the pinned llama.cpp: its library, llama-quantize and llama-tokenize."
    )
    parser.add_argument(
        "--constraints",
        type=Path,
        default=PROJECT / "constraints.txt",
        help="the file with the line llama-cpp-python==X (default: the project's)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=PROJECT / ".cache" / "llama.cpp",
        help="where the programs go, under VERSION/bin (default: the project's .cache/llama.cpp)",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at a time")
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--install",
        action="store_true",
        help="also install llama-cpp-python into this Python, with the libraries built here",
    )
    only.add_argument(
        "--print-cmake-args",
        action="store_true",
        help="print the CMAKE_ARGS for installing llama-cpp-python on this machine, and stop",
    )
    arguments = parser.parse_args()

    if arguments.print_cmake_args:
        print(" ".join(cmake_args()))
        return 0
    try:
        version = read_pin(arguments.constraints)
        target = arguments.cache.resolve() / version / "bin"
        build(version, target, jobs=arguments.jobs, shared=shared_cache() / version)
        if arguments.install:
            install(version, target, arguments.constraints)
    except BuildError as error:
        print(f"build_llama_tools: {error}", file=sys.stderr)
        return 3
    return 0


class BuildError(Exception):
    """The programs cannot be built; the message says why and what to do."""


def shared_cache() -> Path:
    """The user's cache folder by the XDG rules, for all clones of the project."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    home = given if given.is_absolute() else Path.home() / ".cache"
    return home / "valle-convert" / "llama.cpp"


def read_pin(constraints: Path) -> str:
    """The version of llama-cpp-python that a constraints file pins."""
    try:
        text = constraints.read_text(encoding="utf-8")
    except OSError as error:
        raise BuildError(
            f"{constraints} cannot be read ({error.strerror}); it has to hold the line "
            "llama-cpp-python==VERSION."
        ) from error
    pins = re.findall(r"^llama[-_]cpp[-_]python==([0-9A-Za-z.+!-]+)", text, re.MULTILINE)
    if len(pins) != 1:
        raise BuildError(
            f"{constraints} has {len(pins)} lines llama-cpp-python==VERSION, expected one."
        )
    return str(pins[0])


def build(version: str, target: Path, *, jobs: int, shared: Path) -> None:
    """Make `target` hold the programs; do nothing where it already holds exactly these.

    The folder appears by a rename at the end, so a build that was stopped is never used. What
    `shared` holds of the same recipe is taken from there, and what is built is left there.
    """
    options = [*cmake_args(), *RECIPE]
    recipe: dict[str, object] = {
        "llama_cpp_python": version,
        "cmake_args": options,
        "machine": platform.machine(),
    }
    if is_built(target, recipe):
        print(f"llama.cpp is built: {target}")
        return
    if is_built(shared, recipe) and put(shared, target):
        print(f"llama.cpp was built before: copied from {shared} to {target}")
        return
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            raise BuildError(
                f"{tool} was not found in PATH; install it (Debian, Ubuntu: "
                "apt-get install cmake build-essential) and try again."
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, not in /tmp: the last step is a rename, which needs one file system.
    with tempfile.TemporaryDirectory(prefix=".building-", dir=target.parent) as name:
        work = Path(name)
        source = fetch_source(version, work) / "vendor" / "llama.cpp"
        compile_all(source, work / "build", options, jobs=jobs)
        finished = work / "bin"
        finished.mkdir()
        for built in [
            *map((work / "build" / "bin").joinpath, PROGRAMS),
            *libraries(work / "build" / "bin"),
        ]:
            shutil.copy2(built, finished / built.name)
        for program in PROGRAMS:
            prove_it_starts(finished / program)
        shutil.copy2(source / "LICENSE", finished / "LICENSE.llama.cpp")
        (finished / STAMP).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
        move(finished, target, work / "replaced")
    put(target, shared)
    print(f"llama.cpp is built: {target}")


def libraries(folder: Path) -> list[Path]:
    return sorted([*folder.glob("lib*.so"), *folder.glob("lib*.dylib")])


def install(version: str, built: Path, constraints: Path) -> None:
    """Install the binding without compiling, and give it the libraries of `built`.

    From an unpacked folder: pip would keep a wheel of the package itself, which has no library,
    and take it in other environments.
    """
    inside = Path(sysconfig.get_paths()["platlib"]) / "llama_cpp" / "lib"
    stamp = inside / STAMP
    if stamp.is_file() and stamp.read_bytes() == (built / STAMP).read_bytes():
        print(f"llama-cpp-python {version} is installed: {inside.parent}")
        return
    with tempfile.TemporaryDirectory(prefix=".binding-", dir=built.parent) as name:
        source = fetch_source(version, Path(name))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--force-reinstall"]
        command += ["--constraint", str(constraints), str(source)]
        run(command, "installing the binding", CMAKE_ARGS="-DLLAMA_BUILD=OFF")
    inside.mkdir(exist_ok=True)
    for path in libraries(built):
        shutil.copy2(path, inside / path.name)
    start = "import llama_cpp; llama_cpp.llama_backend_init()"
    run([sys.executable, "-c", start], "loading the library in the binding")
    shutil.copy2(built / STAMP, stamp)
    print(f"llama-cpp-python {version} is installed with the libraries of {built}")


def put(source: Path, target: Path) -> bool:
    """Copy a folder of working programs; returns whether that was possible."""
    try:
        for program in PROGRAMS:
            prove_it_starts(source / program)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".copying-", dir=target.parent) as name:
            shutil.copytree(source, Path(name) / "bin")
            move(Path(name) / "bin", target, Path(name) / "replaced")
    except (OSError, BuildError, subprocess.SubprocessError) as error:
        print(f"{source} was not copied to {target}: {error}", flush=True)
        return False
    return True


def move(folder: Path, target: Path, replaced: Path) -> None:
    """Rename a finished folder to its place."""
    if target.exists():
        target.rename(replaced)
    folder.rename(target)


def is_built(target: Path, recipe: dict[str, object]) -> bool:
    """Whether `target` holds every program, built by this very recipe."""
    try:
        stamp = json.loads((target / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return stamp == recipe and all(os.access(target / name, os.X_OK) for name in PROGRAMS)


def fetch_source(version: str, work: Path) -> Path:
    """Download and unpack the source package of the binding; returns its folder.

    pip asks every source package for its metadata, in a build environment of its own: that
    downloads scikit-build-core too (small), and compiles nothing.
    """
    print(f"downloading the source package of llama-cpp-python {version}", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", "llama-cpp-python", "--dest", str(work)]
    command += [f"llama-cpp-python=={version}"]
    run(command, "downloading the source package (is there a way to the package index?)")
    packages = list(work.glob("llama_cpp_python-*.tar.gz"))
    if len(packages) != 1:
        raise BuildError(f"pip left {len(packages)} source packages, expected one.")
    with tarfile.open(packages[0]) as archive:
        archive.extractall(work / "source", filter="data")
    found = list((work / "source").glob("*/vendor/llama.cpp/CMakeLists.txt"))
    if len(found) != 1:
        raise BuildError(
            f"The source package {packages[0].name} has no vendor/llama.cpp; "
            "pin a version in constraints.txt that has."
        )
    return found[0].parents[2]


def compile_all(source: Path, folder: Path, options: list[str], *, jobs: int) -> None:
    """Configure and build; about five minutes on two cores."""
    print(f"building llama.cpp with {' '.join(options)}", flush=True)
    hook = folder.with_suffix(".cmake")
    hook.write_text(UNOPTIMIZED, encoding="utf-8")
    configure = ["cmake", "-S", str(source), "-B", str(folder), *options]
    configure.append(f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={hook}")
    run([*configure, "-Wno-dev"], "configuring llama.cpp")
    make = ["cmake", "--build", str(folder), "--target", "llama", *PROGRAMS, "--parallel"]
    try:
        run([*make, str(max(jobs, 1))], "compiling llama.cpp")
    except BuildError as error:
        # A compiler that was killed for want of memory, say: what is compiled already stays.
        print(f"{error}\ntrying once more, one file at a time", flush=True)
        run([*make, "1"], "compiling llama.cpp, one file at a time,")


def prove_it_starts(program: Path) -> None:
    """Start a finished program away from its build folder; `--help` of both answers at once."""
    answer = subprocess.run(
        [program, "--help"], capture_output=True, text=True, check=False, timeout=60
    )
    if "usage" not in (answer.stdout + answer.stderr).lower():
        raise BuildError(
            f"{program.name} was built but does not start (exit code {answer.returncode}): "
            f"{answer.stderr.strip()[-300:]}"
        )


def run(command: list[str], what: str, **variables: str) -> None:
    """Run a program quietly; if it fails, show its errors and the end of its output."""
    answer = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )
    if answer.returncode != 0:
        lines = answer.stdout.splitlines()
        # Compilers run side by side, so that the error may stand far above the end.
        wrong = [
            line for line in lines[:-15] if re.search(r"error|fatal|killed", line, re.IGNORECASE)
        ]
        tail = "\n".join([*wrong[:15], *lines[-15:]])
        raise BuildError(f"{what} failed (exit code {answer.returncode}):\n{tail}")


if __name__ == "__main__":
    sys.exit(main())
