"""evaluate: score models on judged data with MTEB's metrics, side by side, with intervals and tests.

    python -m jobs evaluate CONFIG.yaml [model=minilm] [output.path=scores.json]

Retrieval, reranking, STS, pairs, classification, clustering and bitext mining; the corpora stream through the workers.
Leaves the scores as JSON, and a report (.report.json, .html) and a model card (.md) beside it. docs/evaluation.md
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from datetime import UTC, datetime

from cluster.session import connect
from jobs.evaluating.config import EvaluateConfig as Config
from operators.errors import GateMissed
from operators.evaluation.extra import check_installed
from operators.evaluation.results import (
    Evaluation,
    comparisons,
    missed_gates,
    report_json,
    scores_json,
)
from operators.evaluation.scoring import read_task
from operators.report.evaluation_page import evaluation_page
from operators.report.evaluation_text import evaluation_text, model_card
from operators.storage import Location, locate, redact, write_whole

_VERSIONS = ("ray", "torch", "transformers", "scikit-learn", "scipy", "pytrec_eval-terrier", "bm25s", "embedfleet")


def run(config: Config) -> int:
    """Score every model on every task, write the scores and the report; returns the exit code."""
    check_installed()
    # Imported here: they need Ray, a second that --help does without.
    from jobs.evaluating.contamination import check_contamination
    from jobs.evaluating.model import Outcomes, check_models, evaluate_model

    started, clock = datetime.now(UTC), time.monotonic()
    check_models(config)
    data = {task.name: read_task(task) for task in config.tasks}
    outcomes: dict[str, Outcomes] = {}
    models = []
    with connect(local_cpus=config.compute.local_cpus):
        for model in config.evaluated:
            found, result = evaluate_model(model, config, data)
            outcomes[model.name] = found
            models.append(result)
        seen = check_contamination(config.contamination, config.contamination_words, data)
    evaluation = Evaluation(
        started=started.isoformat(timespec="seconds"),
        seconds=time.monotonic() - clock,
        confidence=config.resampling.confidence,
        models=tuple(models),
        comparisons=comparisons(config.tasks, outcomes, config.resampling),
        contamination=seen,
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
