"""The report of a training as a page: how the loss went, what the scores became, on what data."""

from __future__ import annotations

from operators.report import markup, training_plots
from operators.report.figures import count, duration, percent
from operators.report.training_text import (
    SCORE_HEAD,
    SET_HEAD,
    SKIPPED_HEAD,
    evaluation_rows,
    run_facts,
    score_rows,
    set_rows,
    setting_rows,
    skipped_rows,
)
from operators.training.record.outcome import TrainingOutcome


def training_page(outcome: TrainingOutcome) -> str:
    """The report as HTML."""
    model = outcome.model
    facts = {
        "output": outcome.output,
        "base model": model.base,
        "its fingerprint": model.base_fingerprint,
        "fingerprint of the vectors": model.fingerprint,
        **run_facts(outcome),
    }
    sections = [
        ("Before and after", SCORE_HEAD, score_rows(outcome)),
        ("Evaluations", *evaluation_rows(outcome)),
        ("Data", SET_HEAD, set_rows(outcome)),
        ("Rows left out", SKIPPED_HEAD, skipped_rows(outcome)),
        ("Objective", ("setting", ""), setting_rows(outcome.objective)),
        ("Optimization", ("setting", ""), setting_rows(outcome.optimization)),
        ("Tuning", ("setting", ""), setting_rows(outcome.tuning)),
    ]
    body = [
        markup.head(f"train · {model.base}", f"{outcome.started} to {outcome.finished} · {outcome.output}"),
        markup.cards(_cards(outcome)),
        markup.notes(outcome.notes),
        f'<div class="panels">{"".join(_panels(outcome))}</div>',
        *(markup.section(title, markup.table(head, rows)) for title, head, rows in sections if rows),
        markup.section("Run", markup.facts(facts)),
        markup.section("Versions", markup.facts(outcome.versions)) if outcome.versions else "",
        markup.config_section(outcome.config),
    ]
    return markup.page("training report", body)


def _cards(outcome: TrainingOutcome) -> list[tuple[str, str, str]]:
    model = outcome.model
    cards = []
    if outcome.after is not None:
        before = f"{outcome.before.main:.4f} before" if outcome.before is not None else "not evaluated before"
        cards.append((next(iter(outcome.after.scores)), f"{outcome.after.main:.4f}", before))
    share = percent(model.num_trained / model.num_parameters) if model.num_parameters else ""
    return [
        *cards,
        ("steps", f"{len(outcome.curve.steps):,}", f"of {outcome.num_steps:,}, {outcome.ended}"),
        ("tokens/s", count(outcome.tokens_per_second), f"{count(outcome.rows_per_second)} rows/s"),
        ("rows", count(outcome.rows), f"{outcome.batch_size:,} a batch"),
        ("trained", count(model.num_trained), f"{share} of the parameters"),
        ("time", duration(outcome.seconds), f"{duration(outcome.step_seconds)} in steps"),
    ]


def _panels(outcome: TrainingOutcome) -> list[str]:
    curve = outcome.curve
    panels = []
    if curve.steps:
        most = outcome.optimization.get("max_gradient_norm")
        panels += [
            markup.panel("Loss", training_plots.loss_svg(curve), "by set: as it was, and smoothed"),
            markup.panel("Learning rate", training_plots.learning_rate_svg(curve), "of each step"),
            markup.panel("Gradient norm", training_plots.gradient_norm_svg(curve, most), "before it was clipped"),
            markup.panel(
                "Tokens per second", training_plots.speed_svg(curve, outcome.tokens_per_second), "padding not counted"
            ),
        ]
    if curve.evaluations:
        svg = training_plots.evaluations_svg(curve, outcome.kept_step)
        panels.insert(1, markup.panel("Evaluations", svg, "the first scores of each"))
    return panels
