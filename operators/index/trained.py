"""The trained index, which all shards share: it prepares queries, and gives shards their centroids.

A shard's file has no centroids of its own (at a million lists of 1,024 components they are 4 GB): the queries' nearest
lists are found once, here, and each shard searches its part of those lists.

Shapes: Q queries of D components, P probed lists a query.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.errors import InputError
from operators.index.library import faiss
from operators.index.snapshot import TrainedRecord, trained_file
from operators.index.spec import IndexSpec, Parts, take_apart
from operators.index.training import num_lists, on_gpus
from operators.index.vectors import Vectors
from operators.storage import Location, create_exclusive, exists, size_of, stored_sha256
from operators.storage.cache import Cache

logger = logging.getLogger(__name__)

# Vectors among which the nearest of 2 centroids is looked for through a graph: recall of the right list 0.96 and more.
_GRAPH_EF = 64
_ORDERED_FROM = 256  # queries; fewer share too little for their order to matter


@dataclass(frozen=True, slots=True)
class Prepared:
    """Queries as the shards take them.

    Many are put into the order of their nearest lists: what one query reads, the next finds in the CPU's cache.
    """

    original_QD: Vectors
    core_QD: Vectors  # after the index's transforms
    lists_QP: NDArray[np.int64] | None = None  # nearest lists; None where the index has none
    coarse_QP: NDArray[np.float32] | None = None  # distances to their centroids
    places_Q: NDArray[np.int64] | None = None  # where each of the queries as they were given stands; None: in its place

    def parts(self, most: int) -> Iterator[Prepared]:
        """Runs of at most so many queries, without their places."""
        for start in range(0, max(1, len(self.core_QD)), most):
            run = slice(start, start + most)
            lists_QP = None if self.lists_QP is None else self.lists_QP[run]
            coarse_QP = None if self.coarse_QP is None else self.coarse_QP[run]
            yield Prepared(self.original_QD[run], self.core_QD[run], lists_QP, coarse_QP)

    def take(self, rows: NDArray[np.int64]) -> Prepared:
        """Some of the queries."""
        assert self.lists_QP is not None, "there are lists to choose queries by"
        assert self.coarse_QP is not None, "as above"
        same = self.core_QD is self.original_QD
        original_QD = self.original_QD[rows]
        core_QD = original_QD if same else self.core_QD[rows]
        return Prepared(original_QD, core_QD, self.lists_QP[rows], self.coarse_QP[rows])

    def by_nearest_list(self) -> Prepared:
        """The same queries in the order of their nearest lists."""
        assert self.lists_QP is not None, "as in take"
        order_Q = np.argsort(self.lists_QP[:, 0], kind="stable")
        places_Q = np.empty_like(order_Q)
        places_Q[order_Q] = np.arange(len(order_Q))
        return replace(self.take(order_Q), places_Q=places_Q)


class Trained:
    """A trained index in this process."""

    def __init__(self, index: Any, spec: IndexSpec, sha256: str) -> None:
        self.index, self.spec, self.sha256 = index, spec, sha256
        self.num_lists = num_lists(index, spec)
        self.parts = Parts((), index, None, index) if spec.is_binary else take_apart(index)

    def prepare(self, queries_QD: Vectors, nprobe: int) -> Prepared:
        """Transform queries and find their nearest lists."""
        if self.spec.is_binary:
            return Prepared(queries_QD, queries_QD)
        core_QD = np.ascontiguousarray(self.parts.transform(queries_QD), np.float32)
        if not self.parts.is_ivf:
            return Prepared(queries_QD, core_QD)
        probes = max(1, min(nprobe, self.num_lists))
        quantizer = faiss.downcast_index(self.parts.core.quantizer)
        if isinstance(quantizer, faiss.IndexHNSW):
            params = faiss.SearchParametersHNSW(efSearch=max(_GRAPH_EF, 2 * probes))
            coarse_QP, lists_QP = quantizer.search(core_QD, probes, params=params)
        else:
            coarse_QP, lists_QP = quantizer.search(core_QD, probes)
        prepared = Prepared(queries_QD, core_QD, lists_QP, coarse_QP)
        return prepared.by_nearest_list() if len(queries_QD) >= _ORDERED_FROM else prepared

    def nearest_lists(self, vectors_ND: Vectors) -> NDArray[np.int64]:
        """The inverted list that each vector belongs to."""
        if self.spec.is_binary:
            _, lists_N1 = self.index.quantizer.search(vectors_ND, 1)
        else:
            _, lists_N1 = self.parts.core.quantizer.search(self.parts.transform(vectors_ND), 1)
        lists_N: NDArray[np.int64] = lists_N1[:, 0]
        return lists_N

    def assign_on_gpu(self) -> None:
        """Find the lists of added vectors on this process's GPUs, where the centroids are in a flat index."""
        core = self.parts.core
        if self.parts.is_ivf and isinstance(faiss.downcast_index(core.quantizer), faiss.IndexFlat):
            self._on_gpu, self._on_cpu = on_gpus(faiss.downcast_index(core.quantizer)), core.quantizer
            core.own_fields = False
            core.quantizer = self._on_gpu

    def assign_on_cpu(self) -> None:
        """Undo `assign_on_gpu`; a GPU's index cannot be written to a file."""
        if hasattr(self, "_on_gpu"):
            self.parts.core.quantizer = self._on_cpu

    def mean_distance(self, vectors_ND: Vectors) -> float | None:
        """Mean distance to the nearest centroid: squared for l2, 1 - cosine else; None without inverted lists."""
        if self.spec.is_binary or not self.parts.is_ivf or not len(vectors_ND):
            return None
        core_ND = self.parts.transform(vectors_ND)
        scores_N1, _ = self.parts.core.quantizer.search(core_ND, 1)
        if self.spec.metric == "l2":
            return float(scores_N1.mean())
        norms_N = np.linalg.norm(core_ND, axis=1)
        return float((1 - scores_N1[:, 0] / np.maximum(norms_N, 1e-12)).mean())


