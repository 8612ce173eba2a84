"""Metrics of pairs against MTEB's code, sentence-transformers' evaluators and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from operators.errors import InputError
from operators.evaluation.pairs import cosines, score_pairs, score_sts


def vectors(seed: int, num: int = 200, dim: int = 16) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two sets of vectors that are alike."""
    rng = np.random.default_rng(seed)
    one = rng.normal(size=(num, dim)).astype(np.float32)
    return one, (one + rng.normal(size=(num, dim))).astype(np.float32)


def test_correlations_are_scipys() -> None:
    one, other = vectors(0)
    gold = np.random.default_rng(1).integers(0, 6, 200).astype(float)
    cosine = np.array([np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(one, other, strict=True)])
    found = score_sts(cosines(one, other), gold.tolist()).metrics
    assert found["cosine_spearman"] == pytest.approx(scipy.stats.spearmanr(cosine, gold).statistic, abs=1e-6)
    assert found["cosine_pearson"] == pytest.approx(scipy.stats.pearsonr(cosine, gold).statistic, abs=1e-6)


@pytest.mark.parametrize("decimals", [1, 8])
def test_pairs_are_told_apart_as_in_mteb(decimals: int) -> None:
    """With one decimal most similarities are tied, and no threshold may part them."""
    from mteb.abstasks import AbsTaskPairClassification

    rng = np.random.default_rng(decimals)
    labels = rng.integers(0, 2, 300)
    cosine = np.round(0.3 * labels + rng.normal(size=300), decimals)
    compute: Any = AbsTaskPairClassification._compute_metrics_values
    expected = compute(_Self(AbsTaskPairClassification), cosine.tolist(), labels, True)
    assert dict(score_pairs(cosine, labels.tolist()).metrics) == pytest.approx(expected)


class _Self:
    """Stands in for a task, whose constructor wants metadata that these methods do not read."""

    def __init__(self, owner: Any) -> None:
        self._find_best_acc_and_threshold = lambda *a: owner._find_best_acc_and_threshold(self, *a)
        self._find_best_f1_and_threshold = lambda *a: owner._find_best_f1_and_threshold(self, *a)


def test_pairs_agree_with_sentence_transformers() -> None:
    from sentence_transformers.sentence_transformer.evaluation import BinaryClassificationEvaluator

    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 300)
    cosine = 0.3 * labels + rng.normal(size=300)
    evaluator: Any = BinaryClassificationEvaluator
    f1, precision, recall, _ = evaluator.find_best_f1_and_threshold(cosine, labels, True)
    found = score_pairs(cosine, labels.tolist()).metrics
    assert (found["f1"], found["precision"], found["recall"]) == pytest.approx((f1, precision, recall))


def test_labels_of_one_class_are_refused() -> None:
    with pytest.raises(InputError, match="give pairs of both labels: all 3 are 1"):
        score_pairs(np.array([0.1, 0.2, 0.3]), ["1", "1", "1"])
    with pytest.raises(InputError, match="label pairs with 0 and 1: got no, yes"):
        score_pairs(np.array([0.1, 0.2]), ["yes", "no"])


def test_a_constant_has_no_correlation() -> None:
    with pytest.raises(InputError, match="at least three pairs"):
        score_sts(np.array([0.1, 0.2, 0.3]), [2.0, 2.0, 2.0])


def test_nan_vectors_are_refused() -> None:
    one, other = vectors(0, num=3)
    one[1] = np.nan
    with pytest.raises((InputError, ValueError), match="NaN|not finite"):
        cosines(one, other)
