"""The numbers that a running job exports through Ray to Prometheus, as `ray_<name>`, each with the tag `job`.

Record where a fragment is committed: once in the driver, so that a retried fragment counts once. Ray's node agents
collect the values from every process, so recording in workers works as well. All metrics are made once per process.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Protocol

from ray.util.metrics import Counter, Gauge


class FragmentCounts(Protocol):
    """What happened to one fragment; `operators.work.fragment.Counts` is one."""

    @property
    def rows(self) -> int: ...  # embedded + rejected
    @property
    def rejected(self) -> int: ...
    @property
    def chunks(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def padding_tokens(self) -> int: ...
    @property
    def truncated(self) -> int: ...
    @property
    def seconds(self) -> Mapping[str, float]: ...  # stage -> busy seconds


class StepCounts(Protocol):
    """One step of a training, of all its workers; `operators.training.record.curve.StepMetrics` is one."""

    @property
    def loss(self) -> float: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def gradient_norm(self) -> float: ...
    @property
    def rows(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def rows_per_second(self) -> float: ...
    @property
    def tokens_per_second(self) -> float: ...


class EmbedMetrics:
    """The metrics of one embed job."""

    def __init__(self, job: str) -> None:
        def counter(name: str, description: str, *tags: str) -> Counter:
            metric = Counter(name, description=description, tag_keys=("job", *tags))
            metric.set_default_tags({"job": job})
            return metric

        self._tokens = counter("embed_tokens_total", "Tokens that the model read, padding not included.")
        self._padding = counter("embed_padding_tokens_total", "Padding tokens that were computed.")
        self._vectors = counter("embed_vectors_total", "Vectors written, one per chunk.")
        self._truncated = counter("embed_truncated_total", "Chunks that were cut to the model's length.")
        self._rows = counter("embed_rows_total", "Input rows by outcome: embedded or rejected.", "status")
        # Not a histogram: Ray 2.60 exports the sum of one as if each value lay in the middle of its bucket.
        self._seconds = counter("embed_stage_seconds_total", "Busy seconds, all workers together, by stage.", "stage")
        self._mfu = Gauge(
            "embed_mfu", description="Model FLOPs utilisation of the last fragment, 0 to 1.", tag_keys=("job",)
        )
        self._mfu.set_default_tags({"job": job})

    def record(self, counts: FragmentCounts, mfu: float | None) -> None:
        """Add one committed fragment and, where it is known, the model FLOPs utilisation that it was embedded with."""
        for metric, value in (
            (self._tokens, counts.tokens),
            (self._padding, counts.padding_tokens),
            (self._vectors, counts.chunks),
            (self._truncated, counts.truncated),
        ):
            _add(metric, value, {})
        _add(self._rows, counts.rows - counts.rejected, {"status": "embedded"})
        _add(self._rows, counts.rejected, {"status": "rejected"})
        for stage, seconds in counts.seconds.items():
            _add(self._seconds, seconds, {"stage": stage})
        if mfu is not None:
            self._mfu.set(mfu)


class IndexMetrics:
    """The metrics of index jobs."""

    def __init__(self) -> None:
        self._vectors = Counter("index_vectors_total", description="Vectors in shards built.", tag_keys=("job",))
        self._shards = Counter("index_shards_total", description="Shards built.", tag_keys=("job",))
        for metric in (self._vectors, self._shards):
            metric.set_default_tags({"job": "index"})

    def record(self, vectors: int) -> None:
        """Add one shard; one without vectors was there already."""
        _add(self._vectors, vectors, {})
        _add(self._shards, 1 if vectors else 0, {})


class TrainMetrics:
    """The metrics of one training; recorded in the worker of rank 0 alone, for all of them."""

    def __init__(self, job: str) -> None:
        def gauge(name: str, description: str, *tags: str) -> Gauge:
            metric = Gauge(name, description=description, tag_keys=("job", *tags))
            metric.set_default_tags({"job": job})
            return metric

        self._counters = {
            "steps": Counter("train_steps_total", description="Optimisation steps done.", tag_keys=("job",)),
            "rows": Counter("train_pairs_total", description="Rows of training sets used.", tag_keys=("job",)),
            "tokens": Counter("train_tokens_total", description="Tokens read, padding excluded.", tag_keys=("job",)),
        }
        for counter in self._counters.values():
            counter.set_default_tags({"job": job})
        self._gauges = {
            "loss": gauge("train_loss", "Loss of the last step."),
            "learning_rate": gauge("train_learning_rate", "Learning rate of the last step."),
            "gradient_norm": gauge("train_gradient_norm", "Length of the last step's gradient, before it was clipped."),
            "rows_per_second": gauge("train_pairs_per_second", "Rows a second in the last step."),
            "tokens_per_second": gauge("train_tokens_per_second", "Tokens a second in the last step."),
        }
        self._score = gauge("train_evaluation_score", "The last evaluation, by score.", "score")

    def record(self, step: StepCounts) -> None:
        """Add one step."""
        for name, counter in self._counters.items():
            _add(counter, 1 if name == "steps" else getattr(step, name), {})
        for name, metric in self._gauges.items():
            metric.set(getattr(step, name))

    def evaluated(self, scores: Mapping[str, float]) -> None:
        """Show the scores of an evaluation, by name."""
        for name, score in scores.items():
            self._score.set(score, tags={"score": name})


@functools.cache
def index_metrics() -> IndexMetrics:
    """This process's metrics of index jobs."""
    return IndexMetrics()


@functools.cache
def embed_metrics(job: str) -> EmbedMetrics:
    """This process's metrics of a job; a second set under the same names would count apart."""
    return EmbedMetrics(job)


@functools.cache
def train_metrics(job: str) -> TrainMetrics:
    """This process's metrics of a training."""
    return TrainMetrics(job)


def _add(counter: Counter, value: float, tags: dict[str, str]) -> None:
    if value > 0:  # Ray refuses to count zero
        counter.inc(value, tags=tags)
