"""The report of an evaluation as a page: scores with intervals, models side by side."""

from __future__ import annotations

from operators.evaluation.results import Evaluation
from operators.report import markup, plots
from operators.report.evaluation_text import (
    CONTAMINATION_HEAD,
    comparison_rows,
    contamination_rows,
    example_lines,
    fact_rows,
    note_lines,
    score_text,
)
from operators.report.figures import count, duration

_MOST_CURVES = 8  # retrieval tasks that get a plot; the tables have them all


def evaluation_page(evaluation: Evaluation) -> str:
    """The report as HTML."""
    names = [model.name for model in evaluation.models]
    shared = evaluation.shared_tasks
    cards = [
        (model.name, f"{model.mean_score(shared):.4f}", f"mean of {len(shared)} main scores that all models have")
        for model in evaluation.models
        if shared
    ]
    cards += [
        (f"{model.name}: speed", f"{count(model.tokens_per_second)} tokens/s", f"{model.workers} workers")
        for model in evaluation.models
        if model.tokens_per_second is not None
    ]
    body = [
        markup.head(f"evaluation · {', '.join(names)}", f"{evaluation.started} · {evaluation.hardware}"),
        markup.cards([*cards, ("time", duration(evaluation.seconds), f"{len(_tasks(evaluation))} tasks")]),
        markup.notes(note_lines(evaluation)),
        f'<div class="panels">{"".join(_panels(evaluation))}</div>',
        markup.section("Size, speed and cost", markup.table(["", *names], fact_rows(evaluation.models))),
    ]
    if evaluation.comparisons:
        head = ("task", "metric", "model", "difference", "p-value", "")
        title = f"Against {evaluation.comparisons[0].against}"
        body.append(markup.section(title, markup.table(head, comparison_rows(evaluation))))
    if evaluation.contamination:
        seen = markup.table(CONTAMINATION_HEAD, contamination_rows(evaluation))
        examples = "".join(f"<li>{markup.text(line)}</li>" for line in example_lines(evaluation))
        body.append(markup.section("Seen in training", f"{seen}<ul>{examples}</ul>"))
    body += [markup.section(task, _metric_table(evaluation, task)) for task in _tasks(evaluation)]
    body += [
        markup.section("Versions", markup.facts(evaluation.versions)),
        markup.config_section(evaluation.config),
    ]
    return markup.page("evaluation report", body)


def _tasks(evaluation: Evaluation) -> list[str]:
    return list(dict.fromkeys(name for model in evaluation.models for name in model.tasks))


def _panels(evaluation: Evaluation) -> list[str]:
    """The main scores of all tasks by model, and how recall grows with the results looked at."""
    interval = f"{100 * evaluation.confidence:g} % intervals"
    scores = [
        (
            model.name,
            [
                (name, task.main_score, *(_bounds(task.intervals.get(task.main_metric), task.main_score)))
                for name, task in model.tasks.items()
            ],
        )
        for model in evaluation.models
    ]
    panels = [markup.panel("Main scores", plots.scores_svg(scores), f"with {interval}, by bootstrap")]
    for name in [name for name in _tasks(evaluation) if _ks(evaluation, name)][:_MOST_CURVES]:
        curves = [
            (model.name, [(k, model.tasks[name].metrics[f"recall_at_{k}"]) for k in _ks(evaluation, name)])
            for model in evaluation.models
            if name in model.tasks
        ]
        svg = plots.recall_by_rank_svg(curves)
        panels.append(markup.panel(f"{name}: recall by rank", svg, "share of the relevant documents"))
    return panels


def _bounds(bounds: object, score: float) -> tuple[float, float]:
    return (getattr(bounds, "low", score), getattr(bounds, "high", score))


def _ks(evaluation: Evaluation, name: str) -> list[int]:
    metrics = [metric for model in evaluation.models if name in model.tasks for metric in model.tasks[name].metrics]
    prefix = "recall_at_"
    return sorted({int(metric.removeprefix(prefix)) for metric in metrics if metric.startswith(prefix)})


def _metric_table(evaluation: Evaluation, name: str) -> str:
    models = [model for model in evaluation.models if name in model.tasks]
    metrics = list(dict.fromkeys(metric for model in models for metric in model.tasks[name].metrics))
    rows = [[metric, *(score_text(model.tasks[name], metric) for model in models)] for metric in metrics]
    first = models[0].tasks[name]
    return markup.table([f"{first.num_items:,} {first.items}", *(model.name for model in models)], rows)
