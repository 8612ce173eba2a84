"""Pooling against sentence-transformers' own, padding on either side; finishing: lengths, zeros, what is not finite."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling

from operators.embedder.model.pooling import pool
from operators.embedder.vectors import finish

LENGTHS = (1, 3, 7, 7)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("ours", "theirs"), [("mean", "mean"), ("cls", "cls"), ("last", "lasttoken")])
def test_pooling_is_that_of_sentence_transformers(
    side: str, ours: Literal["mean", "cls", "last"], theirs: Literal["mean", "cls", "lasttoken"]
) -> None:
    states_BLD = torch.randn(len(LENGTHS), 7, 5, generator=torch.Generator().manual_seed(0))
    mask_BL = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
    if side == "left":
        mask_BL = mask_BL.flip(1)
    features = {"token_embeddings": states_BLD.clone(), "attention_mask": mask_BL.to(torch.int64)}
    expected_BD = Pooling(5, theirs)(features)["sentence_embedding"]
    torch.testing.assert_close(pool(states_BLD, mask_BL, ours), expected_BD)


def test_mean_sums_in_float32() -> None:
    states_BLD = torch.ones(1, 1001, 1, dtype=torch.bfloat16)
    states_BLD[0, 0, 0] = 1024  # in bfloat16, 1024 + 1 = 1024
    pooled_BD = pool(states_BLD, torch.ones(1, 1001, dtype=torch.bool), "mean")
    assert pooled_BD.item() == pytest.approx(2024 / 1001)


def test_padding_that_is_not_finite_does_not_count() -> None:
    states_BLD = torch.tensor([[[1.0], [3.0], [torch.inf]], [[1.0], [torch.nan], [torch.nan]]])
    mask_BL = torch.tensor([[True, True, False], [True, False, False]])
    assert pool(states_BLD, mask_BL, "mean").tolist() == [[2.0], [1.0]]


def test_finish_flags_what_has_no_direction() -> None:
    pooled_ND = torch.tensor([[3.0, 4.0], [0.0, 0.0], [torch.nan, 1.0], [torch.inf, 1.0], [3e25, 4e25], [3e-30, 4e-30]])
    values_ND, finite_N = finish(pooled_ND, normalize=True)
    assert finite_N.tolist() == [True, False, False, False, True, True]
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    torch.testing.assert_close(values_ND, expected)


def test_finish_leaves_lengths_where_not_normalised() -> None:
    values_ND, finite_N = finish(torch.tensor([[3.0, 4.0], [torch.nan, 1.0]]), normalize=False)
    assert values_ND.tolist() == [[3.0, 4.0], [0.0, 0.0]]
    assert finite_N.tolist() == [True, False]
