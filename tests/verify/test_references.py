"""The judge of logits: numbers that are no numbers fail, and few logits get the usual cost."""

from dataclasses import fields, replace

import numpy as np
import pytest

from valle_convert.verify.logits import References

RNG = np.random.default_rng(0)


def references(n_rows: int, n_codes: int, noise: float) -> References:
    exact = RNG.standard_normal((n_rows, n_codes)).astype(np.float32)
    error = RNG.standard_normal(exact.shape).astype(np.float32)
    return References(exact, exact + np.float32(1e-3) * error, exact + noise * error, exact)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [one.name for one in fields(References)])
def test_what_is_not_finite_fails_wherever_it_is(name: str, value: float) -> None:
    right = references(20, 30, 1e-2)
    assert right.judge(right.exact).passed
    damaged = getattr(right, name).copy()
    damaged[3, 4] = value
    assert not replace(right, **{name: damaged}).judge(right.exact).passed
    assert not right.judge(np.where(np.arange(30) == 4, np.float32(value), right.exact)).passed


@pytest.mark.parametrize(("n_rows", "is_few"), [(3, True), (20, False)])
def test_only_few_logits_are_allowed_the_usual_cost(n_rows: int, *, is_few: bool) -> None:
    """The types cost ten times what was expected of this head, as they do of the others."""
    head = references(n_rows, 11, 0.2)
    head = replace(head, degraded=head.meant + np.float32(0.02))
    assert not head.judge(head.exact).passed
    assert head.judge(head.exact, usual_cost=0.1).passed == is_few
