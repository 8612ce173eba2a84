"""The questions that searches and measurements ask of the shards of an index, which workers hold open.

Nothing here holds a vector of a document: queries go out, and ids with scores come back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jobs.indexing.place import Shards
from jobs.indexing.workers import ShardWorker
from operators.index.group import Found, as_given, cut_after_ties, merge, merge_sparse, with_ties
from operators.index.list_costs import FinerStore
from operators.index.snapshot import Settings


def search_sparse(shards: Shards, queries: Any, num_queries: int, k: int, filter_text: str | None) -> Found:
    """Scatter sparse queries (`SparseVectors`, shared) to all shards and gather their k best."""
    return merge_sparse(shards.ask(ShardWorker.sparse_candidates, queries, k, filter_text), k, num_queries)


def search_all(
    shards: Shards,
    vectors: Any,
    num_queries: int,
    k: int,
    settings: Settings,
    filter_text: str | None,
    largest: bool,
    finer: FinerStore | None,
) -> tuple[Found, float]:
    """Scatter queries to all shards and gather their k best, with the CPU seconds of all workers."""
    queries = prepare(shards, vectors, settings)
    seconds = queries.seconds

    def gathered(answers: list[tuple[Found, float]], wanted: int) -> Found:
        nonlocal seconds
        seconds += sum(spent for _, spent in answers)
        return merge([part for part, _ in answers], wanted, largest, num_queries)

    shared, wanted = queries.shared, k * settings.k_factor
    fetched = with_ties(wanted) if finer is not None else k
    if finer is not None and finer.compares_all(num_queries, fetched, settings):
        found = gathered(shards.ask(ShardWorker.finest, shared, k, filter_text), k)
        return as_given(found, queries.places_Q), seconds
    answers = shards.ask(ShardWorker.candidates, shared, fetched, settings, filter_text)
    found = gathered(answers, fetched)
    if finer is not None:
        ids = shards.share(cut_after_ties(found, wanted, largest).ids_QK)
        found = gathered(shards.ask(ShardWorker.refine, shared, ids, k), k)
    return as_given(found, queries.places_Q), seconds


@dataclass(frozen=True, slots=True)
class SharedQueries:
    """Queries with their nearest lists."""

    shared: Any  # of `Prepared`
    places_Q: Any
    seconds: float  # CPU time that finding the lists took


def prepare(shards: Shards, vectors: Any, settings: Settings) -> SharedQueries:
    """Queries with their nearest lists, found by one worker for all (any, so that they share it).

    They come back here and go out from here: what lies on another node is lost with it.
    """
    prepared, seconds = shards.ask_any(ShardWorker.prepare, vectors, settings)
    return SharedQueries(shards.share(prepared), prepared.places_Q, seconds)
