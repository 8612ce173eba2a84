"""Which faiss index to build: chosen from size, memory and the recall wanted, or named by the user.

A factory string is faiss's own (https://github.com/facebookresearch/faiss/wiki/The-index-factory). What each kind
costs and finds was measured at 200k x 384 (docs/index.md has the table).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from operators.embedder.quantization import OutputDtype
from operators.embedder.recipe.keywords import Similarity
from operators.errors import InputError
from operators.index.library import faiss

Metric = Literal["cosine", "ip", "l2", "hamming"]

FLAT_BELOW = 50_000  # vectors: a scan of so few costs less than a millisecond of one core
HUGE_ABOVE = 50_000_000  # vectors: from here the codes of 8 bits a component no longer fit in a few machines' memory
_ID_BYTES = 8
# Lists by number of vectors above 10 million, with a graph over the centroids. A quarter of what the faiss wiki gives
# for one big index: a shard by document has a share of every list, and 4-bit codes are padded to blocks of 32 vectors a
# list, so with a million lists the shards of a billion vectors would be mostly padding (docs/scale.md).
_LARGE_LISTS = ((100_000_000, 65_536), (math.inf, 262_144))


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """What is built, and why."""

    factory: str
    metric: Metric
    dim: int  # components of a vector; bits for hamming; 0: there are sparse vectors alone, and no faiss index
    why: str

    @property
    def faiss_metric(self) -> int:
        """faiss's number of the metric; cosine is the inner product of vectors of length 1."""
        return int(faiss.METRIC_L2 if self.metric == "l2" else faiss.METRIC_INNER_PRODUCT)

    @property
    def larger_is_better(self) -> bool:
        """Whether a higher score is a better match."""
        return self.metric in ("cosine", "ip")

    @property
    def is_binary(self) -> bool:
        """Whether vectors are packed bits."""
        return self.metric == "hamming"


_METRIC_OF: dict[Similarity, Metric] = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}


def choose_metric(
    wanted: Literal["auto", "cosine", "ip", "l2", "hamming"], dtype: OutputDtype, similarity: Similarity = "cosine"
) -> Metric:
    """The metric for vectors of a form, whose model compares them by `similarity`.

    Raises InputError where they do not go together.
    """
    if (dtype == "binary") != (wanted == "hamming") and wanted != "auto":
        raise InputError(
            f"set metric: {'hamming' if dtype == 'binary' else 'cosine, ip or l2'} (or auto): "
            f"the embeddings are {dtype}, metric is {wanted}"
        )
    if wanted == "auto":
        if dtype == "binary":
            return "hamming"
        if similarity not in _METRIC_OF:
            raise InputError(f"set metric: cosine, ip or l2: the model compares vectors by {similarity}")
        return _METRIC_OF[similarity]
    return wanted


def choose_spec(
    num_vectors: int, dim: int, metric: Metric, recall_target: float, bytes_per_vector: float | None
) -> IndexSpec:
    """The index for so many vectors; `bytes_per_vector` bounds the memory that searching one takes (None: no bound).

    Raises InputError where no index meets both the bound and the target.
    """
    if metric == "hamming":
        factory, why = _binary(num_vectors, dim)
        return IndexSpec(factory, metric, dim, why)
    exact_bytes = 4 * dim
    if num_vectors < FLAT_BELOW and (bytes_per_vector is None or bytes_per_vector >= exact_bytes):
        why = f"{num_vectors:,} vectors are few enough to compare with all of them, which is exact"
        return IndexSpec("Flat", metric, dim, why)
    lists = _lists(num_vectors)
    codec, why = _codec(num_vectors, dim, recall_target, bytes_per_vector)
    return IndexSpec(f"{lists},{codec}", metric, dim, f"{num_vectors:,} vectors of {dim} components: {lists}; {why}")


def _lists(num_vectors: int) -> str:
    if num_vectors > 10_000_000:
        return f"IVF{next(lists for limit, lists in _LARGE_LISTS if num_vectors <= limit)}_HNSW32"
    # 4 sqrt(N) lists: as many centroids to compare a query with as vectors in some of the lists. Below 30 vectors a
    # centroid the clustering has too little to go by.
    wanted = min(4 * math.sqrt(num_vectors), num_vectors / 30)
    return f"IVF{max(1, 2 ** round(math.log2(max(1.0, wanted))))}"


