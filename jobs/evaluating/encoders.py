"""The models that `evaluate` scores: an embedder on its pool, alone or with a built index, and BM25."""

from __future__ import annotations

import numpy as np
import ray

from jobs.embedding.identity import dataset_fingerprint
from jobs.embedding.pool import EmbeddingPool, corpus_blocks
from jobs.embedding.queries import as_queries, document_config
from jobs.indexing.on_ray import open_shards
from jobs.indexing.open_shards import search_all
from jobs.indexing.place import Crew, Shards
from jobs.indexing.workers import ShardWorker
from operators.embedder.recipe.keywords import Similarity
from operators.errors import InputError
from operators.evaluation.beir import RetrievalSet, read_corpus
from operators.evaluation.bm25 import bm25_run
from operators.evaluation.encoding import Prompted, Vectors
from operators.evaluation.retrieval import Run
from operators.evaluation.tasks import Task
from operators.index.group import Found
from operators.index.list_costs import finer_store
from operators.index.open import RESULT_COLUMNS, tuned_settings
from operators.index.snapshot import IndexSnapshot, read_index
from operators.storage import locate

_MOST_RESULTS = 2048  # of a search, as in the job `search`
_SEARCHERS = 8  # processes at most that hold an index's shards
_SEARCH_CPUS = 0.1  # of each: they search while the workers that embed wait, which keep their CPUs


class PooledModel:
    """An embedder whose texts are embedded on a pool."""

    def __init__(self, pool: EmbeddingPool) -> None:
        self._pool = pool

    @property
    def similarity(self) -> Similarity:
        """See `Encoder.similarity`."""
        return self._pool.similarity

    def embed(self, texts: tuple[str, ...], prompted: Prompted) -> Vectors:
        """See `Encoder.embed`."""
        return self._pool.embed(texts, prompted)

    def retrieve(self, task: Task, data: RetrievalSet) -> Run:
        """See `Retriever.retrieve`: exactly, or through the task's index."""
        queries_QD = self._pool.embed(data.queries, Prompted.query(task))
        if task.index is not None:
            return self._through_index(task, data, queries_QD)
        blocks = corpus_blocks(data.corpus)
        return self._pool.nearest(data.query_ids, queries_QD, blocks, Prompted.text(task), task.depth)

    def _through_index(self, task: Task, data: RetrievalSet, queries_QD: Vectors) -> Run:
        assert task.index is not None, "the task has an index"
        location = locate(task.index, task.storage_options)
        snapshot = read_index(location, task.index_snapshot)
        identity = snapshot.identity
        embedded = document_config(locate(identity.embeddings, task.storage_options))
        as_there = Prompted(embedded.embedder.role, embedded.embedder.prompt, embedded.embedder.task)
        if dataset_fingerprint(embedded, self._pool.spec_of(as_there)) != identity.fingerprint:
            raise InputError(
                f"task {task.name}: give the index of the model under test: {task.index} holds vectors of "
                f"{identity.model}, or of another setting of it"
            )
        vectors_QD = as_queries(queries_QD, identity.space)
        with open_shards(location, snapshot, Crew(1, _SEARCH_CPUS, _SEARCHERS), None) as shards:
            return _documents(shards, snapshot, data.query_ids, vectors_QD, task.depth)


class Bm25Model:
    """The lexical baseline, in a task of its own."""

    def retrieve(self, task: Task, data: RetrievalSet) -> Run:
        """See `Retriever.retrieve`."""
        found = ray.remote(num_cpus=1)(_bm25).remote(task, data)
        run: Run = ray.get(found)
        return run


def _bm25(task: Task, data: RetrievalSet) -> Run:
    return bm25_run(data.query_ids, data.queries, read_corpus(data.corpus), task.depth)


def _documents(shards: Shards, snapshot: IndexSnapshot, query_ids: tuple[str, ...], queries_QD: Vectors, k: int) -> Run:
    """The k nearest documents, each at the best of its chunks; more vectors are asked for until there are k."""
    queries, wanted = shards.share(queries_QD), k
    most = min(_MOST_RESULTS, snapshot.num_vectors)
    while True:
        found, _ = search_all(
            shards,
            queries,
            len(query_ids),
            min(wanted, most),
            tuned_settings(snapshot),
            None,
            snapshot.identity.spec.larger_is_better,
            finer_store(snapshot),
        )
        run = _best_chunks(shards, found, query_ids, k, snapshot.identity.spec.larger_is_better)
        if wanted >= most or all(len(documents) >= k for documents in run.values()):
            return run
        wanted *= 2


def _best_chunks(shards: Shards, found: Found, query_ids: tuple[str, ...], k: int, larger: bool) -> Run:
    query, place = np.nonzero(found.ids_QK >= 0)
    ids = shards.share(found.ids_QK[query, place])
    answers = shards.ask(ShardWorker.look_up, ids, list(RESULT_COLUMNS))
    names = np.empty(len(query), object)
    for at, table in answers:
        names[at] = table["doc_id"].to_pylist()
    scores = found.scores_QK[query, place] * (1 if larger else -1)
    run: dict[str, dict[str, float]] = {name: {} for name in query_ids}
    for number, name, score in zip(query.tolist(), names, scores.tolist(), strict=True):
        documents = run[query_ids[number]]
        if len(documents) < k:
            documents.setdefault(name, score)
    return run
