"""A plan adds up: histogram, padding, bytes, hours and money follow from the sample."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.embedder.tokens import batching
from operators.planning.estimate import Estimate, Hardware, Reading, Setting, estimate_run, mfu, price, vector_bytes
from operators.planning.expansion import Interval
from operators.planning.sampling import UnitSample, choose_units
from tests.operators.planning.corpora import SyntheticUnit, make_units, true_totals

SETTING = Setting(dim=384, fragment_rows=4096, batch_tokens=2048)
H200 = Hardware(name="H200", tokens_per_second=50_000.0, workers=4, price_per_hour=4.59, peak_tflops=989.0)


def plan_of(
    units: list[SyntheticUnit], drawn: int, rows: int, setting: Setting = SETTING, hardware: Hardware | None = None
) -> Estimate:
    draw = choose_units(np.array([unit.num_bytes for unit in units]), drawn, seed=0)
    samples = [units[i].sample(rows) for i in draw.indices_D]
    return estimate_run(samples, draw, setting, num_files=len(units), hardware=hardware)


def test_plan_of_the_whole_source_is_exact_and_says_so() -> None:
    units = make_units(seed=0, num_units=8, rows=60)
    plan = plan_of(units, 8, 10**6)
    truth = true_totals(units)
    assert plan.basis == "complete"
    assert plan.tokens == Interval.exactly(truth["tokens"])
    assert sum(plan.lengths) == truth["chunks"]
    assert plan.sampled_rows == truth["documents"]
    assert plan.sampled_bytes == plan.num_bytes
    assert "exact" in plan.notes[0]


def test_what_a_recipe_adds_is_told_from_the_texts() -> None:
    copies, fixed = 2, 14  # as echo embeddings: the text twice, and 14 tokens of prompts and special tokens
    sample = UnitSample(1000, 1000, np.ones(4, np.int64), np.full(4, 20), np.array([10, 20, 30, 40]) * copies + fixed)
    draw = choose_units(np.array([1000]), 1, 0)
    plan = estimate_run([sample], draw, replace(SETTING, reading=Reading(1, copies, fixed)), num_files=1)
    assert plan.tokens_per_text_token == pytest.approx((2 * 100 + 4 * 14) / 100)
    assert estimate_run([sample], draw, SETTING, num_files=1).tokens_per_text_token == 1


def test_readings_of_a_chunk_are_rows_of_their_own() -> None:
    sample = UnitSample(1000, 1000, np.ones(1, np.int64), np.full(1, 20), np.array([800]))
    setting = replace(SETTING, flops=lambda lengths_N: float((lengths_N**2).sum()), reading=Reading(8, 8, 0))
    plan = estimate_run([sample], choose_units(np.array([1000]), 1, 0), setting, num_files=1)
    assert plan.flops_per_token == pytest.approx(8 * 100**2 / 800)
    assert plan.tokens_per_text_token == 8


def test_plan_histogram_of_a_sample_follows_that_of_the_source() -> None:
    units = make_units(seed=4, num_units=200)
    sampled, whole = plan_of(units, 64, 60), plan_of(units, 200, 10**6)
    assert sum(sampled.lengths) == pytest.approx(sampled.chunks.value, abs=len(sampled.lengths))
    difference = np.abs(np.array(sampled.lengths) / sum(sampled.lengths) - np.array(whole.lengths) / sum(whole.lengths))
    assert difference.sum() / 2 < 0.05
    assert sampled.length_percentiles["50"] == pytest.approx(whole.length_percentiles["50"], rel=0.1)
    longest = max(int(unit.sample(10**6).tokens_by_chunk_C.max(initial=0)) for unit in units)
    assert whole.length_percentiles["100"] == longest >= sampled.length_percentiles["100"]


def test_plan_histogram_weighs_units_by_what_they_stand_for() -> None:
    short = UnitSample(1000, 1000, np.ones(10, np.int64), np.full(10, 20), np.full(10, 8))
    long = UnitSample(90_000, 900, np.ones(10, np.int64), np.full(10, 20), np.full(10, 500))
    plan = estimate_run([short, long], choose_units(np.array([1000, 90_000]), 2, 0), SETTING, num_files=2)
    assert plan.lengths[0] / sum(plan.lengths) == pytest.approx(10 / 1010, rel=0.01)
    assert plan.length_percentiles["5"] == 500


def test_plan_percentile_is_a_length_of_the_sample() -> None:
    one = UnitSample(100, 100, np.ones(100, np.int64), np.ones(100, np.int64), np.arange(1, 101))
    plan = estimate_run([one], choose_units(np.array([100]), 1, 0), SETTING, num_files=1)
    assert plan.length_percentiles == {"5": 5, "25": 25, "50": 50, "75": 75, "95": 95, "99": 99, "100": 100}


def test_plan_padding_is_that_of_the_engines_batches() -> None:
    units = make_units(seed=6, num_units=1, rows=5000, size_spread=0.0, rejected=0.0)
    plan = plan_of(units, 1, 10**6, replace(SETTING, fragment_rows=10**6))
    lengths = units[0].sample(10**6).tokens_by_chunk_C
    padding = batching.plan(lengths, 2048).padding_tokens
    assert plan.padding_share == pytest.approx(padding / (padding + lengths.sum()), rel=1e-9)


def test_plan_padding_of_small_files_is_larger() -> None:
    units = make_units(seed=6, num_units=50, rows=8, size_spread=0.0)
    big = make_units(seed=6, num_units=5, rows=2000, size_spread=0.0)
    small_share, big_share = plan_of(units, 50, 8).padding_share, plan_of(big, 5, 200).padding_share
    assert small_share is not None
    assert big_share is not None
    assert small_share > 2 * big_share > 0


def test_plan_of_an_engine_without_padding_leaves_padding_open() -> None:
    units = make_units(seed=6, num_units=3, rows=20)
    assert plan_of(units, 3, 10, replace(SETTING, batch_tokens=None)).padding_share is None


def test_plan_from_one_unit_of_many_says_that_its_interval_lacks_the_spread() -> None:
    plan = plan_of(make_units(seed=2, num_units=30), 1, 200)
    assert plan.basis == "one_unit"
    assert plan.tokens.high > plan.tokens.value
    assert "one of 30 units" in plan.notes[0]
    assert "plan.sample_units" in plan.notes[0]


def test_plan_of_a_single_stream_says_what_it_assumes() -> None:
    plan = plan_of(make_units(seed=2, num_units=1, rows=5000), 1, 500)
    assert plan.basis == "one_unit"
    assert "assume that the rest is alike" in plan.notes[0]


def test_plan_of_unreadable_rows_names_the_keys_to_look_at() -> None:
    bad = UnitSample(1000, 100, np.zeros(5, np.int64), np.zeros(5, np.int64), np.zeros(0, np.int64))
    plan = estimate_run([bad], choose_units(np.array([1000]), 1, 0), SETTING, num_files=1, hardware=H200)
    assert plan.documents.value == pytest.approx(50)
    assert plan.rejected.value == pytest.approx(50)
    assert sum(plan.lengths) == plan.tokens.value == 0
    assert plan.length_percentiles == {}
    assert plan.padding_share is None
    assert any("source.text" in note for note in plan.notes)


def test_plan_says_how_much_truncation_costs() -> None:
    cut = UnitSample(1000, 500, np.ones(5, np.int64), np.full(5, 90), np.full(5, 30), lost_tokens=50, truncated=2)
    plan = estimate_run([cut], choose_units(np.array([1000]), 1, 0), SETTING, num_files=1)
    assert plan.lost_tokens == 100
    assert any(note.startswith("25.0 % of the tokens are cut off") for note in plan.notes)


@pytest.mark.parametrize(("dtype", "kind"), [("float32", pa.float32()), ("float16", pa.float16())])
def test_plan_bytes_are_those_of_a_file_of_such_rows(dtype: str, kind: pa.DataType) -> None:
    num, dim = 4096, 384
    unit = UnitSample(10**6, 10**6, np.ones(num, np.int64), np.full(num, 500), np.full(num, 90), id_bytes=16 * num)
    plan = estimate_run([unit], choose_units(np.array([10**6]), 1, 0), replace(SETTING, dim=dim), num_files=1)
    rng = np.random.default_rng(0)
    values = pa.array(rng.standard_normal(num * dim).astype(kind.to_pandas_dtype()))
    columns = {
        "doc_id": [rng.bytes(8).hex() for _ in range(num)],
        "text_hash": pa.array([rng.bytes(16) for _ in range(num)], pa.binary(16)),
        "num_tokens": pa.array(rng.integers(5, 256, num), pa.int32()),
        "embedding": pa.FixedSizeListArray.from_arrays(values, dim),
        "char_end": pa.array(rng.integers(20, 1500, num)),
        "source_row": pa.array(np.arange(num)),
    }
    sink = pa.BufferOutputStream()
    names = {name: "zstd" for name in columns} | {"embedding.list.element": "none"}
    names.pop("embedding")
    pq.write_table(pa.table(columns), sink, compression=names, use_dictionary=["num_tokens", "char_end"])
    assert plan.bytes_out[dtype].value == pytest.approx(sink.getvalue().size, rel=0.02)


@pytest.mark.parametrize(("dtype", "expected"), [("float32", 40), ("float16", 20), ("int8", 10), ("binary", 2)])
def test_vector_bytes_of_ten_dimensions(dtype: str, expected: int) -> None:
    assert vector_bytes(dtype, 10) == expected


def test_price_of_a_billion_tokens() -> None:
    cost = price(Interval(1e9, 0.9e9, 1.1e9), H200.model_copy(update={"speed_error": 0.0}), flops_per_token=8.8e8)
    assert cost.tokens_per_second == 200_000
    assert cost.hours is not None
    assert cost.usd is not None
    assert cost.hours.value == pytest.approx(1e9 / 200_000 / 3600)
    assert cost.usd.value == pytest.approx(cost.hours.value * 4 * 4.59)
    assert cost.usd.high / cost.usd.value == pytest.approx(1.1)
    assert cost.mfu == pytest.approx(50_000 * 8.8e8 / 989e12)
    assert cost.message is None


def test_price_interval_holds_the_error_of_the_speed() -> None:
    hours = price(Interval.exactly(1e9), H200.model_copy(update={"speed_error": 0.25})).hours
    assert hours is not None
    assert math.isclose(hours.high / hours.value, 1.25)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("tokens_per_second", ["hours and money", "hardware.tokens_per_second", "plan.report"]),
        ("workers", ["hours and money", "hardware.workers"]),
        ("price_per_hour", ["for money", "hardware.price_per_hour"]),
    ],
)
def test_price_without_a_figure_names_the_key_to_set(missing: str, words: list[str]) -> None:
    cost = price(Interval.exactly(1e9), H200.model_copy(update={missing: None}))
    assert cost.usd is None
    assert (cost.hours is None) == (missing != "price_per_hour")
    assert cost.message is not None
    assert all(word in cost.message for word in words)


def test_price_without_hardware_leaves_hours_and_money_open() -> None:
    cost = price(Interval.exactly(1e9), None)
    assert (cost.hours, cost.usd, cost.mfu) == (None, None, None)
    assert cost.message is not None
    assert "hardware.name" in cost.message


def test_mfu_without_a_peak_is_unknown() -> None:
    assert mfu(1000.0, 1e9, None) is None
    assert mfu(1000.0, 1e9, 2.0) == 0.5


def test_plan_counts_flops_at_the_lengths_of_the_sample() -> None:
    units = make_units(seed=6, num_units=3, rows=20)
    plan = plan_of(units, 3, 10**6, replace(SETTING, flops=lambda lengths: float(3 * lengths.sum())), H200)
    assert plan.flops_per_token == pytest.approx(3.0)
    assert plan.cost.mfu == pytest.approx(50_000 * 3.0 / 989e12)


def test_plan_comes_back_from_json_as_it_was() -> None:
    plan = plan_of(make_units(seed=3, num_units=20), 10, 30, hardware=H200)
    assert Estimate.from_json(plan.to_json()) == plan
    assert set(json.loads(plan.to_json())["bytes_out"]) == {"float32", "float16", "int8", "binary"}
