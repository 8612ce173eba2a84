"""The encoder in training as a model that is judged: by rows held back from its sets, and by evaluation tasks.

Every rank embeds its share of the texts; the vectors of all are on every rank, and so are the scores.

Shapes: N texts, D width, Q queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from operators.embedder.recipe.keywords import Similarity
from operators.errors import InputError
from operators.evaluation.beir import RetrievalSet, read_corpus
from operators.evaluation.encoding import Prompted, Vectors, comparable, unit_vectors
from operators.evaluation.nearest import NearestDocuments, nearest_of_block
from operators.evaluation.outcome import Outcome
from operators.evaluation.pairs import cosines, score_sts
from operators.evaluation.retrieval import Run, score_run
from operators.evaluation.scoring import TaskData, score_task
from operators.evaluation.tasks import Task
from operators.training.data.batch_plan import rank_slice
from operators.training.judging.language import LanguageDev
from operators.training.model.encoder import Encoder, Reader, Role
from operators.training.model.sharding import agreed_passes
from operators.training.objectives.gathering import RankRows, gathered
from operators.training.record.curve import Evaluated
from operators.training.steps.micro_batches import MicroBatches, micro_batches
from operators.training.steps.rank_batches import ReadySet

_DEV_K = (1, 10)
_AGREEING_TEXTS = 1000  # half a million pairs of them


class UnfitEvaluation(InputError):
    """What the model is to be judged by cannot judge it; on every rank."""


class RankEmbedder:
    """Embeds with the encoder as it is now; every rank is to call it with the same texts."""

    def __init__(
        self, encoder: Encoder, reader_of: Callable[[Prompted], Reader], rank: int, world_size: int, pass_tokens: int
    ) -> None:
        self._encoder, self._reader_of, self._pass_tokens = encoder, reader_of, pass_tokens
        self._rank, self._world_size = rank, world_size
        self._readers: dict[Prompted, Reader] = {}
        self.is_sparse = bool(encoder.spec.sparse_dim)
        """Whether vectors are compared by their inner product, as they are."""

    @property
    def similarity(self) -> Similarity:
        """See `operators.evaluation.encoding.Encoder.similarity`."""
        return self._encoder.spec.recipe.similarity

    def embed(self, texts: Sequence[str], prompted: Prompted) -> Vectors:
        """See `operators.evaluation.encoding.Encoder.embed`."""
        if prompted not in self._readers:
            self._readers[prompted] = self._reader_of(prompted)
        return self.embed_read(texts, ["document"] * len(texts), self._readers[prompted])

    def embed_read(self, texts: Sequence[str], roles: Sequence[Role], reader: Reader) -> Vectors:
        """Vectors [N, D] of texts by a reader's templates."""
        slices = [rank_slice(len(texts), rank, self._world_size) for rank in range(self._world_size)]
        own = slices[self._rank]
        own_ND = self._embed_own(texts, roles, own, reader)
        rows = RankRows(tuple(one.stop - one.start for one in slices), self._rank)
        vectors_ND: Vectors = gathered(own_ND, rows).cpu().numpy()
        return vectors_ND

    def retrieve(self, task: Task, data: RetrievalSet) -> Run:
        """See `operators.evaluation.encoding.Retriever.retrieve`."""
        if task.index is not None:
            raise InputError(f"take the index out of the task {task.name!r}: it holds vectors of another model")
        queries_QD = comparable(self.embed(data.queries, Prompted.query(task)), self.similarity, "queries")
        found = NearestDocuments(len(data.queries), task.depth)
        for block in read_corpus(data.corpus):
            texts = block.texts.to_pylist()
            vectors_ND = comparable(self.embed(texts, Prompted.text(task)), self.similarity, "documents")
            found.add(nearest_of_block(queries_QD, vectors_ND, block.ids, block.start, task.depth))
        return found.run(data.query_ids)

    def _embed_own(self, texts: Sequence[str], roles: Sequence[Role], own: slice, reader: Reader) -> torch.Tensor:
        encoder = self._encoder
        cut, batches = MicroBatches((), 0), []
        if texts[own]:
            tokenized = reader(texts[own], roles[own])
            cut = micro_batches(np.array([len(ids) for ids in tokenized.ids], np.int64), self._pass_tokens)
            batches = [tokenized.batch(rows) for rows in cut.rows]
        if encoder.is_sharded and texts:
            num_passes, _ = agreed_passes(len(batches), 0, encoder.device)
            shortest = min(texts, key=len)
            idle = reader([shortest], roles[:1]).batch(np.arange(1))  # for the other ranks' sake
            batches += [idle] * (num_passes - len(batches))
        encoder.eval()
        with torch.no_grad():
            parts = [encoder(batch) for batch in batches]
        encoder.train()
        if not cut.rows:
            return torch.empty(0, encoder.width, device=encoder.device)
        return cut.restored(parts[: len(cut.rows)])


