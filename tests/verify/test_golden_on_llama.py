"""The judge: the original's logits, in PyTorch and through converted files on stock llama.cpp."""

import pytest
from each_family import EACH_GOLDEN, FAMILIES, Row
from support import GOLDEN_VERSION_7, Convert, golden_checkpoint, open_reference

from valle_convert import open_network, read_checkpoint
from valle_convert.families import families, family_of
from valle_convert.metrics import nmse

#: Both are float32; the original sums in another order.
SAME = 1e-10


def test_every_family_is_tested() -> None:
    assert {family.title for family in families()} == FAMILIES.keys()


@pytest.mark.parametrize(("name", "row"), EACH_GOLDEN)
def test_every_golden_logit_comes_out_of_the_reference(name: str, row: Row) -> None:
    network = open_reference(golden_checkpoint(name))
    errors = {case: nmse(original, found) for case, original, found in row.logits(name, network)}
    assert errors.keys() >= row.names
    assert {case: error for case, error in errors.items() if not error <= SAME} == {}


@pytest.mark.parametrize(("name", "row"), EACH_GOLDEN)
def test_a_case_that_repeats_another_has_its_logits(name: str, row: Row) -> None:
    del row
    network = open_reference(golden_checkpoint(name))
    family = family_of(read_checkpoint(golden_checkpoint(name)))
    (example,) = family.trials.utterances(network.model, 1)
    found = {case.name: case.run(network) for case in family.trials.cases(network.model, example)}
    repeating = [case for case in family.trials.cases(network.model, example) if case.rows]
    assert repeating or name == GOLDEN_VERSION_7
    for case in repeating:
        assert nmse(found[case.repeats][list(case.rows)], found[case.name]) <= SAME


@pytest.mark.parametrize(
    ("name", "row", "out_type"),
    [
        pytest.param(name, row, out_type, id=f"{name}-{out_type}")
        for row in FAMILIES.values()
        for name in row.golden
        for out_type in row.max_nmse
    ],
)
def test_every_golden_logit_comes_out_of_stock_llama_cpp(
    name: str, row: Row, out_type: str, converted: Convert
) -> None:
    with open_network(converted(name, out_type), n_threads=1) as network:
        errors = {
            case: nmse(original, found) for case, original, found in row.logits(name, network)
        }
    assert errors.keys() >= row.names
    limit = row.max_nmse[out_type]
    assert {case: error for case, error in errors.items() if not error <= limit} == {}
