import os

import pytest

from valle_convert.llama.cpu import (
    features_of_interest,
    parse_cpuinfo,
    usable_cores,
)

X86 = "processor\t: 0\nflags\t\t: fpu avx2 avx2 smep amx_tile\n\nprocessor\t: 1\nflags\t\t: fpu\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp sve\n"


def test_features_are_read_as_x86_and_arm_write_them() -> None:
    assert parse_cpuinfo(X86) == ("amx_tile", "avx2", "fpu", "smep")
    assert parse_cpuinfo(ARM) == ("asimd", "asimddp", "fp", "sve")
    assert parse_cpuinfo("model name : none\n") == ()


def test_features_of_interest_are_those_with_kernels() -> None:
    assert features_of_interest(parse_cpuinfo(X86)) == ("amx_tile", "avx2")
    assert features_of_interest(("sme", "sme2", "smep", "fma")) == ("sme", "sme2", "fma")


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 2, 5}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # not every system has it
    assert usable_cores() == os.cpu_count()
