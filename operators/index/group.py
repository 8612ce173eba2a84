"""Some shards of an index in one process, searched as one; and how the answers of several groups become one.

    candidates of every group -> merge -> [the best of them in every group by finer scores -> merge] -> look up ids

The steps are the same whether one process holds all shards (`Index`) or many workers hold some each: with the same
trained index the result does not depend on how the vectors are spread. A vector's id is shard number << 40 | ordinal.

Shapes: Q queries of D components, K results, C candidates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from operators.embedder.sparse_vectors import SparseVectors
from operators.errors import InputError
from operators.index.filters import parse_filter
from operators.index.graphs import Mask
from operators.index.ids import IdMap
from operators.index.library import faiss, use_threads
from operators.index.postings import Postings, best_of_all
from operators.index.shard import Shard
from operators.index.snapshot import SPARSE_FILE, IndexSnapshot, Settings, ShardRecord, shard_file
from operators.index.trained import Prepared, open_trained
from operators.index.vectors import Vectors
from operators.storage import Location, read_bytes
from operators.storage.cache import Cache

SHARD_BITS = 40
_FEW_SELECTED = 10_000  # vectors that a filter selects; comparing a query with all takes 3.5 ms (384 float32 each)
_WIDER = 4  # times the lists, for queries that found too few in theirs
_ALL_LISTS = 1 << 30  # cut to the lists that there are


@dataclass(frozen=True, slots=True)
class Found:
    """The best of each query, best first; id -1 where there are fewer."""

    scores_QK: NDArray[np.float32]
    ids_QK: NDArray[np.int64]


class ShardGroup:
    """These shards (by their number in the snapshot), opened; files that are not local are fetched into the cache."""

    def __init__(
        self,
        index: Location,
        snapshot: IndexSnapshot,
        numbers: Sequence[int],
        cache: str | None = None,
        threads: int | None = None,
    ) -> None:
        if threads is not None:
            use_threads(threads)
        self._identity = snapshot.identity
        cache_files = Cache.at(cache)
        self._records = {n: snapshot.shards[n] for n in numbers}
        self._ids = {n: _open_ids(index, record, cache_files) for n, record in self._records.items()}
        self._live = {n: live_mask(index, record) for n, record in self._records.items()}
        self._shards: dict[int, Shard] = {}
        self._postings: dict[int, Postings] = {}
        if snapshot.trained is not None:
            self._trained = open_trained(index, snapshot.trained, self._identity.spec, cache_files)
            for n, record in self._records.items():
                file = cache_files.fetch(shard_file(index, record.key), record.sha256, record.bytes)
                self._shards[n] = Shard(self._trained, record, file)
        for n, record in self._records.items():
            if record.sparse is not None:
                location = shard_file(index, record.key, SPARSE_FILE)
                file = cache_files.fetch(location, record.sparse.sha256, record.sparse.bytes)
                self._postings[n] = Postings(file, record.rows)
        self._masks: dict[str, dict[int, Mask]] = {}

    @property
    def columns(self) -> list[str]:
        """The columns of the id maps."""
        return next((list(ids.schema.names) for ids in self._ids.values()), [])

    def select(self, filter_text: str | None) -> int:
        """Vectors that are not deleted and match a filter; raises InputError for a filter that cannot be."""
        return sum(
            record.rows if mask is None else int(mask.sum())
            for record, mask in ((record, self._mask(n, filter_text)) for n, record in self._records.items())
        )

    @property
    def num_lists(self) -> int:
        """Inverted lists of the index; 0 where it has none."""
        return self._trained.num_lists

    def prepare(self, queries_QD: Vectors, settings: Settings) -> Prepared:
        """Queries with their nearest lists, which are the same for all groups: one finds them for all."""
        return self._trained.prepare(queries_QD, settings.nprobe)

    def candidates(self, prepared: Prepared, k: int, settings: Settings, filter_text: str | None = None) -> Found:
        """The k best of this group by the codes of its shards."""
        parts = []
        for number, shard in self._shards.items():
            scores_QK, ordinals_QK = shard.candidates(prepared, k, settings, self._mask(number, filter_text))
            parts.append(Found(scores_QK, _with_shard(number, ordinals_QK)))
        return merge(parts, k, self._identity.spec.larger_is_better, len(prepared.core_QD))

    def sparse_candidates(self, queries: SparseVectors, k: int, filter_text: str | None = None) -> Found:
        """The k vectors of this group with the largest inner product with each query, exactly."""
        parts = []
        for number, postings in self._postings.items():
            scores_QK, ordinals_QK = postings.search(queries, k, self._mask(number, filter_text))
            parts.append(Found(scores_QK, _with_shard(number, ordinals_QK)))
        return merge_sparse(parts, k, len(queries))

    def scanned(self, prepared: Prepared, settings: Settings) -> float:
        """Vectors that a query is compared with, in the mean; for graphs the candidates that are kept."""
        return sum(shard.scanned(prepared, settings) for shard in self._shards.values())

    def finest(self, prepared: Prepared, k: int, filter_text: str | None = None) -> Found:
        """The k best of this group by the finer store, of all vectors in the queries' lists."""
        parts = []
        for number, shard in self._shards.items():
            scores_QK, ordinals_QK = shard.finest(prepared, k, self._mask(number, filter_text))
            parts.append(Found(scores_QK, _with_shard(number, ordinals_QK)))
        return merge(parts, k, self._identity.spec.larger_is_better, len(prepared.core_QD))

    def refine(self, prepared: Prepared, ids_QC: NDArray[np.int64], k: int) -> Found:
        """The k best of those candidates that belong to this group, by the finer store."""
        parts = []
        for number, shard in self._shards.items():
            ordinals_QC = np.where((ids_QC >> SHARD_BITS) == number, _ordinals(ids_QC), -1)
            scores_QK, ordinals_QK = shard.refine(prepared.original_QD, ordinals_QC, k)
            parts.append(Found(scores_QK, _with_shard(number, ordinals_QK)))
        return merge(parts, k, self._identity.spec.larger_is_better, len(ids_QC))

    def look_up(self, ids: NDArray[np.int64], columns: Sequence[str]) -> tuple[NDArray[np.int64], pa.Table]:
        """Rows of the id maps for those ids that belong to this group, with their places in `ids`."""
        numbers = ids >> SHARD_BITS
        places, tables = [], []
        for number, map_of_ids in self._ids.items():
            at = np.flatnonzero((numbers == number) & (ids >= 0))
            places.append(at)
            tables.append(_plain(map_of_ids.take(_ordinals(ids[at]), columns)))
        return np.concatenate(places), pa.concat_tables(tables)

    def find(self, doc_id: str) -> list[tuple[int, int]]:
        """(shard number, ordinal) of the live vectors of a document."""
        found = []
        for number, map_of_ids in self._ids.items():
            live = self._live[number]
            found += [(number, int(row)) for row in map_of_ids.find(doc_id) if live is None or live[row]]
        return found

    def _mask(self, number: int, filter_text: str | None) -> Mask | None:
        live = self._live[number]
        if filter_text is None:
            return live
        if filter_text not in self._masks:
            self._masks = {filter_text: {}}  # one filter at a time: masks are a byte a vector
        masks = self._masks[filter_text]
        if number not in masks:
            ids = self._ids[number]
            matches = ids.mask(parse_filter(filter_text, ids.schema))
            masks[number] = matches if live is None else matches & live
        return masks[number]


