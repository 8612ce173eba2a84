"""The `objective:` of a training config: which loss a set is trained with, chosen by its key `loss`.

pairs, triples, texts   info_nce (default); triples also triplet; texts also mntp and causal_lm, pairs causal_lm
scored                  cosent (default), angle, cosine_regression; with labels softmax (default)
lists                   kl (default), margin_mse, list_net, list_mle
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from operators.training.config.flops import FlopsRegularisation
from operators.training.config.language import CausalLm, Mntp


class Matryoshka(BaseModel):
    """The loss at several widths at once, for vectors that can be cut (arXiv 2205.13147)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dims: tuple[int, ...] = Field(min_length=1, description="widths; the full one is to be among them")
    weights: tuple[float, ...] | None = Field(default=None, description="of the loss at each; null = 1 each")

    @model_validator(mode="after")
    def _fit(self) -> Matryoshka:
        if min(self.dims) < 1 or len(set(self.dims)) < len(self.dims):
            raise ValueError(f"dims: expected different positive numbers, got {list(self.dims)}")
        if self.weights is not None and len(self.weights) != len(self.dims):
            raise ValueError(f"weights: expected one for each of {len(self.dims)} dims, got {len(self.weights)}")
        return self


class FalseNegatives(BaseModel):
    """Leave out candidates that are too similar to the query to be negatives (arXiv 2402.16829, 2407.15831)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin: float = Field(default=0.0, description="out goes what is above the positive's cosine less this")
    kind: Literal["absolute", "relative"] = Field(
        default="absolute", description="relative: less this share of it (0.05: above 95 %)"
    )


class HardnessWeighting(BaseModel):
    """Let near negatives weigh more (arXiv 2503.04812)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strength: float = Field(ge=0, description="a negative of cosine c weighs exp(strength * c)")
    of: Literal["in_batch", "hard", "all"] = Field(default="all", description="which negatives")


class Loss(BaseModel):
    """What all losses of vectors have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    matryoshka: Matryoshka | None = Field(default=None, description="the loss at several widths; null: at the full one")
    flops: FlopsRegularisation | None = Field(
        default=None, description="keep the vectors of a sparse recipe sparse; null: nothing does"
    )


class InfoNce(Loss):
    """Contrastive: every query against the documents of the batch (arXiv 1807.03748)."""

    loss: Literal["info_nce"] = "info_nce"
    temperature: float = Field(default=0.05, gt=0, description="what similarities are divided by; SimCSE: 0.05")
    learn_temperature: bool = Field(default=False, description="train the temperature too, from here on (CLIP)")
    candidates: Literal["info_nce", "query_query", "gte", "both_directions"] = Field(
        default="info_nce",
        description="what stands against a query: the documents; query_query: other queries too (Gecko); gte: all "
        "four directions in one denominator; both_directions: the mean of two softmaxes (CLIP)",
    )
    shared_negatives: bool = Field(default=True, description="other rows' hard negatives are negatives too")
    false_negatives: FalseNegatives | None = Field(default=None, description="null: equal texts alone are left out")
    hardness: HardnessWeighting | None = Field(default=None, description="null: all negatives weigh the same")
    own_negative_weight: float = Field(default=0.0, description="added to the logits of a row's own hard negatives")
    similarity: Literal["cosine", "dot"] = Field(default="cosine", description="of vectors")
    template_denoising: bool = Field(
        default=False,
        description="of texts, whose two views are read with the query's and the document's prompt: take out what the "
        "prompt by itself gives (PromptBERT, arXiv 2201.04337)",
    )


class Triplet(Loss):
    """The positive nearer than the negatives by a margin (arXiv 1503.03832)."""

    loss: Literal["triplet"]
    margin: float = Field(default=0.3, gt=0, description="by how much")
    distance: Literal["cosine", "euclidean"] = Field(default="cosine", description="cosine: 1 - cosine")


class CoSent(Loss):
    """The order of cosines within the batch is that of the scores (CoSENT, TASLP 2024.3402087)."""

    loss: Literal["cosent"]
    temperature: float = Field(default=0.05, gt=0, description="what differences of cosines are divided by")


class Angle(Loss):
    """The same with angles of complex numbers (AnglE, arXiv 2309.12871)."""

    loss: Literal["angle"]
    temperature: float = Field(default=0.05, gt=0, description="what differences of angles are divided by")


class CosineRegression(Loss):
    """The cosine is the score (Sentence-BERT, arXiv 1908.10084)."""

    loss: Literal["cosine_regression"]


class SoftmaxClasses(Loss):
    """A classifier of two vectors and their difference (Sentence-BERT, arXiv 1908.10084)."""

    loss: Literal["softmax"]


class ListLoss(Loss):
    """What losses of scored candidates have."""

    teacher: str | None = Field(
        default=None, description="name of the teacher whose scores they are; null = those that the set has"
    )


class MarginMse(ListLoss):
    """The differences between candidates' scores (arXiv 2010.02666)."""

    loss: Literal["margin_mse"]
    similarity: Literal["cosine", "dot"] = Field(default="cosine", description="dot for cross-encoders' logits")


