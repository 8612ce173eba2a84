"""Keyed numbers: known values, fair orders, any part alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from operators.training.data.mixing import Permutation, key_of, mixed


def test_mixed_is_splitmix64() -> None:
    # The first outputs of the reference generator (https://prng.di.unimi.it/splitmix64.c) with seed 1234567
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + i * golden) % 2**64 for i in range(3)], np.uint64)
    assert mixed(states, 0).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(size=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
def test_a_permutation_has_each_number_once_and_any_part_alone(size: int, key: int) -> None:
    order = Permutation(size, key)(0, size)
    assert sorted(order.tolist()) == list(range(size))
    middle = Permutation(size, key)(size // 3, size // 2)
    assert middle.tolist() == order[size // 3 : size // 2].tolist()


@pytest.mark.parametrize("size", [5, 16, 33])
def test_neighbours_of_an_order_are_any_two_numbers_alike(size: int) -> None:
    orders = np.stack([Permutation(size, key_of("test", key))(0, size) for key in range(4000)])
    pairs = np.bincount(orders[:, 0] * size + orders[:, 1], minlength=size * size).reshape(size, size)
    assert stats.chisquare(pairs[~np.eye(size, dtype=bool)]).pvalue > 1e-4
