"""What a cross-encoder and a judge have in common: different pairs of a piece, and a forward over batches of them.

Shapes: R rows, K documents of each; M different pairs, B of a batch, L padded length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from operators.embedder.tokens import batching
from operators.embedder.tokens.batching import Batch
from operators.teachers.inputs import Distinct, TeacherInputs, distinct, documents_of, queries_of
from operators.teachers.outputs import Outputs


@dataclass(frozen=True, slots=True)
class Pairs:
    """The M different pairs of R rows, ordered by query."""

    queries: Distinct
    documents: Distinct
    query_M: NDArray[np.int64]  # place in `queries.texts`
    document_M: NDArray[np.int64]
    places_RK: NDArray[np.int32]


def pairs_of(rows: pa.Table) -> Pairs:
    """Each pair of a query and one of its documents once."""
    queries, documents = distinct(queries_of(rows)), distinct(documents_of(rows))
    num_documents = len(documents.places) // max(1, rows.num_rows)
    codes = np.repeat(queries.places, num_documents) * len(documents.texts) + documents.places
    codes_M, places = np.unique(codes, return_inverse=True)
    query_M, document_M = np.divmod(codes_M, max(1, len(documents.texts)))
    return Pairs(queries, documents, query_M, document_M, places.reshape(rows.num_rows, -1).astype(np.int32))


def score_pairs(
    inputs: TeacherInputs, batch_tokens: int, forward: Callable[[Batch, NDArray[np.int64] | None], torch.Tensor]
) -> Outputs:
    """scores_RK by a forward of batches (with token types, flat, where there are any) to scores_B in float32."""
    lengths_M = np.diff(inputs.input_ids.offsets.to_numpy()).astype(np.int64)
    plan = batching.plan(lengths_M, batch_tokens)
    types = None if inputs.type_ids is None else batching.batches(inputs.type_ids, plan)
    found = [
        forward(batch, None if types is None else next(types).ids_T)
        for batch in batching.batches(inputs.input_ids, plan)
    ]
    scores_M = np.empty(len(lengths_M), np.float32)
    scores_M[plan.order] = torch.cat(found).cpu().numpy() if found else []
    return Outputs(scores_M[inputs.places_RI], None, len(lengths_M), inputs.num_tokens)


def list_array(rows: list[list[int]]) -> pa.ListArray:
    """Token ids as Arrow has them."""
    return pa.array(rows, pa.list_(pa.int32()))
