"""The loss of one set as a module: the vectors of a rank's rows in, its share of the global batch's loss out.

Shapes: b rows of a rank, B of all ranks, K documents of a row, T = 1 + K texts, D width, N texts of the rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from operators.training.config.objectives import (
    Angle,
    CoSent,
    CosineRegression,
    InfoNce,
    KlDivergence,
    ListMle,
    ListNet,
    Loss,
    MarginMse,
    Objective,
    SoftmaxClasses,
    Triplet,
    VectorLoss,
)
from operators.training.config.sets import TrainingSet
from operators.training.objectives import ranking, scored
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
from operators.training.objectives.gathering import RankRows, gathered, gathered_pairs
from operators.training.objectives.matryoshka import matryoshka
from operators.training.objectives.pairs import Pairs
from operators.training.objectives.teacher_loss import TeacherLoss
from operators.training.objectives.temperature import LearnedTemperature
from operators.training.objectives.triplet import triplet

_CONTRASTS = {"info_nce": INFO_NCE, "query_query": QUERY_QUERY, "gte": GTE, "both_directions": BOTH_DIRECTIONS}
Representations = Sequence[torch.Tensor]  # queries_bD and documents_bKD


@dataclass(frozen=True, slots=True)
class RowFacts:
    """What a loss has to know of a rank's rows beside their vectors."""

    rows: RankRows
    ids_bT: torch.Tensor  # int64 hashes of the texts
    scores_bK: torch.Tensor | None = None
    labels_b: torch.Tensor | None = None
    teacher_NT: torch.Tensor | None = None  # teachers' vectors of the same texts, side by side

    def to(self, device: torch.device) -> RowFacts:
        """The same on a device."""

        def moved(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values.to(device, non_blocking=True)

        return RowFacts(
            self.rows,
            self.ids_bT.to(device, non_blocking=True),
            moved(self.scores_bK),
            moved(self.labels_b),
            moved(self.teacher_NT),
        )


class SetObjective(torch.nn.Module):
    """The loss of a set, with the parameters that are its own (a learned temperature, a classifier)."""

    def __init__(self, config: Objective, training_set: TrainingSet, width: int, teacher_width: int = 0) -> None:
        super().__init__()
        self._config = config
        self._has_texts_alone = training_set.kind == "texts"
        self._in_batch = training_set.has_in_batch_negatives
        self.temperature: LearnedTemperature | None = None
        self.classifier: torch.nn.Linear | None = None
        if isinstance(config, InfoNce) and config.learn_temperature:
            self.temperature = LearnedTemperature(config.temperature)
        if isinstance(config, SoftmaxClasses):
            self.classifier = torch.nn.Linear(3 * width, len(training_set.labels))
        self.teacher_loss = TeacherLoss(config, width, teacher_width) if isinstance(config, VectorLoss) else None

    def forward(self, vectors_ND: torch.Tensor, facts: RowFacts) -> torch.Tensor:
        """The share of this rank; `vectors_ND` are those of its queries, then of each row's documents in turn."""
        if self.teacher_loss is not None:
            assert facts.teacher_NT is not None, "its teachers have said something of every row"
            return self.teacher_loss(vectors_ND, facts.teacher_NT, facts.rows)  # type: ignore[no-any-return]
        num_rows = len(facts.ids_bT)
        queries_bD, documents_ND = torch.split(vectors_ND, [num_rows, len(vectors_ND) - num_rows])
        representations = [queries_bD, documents_ND.view(num_rows, -1, documents_ND.shape[1])]

        def objective(parts: Representations) -> torch.Tensor:
            return self._loss(parts[0], parts[1], facts)

        assert isinstance(self._config, Loss), "losses by vectors, and of single tokens, have none"
        widths = self._config.matryoshka
        if widths is None:
            return objective(representations)
        return matryoshka(objective, widths.dims, widths.weights)(representations)

    def _loss(self, queries_bD: torch.Tensor, documents_bKD: torch.Tensor, facts: RowFacts) -> torch.Tensor:
        config, share = self._config, facts.rows.share
        assert isinstance(config, Loss), "others compare no documents"
        first_bD = documents_bKD[:, 0]
        match config:
            case InfoNce():
                return self._contrast(config, queries_bD, documents_bKD, facts)
            case Triplet():
                own = triplet(queries_bD, first_bD, documents_bKD[:, 1:], config.margin, config.distance)
                return own * share
            case CoSent() | Angle():
                function = scored.cosent if isinstance(config, CoSent) else scored.angle
                left_BD, right_BD, scores_B = (
                    gathered(values, facts.rows) for values in (queries_bD, first_bD, _scores(facts)[:, 0])
                )
                return function(left_BD, right_BD, scores_B, config.temperature) * share
            case CosineRegression():
                return scored.cosine_regression(queries_bD, first_bD, _scores(facts)[:, 0]) * share
            case SoftmaxClasses():
                assert self.classifier is not None, "made with the objective"
                assert facts.labels_b is not None, "a set with labels has one in each row"
                return scored.softmax_classification(queries_bD, first_bD, facts.labels_b, self.classifier) * share
            case MarginMse() | KlDivergence() | ListNet() | ListMle():
                return _list_loss(config)(queries_bD, documents_bKD, _scores(facts)) * share

    def _contrast(
        self, config: InfoNce, queries_bD: torch.Tensor, documents_bKD: torch.Tensor, facts: RowFacts
    ) -> torch.Tensor:
        ids_bT = facts.ids_bT
        own = Pairs(
            queries_bD,
            documents_bKD[:, 0],
            documents_bKD[:, 1:] if documents_bKD.shape[1] > 1 else None,
            query_ids_B=ids_bT[:, 0],
            positive_ids_B=ids_bT[:, 0] if self._has_texts_alone else ids_bT[:, 1],
            negative_ids_BN=ids_bT[:, 2:] if ids_bT.shape[1] > 2 else None,
        )
        temperature = config.temperature if self.temperature is None else self.temperature()
        return info_nce(gathered_pairs(own, facts.rows), temperature, contrast_of(config, self._in_batch))


def contrast_of(config: InfoNce, in_batch: bool) -> Contrast:
    """What stands against a query by a set's objective."""
    preset = _CONTRASTS[config.candidates] if in_batch else INFO_NCE
    margin = config.false_negatives
    hardness = config.hardness
    return Contrast(
        directions=preset.directions,
        one_denominator=preset.one_denominator,
        in_batch=in_batch,
        shared_negatives=config.shared_negatives,
        false_negatives=None if margin is None else Margin(margin=margin.margin, kind=margin.kind),
        hardness=None if hardness is None else Hardness(strength=hardness.strength, of=hardness.of),
        own_negative_weight=config.own_negative_weight,
        similarity=config.similarity,
    )


def _scores(facts: RowFacts) -> torch.Tensor:
    assert facts.scores_bK is not None, "rows of scored sets and of lists have scores"
    return facts.scores_bK


def _list_loss(
    config: MarginMse | KlDivergence | ListNet | ListMle,
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The mean over queries of their candidates' loss."""

    def loss(queries_bD: torch.Tensor, documents_bKD: torch.Tensor, teacher_bK: torch.Tensor) -> torch.Tensor:
        similarity = config.similarity if isinstance(config, MarginMse) else "cosine"
        student_bK = ranking.candidate_scores(queries_bD, documents_bKD, similarity)
        match config:
            case MarginMse():
                return ranking.margin_mse(student_bK, teacher_bK)
            case KlDivergence():
                return ranking.kl_divergence(student_bK, teacher_bK, config.temperature, config.teacher_temperature)
            case ListNet():
                return ranking.list_net(student_bK, teacher_bK, config.temperature)
            case ListMle():
                return ranking.list_mle(student_bK, teacher_bK, config.temperature)

    return loss
