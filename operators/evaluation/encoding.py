"""What scoring asks of a model: vectors of some texts, and ranked documents for the queries of a retrieval set.

Behind it stands a pool of Ray workers (jobs/evaluation_models.py), BM25, or one model in this process (tests).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from operators.errors import InputError
from operators.evaluation.beir import RetrievalSet
from operators.evaluation.retrieval import Run
from operators.evaluation.tasks import Task

Vectors = NDArray[np.float32]  # [N, D]


@dataclass(frozen=True, slots=True)
class Prompted:
    """Which of a recipe's prompts goes before a text, or another text in its place."""

    role: str = "document"
    prompt: str | None = None

    @staticmethod
    def text(task: Task) -> Prompted:
        """For the texts of a task."""
        return Prompted(task.role, task.prompt)

    @staticmethod
    def query(task: Task) -> Prompted:
        """For the queries of a task."""
        return Prompted("query", task.query_prompt)


class Encoder(Protocol):
    """A model that embeds."""

    def embed(self, texts: Sequence[str], prompted: Prompted) -> Vectors:
        """Vectors [N, D] of the texts, in order; InputError where the model gives no finite vector."""
        ...


class Retriever(Protocol):
    """A model that ranks documents, with vectors or without."""

    def retrieve(self, task: Task, data: RetrievalSet) -> Run:
        """The best max(task.k) documents of every judged query."""
        ...


def unit_vectors(vectors_ND: Vectors, what: str) -> Vectors:
    """The vectors scaled to length 1, for inner products to be cosines; InputError where one is not finite.

    A zero vector stays zero, so that its cosine with any other is 0, as in sentence-transformers: it is what a static
    embedder has for a text without a known word.
    """
    norms_N = np.linalg.norm(vectors_ND.astype(np.float64), axis=1)
    bad = int((~np.isfinite(norms_N)).sum())
    if bad:
        raise InputError(f"check the model: {bad:,} of {len(vectors_ND):,} vectors of {what} are not finite")
    units_ND: Vectors = (vectors_ND / np.where(norms_N > 0, norms_N, 1.0)[:, None]).astype(np.float32)
    return units_ND