class KlDivergence(ListLoss):
    """The teacher's distribution over a row's candidates (arXiv 2010.11386)."""

    loss: Literal["kl"]
    temperature: float = Field(default=0.05, gt=0, description="what the student's similarities are divided by")
    teacher_temperature: float = Field(default=1.0, gt=0, description="what the teacher's scores are divided by")


class ListNet(ListLoss):
    """Cross entropy of the top-one probabilities (ICML 2007)."""

    loss: Literal["list_net"]
    temperature: float = Field(default=0.05, gt=0, description="what the student's similarities are divided by")


class ListMle(ListLoss):
    """The likelihood of the teacher's order (ICML 2008)."""

    loss: Literal["list_mle"]
    temperature: float = Field(default=0.05, gt=0, description="what the student's similarities are divided by")


class VectorLoss(BaseModel):
    """What losses by teachers' vectors have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teachers: tuple[str, ...] = Field(
        min_length=1, description="names; vectors of several stand side by side (arXiv 2412.19048)"
    )
    teacher_weights: tuple[float, ...] | None = Field(default=None, description="of each in the cosine; null = 1 each")

    @model_validator(mode="after")
    def _one_each(self) -> VectorLoss:
        if self.teacher_weights is not None and len(self.teacher_weights) != len(self.teachers):
            raise ValueError(f"teacher_weights: expected one for each of {len(self.teachers)} teachers")
        return self


class TeacherCosine(VectorLoss):
    """The student's vector points where the teacher's does; projected where the widths differ."""

    loss: Literal["teacher_cosine"]


class TeacherMse(VectorLoss):
    """The student's vector is the teacher's (arXiv 2004.09813); projected where the widths differ."""

    loss: Literal["teacher_mse"]


class Stella(VectorLoss):
    """Cosine with the teacher, similarities within the batch and their order (arXiv 2412.19048)."""

    loss: Literal["stella"]
    dims: tuple[int, ...] = Field(
        default=(), description="widths at which similarities are compared; none: the full one"
    )
    cosine: float = Field(default=10.0, ge=0, description="weight of the cosine, at full width")
    similarity: float = Field(default=200.0, ge=0, description="weight of the similarities")
    order: float = Field(default=20.0, ge=0, description="weight of their order")
    margin: float = Field(default=0.015, ge=0, description="of the order")


Objective = Annotated[
    InfoNce
    | Triplet
    | CoSent
    | Angle
    | CosineRegression
    | SoftmaxClasses
    | MarginMse
    | KlDivergence
    | ListNet
    | ListMle
    | TeacherCosine
    | TeacherMse
    | Stella
    | Mntp
    | CausalLm,
    Field(discriminator="loss"),
]


def teachers_of(objective: Objective) -> tuple[str, ...]:
    """The names of the teachers that a loss asks."""
    if isinstance(objective, VectorLoss):
        return objective.teachers
    return (objective.teacher,) if isinstance(objective, ListLoss) and objective.teacher is not None else ()
