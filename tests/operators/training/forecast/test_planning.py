"""`plan` for a training: what fits, what breaks first, and how long the texts are that it reckons with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from operators.report.forecast_text import HEAD, forecast_row, training_plan_page, training_plan_text
from operators.training.config.sets import TrainingSet
from operators.training.forecast.config import ForecastConfig
from operators.training.forecast.lengths import first_rows
from operators.training.forecast.method import Load, Method
from operators.training.forecast.planning import AS_CONFIGURED, TrainingPlan, plan_training, variants
from operators.training.forecast.shape import ModelShape

LOAD = Load(rows=1024, query_tokens=64, document_tokens=448, dim=4096, tokens=16384)


def planned(method: Method, **settings: object) -> TrainingPlan:
    shape = ModelShape.of_config(transformers.MistralConfig())
    return plan_training("seven", shape, method, LOAD, ForecastConfig.model_validate(settings))


def test_plan_says_what_breaks_first_and_the_least_change_that_fits() -> None:
    plan = planned(Method(), num_gpus=[8, 64])
    assert plan.verdict.startswith("does not fit 8 H100: moments break it, of 271 GB in all; ")
    assert plan.verdict.endswith("the least change that fits all: FSDP2")
    assert [one.fits for one in plan.forecasts[AS_CONFIGURED]] == [False, False]
    assert [one.fits for one in plan.forecasts["FSDP2"]] == [True, True]


def test_plan_of_what_fits_says_so() -> None:
    plan = planned(Method(rank=16, frozen="bfloat16", checkpointing=True), num_gpus=[8])
    assert plan.verdict == "fits each of 8 H100"


def test_plan_keeps_the_tokens_of_the_config_and_fits_those_of_others() -> None:
    plan = planned(Method(), num_gpus=[8])
    assert plan.forecasts[AS_CONFIGURED][0].held_tokens == LOAD.tokens
    assert 448 < plan.forecasts["FSDP2"][0].held_tokens < LOAD.tokens


def test_plan_is_told_as_text_page_and_json() -> None:
    plan = planned(Method(), num_gpus=[8, 64])
    text = training_plan_text(plan)
    assert "seven, 7.11 B parameters; 1,024 rows a step, 524,288 tokens: a query of 64 and 1 x 448" in text
    assert "8 H100" in text
    page = training_plan_page(plan, {"model": "<b>"})
    assert "moments" in page
    assert "<b>&quot;" not in page
    stored = json.loads(plan.to_json())
    assert len(stored["forecasts"]) == 2 * len(variants(Method()))
    assert (stored["forecasts"][0]["fits"], stored["forecasts"][0]["breaks_first"]) == (False, "moments")
    assert sum(stored["forecasts"][0]["memory"].values()) == pytest.approx(stored["forecasts"][0]["memory_bytes"])


def test_row_of_what_does_not_fit_names_what_breaks_first() -> None:
    plan = planned(Method(), num_gpus=[8])
    broken, fitting = plan.forecasts[AS_CONFIGURED][0], plan.forecasts["FSDP2, checkpointing"][0]
    rows = [forecast_row("a", broken), forecast_row("b", fitting)]
    assert rows[0][4] == "no: moments 56.9 GB"
    assert rows[1][4] == "of 80.0 GB"
    assert {len(row) for row in rows} == {len(HEAD)}


def test_variants_are_lighter_and_none_twice() -> None:
    found = variants(Method(rank=8, frozen="nf4", checkpointing=True))
    assert len(set(found.values())) == len(found)
    assert not any(method.sharded for method in found.values())  # 4-bit weights are not


def test_first_rows_are_the_first_that_are_kept(tmp_path: Path) -> None:
    rows = [{"query": f"q{i}" if i != 1 else "", "positive": f"p{i}"} for i in range(10)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = TrainingSet.model_validate({"name": "set", "path": str(tmp_path / "a.jsonl"), "kind": "pairs"})
    assert first_rows(chosen, 3, seed=0)["query"].to_pylist() == ["q0", "q2", "q3"]
    assert first_rows(chosen, 100, seed=0).num_rows == 9
