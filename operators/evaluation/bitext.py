"""Bitext mining: is the nearest sentence of the other language the translation, which is the one of the same row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from operators.evaluation.outcome import Draw, Outcome
from operators.index.truth import nearest


def score_bitext(one_ND: NDArray[np.float32], other_ND: NDArray[np.float32]) -> Outcome:
    """F1, precision and recall weighted over the rows (scikit-learn), and accuracy, as MTEB; vectors of length 1."""
    _, places_N1 = nearest(one_ND, other_ND, 1, "ip")
    found_N = places_N1[:, 0].astype(np.int64)

    def of_draw(draw: Draw) -> Mapping[str, float]:
        return _scores(draw, found_N[draw])

    right_N = (found_N == np.arange(len(found_N))).astype(np.float64)
    metrics = {**_scores(np.arange(len(found_N)), found_N), "accuracy": float(right_N.mean())}
    return Outcome(metrics, "pairs", len(found_N), {"accuracy": right_N}, of_draw)


def _scores(labels_N: NDArray[np.int64], found_N: NDArray[np.int64]) -> dict[str, float]:
    """Weighted scores: rows are the classes, and each class has the weight of its rows."""
    classes, label_N, count_C = np.unique(labels_N, return_inverse=True, return_counts=True)
    is_right_N = labels_N == found_N
    right_C = np.bincount(label_N, weights=is_right_N, minlength=len(classes))
    values, times = np.unique(found_N, return_counts=True)
    place_C = np.minimum(np.searchsorted(values, classes), len(values) - 1)
    guessed_C = np.where(values[place_C] == classes, times[place_C], 0)
    weight_C = count_C / len(labels_N)
    precision_C = np.divide(right_C, guessed_C, out=np.zeros(len(classes)), where=guessed_C > 0)
    return {
        "f1": float(weight_C @ (2 * right_C / (count_C + guessed_C))),
        "precision": float(weight_C @ precision_C),
        "recall": float(weight_C @ (right_C / count_C)),
    }
