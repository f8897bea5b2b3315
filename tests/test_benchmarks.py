"""Benchmarks run for minutes; here they only have to start."""

import importlib
import inspect
from pathlib import Path

import pytest
from support import PROJECT
from vallex_golden import CHECKPOINT as VALLEX

from valle_convert import Choices, plan_conversion, write_gguf


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))


def test_every_benchmark_takes_arguments() -> None:
    for path in importlib.import_module("run").FILES:
        inspect.signature(importlib.import_module(path.stem).main).bind([])


def test_a_session_of_vall_e_x_is_measured(tmp_path: Path) -> None:
    write_gguf(plan_conversion(VALLEX, Choices("f16")), tmp_path / "x.gguf")
    bench = importlib.import_module("bench_vallex")
    assert bench.bench_session(tmp_path / "x.gguf", 1, 1)["nar_pass_ms"] > 0
