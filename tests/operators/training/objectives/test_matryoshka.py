"""Objectives at several widths; what keeps sparse vectors sparse; PromptBERT's denoising."""

from __future__ import annotations

import pytest
import sentence_transformers.sparse_encoder.losses as theirs
import torch
from torch.nn import functional

from operators.errors import InputError
from operators.training.objectives.contrastive import GTE, info_nce
from operators.training.objectives.denoising import denoised, empty_template_positions
from operators.training.objectives.matryoshka import matryoshka
from operators.training.objectives.pairs import Pairs, pairs_of
from operators.training.objectives.representations import normalised
from operators.training.objectives.scored import cosent
from operators.training.objectives.sparse import flops, flops_of_means, quadratic_ramp
from tests.losses import assert_same_loss, random_rows

B, D = 5, 8
LEFT, RIGHT = random_rows(B, D), random_rows(B, D, seed=1)


def test_matryoshka_is_the_weighted_sum_over_prefixes() -> None:
    scores_B = torch.tensor([0.1, 0.9, 0.4, 0.3, 0.8])
    dims, weights = (8, 4, 3), (1.0, 0.5, 0.2)
    for objective in (
        lambda towers: info_nce(pairs_of(towers), 0.1, GTE),
        lambda towers: cosent(towers[0], towers[1], scores_B),
    ):

        def expected(*towers: torch.Tensor) -> torch.Tensor:
            parts = [w * objective([tower[:, :d] for tower in towers]) for d, w in zip(dims, weights, strict=True)]  # noqa: B023
            return torch.stack(parts).sum()

        assert_same_loss(lambda *towers: matryoshka(objective, dims, weights)(towers), expected, LEFT, RIGHT)  # noqa: B023


def test_matryoshka_prefixes_have_length_one() -> None:
    """Seen by a loss that takes lengths as they are."""

    def lengths(towers: object) -> torch.Tensor:
        assert isinstance(towers, list)
        return torch.stack([tower.square().sum() for tower in towers]).sum()

    assert matryoshka(lengths, (8, 2))([LEFT, RIGHT]).item() == pytest.approx(4 * B)


def test_matryoshka_refuses_dims_without_sense() -> None:
    with pytest.raises(InputError, match="matryoshka dims must be different positive numbers"):
        matryoshka(lambda towers: towers[0].sum(), (4, 4))
    with pytest.raises(InputError, match="1 given for 2 dims"):
        matryoshka(lambda towers: towers[0].sum(), (4, 2), (1.0,))
    with pytest.raises(InputError, match="go up to 9, but a representation has 8 dimensions"):
        matryoshka(lambda towers: towers[0].sum(), (9,))([LEFT])


def test_flops_is_the_squared_mean_of_each_word() -> None:
    weights_BV = random_rows(B, 11).abs()

    def expected(weights_BV: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=weights_BV.dtype)
        for word in range(weights_BV.shape[1]):
            total = total + (sum(abs(weights_BV[i, word]) for i in range(B)) / B) ** 2
        return total

    assert_same_loss(flops, expected, weights_BV)
    loss = theirs.FlopsLoss(torch.nn.Identity())  # type: ignore[arg-type]  # no model is needed for ready embeddings
    assert_same_loss(flops, loss.compute_loss_from_embeddings, weights_BV)
    assert_same_loss(lambda weights: flops_of_means(weights.mean(dim=0)), expected, weights_BV)


def test_ramp_is_quadratic_and_stays_full() -> None:
    assert [quadratic_ramp(step, 4, 0.8) for step in (0, 1, 2, 4, 9)] == pytest.approx([0, 0.05, 0.2, 0.8, 0.8])
    assert quadratic_ramp(0, 0, 0.8) == 0.8


def test_template_positions_move_on_by_the_length_of_the_text() -> None:
    """As `[CLS] a b TEXT c d e [SEP]` has them, with the text taken out."""
    whole = [list(range(3 + length + 4)) for length in (1, 5)]
    expected = [positions[:3] + positions[-4:] for positions in whole]
    assert empty_template_positions(3, 4, torch.tensor([1, 5])).tolist() == expected


def test_denoised_is_less_the_template_of_the_same_length() -> None:
    lengths_B, lengths_S = torch.tensor([9, 2, 4, 2, 9]), torch.tensor([2, 4, 9])
    templates_SD = random_rows(3, D, seed=2)

    def expected(states_BD: torch.Tensor, templates_SD: torch.Tensor) -> torch.Tensor:
        rows = [states_BD[i] - templates_SD[[2, 4, 9].index(int(lengths_B[i]))] for i in range(B)]
        return functional.cross_entropy(torch.stack(rows), torch.arange(B))

    def ours(states_BD: torch.Tensor, templates_SD: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(denoised(states_BD, lengths_B, templates_SD, lengths_S), torch.arange(B))

    assert_same_loss(ours, expected, LEFT, templates_SD)
    with pytest.raises(ValueError, match="no state of the empty template for texts of \\[3\\] tokens"):
        denoised(LEFT, torch.tensor([9, 3, 4, 2, 9]), templates_SD, lengths_S)


def test_promptbert_is_infonce_of_two_denoised_templates() -> None:
    """The paper's loss: cosines of (h - h^) of one template with (h' - h^') of the other, over 0.05."""
    lengths_B = torch.arange(1, B + 1)
    first_template, second_template = random_rows(B, D, seed=3), random_rows(B, D, seed=4)

    def published(first_BD: torch.Tensor, second_BD: torch.Tensor) -> torch.Tensor:
        cosines = torch.nn.CosineSimilarity(dim=-1)(
            (first_BD - first_template)[:, None], (second_BD - second_template)[None]
        )
        return functional.cross_entropy(cosines / 0.05, torch.arange(B))

    def ours(first_BD: torch.Tensor, second_BD: torch.Tensor) -> torch.Tensor:
        first = denoised(first_BD, lengths_B, first_template, lengths_B)
        return info_nce(Pairs(first, denoised(second_BD, lengths_B, second_template, lengths_B)), 0.05)

    assert_same_loss(ours, published, LEFT, RIGHT)


def test_rows_of_zeros_stay_zeros() -> None:
    assert not normalised(torch.zeros(2, 3)).any()
