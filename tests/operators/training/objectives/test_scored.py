"""Losses of scored and classified pairs, and of triplets, against sums written out and sentence-transformers."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import sentence_transformers.sentence_transformer.losses as theirs
import torch
from torch.nn import functional

from operators.training.objectives.scored import angle, cosent, cosine_regression, softmax_classification
from operators.training.objectives.triplet import triplet
from tests.losses import assert_same_loss, cosine, random_rows

B, N, D = 7, 3, 6
LEFT, RIGHT, NEGATIVES = random_rows(B, D), random_rows(B, D, seed=1), random_rows(B, N, D, seed=2)
SCORES = torch.tensor([0.2, 0.9, 0.2, -0.4, 1.0, 0.9, 0.5])  # some alike: they have no order
NO_MODEL: Any = torch.nn.Identity()


def order_written_out(values: list[torch.Tensor], temperature: float = 0.05) -> torch.Tensor:
    total = torch.ones((), dtype=values[0].dtype)
    for i in range(B):
        for j in range(B):
            if SCORES[i] > SCORES[j]:
                total = total + torch.exp((values[j] - values[i]) / temperature)
    return torch.log(total)


def test_cosent_is_the_sum_over_ordered_pairs() -> None:
    def expected(left_BD: torch.Tensor, right_BD: torch.Tensor) -> torch.Tensor:
        return order_written_out([cosine(left_BD[i], right_BD[i]) for i in range(B)])

    assert_same_loss(lambda left, right: cosent(left, right, SCORES), expected, LEFT, RIGHT)


@pytest.mark.parametrize("width", [D, D - 1])
def test_angle_is_the_quotient_of_complex_numbers(width: int) -> None:
    def expected(left_BD: torch.Tensor, right_BD: torch.Tensor) -> torch.Tensor:
        values = []
        for i in range(B):
            left = functional.pad(left_BD[i], (0, width % 2)).reshape(2, -1)
            right = functional.pad(right_BD[i], (0, width % 2)).reshape(2, -1)
            product = torch.complex(left[0], left[1]) * torch.complex(right[0], -right[1])
            lengths = left_BD[i].square().sum().sqrt() * right_BD[i].square().sum().sqrt()
            values.append((product.real.sum() + product.imag.sum()).abs() / lengths)
        return order_written_out(values)

    assert_same_loss(lambda left, right: angle(left, right, SCORES), expected, LEFT[:, :width], RIGHT[:, :width])


def test_order_losses_without_any_order_are_zero() -> None:
    left_BD = LEFT.clone().requires_grad_()
    loss = cosent(left_BD, RIGHT, torch.full((B,), 0.5))
    loss.backward()
    assert loss.item() == 0
    assert left_BD.grad is not None
    assert not left_BD.grad.any()


def test_cosine_regression_is_the_mean_square() -> None:
    def expected(left_BD: torch.Tensor, right_BD: torch.Tensor) -> torch.Tensor:
        return torch.stack([(cosine(left_BD[i], right_BD[i]) - SCORES[i]) ** 2 for i in range(B)]).mean()

    assert_same_loss(lambda left, right: cosine_regression(left, right, SCORES), expected, LEFT, RIGHT)


def test_softmax_classification_is_cross_entropy_of_u_v_difference() -> None:
    classes_B = torch.tensor([0, 1, 2, 1, 1, 0, 2])
    weights_KD, biases_K = random_rows(3, 3 * D, seed=3), random_rows(3, seed=4)

    def ours(left_BD: torch.Tensor, right_BD: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return softmax_classification(
            left_BD,
            right_BD,
            classes_B,
            functools.partial(functional.linear, weight=weights, bias=biases_K),  # type: ignore[arg-type]
        )

    def expected(left_BD: torch.Tensor, right_BD: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        losses = []
        for i in range(B):
            u, v = left_BD[i], right_BD[i]
            logits = [
                (w[:D] * u).sum() + (w[D : 2 * D] * v).sum() + (w[2 * D :] * abs(u - v)).sum() + b
                for w, b in zip(weights, biases_K, strict=True)
            ]
            losses.append(torch.log(torch.stack(logits).exp().sum()) - logits[classes_B[i]])
        return torch.stack(losses).mean()

    assert_same_loss(ours, expected, LEFT, RIGHT, weights_KD)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_triplet_is_the_mean_hinge(distance: Any) -> None:
    margin = 0.3 if distance == "cosine" else 1.0

    def apart(left_D: torch.Tensor, right_D: torch.Tensor) -> torch.Tensor:
        return 1 - cosine(left_D, right_D) if distance == "cosine" else (left_D - right_D).square().sum().sqrt()

    def expected(*side: torch.Tensor) -> torch.Tensor:
        anchors, positives, negatives = side
        hinges = [
            torch.relu(apart(anchors[i], positives[i]) - apart(anchors[i], negatives[i, n]) + margin)
            for i in range(B)
            for n in range(N)
        ]
        return torch.stack(hinges).mean()

    assert_same_loss(lambda *side: triplet(*side, margin, distance), expected, LEFT, RIGHT, NEGATIVES)


def test_triplet_leaves_out_absent_negatives() -> None:
    present_BN = torch.ones(B, N, dtype=torch.bool)
    present_BN[2:, 1:] = False
    first = triplet(LEFT[:2], RIGHT[:2], NEGATIVES[:2], 5.0)
    second = triplet(LEFT[2:], RIGHT[2:], NEGATIVES[2:, :1], 5.0)
    found = triplet(LEFT, RIGHT, NEGATIVES, 5.0, present_BN=present_BN)
    torch.testing.assert_close(found, (first * 2 * N + second * (B - 2)) / (2 * N + B - 2))


def test_same_as_sentence_transformers() -> None:
    pairs = {
        cosent: theirs.CoSENTLoss(NO_MODEL),
        angle: theirs.AnglELoss(NO_MODEL),
        cosine_regression: theirs.CosineSimilarityLoss(NO_MODEL),
    }
    for ours, loss in pairs.items():
        assert_same_loss(
            functools.partial(_of_pairs, ours),
            lambda left, right, loss=loss: loss.compute_loss_from_embeddings([left, right], SCORES.to(left.dtype)),
            LEFT,
            RIGHT,
        )
    euclidean = theirs.TripletLoss(NO_MODEL, triplet_margin=1.0)
    assert_same_loss(
        lambda *side: triplet(*side, 1.0, "euclidean"),
        lambda anchors, positives, negatives: euclidean.compute_loss_from_embeddings(
            [anchors, positives, negatives[:, 0]], torch.empty(0)
        ),
        LEFT,
        RIGHT,
        NEGATIVES[:, :1],
    )


def _of_pairs(loss: Any, left_BD: torch.Tensor, right_BD: torch.Tensor) -> torch.Tensor:
    value: torch.Tensor = loss(left_BD, right_BD, SCORES)
    return value
