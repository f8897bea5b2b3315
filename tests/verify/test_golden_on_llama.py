"""The judge: the original's logits, through converted files on stock llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from golden_cases import golden_cases
from support import GOLDEN_NAMES

from valle_convert.families.v5.on_llama import GgufNetwork
from valle_convert.families.v5.trials import run_case
from valle_convert.metrics import nmse

# Set for this project; 4e-7 is reached in f32 (llama.cpp looks GELU up in a float16 table) and
# 3e-6 in f16 (activations are rounded to float16).
MAX_NMSE = {"f32": 1e-6, "f16": 1e-4}


@pytest.mark.parametrize("out_type", MAX_NMSE)
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_every_golden_logit_comes_out_of_stock_llama_cpp(
    name: str, out_type: str, converted: Callable[[str, str], Path]
) -> None:
    errors = {}
    with GgufNetwork(converted(name, out_type), n_threads=1) as network:
        for golden in golden_cases(name, network.model):
            errors[golden.case.name] = nmse(golden.logits, run_case(network, golden.case))
    assert {"ar", "nar1", "nar4", "nar7"} <= errors.keys()
    assert {case: error for case, error in errors.items() if error > MAX_NMSE[out_type]} == {}
