"""Micro-batches: every text once, within the budget, in order again, with gradients."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from operators.training.steps.micro_batches import micro_batches


@given(lengths=st.lists(st.integers(1, 40), max_size=50), budget=st.integers(1, 200))
def test_each_text_is_in_one_micro_batch_within_the_budget(lengths: list[int], budget: int) -> None:
    lengths_N = np.array(lengths, np.int64)
    found = micro_batches(lengths_N, budget)
    assert sorted(row for rows in found.rows for row in rows.tolist()) == list(range(len(lengths)))
    padded = 0
    for rows in found.rows:
        longest = int(lengths_N[rows].max())
        assert longest == lengths_N[rows[0]]
        assert len(rows) == 1 or len(rows) * longest <= budget
        padded += len(rows) * longest
    assert found.padding_tokens == padded - sum(lengths)


def test_values_come_back_in_order_and_gradients_pass() -> None:
    lengths_N = np.array([3, 9, 1, 9, 4], np.int64)
    found = micro_batches(lengths_N, 12)
    values_ND = torch.randn(5, 2, requires_grad=True)
    parts = [values_ND[torch.from_numpy(rows)] for rows in found.rows]
    assert [part.shape[0] for part in parts] == [len(rows) for rows in found.rows]
    restored_ND = found.restored(parts)
    assert torch.equal(restored_ND, values_ND)
    weights_ND = torch.arange(10.0).reshape(5, 2)
    (restored_ND * weights_ND).sum().backward()
    assert torch.equal(values_ND.grad, weights_ND)


def test_texts_of_like_length_are_together() -> None:
    lengths_N = np.random.default_rng(0).integers(1, 512, 1000)
    found = micro_batches(lengths_N, 8192)
    assert found.padding_tokens / lengths_N.sum() < 0.05
