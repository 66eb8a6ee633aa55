from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.transforms import from_bins, from_logits, squash, to_bins, unsquash

LIMIT = 8.0
WITHIN = float(unsquash(jnp.float32(LIMIT)))

values = st.lists(st.floats(-WITHIN, WITHIN, width=32), min_size=1, max_size=8)


@settings(deadline=None, max_examples=50)
@given(values)
def test_unsquash_undoes_squash(numbers: list[float]) -> None:
    value = jnp.array(numbers)
    np.testing.assert_allclose(unsquash(squash(value)), value, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(values)
def test_bins_keep_the_value(numbers: list[float]) -> None:
    value = jnp.array(numbers)
    bins = to_bins(value, 41, LIMIT)
    np.testing.assert_allclose(bins.sum(axis=-1), 1, rtol=1e-5)
    assert ((bins > 0).sum(axis=-1) <= 2).all()
    np.testing.assert_allclose(from_bins(bins, LIMIT), value, rtol=1e-3, atol=1e-4)


def test_known_values() -> None:
    # h(3) = sqrt(4) - 1 + 0.003; the support -1, 0, 1 holds 0.25 as three parts of 0, one of 1.
    assert float(squash(jnp.float32(3))) == pytest.approx(1.003)
    quarter = unsquash(jnp.float32(0.25))
    np.testing.assert_allclose(to_bins(quarter, 3, 1.0), [0, 0.75, 0.25], atol=1e-6)


def test_values_beyond_the_support_are_held_at_its_ends() -> None:
    bins = to_bins(jnp.array([1e6, -1e6]), 5, LIMIT)
    np.testing.assert_array_equal(bins, [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0]])


def test_logits_of_a_distribution_give_its_value() -> None:
    bins = jnp.array([0.1, 0.2, 0.7])
    assert float(from_logits(jnp.log(bins), 1.0)) == pytest.approx(float(from_bins(bins, 1.0)))


def test_order_is_kept() -> None:
    value = jnp.linspace(-WITHIN, WITHIN, 101)
    assert (jnp.diff(squash(value)) > 0).all()
    assert (jnp.diff(unsquash(squash(value))) > 0).all()
