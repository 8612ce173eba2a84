"""Classification of vectors by logistic regression, with MTEB's draws.

Each experiment learns from `samples_per_label` texts of each label, drawn by shuffling the texts once more with the
same seed, and is scored on all texts of the test part; the scores of the experiments are averaged. Without a train
part the texts are cross-validated. Shapes: N test texts, T training texts, E experiments, C classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from operators.errors import InputError
from operators.evaluation.outcome import Draw, Outcome, check_finite
from operators.evaluation.tables import read_columns, task_file
from operators.evaluation.tasks import Task

_MAX_ITERATIONS = 100  # of the regression, as in MTEB


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """Texts to learn from and texts to score; the same ones where they are cross-validated."""

    train_texts: tuple[str, ...]
    train_labels: NDArray[np.int64]  # numbers of the sorted labels
    texts: tuple[str, ...]
    labels: NDArray[np.int64]


def read_labelled(task: Task) -> LabelledTexts:
    """The parts of a classification task; InputError for a missing part, an unknown label or one class only."""
    texts, labels = read_columns(task_file(task), task.column_names)
    train_texts, train_labels = texts, labels
    if task.num_folds is None:
        train_texts, train_labels = read_columns(task_file(task, task.train), task.column_names)
    names = sorted({str(label) for label in train_labels})
    if len(names) < 2:
        raise InputError(f"task {task.name}: give texts of two labels and more: all are {names[0]!r}")
    number = {name: i for i, name in enumerate(names)}
    unknown = sorted({str(label) for label in labels} - set(number))
    if unknown:
        raise InputError(f"task {task.name}: the label {unknown[0]!r} is not among those to learn ({task.train})")
    return LabelledTexts(
        tuple(map(str, train_texts)),
        np.array([number[str(label)] for label in train_labels]),
        tuple(map(str, texts)),
        np.array([number[str(label)] for label in labels]),
    )


def train_draws(data: LabelledTexts, task: Task) -> list[tuple[list[int], list[int]]]:
    """(texts to learn from, texts to score) of every experiment, as places in the parts."""
    if task.num_folds is None:
        everything = list(range(len(data.texts)))
        return [(drawn, everything) for drawn in _undersampled(data.train_labels, task, task.experiments)]
    from sklearn.model_selection import KFold

    found = []
    order: list[int] = []
    for train, test in KFold(task.num_folds, shuffle=True, random_state=task.seed).split(data.texts):
        labels = data.labels[train]
        # MTEB goes on with the order that the fold before left; the length of a fold may differ by one
        before = len(order)
        order = [place for place in order if place < len(train)]
        order += range(before, len(train))
        np.random.RandomState(task.seed).shuffle(order)
        chosen = _first_of_each(order, labels, task.samples_per_label)
        found.append((train[chosen].tolist(), test.tolist()))
    return found


def score_classification(
    train_TD: Mapping[int, NDArray[np.float32]],
    test_ND: NDArray[np.float32],
    data: LabelledTexts,
    draws: Sequence[tuple[list[int], list[int]]],
    seed: int,
) -> Outcome:
    """accuracy, macro and weighted F1 (and ap of two classes), the mean of the experiments."""
    from sklearn.linear_model import LogisticRegression

    check_finite(test_ND, "components of the vectors")
    parts = []
    for train, test in draws:
        regression = LogisticRegression(max_iter=_MAX_ITERATIONS, random_state=seed)
        regression.fit(np.stack([train_TD[place] for place in train]), data.train_labels[train])
        parts.append((np.array(test), regression.predict(test_ND[test])))
    metrics = _mean([_scores(data.labels[test], guess) for test, guess in parts])
    guess_EN = _side_by_side(parts, len(data.labels))
    right_N = (guess_EN == data.labels).mean(axis=0)

    def of_draw(draw: Draw) -> Mapping[str, float]:
        found = _mean([_scores(data.labels[draw], guess_N[draw]) for guess_N in guess_EN])
        return {name: value for name, value in found.items() if name != "accuracy"}

    return Outcome(metrics, "texts", len(data.labels), {"accuracy": right_N}, of_draw)


def _side_by_side(parts: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], num_texts: int) -> NDArray[np.int64]:
    """The guesses of every experiment for every text; folds, each with texts of its own, make one row together."""
    if len(parts[0][0]) == num_texts:
        return np.stack([guess for _, guess in parts])
    whole_1N = np.empty((1, num_texts), np.int64)
    for test, guess in parts:
        whole_1N[0, test] = guess
    return whole_1N


def _undersampled(labels: NDArray[np.int64], task: Task, experiments: int) -> list[list[int]]:
    order = list(range(len(labels)))
    drawn = []
    for _ in range(experiments):
        # A fresh generator of the same seed each time, on the order that the last one left: MTEB's draws exactly
        np.random.RandomState(task.seed).shuffle(order)
        drawn.append(_first_of_each(order, labels, task.samples_per_label))
    return drawn


def _first_of_each(order: Sequence[int], labels: NDArray[np.int64], most: int) -> list[int]:
    taken: dict[int, int] = defaultdict(int)
    chosen = []
    for place in order:
        label = int(labels[place])
        if taken[label] < most:
            taken[label] += 1
            chosen.append(place)
    return chosen


def _scores(labels: NDArray[np.int64], guess: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy, F1 and AP (of predicted classes, as in MTEB) from the confusion matrix."""
    num_classes = int(max(labels.max(), guess.max())) + 1
    confusion_CC = np.bincount(labels * num_classes + guess, minlength=num_classes**2).reshape(num_classes, -1)
    right_C, of_C, guessed_C = np.diag(confusion_CC), confusion_CC.sum(1), confusion_CC.sum(0)
    present = (of_C + guessed_C) > 0
    f1_C = 2 * right_C[present] / (of_C + guessed_C)[present]
    found = {
        "accuracy": float(right_C.sum() / len(labels)),
        "f1": float(f1_C.mean()),
        "f1_weighted": float(f1_C @ of_C[present] / len(labels)),
    }
    if len(np.unique(labels)) == 2 and num_classes == 2:
        from sklearn.metrics import average_precision_score

        found["ap"] = float(average_precision_score(labels, guess))
    return found


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in scores if name in one])) for name in scores[0]}
