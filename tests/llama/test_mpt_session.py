"""Sequences of an `mpt` model: they keep what they hold when their context grows."""

from pathlib import Path

import numpy as np
from support import ONE_THREAD

from valle_convert.llama.mpt import MptSession
from valle_convert.llama.tiny import MPT_WIDTH, random_mpt, write_mpt

FACTOR = 256
#: Causal batches of another size run through other kernels.
TOLERANCE = 1e-4


def drawn(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, MPT_WIDTH), dtype=np.float32)


def test_a_block_that_sees_itself_stays_and_sees_what_was_before_it(tmp_path: Path) -> None:
    weights, path = random_mpt(attention=True), tmp_path / "mpt.gguf"
    write_mpt(path, weights, FACTOR)
    rows = dict(enumerate(weights["token_embd.weight"][:4]))
    before, block, everything = drawn(5, 0), drawn(4, 1), np.ones(4, np.bool_)
    with MptSession(
        path, probe_rows=rows, activation_factor=FACTOR, settings=ONE_THREAD
    ) as session:
        places = np.arange(9, dtype=np.int32)
        session.read(0, before)
        found = session.decode(block, places[5:], 0, everything, causal=False)
        assert session.length() == 9
        session.forget(0)
        session.read(0, before[::-1])  # without positions, the order is nothing
        same = session.decode(block, places[5:], 0, everything, causal=False)
        session.forget(0)
        session.read(0, before[:4])
        other = session.decode(block, places[4:8], 0, everything, causal=False)
    np.testing.assert_allclose(found, same, atol=TOLERANCE)
    assert np.abs(found - other).max() > 100 * TOLERANCE
