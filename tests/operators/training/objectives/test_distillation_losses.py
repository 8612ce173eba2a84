"""Distillation from vectors and from scores, against sums written out, published formulas and sentence-transformers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import sentence_transformers.sentence_transformer.losses as theirs
import torch
from scipy.stats import rankdata
from torch.nn import functional

from operators.errors import InputError
from operators.training.objectives.distillation import (
    StellaWeights,
    concatenated_teachers,
    cosine_distance,
    embedding_mse,
    similarity_mse,
    similarity_order,
    stella,
)
from operators.training.objectives.ordering import order_hinge
from operators.training.objectives.ranking import candidate_scores, kl_divergence, list_mle, list_net, margin_mse
from tests.losses import assert_same_loss, cosine, random_rows

B, K, D = 7, 4, 6
STUDENT, TEACHER = random_rows(B, D), random_rows(B, D, seed=1)
SCORES, TEACHER_SCORES = random_rows(B, K, seed=2), 3 * random_rows(B, K, seed=3)
PRESENT = torch.tensor([[True] * K, [True, True, True, False], [True, True, False, False]] + [[True] * K] * (B - 3))
NO_MODEL: Any = torch.nn.Identity()


def test_cosine_distance_is_the_mean() -> None:
    def expected(student_BD: torch.Tensor) -> torch.Tensor:
        teacher_BD = TEACHER.to(torch.float64)
        return torch.stack([1 - cosine(student_BD[i], teacher_BD[i]) for i in range(B)]).mean()

    assert_same_loss(lambda student: cosine_distance(student, TEACHER), expected, STUDENT)


def test_embedding_mse_through_a_projection() -> None:
    wide = random_rows(B, 2 * D, seed=4)
    weights = random_rows(2 * D, D, seed=5)

    def ours(student: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return embedding_mse(student, wide, lambda rows: functional.linear(rows, weights))  # type: ignore[arg-type]

    def expected(student: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        cells = itertools.product(range(B), range(2 * D))
        return torch.stack([((weights[j] * student[i]).sum() - wide[i, j]) ** 2 for i, j in cells]).mean()

    assert_same_loss(ours, expected, STUDENT, weights)
    with pytest.raises(InputError, match="6 dimensions and the teacher's 12: a projection"):
        embedding_mse(STUDENT, wide)


@pytest.mark.parametrize("block_numbers", [1 << 24, 2 * B])
def test_similarity_mse_is_the_mean_over_the_matrix(block_numbers: int) -> None:
    def expected(student_BD: torch.Tensor) -> torch.Tensor:
        teacher_BD = TEACHER.to(torch.float64)
        cells = itertools.product(range(B), range(B))
        squares = [(cosine(student_BD[i], student_BD[j]) - cosine(teacher_BD[i], teacher_BD[j])) ** 2 for i, j in cells]
        return torch.stack(squares).mean()

    assert_same_loss(lambda student: similarity_mse(student, TEACHER, block_numbers), expected, STUDENT)


def every_two(student: torch.Tensor, teacher: torch.Tensor, margin: float) -> torch.Tensor:
    """The hinge of each two similarities, as the published code takes it: all of them at once."""
    differences = teacher[None] - teacher[:, None]
    above = torch.ones_like(differences, dtype=torch.bool).triu(1)
    hinges = torch.relu(margin - differences.sign() * (student[None] - student[:, None]))
    return (hinges * (differences != 0))[above].mean()


@pytest.mark.parametrize("size", [1, 2, 3, 64, 65, 300])
@pytest.mark.parametrize("margin", [0.015, 0.5, 0.0])
@pytest.mark.parametrize("grades", [None, 5], ids=["all apart", "five grades"])
def test_order_hinge_is_that_of_every_two(size: int, margin: float, grades: int | None) -> None:
    student, teacher = 0.3 * random_rows(size), 0.3 * random_rows(size, seed=1)
    if grades is not None:
        teacher = torch.from_numpy((rankdata(teacher) * grades / size).round())
    if size == 1 or (size == 2 and teacher[0] == teacher[1]):
        assert order_hinge(student, teacher, margin).item() == 0
        return
    loss = every_two(student.to(torch.float64), teacher, margin)
    if loss == 0:
        assert order_hinge(student, teacher, margin).item() == 0
        return
    assert_same_loss(
        lambda student: order_hinge(student, teacher, margin),
        lambda student: every_two(student, teacher, margin),
        student,
    )


def test_order_hinge_has_no_gradient_where_it_is_just_zero() -> None:
    """Similarities in eighths, so that many are exactly the margin apart."""
    student, teacher = (0.5 * random_rows(80)).mul(8).round() / 8, random_rows(80, seed=1)
    assert_same_loss(
        lambda student: order_hinge(student, teacher, 0.5), lambda student: every_two(student, teacher, 0.5), student
    )


def test_order_hinge_where_all_similarities_are_alike() -> None:
    """A collapsed student: every comparison costs the margin."""
    student = torch.full((50,), 0.7)
    assert order_hinge(student, torch.arange(50.0), 0.015).item() == pytest.approx(0.015)
    assert order_hinge(student, torch.ones(50), 0.015).item() == 0


def test_order_of_similarities_takes_memory_as_the_square_of_the_batch() -> None:
    """At B = 512 every two similarities would be 8.6e9 comparisons: 34 GB in float32."""
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            tensors = [one for one in torch.utils._pytree.tree_leaves(result) if isinstance(one, torch.Tensor)]
            largest = max([largest, *(one.numel() for one in tensors)])
            return result

    student_BD = random_rows(512, 16).requires_grad_()
    with Sizes():
        similarity_order(student_BD, random_rows(512, 16, seed=1)).backward()
    assert largest <= 512 * 512
    assert student_BD.grad is not None
    assert student_BD.grad.abs().max() > 0


def published_stella(student_BD: torch.Tensor, teacher_BD: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    def pairwise(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        similarities = functional.normalize(vectors) @ functional.normalize(vectors).T
        return similarities, similarities[torch.ones_like(similarities).triu(1).bool()]

    loss = 10 * functional.cosine_embedding_loss(student_BD, teacher_BD, torch.ones(B))
    teacher_matrix, teacher_pairs = pairwise(teacher_BD)
    for dim in dims:
        matrix, pairs = pairwise(student_BD[:, :dim])
        loss = loss + 200 * functional.mse_loss(matrix, teacher_matrix) / len(dims)
        loss = loss + 20 * every_two(pairs, teacher_pairs, 0.015) / len(dims)
    return loss


@pytest.mark.parametrize("dims", [(D,), (2, 4, D)])
def test_stella_is_the_sum_of_its_three_losses(dims: tuple[int, ...]) -> None:
    assert_same_loss(
        lambda student: stella(student, TEACHER, dims),
        lambda student: published_stella(student, TEACHER.to(torch.float64), dims),
        STUDENT,
    )
    only_cosine = StellaWeights(cosine=1.0, similarity=0.0, order=0.0)
    torch.testing.assert_close(stella(STUDENT, TEACHER, dims, only_cosine), cosine_distance(STUDENT, TEACHER))
    with pytest.raises(InputError, match="dims go up to 9, but the student's vectors have 6"):
        stella(STUDENT, TEACHER, (9,))


def test_concatenated_teachers_have_the_mean_of_the_cosines() -> None:
    other = random_rows(B, 3, seed=6)
    joined = concatenated_teachers([TEACHER, other], weights=[3.0, 1.0])
    assert joined.shape == (B, D + 3)
    for i, j in itertools.product(range(B), range(B)):
        expected = 0.75 * cosine(TEACHER[i], TEACHER[j]) + 0.25 * cosine(other[i], other[j])
        assert (joined[i] * joined[j]).sum().item() == pytest.approx(expected.item(), abs=1e-6)
    with pytest.raises(InputError, match="weights must be positive, one each"):
        concatenated_teachers([TEACHER, other], weights=[1.0])


@pytest.mark.parametrize("present", [None, PRESENT], ids=["all", "some absent"])
def test_margin_mse_is_the_mean_over_negatives(present: torch.Tensor | None) -> None:
    def expected(scores_BK: torch.Tensor) -> torch.Tensor:
        squares = [
            ((scores_BK[i, 0] - scores_BK[i, k]) - (TEACHER_SCORES[i, 0] - TEACHER_SCORES[i, k])) ** 2
            for i in range(B)
            for k in range(1, K)
            if present is None or present[i, k]
        ]
        return torch.stack(squares).mean()

    assert_same_loss(lambda scores: margin_mse(scores, TEACHER_SCORES, present), expected, SCORES)


def probabilities(scores_BK: torch.Tensor, i: int, present: torch.Tensor | None) -> list[torch.Tensor]:
    exponentials = [scores_BK[i, k].exp() for k in range(K) if present is None or present[i, k]]
    return [one / sum(exponentials) for one in exponentials]


@pytest.mark.parametrize("present", [None, PRESENT], ids=["all", "some absent"])
def test_kl_and_list_net_are_sums_over_candidates(present: torch.Tensor | None) -> None:
    teacher = TEACHER_SCORES.to(torch.float64)

    def kl(scores_BK: torch.Tensor) -> torch.Tensor:
        rows = []
        for i in range(B):
            ours, theirs = probabilities(scores_BK / 0.5, i, present), probabilities(teacher / 2.0, i, present)
            rows.append(sum(q * (q / p).log() for q, p in zip(theirs, ours, strict=True)))
        return torch.stack(rows).mean() * 0.5**2  # type: ignore[arg-type]

    def cross_entropy(scores_BK: torch.Tensor) -> torch.Tensor:
        rows = []
        for i in range(B):
            ours, theirs = probabilities(scores_BK / 0.5, i, present), probabilities(teacher, i, present)
            rows.append(-sum(q * p.log() for q, p in zip(theirs, ours, strict=True)))
        return torch.stack(rows).mean()  # type: ignore[arg-type]

    assert_same_loss(lambda scores: kl_divergence(scores, TEACHER_SCORES, 0.5, 2.0, present), kl, SCORES)
    assert_same_loss(lambda scores: list_net(scores, TEACHER_SCORES, 0.5, present), cross_entropy, SCORES)


def test_kl_may_keep_its_temperature_out() -> None:
    with_factor, without = (
        kl_divergence(SCORES, TEACHER_SCORES, 0.5, 1.0, squared_temperature=squared) for squared in (True, False)
    )
    assert with_factor.item() == pytest.approx(without.item() / 4)


@pytest.mark.parametrize("present", [None, PRESENT], ids=["all", "some absent"])
def test_list_mle_is_the_likelihood_of_the_order(present: torch.Tensor | None) -> None:
    def expected(scores_BK: torch.Tensor) -> torch.Tensor:
        rows = []
        for i in range(B):
            left = [k for k in range(K) if present is None or present[i, k]]
            left.sort(key=lambda k: -TEACHER_SCORES[i, k].item())
            loss = torch.zeros((), dtype=scores_BK.dtype)
            while left:
                loss = loss - (scores_BK[i, left[0]].exp() / sum(scores_BK[i, k].exp() for k in left)).log()
                left.pop(0)
            rows.append(loss)
        return torch.stack(rows).mean()

    assert_same_loss(lambda scores: list_mle(scores, TEACHER_SCORES, present_BK=present), expected, SCORES)


def test_same_as_sentence_transformers() -> None:
    """Their losses score candidates by dot product and take embeddings; vectors are the leaves here."""
    candidates_BKD = random_rows(B, K, D, seed=7)

    def compare(ours: Any, loss: Any) -> None:
        assert_same_loss(
            lambda queries, candidates: ours(candidate_scores(queries, candidates, "dot"), TEACHER_SCORES),
            lambda queries, candidates: loss.compute_loss_from_embeddings(
                [queries, *candidates.unbind(dim=1)], TEACHER_SCORES.to(queries.dtype)
            ),
            STUDENT,
            candidates_BKD,
        )

    compare(margin_mse, theirs.MarginMSELoss(NO_MODEL))
    kl = theirs.DistillKLDivLoss(NO_MODEL, student_temperature=0.5, teacher_temperature=2.0)
    compare(lambda scores, teacher: kl_divergence(scores, teacher, 0.5, 2.0), kl)
    for ours, metric in ((cosine_distance, "cosine"), (embedding_mse, "mse")):
        loss = theirs.EmbedDistillLoss(NO_MODEL, distance_metric=metric)
        assert_same_loss(
            lambda student, ours=ours: ours(student, TEACHER),
            lambda student, loss=loss: loss.compute_loss_from_embeddings([student], [TEACHER]),
            STUDENT,
        )


def test_candidate_scores_are_cosines() -> None:
    candidates_BKD = random_rows(B, K, D, seed=7)
    scores_BK = candidate_scores(STUDENT, candidates_BKD)
    for i, k in itertools.product(range(B), range(K)):
        assert scores_BK[i, k].item() == pytest.approx(cosine(STUDENT[i], candidates_BKD[i, k]).item(), abs=1e-6)
