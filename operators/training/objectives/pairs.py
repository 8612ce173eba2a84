"""The representations that a contrastive loss compares, and what may stand against what.

Shapes: B pairs of the global batch, N hard negatives of a query, D width; R rows of a block; P pairs that a row meets
(B, or its own alone), M hard negatives that it meets (B * N, or its own N).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, slots=True)
class Pairs:
    """A global batch: query i belongs to positive i, and its own hard negatives are row i of the negatives.

    `present_BN` is False where a query has fewer than N negatives. Ids are hashes of texts: with them, a candidate
    whose text is that of the query or of its positive does not count as a negative.
    """

    queries_BD: torch.Tensor
    positives_BD: torch.Tensor
    negatives_BND: torch.Tensor | None = None
    present_BN: torch.Tensor | None = None
    query_ids_B: torch.Tensor | None = None
    positive_ids_B: torch.Tensor | None = None
    negative_ids_BN: torch.Tensor | None = None
    own: slice | None = None
    """This rank's rows: the loss is then its share, and the shares of all ranks add up to the loss. None: all rows."""

    def __post_init__(self) -> None:
        num_pairs = len(self.queries_BD)
        if self.queries_BD.shape != self.positives_BD.shape:
            raise ValueError(f"{tuple(self.queries_BD.shape)} queries for {tuple(self.positives_BD.shape)} positives")
        if self.negatives_BND is not None and len(self.negatives_BND) != num_pairs:
            raise ValueError(f"hard negatives of {len(self.negatives_BND)} queries for {num_pairs} queries")
        if (self.query_ids_B is None) != (self.positive_ids_B is None):
            raise ValueError("ids of queries and of positives: give both or none")

    @property
    def rows(self) -> slice:
        """The rows whose losses are summed."""
        return slice(0, len(self.queries_BD)) if self.own is None else self.own

    @property
    def num_negatives(self) -> int:
        """N."""
        return 0 if self.negatives_BND is None else self.negatives_BND.shape[1]

    @property
    def representations(self) -> tuple[torch.Tensor, ...]:
        """queries_BD, positives_BD and, where there are any, negatives_BND."""
        both = (self.queries_BD, self.positives_BD)
        return both if self.negatives_BND is None else (*both, self.negatives_BND)

    def made_of(self, representations: Sequence[torch.Tensor]) -> Pairs:
        """The same batch with other representations, in the order of `representations`."""
        queries_BD, positives_BD, *rest = representations
        return replace(self, queries_BD=queries_BD, positives_BD=positives_BD, negatives_BND=rest[0] if rest else None)

    def changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Pairs:
        """The same batch with `change` done to each of its representations."""
        return self.made_of([change(one) for one in self.representations])


def pairs_of(representations: Sequence[torch.Tensor]) -> Pairs:
    """The pairs of two towers, or of three, the third with the hard negatives of each query one after another."""
    queries_BD, positives_BD, *rest = representations
    negatives_BND = rest[0].reshape(len(queries_BD), -1, queries_BD.shape[1]) if rest else None
    return Pairs(queries_BD, positives_BD, negatives_BND)


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the rows of a block meet: one member of each of P pairs, then M hard negatives; all of them masks."""

    own_pair_RP: torch.Tensor
    same_text_RP: torch.Tensor  # another pair that has a text in common with the row's
    own_negative_RM: torch.Tensor
    out_RM: torch.Tensor  # negatives that are not there, or whose text is that of the query or of its positive

    def excluded(self, same_kind: bool, documents: bool, same_query: bool) -> torch.Tensor:
        """What is no negative (R x P, or R x (P + M) of `documents`): equal texts; the row itself among its own kind;
        of documents that meet documents (`same_query`) those of one query."""
        pairs_RP = self.same_text_RP | self.own_pair_RP if same_kind else self.same_text_RP
        if not documents:
            return pairs_RP
        return torch.cat([pairs_RP, self.out_RM | self.own_negative_RM if same_query else self.out_RM], dim=1)

    def positives(self, same_kind: bool, documents: bool) -> torch.Tensor:
        """Where the row's positive is, in columns as above."""
        pairs_RP = torch.zeros_like(self.own_pair_RP) if same_kind else self.own_pair_RP
        return torch.cat([pairs_RP, torch.zeros_like(self.own_negative_RM)], dim=1) if documents else pairs_RP


def candidates(pairs: Pairs, rows: slice, in_batch: bool, shared_negatives: bool) -> Candidates:
    """What each of `rows` meets: with `in_batch` every pair, with `shared_negatives` also others' hard negatives."""
    num_rows, device = rows.stop - rows.start, pairs.queries_BD.device
    index_B = torch.arange(len(pairs.queries_BD), device=device)
    own_pair_RB = index_B[rows, None] == index_B
    own_pair_RP = own_pair_RB if in_batch else torch.ones(num_rows, 1, dtype=torch.bool, device=device)
    if shared_negatives:
        own_negative_RM = own_pair_RB.repeat_interleave(pairs.num_negatives, dim=1)
    else:
        own_negative_RM = torch.ones(num_rows, pairs.num_negatives, dtype=torch.bool, device=device)
    same_text_RP = torch.zeros_like(own_pair_RP)
    if in_batch and pairs.query_ids_B is not None:
        same_text_RP = _share_a_text(pairs, rows) & ~own_pair_RP
    out_RM = _negatives_out(pairs, rows, shared_negatives).expand_as(own_negative_RM)
    return Candidates(own_pair_RP, same_text_RP, own_negative_RM, out_RM)


def _share_a_text(pairs: Pairs, rows: slice) -> torch.Tensor:
    assert pairs.query_ids_B is not None
    assert pairs.positive_ids_B is not None
    kinds = (pairs.query_ids_B, pairs.positive_ids_B)
    equal = [own_B[rows, None] == other_B for own_B in kinds for other_B in kinds]
    return torch.stack(equal).any(dim=0)


def _negatives_out(pairs: Pairs, rows: slice, shared: bool) -> torch.Tensor:
    def seen(values_BN: torch.Tensor) -> torch.Tensor:
        return values_BN.flatten()[None] if shared else values_BN[rows]

    out = torch.zeros(1, 1, dtype=torch.bool, device=pairs.queries_BD.device)
    if pairs.present_BN is not None:
        out = out | ~seen(pairs.present_BN)
    if pairs.negative_ids_BN is not None and pairs.query_ids_B is not None and pairs.positive_ids_B is not None:
        ids = seen(pairs.negative_ids_BN)
        out = out | (ids == pairs.query_ids_B[rows, None]) | (ids == pairs.positive_ids_B[rows, None])
    return out
