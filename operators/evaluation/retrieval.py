"""Metrics of ranked documents by trec_eval (through pytrec_eval), with MTEB's names.

nDCG, MAP, recall, precision and hit rate are trec_eval's; ties are ranked by document id, descending, there and for
MRR (which trec_eval has without a cut-off).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from operators.errors import InputError
from operators.evaluation.beir import Qrels
from operators.evaluation.outcome import Outcome, check_finite

Run = Mapping[str, Mapping[str, float]]  # query id -> document id -> score

_TREC_EVAL = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "hit_rate": "success"}


def score_run(
    run: Run, qrels: Qrels, ks: Sequence[int], ignore_identical_ids: bool = False, notes: tuple[str, ...] = ()
) -> Outcome:
    """NAME_at_K of every name and k, over the judged queries; a query without results scores 0."""
    import pytrec_eval

    if ignore_identical_ids:
        run = {query: {doc: score for doc, score in found.items() if doc != query} for query, found in run.items()}
    check_finite(np.array([score for found in run.values() for score in found.values()]), "similarities")
    measures = {f"{name}.{','.join(map(str, ks))}" for name in _TREC_EVAL.values()}
    scored = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate({q: dict(found) for q, found in run.items()})
    by_item: dict[str, NDArray[np.float64]] = {}
    for name, trec_name in _TREC_EVAL.items():
        for k in ks:
            values = [scored.get(query, {}).get(f"{trec_name}_{k}", 0.0) for query in qrels]
            by_item[f"{name}_at_{k}"] = np.array(values)
    ranks = np.array([_first_relevant(run.get(query, {}), judged, max(ks)) for query, judged in qrels.items()])
    for k in ks:
        by_item[f"mrr_at_{k}"] = np.where(ranks <= k, 1 / ranks, 0.0)
    empty = sum(not run.get(query) for query in qrels)
    if empty:
        notes += (f"{empty:,} queries found nothing and score 0",)
    metrics = {name: float(values.mean()) for name, values in by_item.items()}
    return Outcome(metrics, "queries", len(qrels), by_item, notes=notes)


def check_judged(run: Run, qrels: Qrels) -> None:
    """Raise InputError where not one judged document was found: then the ids of corpus and judgements differ."""
    if not any(doc in judged for query, judged in qrels.items() for doc in run.get(query, {})):
        raise InputError(
            "check the ids: no judged document is among the results; corpus and qrels must share their ids"
        )


def _first_relevant(found: Mapping[str, float], judged: Mapping[str, int], most: int) -> float:
    """The rank of the first relevant document, from 1; infinite where there is none."""
    ranked = sorted(found.items(), key=lambda item: (item[1], item[0]), reverse=True)[:most]
    places = (rank for rank, (doc, _) in enumerate(ranked, 1) if judged.get(doc, 0) > 0)
    return next((float(rank) for rank in places), np.inf)
