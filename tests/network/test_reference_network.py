"""The PyTorch reference of versions 5 and 6: sequences, grouped heads, directions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import golden_checkpoint, open_reference

from valle_convert import read_checkpoint
from valle_convert.families import family_of
from valle_convert.families.v5.trials import cases, utterances
from valle_convert.model.inputs import assemble

# Summing in another order moves a float32 logit of size one by this much.
ROUNDING = 2e-5


@pytest.mark.parametrize("version", [5, 7])
def test_a_model_of_one_level_is_timed(version: int, small_checkpoint: Callable[..., Path]) -> None:
    path = small_checkpoint(version=version, levels=1)
    network = open_reference(path)
    speed = family_of(read_checkpoint(path)).trials.measure_speed(network)
    assert speed.ar_step > 0
    assert speed.nar_pass > 0


def test_grouped_heads_are_ordinary_heads_whose_keys_and_values_are_repeated(
    small_checkpoint: Callable[..., Path],
) -> None:
    from safetensors.numpy import load_file, save_file

    grouped = small_checkpoint("grouped.sft", heads=4, kv_heads=2)
    full = small_checkpoint("full.sft", heads=4)
    tensors = load_file(grouped)
    for name, values in tensors.items():
        if ".k_proj." in name or ".v_proj." in name:
            heads = values.reshape(2, 16, 64)
            tensors[name] = np.repeat(heads, 2, axis=0).reshape(64, 64)
    from safetensors import safe_open

    with safe_open(full, framework="numpy") as file:
        metadata = file.metadata()
    save_file(tensors, full, metadata)
    one, other = open_reference(grouped), open_reference(full)
    assert one.model.config.n_head_kv == 2
    (utterance,) = utterances(one.model, 1)
    for case in cases(one.model, utterance):
        np.testing.assert_allclose(case.run(one), case.run(other), rtol=0, atol=ROUNDING)


def test_both_directions_see_the_whole_response_and_causal_passes_do_not() -> None:
    network = open_reference(golden_checkpoint("ar-nar-len"))
    (utterance,) = utterances(network.model, 1)
    for case in cases(network.model, utterance):
        if case.name not in ("ar", "nar.1"):
            continue
        inputs = assemble(network.model, case.run.keywords["segments"], network.look_up)
        changed = inputs.embeddings.copy()
        changed[-1] += 1.0  # the last element
        first = slice(inputs.last, inputs.last + 1)
        results = []
        for embeddings in (inputs.embeddings, changed):
            network.forget(0)
            results.append(
                network.step(embeddings, inputs.positions, head=case.head, outputs=first)
            )
        moved = np.abs(results[0] - results[1]).max()
        assert (moved > ROUNDING) == (case.name == "nar.1")
