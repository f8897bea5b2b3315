"""The judge: the original's logits, in PyTorch and through converted files on stock llama.cpp."""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from each_family import EACH_GOLDEN, FAMILIES, Row
from support import GOLDEN_VERSION_7, Convert, golden_checkpoint, open_reference
from torch.nn import functional

from valle_convert import open_network, read_checkpoint
from valle_convert.errors import InputError
from valle_convert.families import families, family_of
from valle_convert.families.bundle import open_files
from valle_convert.families.v5.files import read_model
from valle_convert.families.v7.trials import utterances
from valle_convert.gguf_file.read import GgufFile
from valle_convert.metrics import nmse
from valle_convert.model.inputs import Condition

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


# Version 7


@pytest.mark.parametrize("n", [1, 700])
def test_any_number_of_frames_is_encoded_and_decoded(n: int, converted: Convert) -> None:
    draw = np.random.default_rng(n)
    reference = open_reference(golden_checkpoint(GOLDEN_VERSION_7))
    with open_network(converted(GOLDEN_VERSION_7, "f32"), n_threads=1) as network:
        config = network.model.config
        for kind, n_codes in (("prompt", 40), ("response", 42)):
            codes = draw.integers(0, n_codes, (n, config.n_levels))
            assert nmse(reference.encode(kind, codes), network.encode(kind, codes)) < 1e-12
        # States of any size: a last norm is not there to even them out.
        sizes = np.exp(draw.normal(0, 2, (n, 1)))
        states = (sizes * draw.standard_normal((n, config.n_embd))).astype(np.float32)
        assert nmse(reference.decode(states), network.decode(states)) < 1e-11
        for head in ("length", "phonemes", "text"):
            assert nmse(reference.head(head, states), network.head(head, states)) < 1e-12


def test_memory_does_not_grow_with_the_frames(converted: Convert) -> None:
    with (
        open_network(converted(GOLDEN_VERSION_7, "f32"), n_threads=1) as network,
        patch.object(functional, "gelu", wraps=functional.gelu) as gelu,
    ):
        largest = {}
        for n in (512, 2000):
            gelu.reset_mock()
            network.encode("prompt", np.zeros((n, 8), np.int64))
            network.decode(np.zeros((n, network.model.config.n_embd), np.float32))
            largest[n] = max(call.args[0].nbytes for call in gelu.call_args_list)
    assert largest[512] == largest[2000] > 0


def test_a_prompt_that_changes_is_encoded_again(converted: Convert) -> None:
    with open_network(converted(GOLDEN_VERSION_7, "f32"), n_threads=1) as network:
        (one,) = utterances(network.model, 1)
        prompt = np.array(one.condition.prompt)
        condition = Condition(one.condition.phonemes, one.condition.language, prompt)
        before = network.levels(condition, one.masked)
        prompt[3, 2] = (prompt[3, 2] + 1) % 40  # in place
        after = network.levels(condition, one.masked)
        assert not np.array_equal(before, after)
        prompt[3, 2] = (prompt[3, 2] - 1) % 40
        np.testing.assert_array_equal(network.levels(condition, one.masked), before)


def test_codes_and_lengths_that_do_not_fit_are_refused(converted: Convert) -> None:
    with open_network(converted(GOLDEN_VERSION_7, "f32"), n_threads=1) as network:
        (one,) = utterances(network.model, 1)
        for codes in (one.response[:, :7], one.response[:, 0], one.response + 42):
            with pytest.raises(ValueError, match="response"):
                network.levels(one.condition, codes)
        with pytest.raises(ValueError, match="prompt"):
            network.levels(replace(one.condition, prompt=one.masked), one.response)
        far_too_long = np.zeros((23_000, 8), np.int64)
        with pytest.raises(InputError, match=r"are 2\d{4} elements, but the model was made for"):
            network.levels(one.condition, far_too_long)


def test_a_decoder_of_version_5_takes_no_file_of_version_7(converted: Convert) -> None:
    for path in open_files(converted(GOLDEN_VERSION_7, "f16")).paths:
        with pytest.raises(InputError, match=r"family 'vall-e-7', expected one of version 5 or 6"):
            read_model({"model": GgufFile(path, allow_part=True)})