def _open_ids(index: Location, record: ShardRecord, cache: Cache) -> IdMap:
    location = shard_file(index, record.key, "ids.parquet")
    ids = IdMap(cache.fetch(location, record.ids_sha256, record.ids_bytes), cache.scratch, record.ids_sha256)
    if ids.rows != record.rows:
        raise InputError(f"build the index again: shard {record.key} has {ids.rows} ids, its record says {record.rows}")
    return ids


def live_mask(index: Location, record: ShardRecord) -> Mask | None:
    """Which vectors of a shard are not deleted; None = all."""
    if record.deletions is None:
        return None
    mask = np.ones(record.rows, bool)
    mask[dead_ordinals(index, record)] = False
    return mask


def dead_ordinals(index: Location, record: ShardRecord) -> NDArray[np.int64]:
    """The ordinals of a shard's deleted vectors, ascending."""
    if record.deletions is None:
        return np.empty(0, np.int64)
    payload = read_bytes(index / record.deletions.path)
    if hashlib.sha256(payload).hexdigest() != record.deletions.sha256:
        raise InputError(
            f"restore {index / record.deletions.path} or build the index again: it is not what was written"
        )
    table = pq.read_table(pa.BufferReader(payload))
    dead: NDArray[np.int64] = table["ordinal"].to_numpy()
    return dead


