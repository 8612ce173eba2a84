"""The contrastive loss and its variants: one softmax whose candidates, masks and weights are chosen.

For pair i, with similarities s and temperature t:

    loss_i = logsumexp over candidates c of (s_ic / t + weight_ic)  -  s(query_i, positive_i) / t

    InfoNCE (arXiv 1807.03748)               the documents of the batch against each query
    own negatives only (SFR-Embedding)       a query's own hard negatives against it: `in_batch=False`
    same-tower negatives (arXiv 2403.20327)  the other queries too: QUERY_QUERY
    improved loss of GTE (arXiv 2308.03281)  all four directions in one denominator: GTE
    both directions (arXiv 2103.00020)       the mean of two softmaxes: BOTH_DIRECTIONS
    SimCSE (arXiv 2104.08821)                unsupervised: the same texts encoded twice with dropout; supervised: the
                                             contradictions are hard negatives

The mean is over the pairs of the global batch; a rank or a block of rows gives its share of it. Similarities are made a
block of rows at a time, so memory grows with B, not with its square.

Shapes: B pairs, N hard negatives of a query, D width; R rows of a block, C candidates of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from operators.errors import InputError
from operators.training.objectives.blocks import SIMILARITIES, Values, sum_over_rows
from operators.training.objectives.pairs import Candidates, Pairs, candidates
from operators.training.objectives.representations import (
    full_precision,
    normalised,
)

Direction = Literal["query_document", "document_query", "query_query", "document_document"]
SAME_KIND: frozenset[Direction] = frozenset({"query_query", "document_document"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """Candidates too near to the query to be negatives (GISTEmbed, arXiv 2402.16829; NV-Retriever, 2407.15831).

    Out goes what is more similar than positive - margin (`absolute`), or than positive - margin * |positive|
    (`relative`: 0.05 keeps what is below 95 % of the positive). A negative margin is Qwen3-Embedding's (2506.05176).
    """

    margin: float = 0.0
    kind: Literal["absolute", "relative"] = "absolute"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardness:
    """Near negatives weigh more: exp(strength * cosine), without gradient (LLaVE, arXiv 2503.04812, equation 5)."""

    strength: float
    of: Literal["in_batch", "hard", "all"] = "all"

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise InputError(f"hardness: strength must not be negative, got {self.strength:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Which candidates stand against a pair, and how."""

    directions: tuple[Direction, ...] = ("query_document",)
    one_denominator: bool = True
    """False: a softmax per direction, and the mean of their losses."""
    in_batch: bool = True
    """False: a query meets its own positive and its own hard negatives alone."""
    shared_negatives: bool = True
    """False: the hard negatives of other queries are left out."""
    false_negatives: Margin | None = None
    hardness: Hardness | None = None
    own_negative_weight: float = 0.0
    """Added to the logits of a query's own hard negatives (SimCSE's weight of hard negatives)."""
    similarity: Literal["cosine", "dot"] = "cosine"

    def __post_init__(self) -> None:
        same_kind = sorted(SAME_KIND & set(self.directions))
        if "query_document" not in self.directions or len(set(self.directions)) < len(self.directions):
            raise InputError(f"directions must name query_document, and each one once, got {list(self.directions)}")
        if not self.in_batch and len(self.directions) > 1:
            raise InputError("directions must be query_document alone where in_batch is off")
        if not self.one_denominator and same_kind:
            raise InputError(f"directions {same_kind} never meet the positive: they need one_denominator")


INFO_NCE = Contrast()
QUERY_QUERY = Contrast(directions=("query_document", "query_query"))
GTE = Contrast(directions=("query_document", "query_query", "document_query", "document_document"))
BOTH_DIRECTIONS = Contrast(directions=("query_document", "document_query"), one_denominator=False)


def info_nce(
    pairs: Pairs,
    temperature: float | torch.Tensor,
    contrast: Contrast = INFO_NCE,
    guide: Pairs | None = None,
    block_numbers: int = SIMILARITIES,
) -> torch.Tensor:
    """The contrastive loss, a scalar: the share of `pairs.own`, or all of it.

    `guide` has the representations of the same texts by which false negatives are found; None: those of `pairs`.
    Raises InputError where nothing can stand against a query.
    """
    if not contrast.in_batch and pairs.negatives_BND is None:
        raise InputError(
            "in_batch negatives are off and the batch has no hard negatives: nothing stands against a query"
        )
    compared = pairs.changed(normalised if contrast.similarity == "cosine" else full_precision)
    guiding = None
    if contrast.false_negatives is not None:
        guiding = compared if guide is None else guide.changed(normalised)
        guiding = guiding.changed(torch.Tensor.detach)
    num_columns = 1 + pairs.num_negatives
    if contrast.in_batch:
        num_columns *= len(contrast.directions) * len(pairs.queries_BD)

    def of_block(rows: slice, own: Values, whole: Values, shared: Values) -> torch.Tensor:
        scale = shared[0] if shared else temperature
        return _sum_of_rows(own, compared.made_of(whole), guiding, rows, scale, contrast)

    learned = (temperature,) if isinstance(temperature, torch.Tensor) else ()
    total = sum_over_rows(of_block, pairs.rows, num_columns, compared.representations, learned, block_numbers)
    return total / len(pairs.queries_BD)


