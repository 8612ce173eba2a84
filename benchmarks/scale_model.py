"""The sizes of an index at a scale that nobody has built here: shards, bytes, memory. Used by benchmarks.scale.

Spec, shard size, grouping, sample and records come from the project's own code and follow it. What that code does not
say (how faiss lays codes out in memory, what a step costs) stands in `Costs`, each number with its source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from operators.errors import InputError
from operators.index.building import FragmentPart
from operators.index.group import with_ties
from operators.index.planning import Sharding, fixed_bytes, group_fragments, shard_rows
from operators.index.sampling import plan_draws
from operators.index.snapshot import FragmentRows, IndexSnapshot, ShardRecord
from operators.index.spec import IndexSpec, choose_spec, footprint, make_index, take_apart
from operators.index.training import Training, num_lists, sample_size
from operators.index.truth import DEPTH_PER_K
from operators.store.fragments import FragmentRecord
from operators.work.fragment import Extent, Fragment, SourceFile, Unit

HELD_OUT, TOP_K = 1000, 10  # jobs/indexing/config.py: recall.queries, recall.k
DRIFT_EVERY = 64  # operators/index/building.py: vectors of which one is looked up twice
ITEM_BYTES = {"float32": 4, "float16": 2, "int8": 1}
_BLOCK = 32  # vectors of a list that faiss's FastScan codes keep together; the last block is padded
_LISTS_DRAWN = 50_000


def _of(value: float, source: str) -> Any:
    """A number with its source; `--plan` prints both."""
    return field(default=value, metadata={"source": source})


_HERE = "measured here: "  # one thread on an AMD EPYC (Zen 5) of two cores, faiss-cpu 1.15.1, 2026-11-21


@dataclass(frozen=True, slots=True)
class Costs:
    """What steps cost. `_us` are microseconds of one core, for a vector of 768 components unless the source says so."""

    read_us: float = _of(6.3, _HERE + "`read_blocks` of a float16 fragment, scaled to length 1")
    pq_us: float = _of(8.7, _HERE + "4-bit codes, a piece for 4 components")
    refine_us: float = _of(0.7, _HERE + "8-bit codes of the refine store")
    truth_us: float = _of(8.3, _HERE + "exact comparison with 1,000 queries, 31 neighbours kept")
    ids_us: float = _of(0.3, _HERE + "`IdsWriter`, whatever the components")
    open_ids_us: float = _of(0.45, _HERE + "`IdMap` of a large map, whatever the components")
    graph_us_per_candidate: float = _of(1.3, _HERE + "HNSW32 over 4,096 to 32,768 centroids, ef 16 to 256; a fit")
    graph_us_per_doubling: float = _of(1.7, "the same fit: per doubling of the centroids")
    graph_build_us: float = _of(91, _HERE + "HNSW32, 16,384 to 32,768 centroids")
    query_us: float = _of(10, _HERE + "FastScan search of a shard, what a query costs before the first list")
    list_us: float = _of(0.2, _HERE + "FastScan, what opening a list costs")
    code_us: float = _of(0.0026, _HERE + "FastScan, a code of 96 bytes in a long list")
    plain_code_us: float = _of(0.6, "measured on an Intel Xeon core: IVF-SQ8, query by query, a vector scanned")
    list_size_us: float = _of(1.1, _HERE + "asking faiss for a list's size from Python")
    merge_us: float = _of(0.0016, "measured: `merge_knn_results`, 64 shards x 10,000 queries x 100")
    stack_us: float = _of(0.0012, _HERE + "answers of 60 workers put into one array, an answer")
    rank_us: float = _of(0.0006, _HERE + "candidates sorted by finer scores, a score of a worker")
    take_us: float = _of(0.23, _HERE + "`refine`, an 8-bit code taken out of the refine store's mapping")
    decode_us: float = _of(0.59, _HERE + "the same code decoded")
    pass_us: float = _of(17, _HERE + "`refine` when it decoded, a pass over 2,048 candidates besides their codes")
    look_us: float = _of(0.007, _HERE + "`refine`, asking of a candidate whether it is the shard's")
    sha256_mb: float = _of(1684, _HERE + "MB/s")
    gflops: float = _of(181, "measured: matrix products of the faiss wheel on this CPU (operators/index/library.py)")
    load_mb: float = _of(1833, "measured: read_index from a page-cached disk, MB/s")
    write_mb: float = _of(826, "measured: write_index to local disk, MB/s")
    recover_s: float = _of(14, "measured: Ray 2.60, from a node's death to the first task run again")
    imbalance: float = _of(2.1, "measured: faiss's imbalance of lists trained on a uniform sample")
    row_bytes: float = _of(22, _HERE + "bytes of a row of the embeddings besides its vector")
    ids_bytes: float = _of(27.3, _HERE + "bytes of a row of the id map, text_hash included, doc_ids of 16 letters")
    graph_bytes: float = _of(272, _HERE + "HNSW32, bytes per centroid besides its vector")
    list_bytes: float = _of(100, _HERE + "resident bytes per list besides codes and ids")
    record_bytes: float = _of(800, _HERE + "a FragmentRecord in memory")
    part_bytes: float = _of(560, _HERE + "a FragmentRows of a snapshot in memory")
    driver_mb: float = _of(290, "measured: driver of an embed job (benchmarks/RESULTS.md)")
    vcpu: float = _of(2, "estimate: a rented CPU is half a core, and an older one; all CPU times are multiplied by it")
    out_of_cache: float = _of(2, "estimate: graphs and lists of gigabytes against those measured, of megabytes")
    threads: float = _of(0.8, "estimate: what a further thread of a builder or searcher adds")
    start_s: float = _of(8, "estimate: start of a Ray worker process with its imports (faiss alone 0.8 s)")
    connection_mb: float = _of(90, "estimate: one S3 connection; AWS's performance guide reckons with 85 to 90 MB/s")
    get_mb: float = _of(500, "estimate: s3fs `get_file`, ten connections, one Python process (323 from a local RGW)")
    put_mb: float = _of(300, "estimate: s3fs `put_file`, the same (111 to a local RGW on the same two cores)")
    straggler: float = _of(0.2, "estimate: sigma of the lognormal factor on a task's CPU time")
    node_back_s: float = _of(180, "estimate: until a lost node is replaced")
    gpu_tflops: float = _of(20, "estimate: k-means of one data-centre GPU in faiss, fp16")
    scanned_share: float = _of(1 / 8192, "estimate: nprobe / lists at a recall of 0.95; the index job measures it")
    k_factor: float = _of(16, "estimate: candidates per result that the refine store ranks; the index job measures it")
    disk_read_us: float = _of(100, "estimate: a random read of a page from NVMe, one at a time")
    call_us: float = _of(300, "estimate: a Ray actor call and its answer, on the caller's core")
    storage_usd: float = _of(0.023, "estimate: list price of S3 per GB and month")


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is indexed, and on which machines."""

    name: str
    vectors: int
    dim: int = 768
    dtype: str = "float16"
    recall: float = 0.95
    spec: str = "auto"
    rows_per_fragment: int = 16384
    memory_per_builder: int = 16_000_000_000
    nodes: int = 20
    cpus: int = 32
    ram: float = 128e9
    disk: float = 1.9e12
    network_gbit: float = 25
    price: float = 1.5  # USD of a node for an hour; a machine of 32 vCPUs and 128 GiB costs about that on demand
    gpus: int = 8  # for k-means
    gpu_price: float = 4.0
    mtbf_hours: float = 24  # of one node: spot machines on a bad day; those on demand live for months
    batch_queries: int = 1_000_000
    search_workers: int = 0  # compute.workers of a search; 0 = its default
    search_threads: int = 4  # compute.threads_per_worker
    seed: int = 0

    @property
    def link_bytes(self) -> float:
        """Bytes a second of a node's network, each way."""
        return self.network_gbit * 1e9 / 8


