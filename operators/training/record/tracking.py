"""A run as scalars, and the trackers that are told of it where the config asks: Weights & Biases, MLflow.

A scalar's step is the number of steps that were done: the loss of the 100th step and the scores of the weights after
it stand at 100. A run that goes on under the same id tells a tracker only what it does not know yet.
"""

from __future__ import annotations

import importlib
import logging
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from operators.errors import InputError
from operators.storage import holds_secret
from operators.training.record.curve import Evaluated, StepMetrics

logger = logging.getLogger(__name__)

_RUN_TAG = "embedfleet.run"  # by which MLflow finds the run again
_SEND_SECONDS = 10.0
_METRICS_AT_ONCE, _PARAMS_AT_ONCE, _PARAM_CHARS = 1000, 100, 500  # MLflow's limits of one call
_NOT_IN_MLFLOW = re.compile(r"[^\w\-. :/]")  # characters that names of its metrics and parameters may not have


class WandbTracking(BaseModel):
    """Weights & Biases; the key comes from the environment (WANDB_API_KEY) or ~/.netrc."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: str = Field(min_length=1, description="project of the runs")
    entity: str | None = Field(default=None, description="user or team; null = the key's own")
    name: str | None = Field(default=None, description="of this run; null = W&B makes one up")
    mode: Literal["online", "offline"] = Field(default="online", description="offline: files for `wandb sync` later")


class MlflowTracking(BaseModel):
    """MLflow; user and password, or a token, come from the environment (MLFLOW_TRACKING_USERNAME, ...)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(min_length=1, description="of the tracking server, such as https://mlflow.example.org")
    experiment: str = Field(min_length=1, description="experiment of the runs; made where there is none")
    name: str | None = Field(default=None, description="of this run; null = MLflow makes one up")

    @field_validator("uri")
    @classmethod
    def _no_secrets(cls, uri: str) -> str:
        if holds_secret(uri):
            raise ValueError("uri: give the password as MLFLOW_TRACKING_PASSWORD, the config is stored with the run")
        return uri


class Tracking(BaseModel):
    """Who else is told of the run; TensorBoard files and report.html are always written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wandb: WandbTracking | None = Field(default=None, description="null: not told")
    mlflow: MlflowTracking | None = Field(default=None, description="null: not told")


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker keeps of a run beside its scalars."""

    id: str  # the same when the run goes on, another for every other run; letters and digits, at most 64
    settings: Mapping[str, Any]  # the config, without secrets
    scratch: Path  # folder on this machine for a tracker's own files


class Tracker(Protocol):
    """Is told of a run."""

    def __call__(self, records: Sequence[StepMetrics | Evaluated]) -> None:
        """Tell of records, in order; those that are known already may come again."""

    def close(self, finished: bool) -> None:
        """Tell that the run ends here: finished, or broken off."""


def trackers(config: Tracking, run: TrackedRun) -> list[Tracker]:
    """Those that the config asks for. Raises InputError where a package is missing or a server refuses."""
    found: list[Tracker] = []
    if config.wandb is not None:
        found.append(WandbTracker(config.wandb, run))
    if config.mlflow is not None:
        found.append(MlflowTracker(config.mlflow, run))
    return found


def steps_done(record: StepMetrics | Evaluated) -> int:
    """Where a record stands: the number of steps that were done when it was made."""
    return record.step + 1 if isinstance(record, StepMetrics) else record.step


def scalars(record: StepMetrics | Evaluated) -> dict[str, float]:
    """What is shown of a record, by name."""
    if isinstance(record, Evaluated):
        return {f"evaluation/{name}": score for name, score in record.scores.items()}
    return {
        "train/loss": record.loss,
        f"loss/{record.set}": record.loss,
        "train/learning_rate": record.learning_rate,
        "train/gradient_norm": record.gradient_norm,
        "train/rows_per_second": record.rows_per_second,
        "train/tokens_per_second": record.tokens_per_second,
    }