def merge(parts: Sequence[Found], k: int, largest: bool, num_queries: int) -> Found:
    """The k best of several answers to the same queries."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        worst = -np.inf if largest else np.inf
        return Found(np.full((num_queries, k), worst, np.float32), np.full((num_queries, k), -1, np.int64))
    scores = np.stack([part.scores_QK for part in parts])
    ids = np.stack([part.ids_QK for part in parts])
    return Found(*faiss.merge_knn_results(scores, ids, keep_max=largest))


def merge_sparse(parts: Sequence[Found], k: int, num_queries: int) -> Found:
    """The k best of several answers of sparse search, equal ones by id."""
    nothing = Found(np.full((num_queries, k), -np.inf, np.float32), np.full((num_queries, k), -1, np.int64))
    return Found(*best_of_all([(part.scores_QK, part.ids_QK) for part in (*parts, nothing)], k))


def with_ties(wanted: int) -> int:
    """How many candidates to fetch so that those which tie with the last one wanted are likely among them."""
    return wanted + max(16, wanted // 8)


def cut_after_ties(found: Found, wanted: int, largest: bool) -> Found:
    """The best `wanted` candidates and all that are as good as the last of them; the others become -1.

    4-bit codes give whole groups of vectors one score, and which of a group come first depends on the shards.
    """
    if found.scores_QK.shape[1] <= wanted:
        return found
    last_Q1 = found.scores_QK[:, wanted - 1 : wanted]
    kept = found.scores_QK >= last_Q1 if largest else found.scores_QK <= last_Q1
    return Found(found.scores_QK, np.where(kept, found.ids_QK, -1))


def joined(parts: Sequence[Found]) -> Found:
    """The answers to runs of queries, one after another."""
    if len(parts) == 1:
        return parts[0]
    scores_QK = np.concatenate([part.scores_QK for part in parts])
    return Found(scores_QK, np.concatenate([part.ids_QK for part in parts]))


def as_given(found: Found, places_Q: NDArray[np.int64] | None) -> Found:
    """Answers to prepared queries in the order in which the queries were given, which `Prepared.places_Q` tells."""
    return found if places_Q is None else Found(found.scores_QK[places_Q], found.ids_QK[places_Q])


def settings_for(settings: Settings, selected: int, total: int) -> Settings:
    """Settings for a filter that lets `selected` of `total` vectors pass: as many looked at as without it.

    Graphs go by what each shard selects (`Shard.candidates`).
    """
    if selected >= total or not selected:
        return settings
    if selected <= _FEW_SELECTED:
        return settings.model_copy(update={"nprobe": _ALL_LISTS})
    return settings.model_copy(update={"nprobe": int(np.ceil(settings.nprobe * total / selected))})


def widened(
    search: Callable[[Vectors, Settings], Found], queries_QD: Vectors, settings: Settings, least: int, num_lists: int
) -> Found:
    """What a search finds, in ever more of `num_lists` lists for those queries that find fewer than `least` vectors.

    What a filter selects may all be in lists that are far from a query.
    """
    found = search(queries_QD, settings)
    while settings.nprobe < num_lists:
        short = np.flatnonzero((found.ids_QK >= 0).sum(axis=1) < least)
        if not len(short):
            break
        settings = settings.model_copy(update={"nprobe": settings.nprobe * _WIDER})
        more = search(queries_QD[short], settings)
        scores_QK, ids_QK = found.scores_QK.copy(), found.ids_QK.copy()
        scores_QK[short], ids_QK[short] = more.scores_QK, more.ids_QK
        found = Found(scores_QK, ids_QK)
    return found


def _with_shard(number: int, ordinals_QK: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(ordinals_QK >= 0, (np.int64(number) << SHARD_BITS) | ordinals_QK, -1)


def _ordinals(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    return ids & ((1 << SHARD_BITS) - 1)


def _plain(table: pa.Table) -> pa.Table:
    """The same without dictionaries, which differ from shard to shard."""
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(i, field.name, table[field.name].cast(field.type.value_type))
    return table
