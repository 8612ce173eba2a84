"""Metrics of the similarity of two texts: correlation with people's scores, and telling pairs apart.

STS: Spearman and Pearson of the cosine (scipy). Pairs: average precision of the cosine (scikit-learn), and the best F1
and accuracy over all thresholds, with precision and recall at the best F1, as MTEB has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.errors import InputError
from operators.evaluation.outcome import Draw, Outcome, check_finite

Scores = NDArray[np.float64]


def cosines(one_ND: NDArray[np.float32], other_ND: NDArray[np.float32]) -> Scores:
    """The cosine of each row of one with the same row of the other."""
    from sklearn.metrics.pairwise import paired_cosine_distances

    found: Scores = 1 - paired_cosine_distances(one_ND, other_ND)
    check_finite(found, "cosines")
    return found


def score_sts(cosine_N: Scores, gold: Sequence[float]) -> Outcome:
    """cosine_spearman and cosine_pearson; InputError where the scores are all the same."""
    gold_N = np.asarray(gold, np.float64)
    if len(gold_N) < 3 or not np.ptp(gold_N) or not np.ptp(cosine_N):
        raise InputError("give at least three pairs of different scores: of a constant there is no correlation")

    def of_draw(draw: Draw) -> Mapping[str, float]:
        return _correlations(cosine_N[draw], gold_N[draw])

    return Outcome(_correlations(cosine_N, gold_N), "pairs", len(gold_N), of_draw=of_draw)


def score_pairs(cosine_N: Scores, labels: Sequence[Any]) -> Outcome:
    """ap, best f1 with its precision and recall, and best accuracy; labels are 1 for pairs that belong together."""
    label_N = _binary(labels)
    if label_N.all() or not label_N.any():
        raise InputError(f"give pairs of both labels: all {len(label_N):,} are {int(label_N[0])}")

    def of_draw(draw: Draw) -> Mapping[str, float]:
        drawn_N = label_N[draw]
        return {} if drawn_N.all() or not drawn_N.any() else _classified(cosine_N[draw], drawn_N)

    return Outcome(_classified(cosine_N, label_N), "pairs", len(label_N), of_draw=of_draw)


def _correlations(cosine_N: Scores, gold_N: Scores) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr

    if not np.ptp(cosine_N) or not np.ptp(gold_N):  # a draw of one pair again and again
        return {}
    return {
        "cosine_spearman": float(spearmanr(gold_N, cosine_N)[0]),
        "cosine_pearson": float(pearsonr(gold_N, cosine_N)[0]),
    }


def _classified(cosine_N: Scores, label_N: NDArray[np.bool_]) -> dict[str, float]:
    from sklearn.metrics import average_precision_score

    order = np.argsort(-cosine_N, kind="stable")
    sorted_N, found_N = cosine_N[order], np.cumsum(label_N[order])
    taken_N = np.arange(1, len(order) + 1)
    # A threshold lies between two different similarities: tied pairs are on one side of it, and not all pairs are
    cuts = np.flatnonzero(sorted_N[:-1] != sorted_N[1:])
    f1 = 2 * found_N[cuts] / (taken_N[cuts] + found_N[-1])
    best = cuts[int(np.argmax(f1))] if f1.any() else None
    right = 2 * found_N[cuts] + len(order) - found_N[-1] - taken_N[cuts]
    return {
        "ap": float(average_precision_score(label_N, cosine_N)),
        "f1": float(f1.max(initial=0.0)),
        "precision": float(found_N[best] / taken_N[best]) if best is not None else 0.0,
        "recall": float(found_N[best] / found_N[-1]) if best is not None else 0.0,
        "accuracy": float(right.max(initial=0) / len(order)),
    }


def _binary(labels: Sequence[Any]) -> NDArray[np.bool_]:
    values = {str(label).strip() for label in labels}
    if not values <= {"0", "1", "0.0", "1.0", "False", "True"}:
        raise InputError(f"label pairs with 0 and 1: got {', '.join(sorted(values)[:5])}")
    return np.array([str(label).strip() in ("1", "1.0", "True") for label in labels])
