"""Version 7 on stock llama.cpp and in PyTorch: one computes what the other does."""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from support import GOLDEN_VERSION_7, Convert, golden_checkpoint, open_reference
from torch.nn import functional

from valle_convert import open_network
from valle_convert.errors import InputError
from valle_convert.families.bundle import open_files
from valle_convert.families.v5.files import read_model
from valle_convert.families.v7.trials import utterances
from valle_convert.gguf_file.read import GgufFile
from valle_convert.metrics import nmse
from valle_convert.model.inputs import Condition


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
            read_model(GgufFile(path, allow_part=True))
