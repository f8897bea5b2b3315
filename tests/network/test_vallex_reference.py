"""The PyTorch reference of VALL-E X against the original implementation."""

import numpy as np
import pytest
from support import open_reference
from vallex_golden import CHECKPOINT, golden, tensors

from valle_convert.checkpoint import read_checkpoint
from valle_convert.decode.batch import Element
from valle_convert.families.vallex.facts import fold_norm
from valle_convert.families.vallex.reference import VallexReference
from valle_convert.metrics import nmse

#: Both are float32; 5e-13 was measured at most.
SAME = 1e-11


@pytest.fixture(scope="module")
def reference() -> VallexReference:
    return open_reference(CHECKPOINT)


def test_copies_of_a_sequence_go_on_by_themselves(reference: VallexReference) -> None:
    given = golden("")
    first = reference.begin_ar(given.text, given.prompt[:, 0], "abc")
    level0, place = given.codes[:, 0], 1 + len(given.prompt)
    reference.append_codes([Element(one, level0[0], place) for one in "abc"])
    logits = reference.append_codes([Element(one, level0[1], place + 1) for one in "ac"])
    other = reference.append_codes([Element("b", level0[5], place + 1)])
    assert nmse(given.logits["ar"][:1], first) <= SAME
    assert nmse(given.logits["ar"][[2, 2]], logits) <= SAME
    assert nmse(logits[:1], other) > 1e-3


def test_a_norm_with_its_stage_folded_in_is_the_originals() -> None:
    folded = fold_norm(
        read_checkpoint(CHECKPOINT).tensors.read, "nar_decoder.layers.0.norm1", level=3
    )
    np.testing.assert_allclose(folded, tensors()["debug.nar_norm1.layer0.level3"], rtol=1e-5)
