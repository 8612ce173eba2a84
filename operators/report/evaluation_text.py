"""An evaluation as text: a table for the terminal, and the Markdown model card beside the scores."""

from __future__ import annotations

from collections.abc import Sequence

from operators.evaluation.results import SIGNIFICANT, Evaluation, ModelResult, TaskResult
from operators.report.figures import count, duration, money, percent, printable
from operators.report.markdown import cell, table

NONE = "–"
CONTAMINATION_HEAD = ("task", "texts", "exact", "overlapping", "share", "too short to overlap")


def evaluation_text(evaluation: Evaluation, output: str) -> str:
    """Main scores of all models, and where the rest is."""
    names = [model.name for model in evaluation.models]
    rows = [[task, metric, *cells] for task, metric, cells in _score_rows(evaluation)]
    widths = [max(len(row[i]) for row in [["task", "metric", *names], *rows]) for i in range(2 + len(names))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [["task", "metric", *names], *rows]
    ]
    lines += [
        f"{c.task}: {c.exact:,} texts are in the training pairs, {c.overlapping:,} more overlap ({percent(c.share)})"
        for c in evaluation.contamination
    ]
    lines += [
        f"{model.name}: {count(model.tokens_per_second)} tokens/s"
        for model in evaluation.models
        if model.tokens_per_second is not None
    ]
    stem = output.removesuffix(".json")
    lines.append(f"evaluate done in {duration(evaluation.seconds)}: {output}, {stem}.html, {stem}.md")
    return "\n".join(map(printable, lines))


def score_text(task: TaskResult | None, metric: str) -> str:
    """A score with its interval: 0.8203 [0.8021, 0.8369]."""
    if task is None or metric not in task.metrics:
        return NONE
    bounds = task.intervals.get(metric)
    return f"{task.metrics[metric]:.4f}" + (f" [{bounds.low:.4f}, {bounds.high:.4f}]" if bounds is not None else "")


def model_card(evaluation: Evaluation) -> str:
    """All models side by side, as Markdown."""
    names = [model.name for model in evaluation.models]
    lines = [
        f"# Model card: {', '.join(map(cell, names))}",
        "",
        f"Evaluated {evaluation.started} on {cell(evaluation.hardware)}; "
        f"intervals are {100 * evaluation.confidence:g} %, by bootstrap.",
        "",
        "## Quality",
        "",
        *table(["task", "metric", *names], [[t, m, *cells] for t, m, cells in _score_rows(evaluation)]),
        "",
        "## Size, speed and cost",
        "",
        *table(["", *names], fact_rows(evaluation.models)),
    ]
    if evaluation.comparisons:
        lines += ["", f"## Against {cell(evaluation.comparisons[0].against)}", ""]
        lines += table(["task", "metric", "model", "difference", "p-value", ""], comparison_rows(evaluation))
    if evaluation.contamination:
        lines += ["", "## Seen in training", "", *table(CONTAMINATION_HEAD, contamination_rows(evaluation))]
        lines += ["", *(f"- {cell(line)}" for line in example_lines(evaluation))]
    notes = note_lines(evaluation)
    if notes:
        lines += ["", "## Notes", "", *(f"- {cell(note)}" for note in notes)]
    return "\n".join([*lines, ""])


def fact_rows(models: Sequence[ModelResult]) -> list[list[str]]:
    """Size, speed and cost, one row a fact and one column a model."""

    def row(name: str, shown: Sequence[str | None]) -> list[str]:
        return [name, *(value if value is not None else NONE for value in shown)]

    def of(value: float | None, show: object) -> str | None:
        assert callable(show)
        return None if value is None else str(show(value))

    rows = [
        row("model", [model.model for model in models]),
        row("dimensions", [of(model.dim, str) for model in models]),
        row("tokens read of a text, at most", [of(model.max_tokens, str) for model in models]),
    ]
    for dtype in dict.fromkeys(dtype for model in models for dtype in model.bytes_per_vector):
        sizes = [model.bytes_per_vector.get(dtype) for model in models]
        rows.append(row(f"bytes a vector, {dtype}", [of(size, lambda num: f"{num:,}") for size in sizes]))
    return [
        *rows,
        row("tokens/s, measured here", [of(model.tokens_per_second, count) for model in models]),
        row("workers", [of(model.workers, str) for model in models]),
        row("tokens a document", [of(m.tokens_per_document, lambda tokens: f"{tokens:.1f}") for m in models]),
        row("cost of a million documents", [of(model.usd_per_million_documents, money) for model in models]),
    ]


def comparison_rows(evaluation: Evaluation) -> list[list[str]]:
    """Every task's main metric, model by model: the difference to the first model, and whether it is one."""
    main = {name: task.main_metric for model in evaluation.models for name, task in model.tasks.items()}
    rows = []
    for one in evaluation.comparisons:
        if one.metric != main[one.task]:
            continue
        gap = one.difference
        verdict = "not significant"
        if gap.p_value < SIGNIFICANT:
            verdict = "better" if gap.value > 0 else "worse"
        interval = f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
        rows.append([one.task, one.metric, one.model, interval, f"{gap.p_value:.4f}", verdict])
    return rows


def contamination_rows(evaluation: Evaluation) -> list[list[str]]:
    """How many texts of every task the training pairs hold."""
    return [
        [c.task, f"{c.texts:,}", f"{c.exact:,}", f"{c.overlapping:,}", percent(c.share), f"{c.too_short:,}"]
        for c in evaluation.contamination
    ]


def example_lines(evaluation: Evaluation) -> list[str]:
    """Texts that were seen, and where."""
    return [
        f"{c.task}: {example.text!r} {'is' if example.exact else 'overlaps'} {example.training_text!r} "
        f"({example.seen_in})"
        for c in evaluation.contamination
        for example in c.examples
    ]


def note_lines(evaluation: Evaluation) -> list[str]:
    """What was left out or is odd, each once."""
    of_tasks = (f"{name}: {note}" for m in evaluation.models for name, task in m.tasks.items() for note in task.notes)
    of_models = (f"{model.name}: {note}" for model in evaluation.models for note in model.notes)
    return list(dict.fromkeys((*of_tasks, *of_models)))


def _score_rows(evaluation: Evaluation) -> list[tuple[str, str, list[str]]]:
    main = {name: task.main_metric for model in evaluation.models for name, task in model.tasks.items()}
    return [
        (task, metric, [score_text(model.tasks.get(task), metric) for model in evaluation.models])
        for task, metric in main.items()
    ]
