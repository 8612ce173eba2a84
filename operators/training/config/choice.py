"""Which loss goes with which set and model, and which one a set has where none is given."""

from __future__ import annotations

from operators.training.config.language import CausalLm, LanguageLoss
from operators.training.config.objectives import (
    Angle,
    CoSent,
    CosineRegression,
    InfoNce,
    KlDivergence,
    ListLoss,
    Loss,
    MarginMse,
    Objective,
    SoftmaxClasses,
    Triplet,
    VectorLoss,
)
from operators.training.config.sets import TrainingSet


def default_objective(training_set: TrainingSet) -> Objective:
    """The loss of a set for which none is given."""
    if training_set.kind == "scored":
        return SoftmaxClasses(loss="softmax") if training_set.columns.label else CoSent(loss="cosent")
    return KlDivergence(loss="kl") if training_set.kind == "lists" else InfoNce()


def fault_of(objective: Objective, training_set: TrainingSet) -> str | None:
    """Why a set cannot be trained with a loss; None where it can."""
    kind = training_set.kind
    if isinstance(objective, VectorLoss):
        return None
    if isinstance(objective, ListLoss) and objective.teacher is not None:
        if training_set.num_documents < 2:
            return f"the loss {objective.loss} compares a row's documents: give triples or lists"
        return None
    if isinstance(objective, LanguageLoss):
        fits_language = kind == "texts" or (kind == "pairs" and isinstance(objective, CausalLm))
        return None if fits_language else f"the loss {objective.loss} does not fit {kind}; texts do"
    has_label = training_set.columns.label is not None
    fits = {
        "pairs": isinstance(objective, InfoNce),
        "triples": isinstance(objective, InfoNce | Triplet),
        "texts": isinstance(objective, InfoNce),
        "lists": isinstance(objective, ListLoss),
        "scored": isinstance(objective, SoftmaxClasses)
        if has_label
        else isinstance(objective, CoSent | Angle | CosineRegression),
    }
    if not fits[kind]:
        wanted = default_objective(training_set).loss
        return f"the loss {objective.loss} does not fit {kind}{' with labels' * has_label}; {wanted} does"
    if isinstance(objective, SoftmaxClasses) and objective.matryoshka is not None:
        return "matryoshka does not go with the loss softmax, whose classifier has one width"
    if isinstance(objective, InfoNce):
        if objective.template_denoising and kind != "texts":
            return f"template_denoising is for texts, whose two views have two prompts, not for {kind}"
        if not training_set.has_in_batch_negatives and training_set.num_documents < 2:
            return "in_batch_negatives is off and rows have no hard negatives: nothing stands against a query"
        if not training_set.has_in_batch_negatives and objective.candidates != "info_nce":
            return f"in_batch_negatives is off: candidates {objective.candidates} needs them"
    return None


def needs_other_rows(objective: Objective, training_set: TrainingSet) -> bool:
    """Whether a row alone teaches nothing: it has no negative of its own, or only the order of rows counts."""
    return isinstance(objective, (CoSent, Angle)) or (
        isinstance(objective, InfoNce) and training_set.num_documents <= 1
    )


def fault_of_sparse(objective: Objective, is_sparse: bool) -> str | None:
    """Why a model with sparse vectors, or one without, cannot be trained with a loss; None where it can."""
    if not is_sparse:
        return "flops is for sparse recipes" if isinstance(objective, Loss) and objective.flops is not None else None
    if not isinstance(objective, InfoNce | MarginMse) or objective.similarity != "dot":
        return "sparse vectors are compared by their inner product: use info_nce or margin_mse with similarity: dot"
    return "matryoshka is not for sparse vectors" if objective.matryoshka is not None else None