class WandbTracker:
    """Tells Weights & Biases, which sends from a process of its own and tries again by itself."""

    def __init__(self, config: WandbTracking, run: TrackedRun) -> None:
        wandb = _module("wandb", "wandb")
        run.scratch.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                name=config.name,
                id=run.id,
                resume="allow",
                config=dict(run.settings),
                dir=str(run.scratch),
                mode=config.mode,
            )
        except wandb.errors.Error as error:
            raise InputError(f"check tracking.wandb: W&B does not begin the run: {error}") from error

    def __call__(self, records: Sequence[StepMetrics | Evaluated]) -> None:
        for record in records:
            if steps_done(record) >= self._run.starting_step:  # W&B keeps the first of a step, and warns of others
                self._run.log(scalars(record), step=steps_done(record))

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MlflowTracker:
    """Tells an MLflow server every so often, from a thread of its own: its client waits minutes for one that is away.

    What the server does not take is kept and told again with what comes next.
    """

    def __init__(self, config: MlflowTracking, run: TrackedRun) -> None:
        self._mlflow = _module("mlflow", "mlflow")
        self._last: dict[str, int] = {}  # by metric: the step up to which the server has it
        self._waiting: list[StepMetrics | Evaluated] = []  # appended to here, taken from in the thread
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")
        self._sending: Future[None] | None = None
        self._last_sent = float("-inf")
        self._client = self._mlflow.MlflowClient(tracking_uri=config.uri)
        try:
            self._id = self._begin(config, run)
        except self._mlflow.exceptions.MlflowException as error:
            raise InputError(f"check tracking.mlflow: {config.uri} does not begin the run: {error}") from error

    def __call__(self, records: Sequence[StepMetrics | Evaluated]) -> None:
        self._waiting += records
        is_idle = self._sending is None or self._sending.done()
        if is_idle and time.monotonic() - self._last_sent >= _SEND_SECONDS:
            self._last_sent = time.monotonic()
            self._sending = self._thread.submit(self._try_to_send)

    def close(self, finished: bool) -> None:
        self._thread.shutdown(wait=True)
        self._try_to_send()
        try:
            self._client.set_terminated(self._id, status="FINISHED" if finished else "FAILED")
        except self._mlflow.exceptions.MlflowException as error:
            logger.warning("MLflow was not told that the run ended: %s", error)

    def _try_to_send(self) -> None:
        try:
            self._send()
        except self._mlflow.exceptions.MlflowException as error:
            logger.warning("MLflow did not take %d records, they are kept: %s", len(self._waiting), error)

    def _begin(self, config: MlflowTracking, run: TrackedRun) -> str:
        """The id of the run on the server, where it may be known from an earlier attempt."""
        found = self._client.get_experiment_by_name(config.experiment)
        experiment = found.experiment_id if found is not None else self._client.create_experiment(config.experiment)
        known = self._client.search_runs([experiment], filter_string=f"tags.`{_RUN_TAG}` = '{run.id}'", max_results=1)
        if known:
            return str(known[0].info.run_id)
        begun = self._client.create_run(experiment, run_name=config.name, tags={_RUN_TAG: run.id})
        entity = self._mlflow.entities.Param
        params = [entity(_name(key), str(value)[:_PARAM_CHARS]) for key, value in _flat(run.settings)]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(begun.info.run_id, params=params[start : start + _PARAMS_AT_ONCE])
        return str(begun.info.run_id)

    def _send(self) -> None:
        now, records = int(time.time() * 1000), self._waiting[:]
        metrics = [
            self._mlflow.entities.Metric(_name(name), value, now, steps_done(record))
            for record in records
            for name, value in scalars(record).items()
        ]
        new = [metric for metric in metrics if metric.step > self._known(metric.key)]
        for start in range(0, len(new), _METRICS_AT_ONCE):
            part = new[start : start + _METRICS_AT_ONCE]
            self._client.log_batch(self._id, metrics=part)
            self._last |= {metric.key: metric.step for metric in part}
        del self._waiting[: len(records)]

    def _known(self, key: str) -> int:
        if key not in self._last:
            history = self._client.get_metric_history(self._id, key)
            self._last[key] = max((metric.step for metric in history), default=-1)
        return self._last[key]


def _module(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            f"pip install 'embedfleet[{extra}]', or leave out tracking.{name}: there is no package {name} here"
        ) from None


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and values of nested mappings."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return found


def _name(key: str) -> str:
    return _NOT_IN_MLFLOW.sub("_", key)
