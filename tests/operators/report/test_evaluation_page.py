"""The report and the model card of an evaluation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import numpy as np
import pytest

from operators.evaluation.contamination import Contamination, Example
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
from operators.evaluation.statistics import Resampling
from operators.evaluation.tasks import Task
from operators.report.evaluation_page import evaluation_page
from operators.report.evaluation_text import evaluation_text, model_card

QUICK = Resampling(draws=100)
TASKS = (
    Task(name="a|<b>", kind="retrieval", path="x", k=(1, 10), at_least={"ndcg_at_10": 0.6}),
    Task(name="sts", kind="sts", path="y"),
)


def outcome(names: tuple[str, ...], mean: float) -> Outcome:
    """Scores of 50 queries around a mean."""
    values = np.clip(np.random.default_rng(0).normal(mean, 0.05, 50), 0, 1)
    return Outcome({n: float(values.mean()) for n in names}, "queries", 50, {n: values for n in names}, notes=("odd",))


def evaluation() -> Evaluation:
    """Two models, the second worse on one task and without the other."""
    ranked = ("ndcg_at_10", "recall_at_1", "recall_at_10")
    outcomes: Mapping[str, Mapping[str, Outcome]] = {
        "one": {"a|<b>": outcome(ranked, 0.7), "sts": outcome(("cosine_spearman",), 0.8)},
        "two": {"a|<b>": outcome(ranked, 0.5)},
    }
    models = tuple(
        ModelResult(
            name,
            name,
            {task.name: task_result(task, found[task.name], QUICK) for task in TASKS if task.name in found},
            dim=384,
            bytes_per_vector={"float32": 1536},
            tokens_per_second=1234.5,
            workers=2,
            tokens_per_document=100.0,
            usd_per_million_documents=0.25,
        )
        for name, found in outcomes.items()
    )
    example = Example("a text", "pairs.jsonl, row 3", "<script>a text</script>", True)
    seen = (Contamination("sts", 100, 1, 2, 40, (example,)),)
    return Evaluation(
        "2026-01-01T00:00:00+00:00", 12.0, 0.95, models, comparisons(TASKS, outcomes, QUICK), seen, "laptop", {}, {}
    )


def test_the_card_puts_models_side_by_side() -> None:
    card = model_card(evaluation())
    [row] = [line for line in card.splitlines() if line.startswith("| a\\|&lt;b> | ndcg_at_10 |")][:1]
    assert row.count(" | ") == 3
    assert "| bytes a vector, float32 | 1,536 | 1,536 |" in card
    assert "| cost of a million documents | $0.25 | $0.25 |" in card
    assert "| worse |" in card
    assert "| sts | 100 | 1 | 2 | 3.0 % | 40 |" in card
    assert "<script>" not in card


def test_the_page_escapes_and_shows_plots() -> None:
    page = evaluation_page(evaluation())
    assert page.count("<svg") == 2
    assert "<script>" not in page
    assert "a|&lt;b&gt;" in page
    assert "mean of 1 main scores that all models have" in page


def test_the_json_is_flat_for_one_model_and_nested_for_several() -> None:
    found = evaluation()
    nested = json.loads(scores_json(found, several=True))
    assert list(nested) == ["one", "two"]
    single = json.loads(scores_json(dataclasses.replace(found, models=found.models[:1]), several=False))
    assert single == nested["one"]
    assert json.loads(report_json(found))["models"][0]["tasks"]["sts"]["intervals"]["cosine_spearman"]["low"] > 0.7


def test_the_text_names_the_files() -> None:
    told = evaluation_text(evaluation(), "out/scores.json")
    assert "sts: 1 texts are in the training pairs, 2 more overlap (3.0 %)" in told
    assert told.splitlines()[-1] == "evaluate done in 12 s: out/scores.json, out/scores.html, out/scores.md"


def test_gates_hold_embedders_and_a_lone_baseline() -> None:
    models = evaluation().models
    assert missed_gates(TASKS, models[:1]) == []
    [missed] = missed_gates(TASKS, models)
    assert missed.startswith("two on a|<b>: ndcg_at_10 0.5")
    baseline = dataclasses.replace(models[1], dim=None)
    assert missed_gates(TASKS, (models[0], baseline)) == []
    assert len(missed_gates(TASKS, (baseline,))) == 1


def test_not_a_number_is_never_written() -> None:
    found = evaluation()
    task = dataclasses.replace(found.models[0].tasks["sts"], metrics={"cosine_spearman": float("nan")})
    broken = dataclasses.replace(found.models[0], tasks={"sts": task})
    with pytest.raises(ValueError, match="not JSON compliant"):
        scores_json(dataclasses.replace(found, models=(broken,)), several=False)
