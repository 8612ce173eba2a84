"""What W&B and MLflow are told of a run; both are fakes that keep what a server would."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pydantic
import pytest

from operators.errors import InputError
from operators.training.record.curve import Evaluated, StepMetrics
from operators.training.record.tracking import TrackedRun, Tracker, Tracking, trackers

_SETTINGS = {"batch": {"size": 64}, "sets": [{"name": "pairs"}], "long": "x" * 900}
_WANDB = Tracking.model_validate({"wandb": {"project": "p"}})
_MLFLOW = Tracking.model_validate({"mlflow": {"uri": "http://localhost:1", "experiment": "e"}})


def _steps(first: int, last: int) -> list[StepMetrics | Evaluated]:
    steps = [StepMetrics(i, "pairs", 0, 1 / (i + 1), 2e-5, 0.5, 64, 4096, 0.5) for i in range(first, last)]
    return [*steps, Evaluated(last, {"ndcg": 0.5, "odd@10": 0.1})]


def _start(config: Tracking, scratch: Path, run: str = "run1") -> Tracker:
    (tracker,) = trackers(config, TrackedRun(run, _SETTINGS, scratch))
    return tracker


class _Wandb(ModuleType):
    """W&B's rule of steps: scalars of one step are put together, those of an earlier step are dropped."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.errors = SimpleNamespace(Error=ValueError)
        self.rows: dict[str, dict[int, dict[str, float]]] = {}
        self.dropped = 0
        self.exit_codes: list[int] = []

    def init(self, *, id: str, resume: str, project: str, **settings: Any) -> Any:
        assert resume == "allow"
        if project == "forbidden":
            raise ValueError("permission denied")
        rows = self.rows.setdefault(id, {})

        def log(values: dict[str, float], step: int) -> None:
            if rows and step < max(rows):
                self.dropped += 1
            else:
                rows.setdefault(step, {}).update(values)

        return SimpleNamespace(
            starting_step=max(rows) + 1 if rows else 0,
            log=log,
            finish=lambda exit_code: self.exit_codes.append(exit_code),
        )


class _MlflowError(Exception):
    """The fake's MlflowException."""


@dataclasses.dataclass
class _Metric:
    key: str
    value: float
    timestamp: int
    step: int


