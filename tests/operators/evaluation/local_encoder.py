"""An encoder in this process: each word has a random vector, a text the sum of its words' and its prompt's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from operators.embedder.recipe.keywords import Similarity
from operators.evaluation.beir import DocumentBlock, RetrievalSet, read_corpus
from operators.evaluation.encoding import Prompted, Vectors, comparable
from operators.evaluation.nearest import NearestDocuments, nearest_of_block
from operators.evaluation.retrieval import Run
from operators.evaluation.tasks import Task


class WordEncoder:
    """Good enough to rank texts of a topic above others, and as slow as a dictionary."""

    def __init__(self, dim: int = 24, similarity: Similarity = "cosine") -> None:
        self._dim, self.similarity = dim, similarity
        self._vectors: dict[str, Vectors] = {}

    def embed(self, texts: Sequence[str], prompted: Prompted) -> Vectors:
        """See `Encoder.embed`."""
        prefix = prompted.prompt if prompted.prompt is not None else ""
        return np.stack([sum((self._word(word) for word in f"{prefix}{t} .".split()), self._word("")) for t in texts])

    def nearest(
        self,
        query_ids: tuple[str, ...],
        queries_QD: Vectors,
        documents: Iterator[DocumentBlock],
        prompted: Prompted,
        k: int,
    ) -> Run:
        """See `CorpusEncoder.nearest`."""
        found = NearestDocuments(len(query_ids), k)
        queries_QD = comparable(queries_QD, self.similarity, "queries")
        for block in documents:
            vectors_ND = comparable(self.embed(block.texts.to_pylist(), prompted), self.similarity, "documents")
            found.add(nearest_of_block(queries_QD, vectors_ND, block.ids, block.start, k))
        return found.run(query_ids)

    def retrieve(self, task: Task, data: RetrievalSet) -> Run:
        """See `Retriever.retrieve`."""
        queries_QD = self.embed(data.queries, Prompted.query(task))
        blocks = read_corpus(data.corpus, block_rows=50)
        return self.nearest(data.query_ids, queries_QD, blocks, Prompted.text(task), max(task.k))

    def _word(self, word: str) -> Vectors:
        if word not in self._vectors:
            seed = int.from_bytes(word.encode()[:8] + b"\1" * max(0, 8 - len(word)), "big")
            self._vectors[word] = np.random.default_rng(seed).normal(size=self._dim).astype(np.float32)
        return self._vectors[word]
