"""A pool of workers that keep a model loaded while task after task passes through it.

A Ray Data pool ends with its dataset, so a model would be loaded anew for each of a dozen small tasks (and for every
call of mteb). These actors stay; `ray.util.ActorPool` hands them blocks, two each at a time, so that texts travel and
results are awaited in bounded memory. Documents are read by a task that is held back when nobody takes its blocks, and
compared with all queries where they were embedded: neither their texts nor their vectors come to the driver.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.util import ActorPool

from cluster.session import compute_runtime_env
from jobs.embedding.capacity import EMBED_CPU_SHARE, workers_that_fit
from jobs.embedding.config import Compute
from jobs.embedding.identity import RECIPES
from operators.embedder.prompted_embedders import PromptedEmbedders
from operators.embedder.recipe.keywords import Similarity
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.errors import InputError
from operators.evaluation.beir import BLOCK_ROWS, DocumentBlock, read_corpus
from operators.evaluation.encoding import Prompted, Vectors, comparable
from operators.evaluation.nearest import BlockHits, NearestDocuments, nearest_of_block
from operators.evaluation.retrieval import Run
from operators.storage import Location

_IN_FLIGHT = 2  # blocks a worker: one that it embeds, one that is on its way
_READ_CPUS = 0.1
_LEAST_ROWS = 64  # of a block: below, a batch sorted by length pads more than a further worker gains
_RETRIES = 2  # of a block whose worker died


@dataclass(frozen=True, slots=True)
class Effort:
    """What embedding took so far."""

    texts: int = 0
    tokens: int = 0
    documents: int = 0  # texts of corpora
    document_tokens: int = 0
    unknown: int = 0  # texts without a word that a static model knows
    seconds: float = 0.0  # of the whole pool, loading the model not counted

    @property
    def tokens_per_second(self) -> float | None:
        """Of all workers together; None where nothing was embedded."""
        return self.tokens / self.seconds if self.seconds else None

    @property
    def tokens_per_document(self) -> float | None:
        """Of corpora, or of all texts where there was no corpus."""
        if self.documents:
            return self.document_tokens / self.documents
        return self.tokens / self.texts if self.texts else None


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of some texts; `start` is the number of the first."""

    start: int
    vectors_ND: Vectors
    num_tokens: int
    num_unknown: int  # texts without a word that a static model knows: their vectors are zero


class EmbeddingWorker:
    """One process with the model, which serves every prompt of its recipe."""

    def __init__(self, config: EmbedderConfig, threads: int, spec: EmbedderSpec) -> None:
        self._embedder = PromptedEmbedders(config, threads)
        self._tokenizers: dict[str, Tokenizer] = {}
        self._embedder(spec)

    def ready(self) -> None:
        """Answers when the model is loaded and tested."""

    def embed(self, spec: EmbedderSpec, start: int, texts: pa.StringArray) -> Embedded:
        """The vectors of texts; InputError where the model gives none for one, but for a static one's unknown words."""
        if spec.fingerprint not in self._tokenizers:
            self._tokenizers[spec.fingerprint] = Tokenizer(spec)
        tokens = self._tokenizers[spec.fingerprint](texts)
        vectors = self._embedder(spec)(tokens.input_ids)
        bad = np.flatnonzero(~vectors.finite_N)
        if len(bad) and spec.recipe.kind != "static":  # that has zeros for a text without a known word
            text = texts[int(bad[0])].as_py()
            raise InputError(
                f"check the model: it gives NaN, infinity or a zero vector for {len(bad)} of {len(texts)} texts, such "
                f"as {text[:80]!r}"
            )
        return Embedded(start, vectors.values_ND, int(tokens.num_tokens.to_numpy().sum()), len(bad))

    def nearest(
        self, spec: EmbedderSpec, block: DocumentBlock, queries_QD: Vectors, k: int
    ) -> tuple[BlockHits, Embedded]:
        """The nearest documents of a block, and what embedding it took, without the vectors."""
        embedded = self.embed(spec, 0, block.texts)
        vectors_ND = comparable(embedded.vectors_ND, spec.recipe.similarity, "documents")
        hits = nearest_of_block(queries_QD, vectors_ND, block.ids, block.start, k)
        return hits, dataclasses.replace(embedded, vectors_ND=vectors_ND[:, :0])


