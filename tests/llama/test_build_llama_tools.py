import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support import PROJECT, executable, run_python

from valle_convert.llama.cpu import cmake_args

SCRIPT = PROJECT / "scripts" / "build_llama_tools.py"

OLD_XEON = {"sse4_2", "avx", "f16c"}
HASWELL = OLD_XEON | {"avx2", "bmi2", "fma"}
SKYLAKE = HASWELL | {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
SAPPHIRE = SKYLAKE | {"avx512vbmi", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8"}


def switches(**changed: str) -> list[str]:
    """All sets before AVX-512, "ON" unless changed: none is left to the default of llama.cpp."""
    names = ("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C")
    return [f"-DGGML_{name}={changed.get(name, 'ON')}" for name in names]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return importlib.import_module("scripts.build_llama_tools")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), []),
        (OLD_XEON, switches(AVX2="OFF", BMI2="OFF", FMA="OFF")),
        (HASWELL, switches()),
        (SKYLAKE, [*switches(), "-DGGML_AVX512=ON"]),
        # Half of AVX-512 is none of it for llama.cpp, whatever else is announced.
        (HASWELL | {"avx512f", "avx512_vnni"}, switches()),
        (
            SAPPHIRE,
            [
                *switches(),
                "-DGGML_AVX512=ON",
                "-DGGML_AVX512_VBMI=ON",
                "-DGGML_AVX512_VNNI=ON",
                "-DGGML_AVX512_BF16=ON",
            ],
        ),
    ],
    ids=["unknown", "old", "haswell", "skylake", "half", "with-amx"],
)
def test_cpu_flags_become_cmake_arguments_and_amx_never_does(
    flags: set[str], expected: list[str]
) -> None:
    assert cmake_args(flags) == ["-DGGML_NATIVE=OFF", *expected]


@pytest.mark.parametrize("text", ["numpy==1\n", "llama-cpp-python>=0.3\n", None])
def test_constraints_without_the_pin_are_an_error_in_one_line(
    tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "constraints.txt"
    if text is not None:
        path.write_text(text)
    child = run_python(SCRIPT, "--constraints", path, "--cache", tmp_path / "cache")
    assert child.returncode == 3
    assert child.stderr.count("\n") == 1
    assert "llama-cpp-python==VERSION" in child.stderr
    assert not (tmp_path / "cache").exists()


def test_what_is_built_by_the_same_recipe_is_not_built_again(
    script: ModuleType, tmp_path: Path
) -> None:
    recipe: dict[str, object] = {"llama_cpp_python": "0.3.36", "cmake_args": ["-DA=ON"]}
    assert not script.is_built(tmp_path, recipe)
    for name in script.PROGRAMS:
        executable(tmp_path / name)
    assert not script.is_built(tmp_path, recipe)  # without its stamp it may be half of a copy
    (tmp_path / script.STAMP).write_text(json.dumps(recipe))
    assert script.is_built(tmp_path, recipe)
    assert not script.is_built(tmp_path, {**recipe, "cmake_args": ["-DA=OFF"]})
    (tmp_path / script.PROGRAMS[0]).unlink()
    assert not script.is_built(tmp_path, recipe)


def programs(folder: Path, script: ModuleType, said: str) -> None:
    for name in script.PROGRAMS:
        executable(folder / name, f"echo {said}")
    (folder / script.STAMP).write_text("{}")


def test_programs_of_another_clone_are_copied_whole_if_they_start(
    script: ModuleType, tmp_path: Path
) -> None:
    programs(tmp_path / "shared", script, "usage")
    target = tmp_path / "clone" / "bin"
    assert script.put(tmp_path / "shared", target)
    assert script.is_built(target, {})
    programs(tmp_path / "other", script, "wrong libc")
    assert not script.put(tmp_path / "other", target)
    assert "usage" in (target / script.PROGRAMS[0]).read_text()
    assert [one.name for one in target.parent.iterdir()] == ["bin"]


def test_the_error_of_a_build_is_shown_though_much_was_said_after_it(script: ModuleType) -> None:
    said = "print('a.cpp:1: error: no such thing'); [print('in', i) for i in range(99)]; exit(2)"
    with pytest.raises(script.BuildError) as caught:
        script.run([sys.executable, "-c", said], "compiling")
    assert "no such thing" in str(caught.value)
    assert "in 98" in str(caught.value)


def test_the_arguments_for_the_binding_are_printed_alone() -> None:
    child = run_python(SCRIPT, "--print-cmake-args", check=True)
    assert child.stdout.startswith("-DGGML_NATIVE=OFF")
    assert child.stdout.count("\n") == 1
