"""What scoring asks of a model: vectors of some texts, and ranked documents for the queries of a retrieval set.

Behind it stands a pool of Ray workers (jobs/evaluating/encoders.py), BM25, or one model in this process (tests).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from operators.embedder.recipe.keywords import Similarity
from operators.errors import InputError
from operators.evaluation.beir import RetrievalSet
from operators.evaluation.outcome import check_finite
from operators.evaluation.retrieval import Run
from operators.evaluation.tasks import Task

Vectors = NDArray[np.float32]  # [N, D]


@dataclass(frozen=True, slots=True)
class Prompted:
    """Which of a recipe's prompts a text gets, or another in its place, and what {task} in it stands for."""

    role: str = "document"
    prompt: str | tuple[str, ...] | None = None
    instruction: str | None = None

    @staticmethod
    def text(task: Task) -> Prompted:
        """For the texts of a task."""
        return Prompted(task.role, task.prompt, task.instruction)

    @staticmethod
    def query(task: Task) -> Prompted:
        """For the queries of a task."""
        return Prompted("query", task.query_prompt, task.instruction)


class Encoder(Protocol):
    """A model that embeds."""

    @property
    def similarity(self) -> Similarity:
        """How its vectors are compared where a task ranks."""
        ...

    def embed(self, texts: Sequence[str], prompted: Prompted) -> Vectors:
        """Vectors [N, D] of the texts, in order; InputError where the model gives no finite vector."""
        ...


class Retriever(Protocol):
    """A model that ranks documents, with vectors or without."""

    def retrieve(self, task: Task, data: RetrievalSet) -> Run:
        """The best `task.depth` documents of every judged query."""
        ...


def comparable(vectors_ND: Vectors, similarity: Similarity, what: str) -> Vectors:
    """The vectors in a form whose inner products are their similarities; InputError where there is none, or NaN."""
    if similarity == "dot":
        check_finite(np.linalg.norm(vectors_ND.astype(np.float64), axis=1), f"vectors of {what}")
        return vectors_ND.astype(np.float32, copy=False)
    if similarity != "cosine":
        raise InputError(f"set similarity: cosine or dot in a recipe: models that compare by {similarity} do not rank")
    return unit_vectors(vectors_ND, what)


def unit_vectors(vectors_ND: Vectors, what: str) -> Vectors:
    """The vectors scaled to length 1, for inner products to be cosines; InputError where one is not finite.

    A zero vector stays zero, so that its cosine with any other is 0, as in sentence-transformers: it is what a static
    embedder has for a text without a known word.
    """
    norms_N = np.linalg.norm(vectors_ND.astype(np.float64), axis=1)
    check_finite(norms_N, f"vectors of {what}")
    units_ND: Vectors = (vectors_ND / np.where(norms_N, norms_N, 1)[:, None]).astype(np.float32)
    return units_ND