@dataclass(frozen=True, slots=True)
class Judged:
    """All that a model in training is judged by."""

    dev: Sequence[ReadySet] = ()  # with the rows held back
    tasks: Mapping[str, tuple[Task, TaskData]] | None = None
    dev_rows: int = 2000
    main: str | None = None
    language: Sequence[LanguageDev] = ()

    def __call__(self, embedder: RankEmbedder, step: int) -> Evaluated:
        """The scores of the weights after `step` steps. Raises InputError for a main score that is none of them."""
        scores: dict[str, float] = {}
        mains = []
        for ready in self.dev:
            found = dev_scores(ready, embedder, self.dev_rows)
            named = {f"{ready.config.name} dev {name}": value for name, value in found.items()}
            mains.append(next(iter(named)))
            scores |= named
        for name, (task, data) in (self.tasks or {}).items():
            try:
                outcome = score_task(task, data, embedder)
            except InputError as error:
                raise UnfitEvaluation(f"task {name}: {error}") from error
            mains.append(f"{name} {task.main_metric}")
            scores |= {f"{name} {metric}": outcome.metrics[metric] for metric in _shown(task, outcome)}
        for one in self.language:
            scores[one.name] = one(self.dev_rows)
            mains += [one.name] * one.judges
        if self.main is not None and self.main not in scores:
            raise UnfitEvaluation(f"set evaluation.main to one of: {', '.join(scores)}; got {self.main!r}")
        if self.main is None and len(mains) > 1:
            return Evaluated(step, {"mean": float(np.mean([scores[name] for name in mains])), **scores})
        main = self.main or next(iter(mains or scores))
        return Evaluated(step, {main: scores[main], **scores})


def _shown(task: Task, outcome: Outcome) -> Sequence[str]:
    """A curve has room for a few metrics of a task."""
    wanted = (task.main_metric, "mrr_at_10", "recall_at_100", "cosine_pearson", "f1")
    return [name for name in dict.fromkeys(wanted) if name in outcome.metrics]


def dev_scores(ready: ReadySet, embedder: RankEmbedder, most_rows: int) -> dict[str, float]:
    """What a set's held-back rows say of the encoder, the main score first; more is better.

    pairs, triples: each query's positives among all documents of these rows; scored: the correlation of cosines and
    scores; lists: how often the best candidate is the teacher's; with vectors of teachers: how well similarities agree.
    """
    rows = np.arange(min(len(ready.rows), most_rows))
    table = ready.rows.take(rows)
    texts, roles = ready.texts(table)
    vectors_ND = embedder.embed_read(texts, roles, ready.reader)
    if not embedder.is_sparse:
        vectors_ND = unit_vectors(vectors_ND, "texts")
    if ready.said.vectors:
        teacher_NT = ready.said.vectors_of(rows)
        assert teacher_NT is not None, "there are teachers with vectors"
        return _agreement(vectors_ND, unit_vectors(teacher_NT.numpy(), "texts of teachers"))
    queries_QD, documents_ND = vectors_ND[: len(rows)], vectors_ND[len(rows) :]
    num_documents = len(documents_ND) // len(rows)
    if ready.config.kind == "scored":
        return dict(score_sts(cosines(queries_QD, documents_ND), _flat_scores(table).tolist()).metrics)
    if ready.config.kind == "lists":
        scores_QK = np.einsum("qd,qkd->qk", queries_QD, documents_ND.reshape(len(rows), num_documents, -1))
        teacher_QK = _flat_scores(table).reshape(len(rows), num_documents)
        return {"best_candidate": float((scores_QK.argmax(axis=1) == teacher_QK.argmax(axis=1)).mean())}
    metrics = rows_as_retrieval(queries_QD, documents_ND, ready.rows.hashes(rows)).metrics
    return {name: metrics[name] for name in ("ndcg_at_10", "mrr_at_10", "hit_rate_at_1")}


def rows_as_retrieval(queries_QD: Vectors, documents_ND: Vectors, hashes_QT: NDArray[np.uint64]) -> Outcome:
    """The rows of a set as a retrieval task, by hashes of each row's texts, the query and the positive first.

    Every text is there once: a query's judged documents are the positives of all rows that have it.
    """
    _, first_Q, query_of_row = np.unique(hashes_QT[:, 0], return_index=True, return_inverse=True)
    document_hashes = hashes_QT[:, 1:].reshape(-1)
    unique_H, first_H = np.unique(document_hashes, return_index=True)
    ids = pa.array([str(one) for one in unique_H])
    qrels: dict[str, dict[str, int]] = {}
    for query, positive in zip(query_of_row.tolist(), hashes_QT[:, 1].tolist(), strict=True):
        qrels.setdefault(str(query), {})[str(positive)] = 1
    names = tuple(str(number) for number in range(len(first_Q)))
    found = NearestDocuments(len(names), max(_DEV_K))
    found.add(nearest_of_block(queries_QD[first_Q], documents_ND[first_H], ids, 0, max(_DEV_K)))
    return score_run(found.run(names), qrels, _DEV_K)


def _agreement(student_ND: Vectors, teacher_NT: Vectors) -> dict[str, float]:
    """The correlation of the student's similarities with the teacher's, over all pairs of different rows."""
    above = np.triu_indices(min(len(student_ND), _AGREEING_TEXTS), 1)
    student, teacher = (rows[:_AGREEING_TEXTS] @ rows[:_AGREEING_TEXTS].T for rows in (student_ND, teacher_NT))
    metrics = score_sts(student[above].astype(np.float64), teacher[above].tolist()).metrics
    return {"teacher_spearman": metrics["cosine_spearman"], "teacher_pearson": metrics["cosine_pearson"]}


def _flat_scores(table: pa.Table) -> NDArray[np.float64]:
    return np.asarray(pc.list_flatten(table["scores"]).to_numpy(), np.float64)
