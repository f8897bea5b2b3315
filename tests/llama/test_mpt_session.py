"""Sequences of an `mpt` model: they keep what they hold when their context grows."""

from pathlib import Path

import numpy as np
import pytest

from valle_convert.llama.mpt import MptSession
from valle_convert.llama.tiny_mpt import MPT_WIDTH, random_mpt, write_mpt

FACTOR = 256
#: Causal batches of another size run through other kernels.
TOLERANCE = 1e-4


@pytest.fixture
def session(tmp_path: Path) -> MptSession:
    weights = random_mpt(attention=True)
    (path,) = write_mpt(tmp_path, weights, FACTOR)
    rows = dict(enumerate(weights["token_embd.weight"][:4]))
    return MptSession(path, probe_rows=rows, activation_factor=FACTOR, n_threads=1)


def drawn(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, MPT_WIDTH), dtype=np.float32)


def test_copies_go_on_by_themselves_past_the_room_that_they_had(session: MptSession) -> None:
    text, steps, copies = drawn(200, 0), [drawn(3, i) for i in range(1, 60)], ["a", "b", "c"]
    with session:
        session.make_room(3)
        session.read("a", text)
        session.extend("a", drawn(1, 100), 1, slice(None))
        session.fork("a", copies[1:])
        assert session._context is not None
        before = session._context.n_ctx
        found = [session.append(copies, rows, slice(None)) for rows in steps]
        assert session._context.n_ctx > before
        assert [session.length(one) for one in (*copies, "d")] == [260, 260, 260, 0]
        for i, copy in enumerate(copies):
            session.forget(copy)
            session.read(copy, text, room=100)
            alone = np.concatenate([drawn(1, 100), *(rows[i : i + 1] for rows in steps)])
            expected = session.extend(copy, alone, len(steps), slice(None))
            np.testing.assert_allclose(
                np.stack([logits[i] for logits in found]), expected, atol=TOLERANCE
            )


def test_a_block_that_sees_itself_stays_and_sees_what_was_before_it(session: MptSession) -> None:
    before, block, everything = drawn(5, 0), drawn(4, 1), np.ones(4, np.bool_)
    with session:
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
