"""Reports survive the way to JSON and back, counts add up, and the plan is compared with what it was of."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from operators.errors import InputError
from operators.planning.estimate import Hardware
from operators.report.summary import (
    FragmentTally,
    RunReport,
    ThroughputPoint,
    compare,
    from_json,
    sum_counts,
    to_json,
    with_measured_speed,
)
from operators.work.fragment import Counts
from tests.operators.report.examples import COUNTS, PLAN, REPORT


def inside(report: RunReport) -> dict[str, bool | None]:
    return {row.quantity: row.inside for row in compare(report)}


def test_report_comes_back_from_json_as_it_was() -> None:
    assert from_json(to_json(REPORT)) == REPORT
    without = replace(REPORT, plan=None, mfu=None, cost_usd=None, workers=None)
    assert from_json(to_json(without)) == without


def test_report_json_spells_out_what_follows() -> None:
    stored = json.loads(to_json(REPORT))
    assert stored["tokens_per_second"] == pytest.approx(5_071_233 / 767)
    assert stored["padding_share"] == pytest.approx(35_800 / (5_071_233 + 35_800))
    documents = stored["plan_against_actual"][0]
    assert (documents["quantity"], documents["actual"], documents["inside"]) == ("documents", 47_167, True)


@pytest.mark.parametrize("text", ["", "[]", '{"job": "embed"}', '{"job": 3'])
def test_report_from_another_file_is_refused_by_name(text: str) -> None:
    with pytest.raises(InputError, match=r"give a report.json that an embed run wrote: s3://b/report.json is none"):
        from_json(text, "s3://b/report.json")


def test_report_of_a_later_version_with_more_keys_is_read() -> None:
    stored = json.loads(to_json(REPORT)) | {"carbon_kg": 3}
    assert from_json(json.dumps(stored)) == REPORT


def test_sum_of_counts_adds_every_field() -> None:
    names = [field.name for field in fields(Counts) if field.name not in ("seconds", "lengths")]
    first, second = ({name: times * (place + 1) for place, name in enumerate(names)} for times in (1, 10))
    one = Counts(**first, seconds={"read": 1.0, "embed": 2.0}, lengths=(1, 2))
    other = Counts(**second, seconds={"embed": 0.5}, lengths=(0, 1, 5))
    both = {name: first[name] + second[name] for name in names}
    assert sum_counts([one, Counts(), other]) == Counts(**both, seconds={"read": 1.0, "embed": 2.5}, lengths=(1, 3, 5))
    assert sum_counts([]) == Counts()


def test_comparison_says_which_figures_fell_inside() -> None:
    assert inside(REPORT) == {
        "documents": True,
        "rejected rows": True,
        "chunks": True,
        "tokens": True,
        "bytes out": True,
        "padding": None,
        "tokens/s": None,
        "hours": True,
        "cost": True,
    }
    late = replace(REPORT, seconds=3600.0, dataset=replace(COUNTS, rejected=5), dataset_bytes=42_000_001)
    outside = inside(late)
    assert (outside["hours"], outside["rejected rows"], outside["bytes out"]) == (False, False, False)


def test_comparison_of_a_resumed_run_takes_counts_of_the_dataset_and_leaves_time_out() -> None:
    part = replace(COUNTS, rows=11_000, tokens=1_200_000)
    resumed = replace(REPORT, fragments=FragmentTally(10, 30, 40), counts=part)
    compared = {row.quantity: row for row in compare(resumed)}
    assert compared["documents"].actual == 47_167
    assert {"hours", "cost"}.isdisjoint(compared)


def test_comparison_takes_the_bytes_of_the_outputs_own_dtype() -> None:
    planned = {row.quantity: row.planned for row in compare(replace(REPORT, dtype="binary"))}
    assert planned["bytes out"] == PLAN.bytes_out["binary"]


def test_comparison_without_a_plan_is_empty() -> None:
    assert compare(replace(REPORT, plan=None)) == ()


def test_speed_of_a_report_leaves_the_start_out() -> None:
    points = (ThroughputPoint(0, 0, 0), ThroughputPoint(50, 100, 1), ThroughputPoint(60, 600, 2))
    report = replace(REPORT, throughput=points, counts=replace(COUNTS, tokens=600), seconds=60.0)
    assert report.steady_tokens_per_second == 50.0
    assert report.tokens_per_second == 10.0


def test_speed_of_a_report_with_one_point_is_that_of_the_run() -> None:
    report = replace(REPORT, throughput=(ThroughputPoint(50, 100, 1),))
    assert report.steady_tokens_per_second == report.tokens_per_second


def test_run_that_did_nothing_has_no_speed_and_no_padding() -> None:
    idle = replace(REPORT, counts=Counts(), seconds=0.0, throughput=())
    assert idle.tokens_per_second == idle.steady_tokens_per_second == idle.padding_share == 0.0


def test_measured_speed_is_that_of_one_worker_and_yields_to_what_is_stated() -> None:
    measured = with_measured_speed(None, REPORT, "minilm")
    assert measured.workers == 2
    assert measured.tokens_per_second == pytest.approx(REPORT.steady_tokens_per_second / 2)
    stated = with_measured_speed(Hardware(name="A10", workers=8, price_per_hour=1.0), REPORT, "minilm")
    assert (stated.name, stated.workers, stated.price_per_hour) == ("A10", 8, 1.0)
    assert stated.tokens_per_second == measured.tokens_per_second


def test_measured_speed_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"set plan.report to a run of 'bge'.*of 'minilm'"):
        with_measured_speed(None, REPORT, "bge")


def test_measured_speed_of_an_idle_run_is_refused() -> None:
    with pytest.raises(InputError, match="no tokens per second"):
        with_measured_speed(None, replace(REPORT, counts=Counts(), throughput=()), "minilm")
