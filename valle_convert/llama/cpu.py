"""The CPU's features, llama.cpp's build flags for it, and the usable cores.

Only the standard library is used: `scripts/build_llama_tools.py` runs before anything is installed.
"""

import os
import platform
import re
from collections.abc import Collection
from pathlib import Path

# Features that llama.cpp has kernels for, by their names in Linux (x86 and ARM).
OF_INTEREST = re.compile(
    r"^(sse4_2|avx.*|fma|f16c|bmi2|amx.*|asimd.*|neon|sve.*|sme(?!p).*|i8mm|bf16|fphp)$"
)

# No native build: on some virtual machines the CPU announces AMX but faults on its first
# instruction, and a native llama.cpp dies with SIGSEGV on the first batch of a quantized model. So
# every instruction set except AMX is switched explicitly. Unnamed ones are on, except with
# SOURCE_DATE_EPOCH set: then they are off, and AVX-512 does not compile.
ON_IF_THERE = {
    "GGML_SSE42": {"sse4_2"},
    "GGML_AVX": {"avx"},
    "GGML_AVX2": {"avx2"},
    "GGML_BMI2": {"bmi2"},
    "GGML_FMA": {"fma"},
    "GGML_F16C": {"f16c"},
}
OFF_UNLESS_NAMED = {
    "GGML_AVX512": {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"},
    "GGML_AVX512_VBMI": {"avx512vbmi"},
    "GGML_AVX512_VNNI": {"avx512_vnni"},
    "GGML_AVX512_BF16": {"avx512_bf16"},
}


def cpu_features() -> tuple[str, ...]:
    """The CPU's features by their names in Linux, sorted; empty if unknown."""
    return parse_cpuinfo(_cpuinfo())


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def parse_cpuinfo(text: str) -> tuple[str, ...]:
    """The features in the text of /proc/cpuinfo: `flags` on x86, `Features` on ARM."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return tuple(sorted(set(found.group(1).split()))) if found else ()


def features_of_interest(features: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(feature for feature in features if OF_INTEREST.match(feature))


def cpu_name() -> str:
    """The CPU's model name, or the machine type if there is none."""
    found = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def usable_cores() -> int:
    """The cores that this process may run on; fewer than the machine has under taskset or Docker.

    With more threads than cores, llama.cpp becomes many times slower: its threads wait by spinning.
    """
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def busy_seconds() -> float:
    """Processor time of all processes since the machine started; 0 if unknown."""
    try:
        first = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0]
        user, nice, system, _idle, _waiting, *others = map(int, first.split()[1:9])
        return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return 0.0


def cmake_args(features: Collection[str] | None = None) -> list[str]:
    """The CMAKE_ARGS that select instructions for this x86 CPU, or those of any CPU."""
    if features is None:
        is_x86 = platform.machine().lower() in {"x86_64", "amd64"}
        features = cpu_features() if is_x86 else ()
    args = ["-DGGML_NATIVE=OFF"]
    if not features:
        return args
    there = set(features)
    args += [
        f"-D{name}={'ON' if needed <= there else 'OFF'}" for name, needed in ON_IF_THERE.items()
    ]
    if OFF_UNLESS_NAMED["GGML_AVX512"] <= there:
        args += [f"-D{name}=ON" for name, needed in OFF_UNLESS_NAMED.items() if needed <= there]
    return args
