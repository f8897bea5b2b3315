"""What the CPU says it can do, and how many of its cores this process may use."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

# What llama.cpp has kernels for, as Linux names it (x86 and ARM); the rest of the list is noise
# in a report.
OF_INTEREST = re.compile(
    r"^(sse4_2|avx.*|fma|f16c|bmi2|amx.*|asimd.*|neon|sve.*|sme(?!p).*|i8mm|bf16|fphp)$"
)


def cpu_features() -> tuple[str, ...]:
    """The CPU's features as Linux names them, sorted; empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    return parse_cpuinfo(text)


def parse_cpuinfo(text: str) -> tuple[str, ...]:
    """The features in the text of /proc/cpuinfo: `flags` on x86, `Features` on ARM."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return tuple(sorted(set(found.group(1).split()))) if found else ()


def features_of_interest(features: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the features that llama.cpp has kernels for."""
    return tuple(feature for feature in features if OF_INTEREST.match(feature))


def cpu_name() -> str:
    """The CPU's model name, or the machine type where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def usable_cores() -> int:
    """The cores that this process may run on; fewer than the machine has under taskset or Docker.

    More threads than cores make llama.cpp many times slower: its threads wait by spinning.
    """
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1