class EmbeddingPool:
    """The workers of one model; see `embedding_pool`."""

    def __init__(self, model: str, embedder: EmbedderConfig, compute: Compute) -> None:
        self._model, self._config = model, embedder
        self.spec = self.spec_of(Prompted())
        if not self.spec.dim:
            raise InputError(
                f"choose a model with dense vectors, which evaluate compares: {model} has sparse ones alone"
            )
        self.effort = Effort()
        actor = ray.remote(
            num_cpus=EMBED_CPU_SHARE * compute.cpus_per_worker,
            num_gpus=compute.gpus_per_worker or None,
            memory=compute.memory_per_worker_bytes,
            runtime_env=compute_runtime_env(),
            max_restarts=-1,
            max_task_retries=_RETRIES,
        )(EmbeddingWorker)
        self.workers = [
            actor.remote(embedder, compute.cpus_per_worker, self.spec) for _ in range(_num_workers(compute))
        ]
        try:
            ray.get([worker.ready.remote() for worker in self.workers])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the workers: their CPUs and GPUs are the next model's."""
        for worker in self.workers:
            ray.kill(worker)

    def spec_of(self, prompted: Prompted) -> EmbedderSpec:
        """See `prompted_spec`."""
        return prompted_spec(self._model, self._config, prompted)

    @property
    def similarity(self) -> Similarity:
        """See `operators.evaluation.encoding.Encoder.similarity`."""
        return self.spec.recipe.similarity

    def embed(self, texts: Sequence[str], prompted: Prompted) -> Vectors:
        """Vectors [N, D] of the texts, in order."""
        spec = self.spec_of(prompted)
        vectors_ND = np.empty((len(texts), spec.dim), np.float32)
        rows = math.ceil(len(texts) / (2 * _IN_FLIGHT * len(self.workers)))
        rows = max(_LEAST_ROWS, min(BLOCK_ROWS, rows))
        starts = range(0, len(texts), rows)
        blocks = ((start, pa.array(texts[start : start + rows], pa.string())) for start in starts)
        with self._timed():
            for done in self._stream(lambda worker, block: worker.embed.remote(spec, *block), blocks):
                vectors_ND[done.start : done.start + len(done.vectors_ND)] = done.vectors_ND
                self._count(texts=len(done.vectors_ND), tokens=done.num_tokens, unknown=done.num_unknown)
        return vectors_ND

    def nearest(
        self, query_ids: tuple[str, ...], queries_QD: Vectors, documents: Iterable[Any], prompted: Prompted, k: int
    ) -> Run:
        """The k documents of the highest similarity with each query; `documents` are blocks, or references to them."""
        spec = self.spec_of(prompted)
        queries = ray.put(comparable(queries_QD, spec.recipe.similarity, "queries"))
        found = NearestDocuments(len(query_ids), k)
        with self._timed():
            for hits, done in self._stream(
                lambda worker, block: worker.nearest.remote(spec, block, queries, k), documents
            ):
                found.add(hits)
                num, tokens = len(done.vectors_ND), done.num_tokens
                self._count(texts=num, tokens=tokens, unknown=done.num_unknown, documents=num, document_tokens=tokens)
        return found.run(query_ids)

    def _stream(self, call: Callable[[Any, Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        pool = ActorPool(self.workers * _IN_FLIGHT)
        for value in values:
            while not pool.has_free():
                yield pool.get_next_unordered()
            pool.submit(call, value)
        while pool.has_next():
            yield pool.get_next_unordered()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._count(seconds=time.monotonic() - started)

    def _count(self, **more: float) -> None:
        sums = {name: getattr(self.effort, name) + value for name, value in more.items()}
        self.effort = dataclasses.replace(self.effort, **sums)


def prompted_spec(model: str, config: EmbedderConfig, prompted: Prompted) -> EmbedderSpec:
    """A model's recipe with the prompt that some texts get; InputError where it has none of that role."""
    changed: dict[str, Any] = {"role": prompted.role, "prompt": prompted.prompt}
    if prompted.instruction is not None:
        changed["task"] = prompted.instruction
    return embedder_spec(model, config.model_copy(update=changed), RECIPES)


@contextmanager
def embedding_pool(model: str, embedder: EmbedderConfig, compute: Compute) -> Iterator[EmbeddingPool]:
    """Workers with a model, which end with the block."""
    pool = EmbeddingPool(model, embedder, compute)
    try:
        yield pool
    finally:
        pool.close()


def corpus_blocks(corpus: Location) -> Iterator[Any]:
    """References to the blocks of a corpus, read on the cluster no faster than they are taken."""
    reader = ray.remote(
        num_cpus=_READ_CPUS, num_returns="streaming", _generator_backpressure_num_objects=2 * _IN_FLIGHT
    )(read_corpus)
    yield from reader.remote(corpus)


def _num_workers(compute: Compute) -> int:
    fitting = workers_that_fit(compute)
    if compute.gpus_per_worker and not fitting:
        num_gpus = ray.cluster_resources().get("GPU", 0)
        raise InputError(f"set compute.gpus_per_worker to what there is: the cluster has {num_gpus:g} GPUs")
    return max(1, min(fitting, compute.workers[1]) if compute.workers else fitting)
