"""Find the cheapest search settings that reach a recall, by measuring them on held-out queries.

Shapes: Q queries, K results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.index.library import faiss
from operators.index.snapshot import CurvePoint, Recall, Settings
from operators.index.spec import IndexSpec, make_index, take_apart
from operators.index.truth import WholeTruth

_Z = 1.645  # one-sided 95 %
_K_FACTORS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Trial:
    """What a setting found on the held-out queries, and what it cost."""

    ids_QK: NDArray[np.int64]  # shard << 40 | ordinal, best first
    cpu_seconds: float  # of all queries and shards together
    scanned: float  # vectors compared per query


def settings_ladder(spec: IndexSpec, num_vectors: int, k: int) -> list[Settings]:
    """The settings worth trying, from cheap to dear, for an index kind."""
    index = make_index(spec)
    if spec.is_binary:
        probes = _powers(index.nlist) if isinstance(index, faiss.IndexBinaryIVF) else [1]
        efs = _efs(k) if isinstance(index, faiss.IndexBinaryHNSW) else [64]
        return [Settings(nprobe=nprobe, ef=ef) for nprobe in probes for ef in efs]
    parts = take_apart(index)
    factors = [f for f in _K_FACTORS if f * k <= max(num_vectors, k)] if parts.refine is not None else [1]
    if parts.is_ivf:
        return [Settings(nprobe=nprobe, k_factor=f) for nprobe in _powers(parts.core.nlist) for f in factors]
    efs = _efs(k) if isinstance(parts.core, faiss.IndexHNSW) else [64]
    return [Settings(ef=ef, k_factor=f) for ef in efs for f in factors]


def _powers(most: int) -> list[int]:
    return sorted({*(2**i for i in range(int(math.log2(most)) + 1)), most})


def _efs(k: int) -> list[int]:
    first = max(16, 2 ** math.ceil(math.log2(k)))
    return [first * 2**i for i in range(8)]


def tune(
    ladder: Sequence[Settings], try_settings: Callable[[Settings], Trial], truth: WholeTruth, k: int, target: float
) -> tuple[CurvePoint, list[CurvePoint]]:
    """Measure settings and choose the cheapest whose lower confidence bound reaches the target; else the best there is.

    Not all are measured: within one `nprobe` (or `ef`) the candidates per result grow until recall stops growing, and
    the search ends where the target was reached at a cost that later, dearer steps cannot be below.
    """
    curve: list[CurvePoint] = []
    best: CurvePoint | None = None
    for group in _by_effort(ladder):
        points: list[CurvePoint] = []
        for settings in group:
            points.append(_measure(settings, try_settings(settings), truth, k))
            if len(points) > 1 and points[-1].recall - points[-2].recall < 0.002:
                break  # more candidates find nothing more
        curve += points
        reached = [point for point in points if point.lower >= target]
        if reached:
            cheapest = min(reached, key=lambda point: point.cpu_ms)
            if best is not None and cheapest.cpu_ms >= best.cpu_ms:
                break
            best = cheapest if best is None or cheapest.cpu_ms < best.cpu_ms else best
        if best is not None and min(point.cpu_ms for point in points) > best.cpu_ms:
            break
    return best or max(curve, key=lambda point: (point.lower, -point.cpu_ms)), curve


def _by_effort(ladder: Sequence[Settings]) -> Iterator[list[Settings]]:
    group: list[Settings] = []
    for settings in ladder:
        if group and (settings.nprobe, settings.ef) != (group[0].nprobe, group[0].ef):
            yield group
            group = []
        group.append(settings)
    if group:
        yield group


def _measure(settings: Settings, trial: Trial, truth: WholeTruth, k: int) -> CurvePoint:
    recall_Q = recall_per_query(trial.ids_QK, truth, k)
    lower = lower_bound(recall_Q)
    count = max(1, len(trial.ids_QK))
    return CurvePoint(
        settings=settings,
        recall=round(float(recall_Q.mean()), 6) if len(recall_Q) else 0.0,
        lower=round(lower, 6),
        cpu_ms=round(1000 * trial.cpu_seconds / count, 5),
        scanned=round(trial.scanned, 1),
    )


def recall_per_query(ids_QK: NDArray[np.int64], truth: WholeTruth, k: int) -> NDArray[np.float64]:
    """Share of each certain query's exact neighbours that were found; of equally near ones any will do."""
    hits = []
    for query in truth.queries:
        wanted = int(truth.wanted_Q[query])
        found = sum(int(i) in truth.accepted[query] for i in ids_QK[query, :k])
        hits.append(min(found, wanted) / wanted)
    return np.array(hits, np.float64)


def lower_bound(recall_Q: NDArray[np.float64]) -> float:
    """Lower end of the one-sided 95 % interval of the mean; queries are the independent units, not their neighbours."""
    if len(recall_Q) < 2:
        return 0.0
    return float(recall_Q.mean() - _Z * recall_Q.std(ddof=1) / math.sqrt(len(recall_Q)))


def summary(k: int, target: float, source: str, truth: WholeTruth, chosen: Any, curve: Sequence[CurvePoint]) -> Recall:
    """The record for the snapshot."""
    return Recall(k=k, target=target, queries=len(truth.queries), source=source, chosen=chosen, curve=tuple(curve))
