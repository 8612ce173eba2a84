"""The report and the card of a training."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard

from operators.report.training_card import training_card
from operators.report.training_page import training_page
from operators.report.training_plots import binned, smoothed
from operators.report.training_text import first_loss, last_loss, training_text
from operators.training.data.counts import RowCounts
from operators.training.record.curve import Curve, Evaluated, StepMetrics
from operators.training.record.outcome import TrainedModel, TrainedSet, TrainingOutcome


def step(number: int, name: str, loss: float) -> StepMetrics:
    """A step of 64 rows in half a second."""
    return StepMetrics(number, name, number // 50, loss, 2e-5 * (1 - number / 100), 1.5, 64, 4096, 0.5)


def outcome() -> TrainingOutcome:
    """100 steps on two sets, one of them with rows left out."""
    steps = [step(i, "a|<b>" if i % 2 else "pairs", 2 * 0.98**i) for i in range(100)]
    evaluations = [Evaluated(0, {"ndcg_at_10": 0.4, "map": 0.3}), Evaluated(50, {"ndcg_at_10": 0.62, "map": 0.5})]
    skipped = {"empty query": 3, "negative is the positive": 2}
    counts = RowCounts(read=1005, kept=1000, skipped=skipped, examples={"empty query": ("a.jsonl#7: <b>no text",)})
    return TrainingOutcome(
        started="2026-11-21T10:00:00+00:00",
        finished="2026-11-21T10:02:00+00:00",
        seconds=120.0,
        output="s3://bucket/run",
        model=TrainedModel(
            "minilm", "b" * 64, "f" * 64, 384, 256, "mean", True, {"query": "", "document": "doc: "},
            22_700_000, 11_350_000, True,
        ),
        sets=(
            TrainedSet("pairs", "pairs", "x.jsonl", "1" * 32, "info_nce", 1600, 50, 0, RowCounts(read=1650, kept=1650)),
            TrainedSet("a|<b>", "triples", "y.parquet", "2" * 32, "triplet", 800, 0, 12, counts),
        ),
        batch_size=64,
        num_steps=200,
        ended="stopped early: no better for 2 evaluations",
        kept_step=50,
        curve=Curve().plus(*steps, *evaluations, Evaluated(100, {"ndcg_at_10": 0.6, "map": 0.52})),
        objective={"info_nce": {"temperature": 0.05, "matryoshka": None}},
        optimization={"learning_rate": 2e-5, "max_gradient_norm": 1.0, "betas": (0.9, 0.999)},
        tuning={"lora": None, "precision": "float32"},
        seed=7,
        hardware="x86_64",
        workers=2,
        peak_bytes=3_100_000_000,
        versions={"torch": "2.13.0"},
        config={"seed": 7},
        notes=("<script>alert(1)</script>",),
    )  # fmt: skip


def test_scores_and_counts_follow_from_the_curve() -> None:
    run = outcome()
    assert run.before is not None
    assert run.after is not None
    assert (run.before.main, run.after.main) == (0.4, 0.62)
    assert run.epochs() == {"pairs": 50 * 64 / 1600, "a|<b>": 50 * 64 / 800}
    assert (run.rows, run.rows_per_second, run.tokens_per_second) == (6400, 128, 8192)
    assert first_loss(run) == pytest.approx(np.mean([2 * 0.98**i for i in range(5)]))
    assert last_loss(run) == pytest.approx(np.mean([2 * 0.98**i for i in range(95, 100)]))


def test_json_holds_everything() -> None:
    stored = json.loads(outcome().to_json())
    assert stored["sets"][1]["counts"]["skipped"] == {"empty query": 3, "negative is the positive": 2}
    assert stored["curve"]["steps"]["loss"] == [2 * 0.98**i for i in range(100)]
    assert stored["curve"]["evaluations"][2] == {"step": 100, "scores": {"ndcg_at_10": 0.6, "map": 0.52}}
    assert (stored["before"], stored["epochs"]["pairs"]) == ({"ndcg_at_10": 0.4, "map": 0.3}, 2.0)


def test_page_shows_all_and_escapes_what_comes_from_outside() -> None:
    page = training_page(outcome())
    assert page.count("<svg") == 5
    for shown in ("0.6200", "0.4000 before", "+0.2200", "50 (kept)", "negative is the positive", "50.0 % of the param"):
        assert shown in page
    assert "stopped early: no better for 2 evaluations" in page
    assert "<script>" not in page
    assert "<b>no text" not in page
    assert "a|&lt;b&gt;" in page


def test_page_of_a_run_without_steps_or_evaluations_is_drawn() -> None:
    page = training_page(dataclasses.replace(outcome(), curve=Curve(), kept_step=0))
    assert "<svg" not in page


def test_page_of_a_run_whose_loss_is_no_number_is_drawn() -> None:
    curve = Curve().plus(step(0, "pairs", math.nan), step(1, "pairs", math.inf))
    assert "<svg" in training_page(dataclasses.replace(outcome(), curve=curve))


def test_card_reads_as_a_model_card_with_its_results() -> None:
    card = ModelCard(training_card(outcome(), "run"))
    assert card.data.library_name == "sentence-transformers"
    assert card.data.base_model == "minilm"
    assert {"loss:info_nce", "loss:triplet", "sentence-transformers"} <= set(card.data.tags)
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"ndcg_at_10": 0.62, "map": 0.5}
    assert card.data.model_name == "run"


def test_card_says_how_to_load_and_what_it_was_made_of() -> None:
    text = training_card(outcome(), "run")
    assert 'SentenceTransformer("s3://bucket/run/model")' in text
    assert "| ndcg_at_10 | 0.4000 | 0.6200 | +0.2200 |" in text
    assert "| a\\|&lt;b> | triples | triplet | 800 | 0 | 4.00 | 12 | 5 | 222222222222 |" in text
    assert "| prompt of a document | 'doc: ' |" in text
    assert "| 91 to 100 |" in text
    assert "<script>" not in text
    model = dataclasses.replace(outcome().model, in_sentence_transformers=False)
    assert "SentenceTransformer(" not in training_card(dataclasses.replace(outcome(), model=model), "run")


def test_summary_says_what_changed() -> None:
    text = training_text(outcome())
    assert "100 of 200 steps, stopped early" in text
    assert "ndcg_at_10  0.4000 -> 0.6200 (+0.2200)" in text
    assert "skipped       5 rows of a|<b>" in text


def test_smoothed_is_the_debiased_moving_average() -> None:
    values = np.random.default_rng(0).normal(size=400).tolist()
    expected = pd.Series(values).ewm(alpha=1 / 8, adjust=True).mean()
    np.testing.assert_allclose(smoothed(values), expected, rtol=1e-12)
    assert smoothed([3.0, math.nan, 3.0])[1:] == [3.0, 3.0]


def test_bins_keep_the_mean_and_the_range() -> None:
    values = np.random.default_rng(0).normal(size=2400)
    bins = binned(range(1, 2401), values.tolist())
    np.testing.assert_allclose(bins.mean, values.reshape(240, 10).mean(1))
    np.testing.assert_array_equal(bins.high, values.reshape(240, 10).max(1))
    np.testing.assert_allclose(bins.steps[:2], [5.5, 15.5])
    assert len(binned([1], [math.nan]).steps) == 0