class _Mlflow(ModuleType):
    """An MLflow server, which keeps all that it is sent, also what comes twice."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.MlflowClient = lambda tracking_uri: self
        self.exceptions = SimpleNamespace(MlflowException=_MlflowError)
        self.entities = SimpleNamespace(Metric=_Metric, Param=lambda key, value: (key, value))
        self.runs: dict[str, SimpleNamespace] = {}
        self.is_down = False

    def _check(self) -> None:
        if self.is_down:
            raise _MlflowError("connection refused")

    def get_experiment_by_name(self, name: str) -> Any:
        self._check()
        return None

    def create_experiment(self, name: str) -> str:
        return "1"

    def search_runs(self, experiments: list[str], filter_string: str, max_results: int) -> list[Any]:
        wanted = filter_string.removeprefix("tags.`embedfleet.run` = ").strip("'")
        return [run for run in self.runs.values() if run.tags["embedfleet.run"] == wanted]

    def create_run(self, experiment: str, run_name: str | None, tags: dict[str, str]) -> Any:
        name = str(len(self.runs))
        info = SimpleNamespace(run_id=name)
        self.runs[name] = SimpleNamespace(info=info, tags=tags, metrics=[], params=[], status="RUNNING")
        return self.runs[name]

    def log_batch(self, run_id: str, metrics: list[_Metric] | None = None, params: list[Any] | None = None) -> None:
        self._check()
        assert len(metrics or ()) <= 1000
        self.runs[run_id].metrics += metrics or []
        self.runs[run_id].params += params or []

    def get_metric_history(self, run_id: str, key: str) -> list[_Metric]:
        self._check()
        return [metric for metric in self.runs[run_id].metrics if metric.key == key]

    def set_terminated(self, run_id: str, status: str) -> None:
        self._check()
        self.runs[run_id].status = status


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> _Wandb:
    fake = _Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> _Mlflow:
    fake = _Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


def test_wandb_has_every_step_once_after_a_run_went_on_from_an_older_checkpoint(wandb: _Wandb, tmp_path: Path) -> None:
    first = _start(_WANDB, tmp_path)
    first([Evaluated(0, {"ndcg": 0.4})])
    first(_steps(0, 4))
    first(_steps(4, 6)[:-1])
    first.close(finished=False)
    second = _start(_WANDB, tmp_path)
    second(_steps(4, 8))
    second.close(finished=True)
    rows = wandb.rows["run1"]
    assert {step: row["train/loss"] for step, row in rows.items() if step} == {i + 1: 1 / (i + 1) for i in range(8)}
    assert {step: row["evaluation/ndcg"] for step, row in rows.items() if "evaluation/ndcg" in row} == {
        0: 0.4,
        4: 0.5,
        8: 0.5,
    }
    assert (wandb.dropped, wandb.exit_codes) == (0, [1, 0])


def test_wandb_that_refuses_is_told_of_at_the_start(wandb: _Wandb, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"check tracking.wandb: .* permission denied"):
        _start(Tracking.model_validate({"wandb": {"project": "forbidden"}}), tmp_path)


def test_mlflow_has_every_step_once_after_a_run_went_on_from_an_older_checkpoint(
    mlflow: _Mlflow, tmp_path: Path
) -> None:
    first = _start(_MLFLOW, tmp_path)
    first([Evaluated(0, {"ndcg": 0.4, "odd@10": 0.0}), *_steps(0, 4)])
    first(_steps(4, 6)[:-1])
    first.close(finished=False)
    second = _start(_MLFLOW, tmp_path)
    second(_steps(4, 300))
    second.close(finished=True)
    _start(_MLFLOW, tmp_path, "run2").close(finished=True)
    run = mlflow.runs["0"]
    assert len(mlflow.runs) == 2
    losses = [(metric.step, metric.value) for metric in run.metrics if metric.key == "train/loss"]
    assert losses == [(i + 1, 1 / (i + 1)) for i in range(300)]
    assert [metric.step for metric in run.metrics if metric.key == "evaluation/odd_10"] == [0, 4, 300]
    assert run.status == "FINISHED"
    assert run.params == [("batch.size", "64"), ("sets", "[{'name': 'pairs'}]"), ("long", "x" * 500)]


def test_mlflow_that_was_away_is_told_later(mlflow: _Mlflow, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = _start(_MLFLOW, tmp_path)
    mlflow.is_down = True
    tracker(_steps(0, 2))
    deadline = time.monotonic() + 20
    while "MLflow did not take 3 records" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    assert mlflow.runs["0"].metrics == []
    mlflow.is_down = False
    tracker(_steps(2, 3))
    tracker.close(finished=True)
    assert [metric.step for metric in mlflow.runs["0"].metrics if metric.key == "train/loss"] == [1, 2, 3]


def test_mlflow_that_is_away_at_the_end_fails_no_run(
    mlflow: _Mlflow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = _start(_MLFLOW, tmp_path)
    mlflow.is_down = True
    tracker(_steps(0, 2))
    tracker.close(finished=True)
    assert "not told that the run ended" in caplog.text


def test_mlflow_that_is_away_at_the_start_stops_the_run(mlflow: _Mlflow, tmp_path: Path) -> None:
    mlflow.is_down = True
    with pytest.raises(InputError, match=r"check tracking.mlflow: http://localhost:1 .* connection refused"):
        _start(_MLFLOW, tmp_path)


@pytest.mark.parametrize(("config", "extra"), [(_WANDB, "wandb"), (_MLFLOW, "mlflow")])
def test_a_missing_package_is_named_with_its_extra(
    config: Tracking, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(InputError, match=rf"^pip install 'embedfleet\[{extra}\]', or leave out tracking.{extra}"):
        _start(config, tmp_path)


def test_nothing_is_imported_where_no_tracker_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
    assert trackers(Tracking(), TrackedRun("run1", {}, tmp_path)) == []


def test_a_password_in_the_uri_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="MLFLOW_TRACKING_PASSWORD"):
        Tracking.model_validate({"mlflow": {"uri": "https://me:secret@host", "experiment": "e"}})