def _codec(num_vectors: int, dim: int, recall_target: float, bytes_per_vector: float | None) -> tuple[str, str]:
    """The codes of an inverted list: the first of the ladder that fits the memory and reaches the recall."""
    quarter = dim // 4 if dim % 4 == 0 else dim // 2
    small = f"PQ{quarter}x4fs,Refine(SQ8)" if recall_target <= 0.975 else f"PQ{quarter}x4fs,Refine(SQfp16)"
    ladder = (
        ("Flat", 4 * dim + _ID_BYTES, 1.0, "exact vectors in the lists"),
        ("SQfp16", 2 * dim + _ID_BYTES, 0.99, "half precision keeps the order of all but the closest"),
        ("SQ8", dim + _ID_BYTES, 0.975, "a byte a component finds 98 of 100 neighbours"),
        (small, math.ceil(quarter / 2) + _ID_BYTES, 0.985, "4-bit codes find candidates, a store on disk ranks them"),
    )
    fitting = [rung for rung in ladder if bytes_per_vector is None or rung[1] <= bytes_per_vector]
    if not fitting:
        raise InputError(
            f"raise bytes_per_vector to {ladder[-1][1]} or more: with {bytes_per_vector:g} bytes a vector of {dim} "
            f"components no index reaches a recall of {recall_target:g}"
        )
    reaching = [rung for rung in fitting if rung[2] >= recall_target]
    if not reaching:
        best = max(fitting, key=lambda rung: rung[2])
        raise InputError(
            f"lower recall_target to {best[2]:g}, or raise bytes_per_vector: within {bytes_per_vector:g} bytes the "
            f"best index reaches about {best[2]:g}, and {recall_target:g} is wanted"
        )
    if bytes_per_vector is None and num_vectors > HUGE_ABOVE and reaching[-1][2] >= recall_target:
        chosen = reaching[-1]
    else:  # of those that do not need a second store, the smallest
        plain = [rung for rung in reaching if "Refine" not in rung[0]]
        chosen = plain[-1] if plain else reaching[-1]
    return chosen[0], f"{chosen[3]} ({chosen[1]} bytes a vector in memory, recall wanted {recall_target:g})"


def _binary(num_vectors: int, dim: int) -> tuple[str, str]:
    if num_vectors < 4 * FLAT_BELOW:
        return "BFlat", f"{num_vectors:,} vectors of {dim} bits are few enough to compare with all of them"
    lists = _lists(num_vectors).partition("_")[0].removeprefix("IVF")
    return f"BIVF{lists}", f"{num_vectors:,} vectors of {dim} bits in {lists} lists"


def make_index(spec: IndexSpec) -> Any:
    """The empty, untrained faiss index of a spec; raises InputError for a factory string that faiss refuses."""
    try:
        if spec.is_binary:
            return faiss.index_binary_factory(spec.dim, spec.factory)
        if spec.factory.startswith(("IDMap", "L2norm")) or "IDMap" in spec.factory:
            raise InputError(
                f"leave IDMap and L2norm out of spec {spec.factory!r}: ids are kept beside the index, and metric: "
                "cosine scales vectors to length 1"
            )
        index = faiss.index_factory(spec.dim, spec.factory, spec.faiss_metric)
    except RuntimeError as error:
        reason = " ".join(str(error).rsplit("Error:", 1)[-1].split())
        raise InputError(
            f"mend spec {spec.factory!r}: faiss cannot make it for {spec.dim} components ({reason})"
        ) from None
    ivf = ivf_of(index)
    # Polysemous training reorders PQ codes for a filter that nothing here uses: 140 CPU seconds instead of 15 (PQ48).
    if isinstance(ivf, faiss.IndexIVFPQ):
        ivf.do_polysemous_training = False
    core = take_apart(index).core
    if isinstance(core, faiss.IndexPQ):
        core.do_polysemous_training = False
    return index


@dataclass(frozen=True, slots=True)
class Parts:
    """A faiss index taken apart: queries go through `transforms` to `core`, and candidates are ranked by `refine`."""

    transforms: tuple[Any, ...]
    core: Any
    refine: Any | None
    whole: Any  # keeps the memory of the others

    @property
    def is_ivf(self) -> bool:
        """Whether the core has inverted lists."""
        return isinstance(self.core, faiss.IndexIVF)

    def transform(self, vectors: Any) -> Any:
        """Vectors as the core wants them."""
        for step in self.transforms:
            vectors = step.apply(vectors)
        return vectors


def take_apart(index: Any) -> Parts:
    """The parts of a float index, as what they are and not as their base class."""
    refine, whole = None, index
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        refine = faiss.downcast_index(index.refine_index)
        index = faiss.downcast_index(index.base_index)
    transforms: tuple[Any, ...] = ()
    if isinstance(index, faiss.IndexPreTransform):
        transforms = tuple(faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size()))
        index = faiss.downcast_index(index.index)
    return Parts(transforms, index, refine, whole)


def ivf_of(index: Any) -> Any | None:
    """The part with inverted lists of a float index, or None; the caller keeps `index`."""
    core = take_apart(index).core
    return core if isinstance(core, faiss.IndexIVF) else None


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that a vector takes: `hot` is read by every search, `cold` for the best candidates only."""

    hot: float
    cold: float


def footprint(index: Any, spec: IndexSpec) -> Footprint:
    """What a vector takes in an index of this kind, from the sizes of its codes."""
    if spec.is_binary:
        hnsw = 4 * 2 * 32 + 12 if isinstance(index, faiss.IndexBinaryHNSW) else 0
        ids = _ID_BYTES if isinstance(index, faiss.IndexBinaryIVF) else 0
        return Footprint(spec.dim / 8 + ids + hnsw, 0)
    parts = take_apart(index)
    cold = float(parts.refine.sa_code_size()) if parts.refine is not None else 0.0
    core = parts.core
    if isinstance(core, faiss.IndexHNSW):
        links = core.hnsw.nb_neighbors(0) + core.hnsw.nb_neighbors(1) / max(1, core.hnsw.nb_neighbors(1) - 1)
        storage = faiss.downcast_index(core.storage)
        return Footprint(storage.sa_code_size() + 4 * links + 12, cold)
    return Footprint(float(core.code_size) + (_ID_BYTES if parts.is_ivf else 0), cold)
