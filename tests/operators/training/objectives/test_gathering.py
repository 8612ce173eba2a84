"""1 = 2 = 4 ranks: the loss and the gradient of the global batch, for every kind of objective, with uneven ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from operators.training.objectives.gathering import RankRows, gathered, rank_rows, sum_gradients, sum_over_ranks
from tests.losses import relative_difference
from tests.rank_objectives import all_cases, whole
from tests.ranks import run_ranks

TOLERANCE = 1e-12  # in float64


def assert_ranks_agree_with(expected: dict[str, dict[str, torch.Tensor]], ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        objectives = rank["objectives"]
        assert set(objectives) == {*expected, "parallel"}
        for name, found in objectives.items():
            reference = expected["contrastive" if name == "parallel" else name]
            for part, values in reference.items():
                assert relative_difference(found[part], values) <= TOLERANCE, (name, part)


def test_two_ranks_are_one(tmp_path: Path) -> None:
    ranks = run_ranks(2, all_cases, tmp_path)
    assert_ranks_agree_with(whole(), ranks)
    for rank in ranks:
        assert rank["refused"] == "a batch of 1 rows leaves some of 2 ranks without any: (0, 1)"


@pytest.mark.slow
def test_four_ranks_are_one(tmp_path: Path) -> None:
    assert_ranks_agree_with(whole(), run_ranks(4, all_cases, tmp_path))


def test_one_rank_needs_no_process_group() -> None:
    rows = rank_rows(3, torch.device("cpu"))
    assert rows == RankRows((3,), 0)
    assert (rows.own, rows.total, rows.share) == (slice(0, 3), 3, 1.0)
    values = torch.ones(3, 2)
    assert gathered(values, rows) is values
    assert sum_over_ranks(values) is values
    sum_gradients([torch.nn.Parameter(values)])
    with pytest.raises(ValueError, match="rank 0 has 2 rows, not the 3"):
        gathered(values[:2], rows)


def test_rows_of_ranks_follow_each_other() -> None:
    owned = [RankRows((2, 0, 5), rank).own for rank in range(3)]
    assert owned == [slice(0, 2), slice(2, 2), slice(2, 7)]
