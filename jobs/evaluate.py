"""evaluate: score models on judged data with MTEB's metrics, side by side, with intervals and tests.

    python -m jobs evaluate CONFIG.yaml [model=minilm] [output.path=scores.json]

Retrieval, reranking, STS, pairs, classification, clustering and bitext mining; the corpora stream through the workers.
Leaves the scores as JSON, and a report (.report.json, .html) and a model card (.md) beside it. docs/evaluation.md
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import time
from datetime import UTC, datetime

from cluster.session import connect
from jobs.evaluate_config import BM25, EvaluatedModel, is_for_bm25
from jobs.evaluate_config import EvaluateConfig as Config
from operators.errors import GateMissed
from operators.evaluation.outcome import Outcome
from operators.evaluation.results import (
    Evaluation,
    ModelResult,
    comparisons,
    missed_gates,
    report_json,
    scores_json,
    task_result,
)
from operators.evaluation.scoring import TaskData, read_task, score_task
from operators.evaluation.tasks import Task
from operators.planning.estimate import DTYPES, price, vector_bytes
from operators.planning.expansion import Interval
from operators.report.evaluation_page import evaluation_page
from operators.report.evaluation_text import evaluation_text, model_card
from operators.storage import Location, locate, redact, write_whole

logger = logging.getLogger(__name__)

_VERSIONS = ("ray", "torch", "transformers", "scikit-learn", "scipy", "pytrec_eval-terrier", "bm25s", "embedfleet")
Outcomes = dict[str, Outcome]


def run(config: Config) -> int:
    """Score every model on every task, write the scores and the report; returns the exit code."""
    started, clock = datetime.now(UTC), time.monotonic()
    data = {task.name: read_task(task) for task in config.tasks}
    outcomes: dict[str, Outcomes] = {}
    models = []
    with connect(local_cpus=config.compute.local_cpus):
        for model in config.evaluated:
            found, result = _evaluate_model(model, config, data)
            outcomes[model.name] = found
            models.append(result)
    evaluation = Evaluation(
        started=started.isoformat(timespec="seconds"),
        seconds=time.monotonic() - clock,
        confidence=config.resampling.confidence,
        models=tuple(models),
        comparisons=comparisons(config.tasks, outcomes, config.resampling),
        hardware=config.hardware.name if config.hardware is not None else platform.machine(),
        versions={name: importlib.metadata.version(name) for name in _VERSIONS} | {"python": platform.python_version()},
        config=public_config(config),
    )
    _write(evaluation, config)
    print(evaluation_text(evaluation, config.output.path))
    missed = missed_gates(config.tasks, models)
    if missed:
        raise GateMissed("look into these scores, the report is in place: " + "; ".join(missed))
    return 0


def public_config(config: Config) -> dict[str, object]:
    """The config as it may be stored and shown: storage options out, what looks like a secret masked."""
    values = config.model_dump(mode="json", exclude_defaults=True)
    for section in (values["output"], *values["tasks"]):
        section.pop("storage_options", None)
    redacted: dict[str, object] = redact(values)
    return redacted


def _evaluate_model(model: EvaluatedModel, config: Config, data: dict[str, TaskData]) -> tuple[Outcomes, ModelResult]:
    if model.model == BM25:
        return _evaluate_bm25(model, config, data)
    from jobs.embedding_pool import embedding_pool
    from jobs.evaluation_models import PooledModel

    with embedding_pool(model.model, model.embedder, config.compute) as pool:
        outcomes = {task.name: _score(task, data[task.name], PooledModel(pool), model) for task in config.tasks}
        effort, spec, workers = pool.effort, pool.spec, len(pool.workers)
    return outcomes, ModelResult(
        model.name,
        model.model,
        {task.name: task_result(task, outcomes[task.name], config.resampling) for task in config.tasks},
        dim=spec.dim,
        max_tokens=spec.recipe.max_tokens,
        fingerprint=spec.fingerprint,
        bytes_per_vector={dtype: vector_bytes(dtype, spec.dim) for dtype in DTYPES},
        tokens_per_second=effort.tokens_per_second,
        workers=workers,
        tokens_per_document=effort.tokens_per_document,
        usd_per_million_documents=_usd_per_million(
            config, effort.tokens_per_second, workers, effort.tokens_per_document
        ),
    )


def _evaluate_bm25(model: EvaluatedModel, config: Config, data: dict[str, TaskData]) -> tuple[Outcomes, ModelResult]:
    from jobs.evaluation_models import Bm25Model

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
    config: Config, tokens_per_second: float | None, workers: int, tokens_per_document: float | None
) -> float | None:
    """What embedding a million documents costs at the speed of this run; None without a price."""
    if config.hardware is None or tokens_per_second is None or tokens_per_document is None:
        return None
    hardware = config.hardware.model_copy(
        update={
            "tokens_per_second": config.hardware.tokens_per_second or tokens_per_second / workers,
            "workers": workers,
        }
    )
    usd = price(Interval.exactly(1e6 * tokens_per_document), hardware).usd
    return usd.value if usd is not None else None


def _write(evaluation: Evaluation, config: Config) -> None:
    """The scores last: where they are, the rest is there too."""
    output = locate(config.output.path, config.output.storage_options)
    stem = output.url.removesuffix(".json")
    for ending, text in (
        (".report.json", report_json(evaluation)),
        (".html", evaluation_page(evaluation)),
        (".md", model_card(evaluation)),
        (".json", scores_json(evaluation, several=config.model is None)),
    ):
        write_whole(Location(stem + ending, output.options), text.encode())