def store_trained(index: Location, generation: int, trained: Any, spec: IndexSpec) -> TrainedRecord:
    """Put a trained index where all find it; where another run was first, its is the one that counts."""
    with tempfile.TemporaryDirectory(prefix="embedfleet-train-") as folder:
        local = Path(folder) / "trained.faiss"
        write_faiss(trained, spec, local)
        create_exclusive(trained_file(index, generation), local.read_bytes())
    return stored_trained(index, generation)


def has_trained(index: Location, generation: int) -> bool:
    """Whether some run has trained this generation already."""
    return exists(trained_file(index, generation))


def usable_generation(index: Location, spec: IndexSpec, first: int, cache: Cache) -> int:
    """The first generation from `first` on that nobody has trained yet, or whose file reads."""
    generation = first
    while has_trained(index, generation):
        try:
            open_trained(index, stored_trained(index, generation), spec, cache)
        except InputError as error:
            logger.warning("%s is left aside: %s", trained_file(index, generation), error)
            generation += 1
        else:
            break
    return generation


def stored_trained(index: Location, generation: int) -> TrainedRecord:
    """The record of a trained index on storage, from its bytes."""
    location = trained_file(index, generation)
    return TrainedRecord(
        path=location.name, sha256=stored_sha256(location), bytes=size_of(location), generation=generation
    )


def open_trained(index: Location, record: TrainedRecord, spec: IndexSpec, cache: Cache) -> Trained:
    """Load the trained index, after its hash was checked; raises InputError where it is not the one of the record."""
    local = cache.fetch(index / record.path, record.sha256, record.bytes)
    return Trained(read_faiss(local, spec, mmap=False), spec, record.sha256)


def write_faiss(index: Any, spec: IndexSpec, file: Path) -> None:
    """faiss.write_index, with a full disk told as what it is."""
    try:
        (faiss.write_index_binary if spec.is_binary else faiss.write_index)(index, str(file))
    except RuntimeError as error:
        raise OSError(
            f"free some space below {file.parent} or set compute.local_dir: faiss could not write {file.name} there "
            f"({' '.join(str(error).rsplit('Error:', 1)[-1].split())})"
        ) from None


def read_faiss(file: Path, spec: IndexSpec, mmap: bool) -> Any:
    """Read a faiss file whose hash has been checked; mapped where its kind allows, so that it costs no memory."""
    flags = faiss.IO_FLAG_MMAP_IFC if mmap else 0
    try:
        if spec.is_binary:
            return faiss.read_index_binary(str(file), flags)
        return faiss.read_index(str(file), flags | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE)
    except RuntimeError as error:
        raise InputError(f"build the index again: {file} is no faiss index ({error})") from None


def check_same_training(expected: str, found: str, what: str) -> None:
    """Raise InputError where a shard was built with another trained index; merged scores would be wrong in silence."""
    if expected != found:
        raise InputError(
            f"build the index again: {what} was built with the trained index {found[:12]}, the snapshot's is "
            f"{expected[:12]}; their codes cannot be compared"
        )