def _sum_of_rows(
    own: Values,
    pairs: Pairs,
    guide: Pairs | None,
    rows: slice,
    temperature: float | torch.Tensor,
    contrast: Contrast,
) -> torch.Tensor:
    met = candidates(pairs, rows, contrast.in_batch, contrast.in_batch and contrast.shared_negatives)
    positive_R = (own[0] * own[1]).sum(dim=1)
    logits = []
    for direction in contrast.directions:
        similarity_RC = _similarities(own, pairs, direction, contrast)
        logits_RC = similarity_RC / temperature
        if direction == "query_document":
            logits_RC = logits_RC + _weights(similarity_RC.detach(), met, contrast)
        excluded_RC = _excluded(guide, rows, direction, met, contrast)
        logits.append(logits_RC.masked_fill(excluded_RC, -torch.inf))
    if contrast.one_denominator:
        normaliser_R = torch.logsumexp(torch.cat(logits, dim=1), dim=1)
    else:
        normaliser_R = torch.stack([torch.logsumexp(logits_RC, dim=1) for logits_RC in logits]).mean(dim=0)
    return (normaliser_R - positive_R / temperature).sum()


def _similarities(own: Values, pairs: Pairs, direction: Direction, contrast: Contrast) -> torch.Tensor:
    """similarity_RC of the members of pairs, then of hard negatives where documents are met.

    `own` are the rows' queries_RD, positives_RD and, where there are any, negatives_RND.
    """
    from_RD = own[0] if direction.startswith("query") else own[1]
    documents = direction.endswith("document")
    to_BD = pairs.positives_BD if documents else pairs.queries_BD
    own_RD = own[1] if documents else own[0]
    parts = [from_RD @ to_BD.T] if contrast.in_batch else [(from_RD * own_RD).sum(dim=1, keepdim=True)]
    if documents and pairs.negatives_BND is not None:
        if contrast.in_batch and contrast.shared_negatives:
            parts.append(from_RD @ pairs.negatives_BND.flatten(0, 1).T)
        else:
            parts.append(torch.einsum("rd,rnd->rn", from_RD, own[2]))
    return torch.cat(parts, dim=1)


def _excluded(
    guide: Pairs | None, rows: slice, direction: Direction, met: Candidates, contrast: Contrast
) -> torch.Tensor:
    same_kind, documents = direction in SAME_KIND, direction.endswith("document")
    excluded_RC = met.excluded(same_kind, documents, same_query=direction == "document_document")
    if guide is None or contrast.false_negatives is None:
        return excluded_RC
    own = [values[rows] for values in guide.representations]
    positive_R1 = (own[0] * own[1]).sum(dim=1, keepdim=True)
    margin = contrast.false_negatives
    limit_R1 = positive_R1 - margin.margin * (positive_R1.abs() if margin.kind == "relative" else 1.0)
    too_near_RC = _similarities(own, guide, direction, contrast) > limit_R1
    return excluded_RC | (too_near_RC & ~met.positives(same_kind, documents))


def _weights(cosines_RC: torch.Tensor, met: Candidates, contrast: Contrast) -> torch.Tensor:
    """What is added to the logits of the documents that a query meets."""
    nowhere_RP = torch.zeros_like(met.own_pair_RP)
    hard_RC = torch.cat([nowhere_RP, met.own_negative_RM], dim=1)
    weights_RC = contrast.own_negative_weight * hard_RC.to(cosines_RC.dtype)
    if contrast.hardness is None:
        return weights_RC
    in_batch_RC = ~torch.cat([met.own_pair_RP, met.own_negative_RM], dim=1)
    chosen_RC = {"in_batch": in_batch_RC, "hard": hard_RC, "all": in_batch_RC | hard_RC}[contrast.hardness.of]
    return weights_RC + contrast.hardness.strength * cosines_RC * chosen_RC
