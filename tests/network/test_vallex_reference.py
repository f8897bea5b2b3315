"""The PyTorch reference of VALL-E X against the original implementation."""

from __future__ import annotations

import numpy as np
import pytest
from support import open_reference
from vallex_golden import CHECKPOINT, golden, greedy_codes, tensors

from valle_convert.checkpoint import read_checkpoint
from valle_convert.families.vallex.facts import fold_norm
from valle_convert.families.vallex.reference import VallexReference
from valle_convert.metrics import nmse

#: Both are float32; 5e-13 was measured at most.
SAME = 1e-11


@pytest.fixture(scope="module")
def reference() -> VallexReference:
    return open_reference(CHECKPOINT)


@pytest.mark.parametrize("prefix", ["", "noprompt."])
def test_greedy_codes_are_the_originals(prefix: str, reference: VallexReference) -> None:
    given = golden(prefix)
    np.testing.assert_array_equal(greedy_codes(reference, given), given.codes)


def test_copies_of_a_sequence_go_on_by_themselves(reference: VallexReference) -> None:
    given = golden("")
    first = reference.begin_ar(given.text, given.prompt[:, 0], n_copies=3)
    level0 = given.codes[:, 0]
    reference.step_ar([0, 1, 2], level0[[0, 0, 0]])
    logits = reference.step_ar([0, 2], level0[[1, 1]])
    other = reference.step_ar([1], level0[[5]])
    assert nmse(given.logits["ar"][:1], first) <= SAME
    assert nmse(given.logits["ar"][[2, 2]], logits) <= SAME
    assert nmse(logits[:1], other) > 1e-3


def test_a_norm_with_its_stage_folded_in_is_the_originals() -> None:
    folded = fold_norm(
        read_checkpoint(CHECKPOINT).tensors.read, "nar_decoder.layers.0.norm1", level=3
    )
    np.testing.assert_allclose(folded, tensors()["debug.nar_norm1.layer0.level3"], rtol=1e-5)
