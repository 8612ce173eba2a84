"""Contrastive losses against sums written out, pair by pair, and against sentence-transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import sentence_transformers.sentence_transformer.losses as theirs
import torch
from torch.nn import functional

from operators.errors import InputError
from operators.training.objectives.contrastive import (
    BOTH_DIRECTIONS,
    GTE,
    INFO_NCE,
    QUERY_QUERY,
    Contrast,
    Hardness,
    Margin,
    info_nce,
)
from operators.training.objectives.pairs import Pairs, pairs_of
from operators.training.objectives.temperature import LearnedTemperature
from tests.losses import Loss, assert_same_loss, cosine, random_rows, relative_difference, with_gradients

B, N, D = 6, 2, 5
TEMPERATURE = 0.1
QUERIES, POSITIVES, NEGATIVES = random_rows(B, D), random_rows(B, D, seed=1), random_rows(B, N, D, seed=2)


def written_out(contrast: Contrast, temperature: float = TEMPERATURE, guide: tuple[torch.Tensor, ...] = ()) -> Loss:
    """The loss of `contrast`, one exponential at a time; `guide` has queries, positives, negatives of another model."""

    def sees(kind: str, i: int, side: tuple[torch.Tensor, ...]) -> list[tuple[str, int, torch.Tensor]]:
        queries_BD, positives_BD, negatives_BND = side
        from_D = queries_BD[i] if kind.startswith("query") else positives_BD[i]
        if kind.endswith("query"):
            return [("pair", j, cosine(from_D, queries_BD[j])) for j in range(B)]
        pairs = range(B) if contrast.in_batch else [i]
        found = [("pair", j, cosine(from_D, positives_BD[j])) for j in pairs]
        of = range(B) if contrast.in_batch and contrast.shared_negatives else [i]
        return found + [("negative", j, cosine(from_D, negatives_BND[j, n])) for j in of for n in range(N)]

    def loss(*side: torch.Tensor) -> torch.Tensor:
        losses = []
        for i in range(B):
            guiding = guide or tuple(values.detach() for values in side)
            guided_positive = cosine(guiding[0][i], guiding[1][i])
            sums = []
            for kind in contrast.directions:
                total = torch.zeros((), dtype=side[0].dtype)
                for (what, j, value), (_, _, seen) in zip(sees(kind, i, side), sees(kind, i, guiding), strict=True):
                    crossing = kind in ("query_document", "document_query")
                    is_positive = what == "pair" and j == i and crossing
                    if j == i and not crossing:
                        continue  # itself, and the documents of its own query
                    if contrast.false_negatives is not None and not is_positive:
                        margin = contrast.false_negatives.margin
                        margin *= abs(guided_positive) if contrast.false_negatives.kind == "relative" else 1
                        if seen > guided_positive - margin:
                            continue
                    logit = value / temperature
                    if kind == "query_document" and what == "negative" and j == i:
                        logit = logit + contrast.own_negative_weight
                    if kind == "query_document" and contrast.hardness is not None and not is_positive:
                        is_hard = what == "negative" and j == i
                        if contrast.hardness.of == "all" or (contrast.hardness.of == "hard") == is_hard:
                            logit = logit + contrast.hardness.strength * value.detach()
                    total = total + torch.exp(logit)
                sums.append(total)
            positive = cosine(side[0][i], side[1][i]) / temperature
            if contrast.one_denominator:
                losses.append(torch.log(torch.stack(sums).sum()) - positive)
            else:
                losses.append(torch.log(torch.stack(sums)).mean() - positive)
        return torch.stack(losses).mean()

    return loss


VARIANTS = {
    "InfoNCE": INFO_NCE,
    "own negatives": Contrast(in_batch=False),
    "no negatives of others": Contrast(shared_negatives=False),
    "same tower": QUERY_QUERY,
    "GTE": GTE,
    "both directions": BOTH_DIRECTIONS,
    "margin": Contrast(false_negatives=Margin(margin=0.1)),
    "relative margin": Contrast(directions=GTE.directions, false_negatives=Margin(margin=0.05, kind="relative")),
    "above the positive": Contrast(directions=GTE.directions, false_negatives=Margin(margin=-0.1)),
    "hardness of all": Contrast(hardness=Hardness(strength=5.0)),
    "hardness of hard ones": Contrast(hardness=Hardness(strength=5.0, of="hard")),
    "hardness in the batch": Contrast(directions=GTE.directions, hardness=Hardness(strength=5.0, of="in_batch")),
    "hardness of own": Contrast(in_batch=False, hardness=Hardness(strength=9.0, of="hard")),
    "weight of negatives": Contrast(own_negative_weight=math.log(3)),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("block_numbers", [1 << 24, 1], ids=["whole", "row by row"])
def test_contrastive_loss_is_the_sum_written_out(name: str, block_numbers: int) -> None:
    contrast = VARIANTS[name]

    def ours(*side: torch.Tensor) -> torch.Tensor:
        return info_nce(Pairs(*side), TEMPERATURE, contrast, block_numbers=block_numbers)

    assert_same_loss(ours, written_out(contrast), QUERIES, POSITIVES, NEGATIVES)


def test_false_negatives_are_found_by_the_guide() -> None:
    guide = (random_rows(B, 7, seed=3), random_rows(B, 7, seed=4), random_rows(B, N, 7, seed=5))
    contrast = Contrast(directions=GTE.directions, false_negatives=Margin(margin=0.2))

    def ours(*side: torch.Tensor) -> torch.Tensor:
        return info_nce(Pairs(*side), TEMPERATURE, contrast, guide=Pairs(*guide))

    expected = written_out(contrast, guide=tuple(values.to(torch.float64) for values in guide))
    assert_same_loss(ours, expected, QUERIES, POSITIVES, NEGATIVES)


@pytest.mark.parametrize("contrast", [INFO_NCE, GTE, BOTH_DIRECTIONS])
def test_shares_of_rows_add_up(contrast: Contrast) -> None:
    def shares(queries_BD: torch.Tensor, positives_BD: torch.Tensor, negatives_BND: torch.Tensor) -> torch.Tensor:
        owners = (slice(0, 1), slice(1, 5), slice(5, B))
        parts = [Pairs(queries_BD, positives_BD, negatives_BND, own=own) for own in owners]
        return torch.stack([info_nce(part, TEMPERATURE, contrast) for part in parts]).sum()

    assert_same_loss(shares, written_out(contrast), QUERIES, POSITIVES, NEGATIVES)


def test_equal_texts_do_not_stand_against_each_other() -> None:
    """0 and 3 share a positive, 1 and 4 a query, the query of 5 is the positive of 2; a negative is a positive."""
    query_ids, positive_ids = torch.tensor([0, 1, 2, 3, 1, 12]), torch.tensor([10, 11, 12, 10, 14, 15])
    negative_ids = torch.arange(100, 100 + B * N).reshape(B, N)
    negative_ids[2, 1], negative_ids[4, 0] = 15, 4  # the positive of 5; a text that nobody else has
    apart = {frozenset(pair) for pair in [(0, 3), (1, 4), (2, 5)]}
    pairs = Pairs(
        QUERIES,
        POSITIVES,
        NEGATIVES,
        query_ids_B=query_ids,
        positive_ids_B=positive_ids,
        negative_ids_BN=negative_ids,
    )
    losses = []
    for i in range(B):
        total = 0.0
        for j in range(B):
            if frozenset((i, j)) in apart:
                continue
            total += math.exp(cosine(QUERIES[i], POSITIVES[j]).item() / TEMPERATURE)
            total += math.exp(cosine(POSITIVES[i], QUERIES[j]).item() / TEMPERATURE)
            if i != j:
                total += math.exp(cosine(QUERIES[i], QUERIES[j]).item() / TEMPERATURE)
                total += math.exp(cosine(POSITIVES[i], POSITIVES[j]).item() / TEMPERATURE)
        for j in range(B):
            for n in range(N):
                if (i, j, n) == (5, 2, 1):
                    continue
                total += math.exp(cosine(QUERIES[i], NEGATIVES[j, n]).item() / TEMPERATURE)
                if j != i:
                    total += math.exp(cosine(POSITIVES[i], NEGATIVES[j, n]).item() / TEMPERATURE)
        losses.append(math.log(total) - cosine(QUERIES[i], POSITIVES[i]).item() / TEMPERATURE)
    assert info_nce(pairs, TEMPERATURE, GTE).item() == pytest.approx(sum(losses) / B, rel=1e-5)


@pytest.mark.parametrize("contrast", [INFO_NCE, Contrast(in_batch=False), Contrast(shared_negatives=False)])
def test_absent_negatives_count_for_nothing(contrast: Contrast) -> None:
    present_BN = torch.ones(B, N, dtype=torch.bool)
    present_BN[1, 1] = present_BN[4, 0] = False
    junk_BND = NEGATIVES.clone()
    junk_BND[~present_BN] = 77.0
    absent = [Pairs(QUERIES, POSITIVES, values, present_BN) for values in (NEGATIVES, junk_BND)]
    first, second = (info_nce(pairs, TEMPERATURE, contrast) for pairs in absent)
    assert first.item() == second.item()
    assert first.item() < info_nce(Pairs(QUERIES, POSITIVES, NEGATIVES), TEMPERATURE, contrast).item()


def test_dot_products_are_taken_as_they_are() -> None:
    logits_BB = QUERIES @ POSITIVES.T
    expected = functional.cross_entropy(logits_BB, torch.arange(B))
    found = info_nce(Pairs(QUERIES, POSITIVES), 1.0, Contrast(similarity="dot"))
    torch.testing.assert_close(found, expected)


THEIR_DIRECTIONS = {
    "query_document": "query_to_doc",
    "query_query": "query_to_query",
    "document_query": "doc_to_query",
    "document_document": "doc_to_doc",
}


@pytest.mark.parametrize(
    ("contrast", "options"),
    [
        (INFO_NCE, {}),
        (GTE, {}),
        (BOTH_DIRECTIONS, {"partition_mode": "per_direction"}),
        (Contrast(hardness=Hardness(strength=5.0, of="hard")), {"hardness_mode": "hard_negatives"}),
        (Contrast(hardness=Hardness(strength=5.0, of="in_batch")), {"hardness_mode": "in_batch_negatives"}),
        (Contrast(hardness=Hardness(strength=5.0)), {"hardness_mode": "all_negatives"}),
    ],
)
def test_same_as_multiple_negatives_ranking_of_sentence_transformers(contrast: Contrast, options: Any) -> None:
    loss = theirs.MultipleNegativesRankingLoss(
        torch.nn.Identity(),  # type: ignore[arg-type]  # no model is needed for ready embeddings
        scale=1 / TEMPERATURE,
        directions=tuple(THEIR_DIRECTIONS[direction] for direction in contrast.directions),
        hardness_strength=5.0 if contrast.hardness else 0.0,
        **options,
    )

    def expected(*side: torch.Tensor) -> torch.Tensor:
        return loss.compute_loss_from_embeddings([side[0], side[1], *side[2].unbind(dim=1)], torch.empty(0))

    def ours(*side: torch.Tensor) -> torch.Tensor:
        return info_nce(Pairs(*side), TEMPERATURE, contrast)

    assert_same_loss(ours, expected, QUERIES, POSITIVES, NEGATIVES)


def test_unsupervised_simcse_is_two_views_of_the_same_texts() -> None:
    """The code of the paper: cosines of all of z1 with all of z2 over 0.05, cross entropy with the diagonal."""

    def published(first_BD: torch.Tensor, second_BD: torch.Tensor) -> torch.Tensor:
        cosines_BB = torch.nn.CosineSimilarity(dim=-1)(first_BD[:, None], second_BD[None])
        return functional.cross_entropy(cosines_BB / 0.05, torch.arange(B))

    assert_same_loss(lambda *views: info_nce(pairs_of(views), 0.05), published, QUERIES, QUERIES + 0.3 * POSITIVES)


def test_supervised_simcse_has_contradictions_as_negatives() -> None:
    """The code of the paper: [cos(z1, z2) | cos(z1, z3)] over 0.05, a weight on each text's own z3."""
    weight = 0.7

    def published(z1_BD: torch.Tensor, z2_BD: torch.Tensor, z3_BD: torch.Tensor) -> torch.Tensor:
        similar = torch.nn.CosineSimilarity(dim=-1)
        cosines = torch.cat([similar(z1_BD[:, None], z2_BD[None]), similar(z1_BD[:, None], z3_BD[None])], dim=1)
        weights = torch.cat([torch.zeros(B, B), weight * torch.eye(B)], dim=1)
        return functional.cross_entropy(cosines / 0.05 + weights, torch.arange(B))

    contrast = Contrast(own_negative_weight=weight)
    assert_same_loss(
        lambda *towers: info_nce(pairs_of(towers), 0.05, contrast), published, QUERIES, POSITIVES, NEGATIVES[:, 0]
    )


