"""Clustering of vectors by mini-batch k-means, with MTEB's draws.

Each experiment clusters texts drawn with replacement into as many clusters as there are labels; V-measure and adjusted
mutual information are averaged over the experiments, which are also what intervals are taken over.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.errors import InputError
from operators.evaluation.outcome import Outcome, check_finite
from operators.evaluation.tables import read_columns, task_file
from operators.evaluation.tasks import Task

_BATCH = 512  # texts of a step of k-means, as in MTEB


@dataclass(frozen=True, slots=True)
class Clusters:
    """The texts to cluster, with their labels, and the texts of every experiment."""

    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    draws: tuple[NDArray[np.int64], ...]


def read_clusters(task: Task) -> Clusters:
    """Texts and labels of a clustering task; InputError where there is one label only."""
    texts, labels = read_columns(task_file(task), task.column_names)
    names, numbers = np.unique(np.array([str(label) for label in labels]), return_inverse=True)
    if len(names) < 2:
        raise InputError(f"task {task.name}: give texts of two labels and more: all are {names[0]!r}")
    rng = random.Random(task.seed)
    chosen: Any = range(len(texts))
    if task.max_texts is not None and task.max_texts < len(texts):
        chosen = rng.sample(range(len(texts)), k=task.max_texts)
    draws = tuple(
        np.array(rng.choices(range(len(chosen)), k=task.texts_per_experiment)) for _ in range(task.experiments)
    )
    return Clusters(tuple(str(texts[i]) for i in chosen), numbers[np.array(chosen)], draws)


def score_clusters(vectors_ND: NDArray[np.float32], clusters: Clusters, seed: int) -> Outcome:
    """v_measure and ami, the means of the experiments."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import adjusted_mutual_info_score, v_measure_score

    check_finite(vectors_ND, "components of the vectors")
    num_clusters = len(np.unique(clusters.labels))
    by_item: dict[str, list[float]] = {"v_measure": [], "ami": []}
    for draw in clusters.draws:
        kmeans = MiniBatchKMeans(num_clusters, batch_size=_BATCH, init="k-means++", n_init=1, random_state=seed)
        found = kmeans.fit_predict(vectors_ND[draw])
        by_item["v_measure"].append(float(v_measure_score(clusters.labels[draw], found)))
        by_item["ami"].append(float(adjusted_mutual_info_score(clusters.labels[draw], found)))
    arrays = {name: np.array(values) for name, values in by_item.items()}
    metrics = {name: float(values.mean()) for name, values in arrays.items()}
    return Outcome(metrics, "experiments", len(clusters.draws), arrays)