@dataclass(frozen=True, slots=True)
class ListShape:
    """How the codes of a shard lie in its lists, means over the lists."""

    stored: float  # codes, padding included, in the file
    resident_bytes: float  # of codes, in memory
    probed: float  # codes, padding included, of a list that a query looks into: large lists are looked into more often


class Plan:
    """A scenario as this project's code would cut it."""

    def __init__(self, scenario: Scenario, costs: Costs) -> None:
        self.scenario, self.costs = scenario, costs
        s = scenario
        if s.spec == "auto":
            self.spec = choose_spec(s.vectors, s.dim, "cosine", s.recall, None)
        else:
            self.spec = IndexSpec(s.spec, "cosine", s.dim, "as asked")
        index = make_index(self.spec)
        self.lists, self.bytes = num_lists(index, self.spec), footprint(index, self.spec)
        if not self.lists:
            raise InputError(f"plan for more vectors: {self.spec.factory} has no inverted lists, and needs no plan")
        self.has_graph, self.is_fast = "_HNSW" in self.spec.factory, "fs" in self.spec.factory
        self.has_transform = bool(take_apart(index).transforms)
        self.sample = sample_size(self.spec, Training())
        # One record stands for all fragments: shard_rows and group_fragments look at nothing but their `chunks`.
        self.records = [self._record()] * math.ceil(s.vectors / s.rows_per_fragment)
        self.drawn = sum(d.num_train for d in plan_draws(self.records, self.sample, HELD_OUT, s.seed))
        sharding = Sharding(memory_bytes=s.memory_per_builder)
        wanted = shard_rows(sharding, self.spec, self.records, HELD_OUT)
        groups = group_fragments([FragmentPart(self.records[0])] * len(self.records), wanted)
        self.shards = [sum(part.num_rows for part in group) for group in groups]
        self.rows = max(self.shards)
        self.fixed_bytes = fixed_bytes(self.spec, min(16384, s.rows_per_fragment), HELD_OUT)
        self.lists_of_shard = self._draw_lists(self.rows)

    def _record(self) -> FragmentRecord:
        rows = self.scenario.rows_per_fragment
        unit = Unit.of((Extent(SourceFile("s3://bucket/corpus/part-000000.parquet", 10**8, "0" * 32)),), "")
        return FragmentRecord(Fragment(unit, 0, True), rows, rows, 0, 0, 0, 0, 0, 0, "0" * 32)

    def _draw_lists(self, rows: int) -> ListShape:
        """Lists of unequal length (gamma with faiss's imbalance), of which a shard holds a Poisson share each."""
        rng = np.random.default_rng(self.scenario.seed)
        shape = 1 / (self.costs.imbalance - 1)
        share_L = rng.gamma(shape, 1 / shape, _LISTS_DRAWN)
        sizes_L = rng.poisson(rows / self.lists * share_L)
        held_L = -(-sizes_L // _BLOCK) * _BLOCK if self.is_fast else sizes_L
        bytes_L = held_L * self.code_bytes
        # faiss's AlignedTable reserves powers of two; above a page of memory what is not written is not resident.
        powers_L = 2.0 ** np.ceil(np.log2(np.maximum(bytes_L, 1)))
        resident_L = np.where(self.is_fast & (bytes_L > 0) & (bytes_L < 4096), powers_L, bytes_L)
        probed = float((held_L * share_L).sum() / share_L.sum())
        return ListShape(float(held_L.mean()), float(resident_L.mean()), probed)

    @property
    def code_bytes(self) -> float:
        """Bytes of a code in a list, its id apart."""
        return self.bytes.hot - 8

    @property
    def trained_bytes(self) -> float:
        """Size of trained.faiss: centroids, their graph, 16 bytes an empty list, the codec."""
        graph = self.costs.graph_bytes if self.has_graph else 0
        return self.lists * (4 * self.scenario.dim + graph + 16) + 100 * self.scenario.dim

    @property
    def shard_bytes(self) -> float:
        """Size of the largest shard's faiss file."""
        codes = self.lists * (16 + self.lists_of_shard.stored * self.code_bytes)
        return codes + self.rows * (8 + self.bytes.cold)

    @property
    def ids_bytes(self) -> float:
        """Size of the largest shard's id map."""
        return self.rows * self.costs.ids_bytes

    @property
    def index_bytes(self) -> float:
        """The whole index on storage."""
        return self.trained_bytes + (self.shard_bytes + self.ids_bytes) * self.scenario.vectors / self.rows

    @property
    def resident_bytes(self) -> float:
        """Memory of the largest shard opened for search: FastScan lists are not mapped, the refine store is."""
        return self.lists * (self.costs.list_bytes + self.lists_of_shard.resident_bytes) + self.rows * 8

    @property
    def whole_resident_bytes(self) -> float:
        """Memory of one process that opens every shard."""
        return self.trained_bytes + len(self.shards) * self.resident_bytes

    @property
    def request_bytes(self) -> float:
        """Memory that a builder asks Ray for: jobs.indexing.pipeline.builder_bytes, which needs a job's setup."""
        needed = self.fixed_bytes + 2 * (self.bytes.hot + self.bytes.cold) * self.rows
        return min(needed, self.scenario.memory_per_builder)

    @property
    def build_peak_bytes(self) -> float:
        """What a builder takes at most: what lies in one piece holds 1.5 times itself while it grows (measured)."""
        codes = self.resident_bytes * (1 if self.is_fast else 1.5)
        drift = 2 * 4 * self.scenario.dim * self.rows / DRIFT_EVERY  # kept until the end, then joined
        return self.fixed_bytes + codes + 1.5 * self.rows * self.bytes.cold + drift

    @property
    def slots(self) -> int:
        """Builders that a node runs at once; Ray gives tasks 70 % of a node's memory (the rest is its object store)."""
        return min(self.scenario.cpus, int(0.7 * self.scenario.ram / self.request_bytes))

    @property
    def threads(self) -> int:
        """compute.cpus_per_builder that leaves no CPU idle."""
        return self.scenario.cpus // max(1, self.slots)

    @property
    def sample_bytes(self) -> float:
        """The training sample, as float32."""
        return 4.0 * self.drawn * self.scenario.dim

    @property
    def train_ram_bytes(self) -> float:
        """Memory of the training process: the sample in one piece, and the index in three forms."""
        return self.sample_bytes + 3 * self.trained_bytes

    @property
    def kmeans_flop(self) -> float:
        """Brute-force k-means, as `training.train` has faiss do it."""
        return 2.0 * self.drawn * self.lists * self.scenario.dim * Training().iterations

    @property
    def two_level_flop(self) -> float:
        """k-means of sqrt(lists) clusters, then of each of them: what this code does not do yet."""
        return self.kmeans_flop * 2 / math.sqrt(self.lists)

    @property
    def nprobe(self) -> int:
        """Lists that a query looks into."""
        return max(1, round(self.lists * self.costs.scanned_share))

    @property
    def fetched(self) -> int:
        """Candidates that a worker returns for a query."""
        return with_ties(int(TOP_K * self.costs.k_factor)) if self.bytes.cold else TOP_K

    @property
    def truth_bytes(self) -> float:
        """Peak of merge_truth on the driver: 12 bytes a neighbour as read, and 48 as listed, joined and sorted."""
        return 60.0 * HELD_OUT * (DEPTH_PER_K * TOP_K + 1) * len(self.shards)

    @cached_property
    def snapshot_bytes(self) -> float:
        """Size of a snapshot's JSON: a line a fragment, and a record a shard with its fragments."""
        key, digest = self.records[0].key, "0" * 64
        sizes = {"rows": self.rows, "bytes": int(self.shard_bytes), "ids_bytes": int(self.ids_bytes)}
        hashes = {"sha256": digest, "ids_sha256": digest, "trained_sha256": digest}
        facts = {"key": digest[:24], **sizes, **hashes, "distance": 0.5, "cpu_seconds": 9999.999}

        def size(shards: int, parts: int, keys: int) -> int:
            held = (FragmentRows(key=key, rows=self.scenario.rows_per_fragment),) * parts
            record = ShardRecord.model_validate({**facts, "fragments": held})
            part = IndexSnapshot.model_construct(fragments=(key,) * keys, shards=(record,) * shards)
            return len(part.model_dump_json(indent=1))

        shard, held, named = size(2, 1, 1) - size(1, 1, 1), size(1, 2, 1) - size(1, 1, 1), size(1, 1, 2) - size(1, 1, 1)
        return float(len(self.shards) * shard + len(self.records) * (held + named))

    @property
    def driver_bytes(self) -> float:
        """Memory of the index job's driver."""
        records = len(self.records) * (self.costs.record_bytes + self.costs.part_bytes)
        return self.costs.driver_mb * 1e6 + records + self.truth_bytes + 2 * self.snapshot_bytes


def cpu(costs: Costs, plan: Plan, us: float) -> float:
    """CPU seconds for a vector, on this scenario's machines, of a step that grows with the components."""
    return us * 1e-6 * costs.vcpu * plan.scenario.dim / 768


def graph_seconds(costs: Costs, plan: Plan, ef: int) -> float:
    """CPU seconds to find one vector's nearest lists."""
    if not plan.has_graph:
        return 2.0 * plan.lists * plan.scenario.dim / (costs.gflops * 1e9) * costs.vcpu
    steps = costs.graph_us_per_candidate * ef + costs.graph_us_per_doubling * math.log2(plan.lists)
    return cpu(costs, plan, steps) * costs.out_of_cache