def test_temperature_learns() -> None:
    temperature = LearnedTemperature(TEMPERATURE)
    info_nce(Pairs(QUERIES, POSITIVES), temperature(), block_numbers=1).backward()
    log_scale = torch.tensor(-math.log(TEMPERATURE), dtype=torch.float64)

    def of_log_scale(log_scale: torch.Tensor) -> torch.Tensor:
        unit = [functional.normalize(values.to(torch.float64)) for values in (QUERIES, POSITIVES)]
        return functional.cross_entropy(unit[0] @ unit[1].T * log_scale.exp(), torch.arange(B))

    expected = with_gradients(of_log_scale, [log_scale])[1]
    assert temperature.log_scale.grad is not None
    assert relative_difference(temperature.log_scale.grad, expected) <= 1e-5


def test_temperature_keeps_its_bound_and_can_leave_it() -> None:
    temperature = LearnedTemperature(0.05, lowest=0.01)
    with torch.no_grad():
        temperature.log_scale.fill_(9.0)
    value = temperature()
    assert value.item() == pytest.approx(0.01)
    value.backward()
    assert temperature.log_scale.grad is not None
    assert temperature.log_scale.grad.item() != 0
    with pytest.raises(InputError, match="temperature must be at least 0.01"):
        LearnedTemperature(0.001)


def test_half_precision_is_compared_in_full() -> None:
    halves = [values.to(torch.bfloat16) for values in (QUERIES, POSITIVES)]
    found = info_nce(Pairs(*halves), 0.01)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, info_nce(Pairs(*(values.to(torch.float32) for values in halves)), 0.01))


def test_settings_without_sense_are_refused() -> None:
    with pytest.raises(InputError, match="directions must name query_document"):
        Contrast(directions=("document_query",))
    with pytest.raises(InputError, match="directions must be query_document alone where in_batch is off"):
        Contrast(directions=("query_document", "query_query"), in_batch=False)
    with pytest.raises(InputError, match="need one_denominator"):
        Contrast(directions=("query_document", "query_query"), one_denominator=False)
    with pytest.raises(InputError, match="nothing stands against a query"):
        info_nce(Pairs(QUERIES, POSITIVES), 1.0, Contrast(in_batch=False))
    with pytest.raises(InputError, match="strength must not be negative"):
        Hardness(strength=-1)
