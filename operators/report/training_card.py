"""The card of a trained model: a README.md in the manner of sentence-transformers' own, front matter first.

The front matter is that of model hubs (huggingface.co/docs/hub/model-cards); the rest says what a person needs who is
to use the model, or to judge it: from what, on what, how, and with what gain.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import yaml

from operators.report.figures import count, printable
from operators.report.markdown import cell, table
from operators.report.training_text import (
    NONE,
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

_CURVE_ROWS = 10
CURVE_HEAD = ("steps", "loss", "learning rate", "gradient norm", "tokens/s")


def training_card(outcome: TrainingOutcome, name: str) -> str:
    """The card as Markdown; `name` is what the model is called, such as its folder's."""
    model = outcome.model
    scores = score_rows(outcome)
    skipped = skipped_rows(outcome)
    blocks = [
        [_front_matter(outcome, name) + f"# {cell(name)}"],
        [
            f"{cell(model.base)}, trained by embedfleet on {len(outcome.sets)} "
            f"data set{'' if len(outcome.sets) == 1 else 's'}: it maps texts to "
            f"{'unit ' if model.normalized else ''}vectors of {model.dim} dimensions, for search, similarity and "
            "clustering."
        ],
        _section("Model", table(("", ""), _model_rows(outcome))),
        _section("How to load", _loading(outcome)),
        _section("Evaluation", table(SCORE_HEAD, scores)) if scores else [],
        _section("Training data", table(SET_HEAD, set_rows(outcome))),
        _section("Rows left out or changed", table(SKIPPED_HEAD, skipped)) if skipped else [],
        _section("Training", table(("", ""), [[key, value] for key, value in run_facts(outcome).items()])),
        *(
            _section(title, table(("setting", ""), setting_rows(settings)))
            for title, settings in (
                ("Objective", outcome.objective),
                ("Optimization", outcome.optimization),
                ("Tuning", outcome.tuning),
            )
            if settings
        ),
        _section("Loss", table(CURVE_HEAD, _curve_rows(outcome))) if outcome.curve.steps else [],
        _section("Scores during training", table(*evaluation_rows(outcome))) if outcome.curve.evaluations else [],
        _section("Versions", table(("package", "version"), [[k, v] for k, v in outcome.versions.items()])),
        _section("Notes", [f"- {cell(note)}" for note in outcome.notes]) if outcome.notes else [],
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines) + "\n"


def _front_matter(outcome: TrainingOutcome, name: str) -> str:
    model = outcome.model
    facts: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": [
            "sentence-transformers",
            "sentence-similarity",
            "feature-extraction",
            "embedfleet",
            *(f"loss:{objective}" for objective in dict.fromkeys(one.objective for one in outcome.sets)),
        ],
        "base_model": model.base,
    }
    if outcome.after is not None:
        metrics = [{"type": score, "name": score, "value": value} for score, value in outcome.after.scores.items()]
        result = {
            "task": {"type": "sentence-similarity", "name": "Sentence Similarity"},
            "dataset": {"name": "evaluation during training", "type": "custom"},
            "metrics": metrics,
        }
        facts["model-index"] = [{"name": name, "results": [result]}]
    return "---\n" + yaml.safe_dump(facts, sort_keys=False, allow_unicode=True) + "---\n\n"


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *lines]


def _model_rows(outcome: TrainingOutcome) -> list[list[str]]:
    model = outcome.model
    share = f"{count(model.num_trained)} of {count(model.num_parameters)} parameters"
    rows = [
        ["base model", model.base],
        ["its fingerprint", model.base_fingerprint],
        ["fingerprint", model.fingerprint],
        ["dimensions", str(model.dim)],
        ["tokens read of a text, at most", str(model.max_tokens)],
        ["pooling", f"{model.pooling}{', scaled to length 1' if model.normalized else ''}"],
        ["trained", share],
    ]
    return rows + [[f"prompt of a {role}", repr(prompt) if prompt else NONE] for role, prompt in model.prompts.items()]


def _loading(outcome: TrainingOutcome) -> list[str]:
    folder = printable(f"{outcome.output}/model")
    lines = ["```bash", f'python -m jobs embed CONFIG.yaml model="{folder}"', "```"]
    if not outcome.model.in_sentence_transformers:
        return [*lines, "", "The layout of sentence-transformers cannot say all that this model does; recipe.yaml can."]
    code = [
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{folder}")',
        'queries = model.encode_query(["what is asked"])',
        'documents = model.encode_document(["what answers it"])',
        "print(model.similarity(queries, documents))",
        "```",
    ]
    return [*lines, "", *code]


def _curve_rows(outcome: TrainingOutcome) -> list[list[str]]:
    """The run in ten stretches, each by its means."""
    steps = outcome.curve.steps
    num = min(_CURVE_ROWS, len(steps))
    edges = [round(i * len(steps) / num) for i in range(num + 1)]
    rows = []
    for start, end in itertools.pairwise(edges):
        part = steps[start:end]
        seconds = sum(step.seconds for step in part)
        speed = sum(step.tokens for step in part) / seconds if seconds > 0 else 0.0
        rows.append(
            [
                f"{part[0].step + 1:,} to {part[-1].step + 1:,}",
                f"{sum(step.loss for step in part) / len(part):.4g}",
                f"{part[-1].learning_rate:.2e}",
                f"{sum(step.gradient_norm for step in part) / len(part):.3g}",
                count(speed),
            ]
        )
    return rows
