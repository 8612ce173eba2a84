"""One model on all tasks of an evaluation: its workers are started once, and end before the next model's."""

from __future__ import annotations

import logging
import time

from jobs.embedding.pool import embedding_pool, prompted_spec
from jobs.evaluating.config import BM25, EvaluateConfig, EvaluatedModel, is_for_bm25
from jobs.evaluating.encoders import Bm25Model, PooledModel
from operators.evaluation.encoding import Prompted
from operators.evaluation.outcome import Outcome
from operators.evaluation.results import ModelResult, task_result
from operators.evaluation.scoring import TaskData, score_task
from operators.evaluation.tasks import Task
from operators.planning.estimate import DTYPES, Hardware, price, vector_bytes
from operators.planning.expansion import Interval

logger = logging.getLogger(__name__)

Outcomes = dict[str, Outcome]  # by task


def check_models(config: EvaluateConfig) -> None:
    """Raise InputError for a model that is not there, or has no prompt that a task wants: before hours go by."""
    for model in config.evaluated:
        for task in config.tasks if model.model != BM25 else ():
            prompted_spec(model.model, model.embedder, Prompted.text(task))
            if task.kind in ("retrieval", "reranking"):
                prompted_spec(model.model, model.embedder, Prompted.query(task))


def evaluate_model(
    model: EvaluatedModel, config: EvaluateConfig, data: dict[str, TaskData]
) -> tuple[Outcomes, ModelResult]:
    """A model's scores on all tasks that it can do, and what they took."""
    if model.model == BM25:
        return _evaluate_bm25(model, config, data)
    with embedding_pool(model.model, model.embedder, config.compute) as pool:
        outcomes = {task.name: _score(task, data[task.name], PooledModel(pool), model) for task in config.tasks}
        effort, spec, workers = pool.effort, pool.spec, len(pool.workers)
    speed, length = effort.tokens_per_second, effort.tokens_per_document
    unknown = f"{effort.unknown:,} of {effort.texts:,} texts hold no word that it knows: their vectors are zero"
    return outcomes, ModelResult(
        model.name,
        model.model,
        {task.name: task_result(task, outcomes[task.name], config.resampling) for task in config.tasks},
        dim=spec.dim,
        max_tokens=spec.recipe.max_tokens,
        fingerprint=spec.fingerprint,
        bytes_per_vector={dtype: vector_bytes(dtype, spec.dim) for dtype in DTYPES},
        tokens_per_second=speed,
        workers=workers,
        tokens_per_document=length,
        usd_per_million_documents=_usd_per_million(config.hardware, speed, workers, length),
        notes=(unknown,) if effort.unknown else (),
    )


def _evaluate_bm25(
    model: EvaluatedModel, config: EvaluateConfig, data: dict[str, TaskData]
) -> tuple[Outcomes, ModelResult]:
    tasks = [task for task in config.tasks if is_for_bm25(task)]
    outcomes = {task.name: _score(task, data[task.name], Bm25Model(), model) for task in tasks}
    results = {task.name: task_result(task, outcomes[task.name], config.resampling) for task in tasks}
    return outcomes, ModelResult(model.name, model.model, results)


def _score(task: Task, data: TaskData, model: object, named: EvaluatedModel) -> Outcome:
    started = time.monotonic()
    outcome = score_task(task, data, model)  # type: ignore[arg-type]  # each model is one of the two protocols
    logger.info(
        "%s, %s: %s %.4f (%s %s, %.1f s)",
        named.name,
        task.name,
        task.main_metric,
        outcome.metrics[task.main_metric],
        f"{outcome.num_items:,}",
        outcome.items,
        time.monotonic() - started,
    )
    return outcome


def _usd_per_million(
    hardware: Hardware | None, tokens_per_second: float | None, workers: int, tokens_per_document: float | None
) -> float | None:
    """What embedding a million documents costs, at the speed of this run unless the config states one."""
    if hardware is None or tokens_per_second is None or tokens_per_document is None:
        return None
    speed = hardware.tokens_per_second or tokens_per_second / workers
    known = hardware.model_copy(update={"tokens_per_second": speed, "workers": workers})
    usd = price(Interval.exactly(1e6 * tokens_per_document), known).usd
    return usd.value if usd is not None else None
