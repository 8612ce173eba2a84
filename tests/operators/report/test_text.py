"""The plan and the summary fit one screen and hold what a user needs to decide."""

from __future__ import annotations

from dataclasses import replace

import pytest

from operators.planning.estimate import Cost
from operators.planning.expansion import Interval
from operators.report.summary import FragmentTally
from operators.report.text import plan_text, summary_text
from tests.operators.report.examples import PLAN, REPORT

MANY_REASONS = {f"reason_{i}": 100 - i for i in range(30)}


def line_with(text: str, word: str) -> str:
    return next(line for line in text.splitlines() if word in line)


def test_plan_text_has_each_figure_with_its_interval() -> None:
    text = plan_text(PLAN, "float16")
    assert " ".join(line_with(text, "tokens  ").split()) == "tokens 5.02 M 4.90 M to 5.15 M ± 2.6 %"
    assert " ".join(line_with(text, "cost").split()) == "cost $0.044 $0.043 to $0.045 ± 2.5 %"
    assert [line for line in text.splitlines() if "*" in line] == [line_with(text, "float16")]
    assert "median 91, 95 % up to 221, longest 256" in text
    assert "padding 0.71 %" in text
    assert "recipe  2.31 tokens computed per token of text" in text
    assert "note    4.0 % of the tokens are cut off" in text


def test_plan_text_without_a_price_names_the_key_instead() -> None:
    text = plan_text(replace(PLAN, cost=Cost(message="for money set hardware.price_per_hour")), "float32")
    assert line_with(text, "cost") == "cost    for money set hardware.price_per_hour"
    assert "time" not in text


def test_plan_text_of_an_exact_plan_shows_no_interval() -> None:
    text = plan_text(replace(PLAN, documents=Interval.exactly(1234.0)), "float32")
    assert line_with(text, "documents").split() == ["documents", "1,234", "exact"]


@pytest.mark.parametrize("width", [1.0, 1e4, 1e8])
def test_texts_fit_on_a_screen(width: float) -> None:
    large = {name: getattr(PLAN, name).times(width) for name in ("documents", "tokens", "chunks", "rejected")}
    bytes_out = {name: interval.times(width) for name, interval in PLAN.bytes_out.items()}
    assert PLAN.cost.hours is not None
    cost = replace(PLAN.cost, hours=PLAN.cost.hours.times(width))
    plan = plan_text(replace(PLAN, **large, bytes_out=bytes_out, cost=cost, notes=()), "int8")
    summary = summary_text(replace(REPORT, rejected_reasons=MANY_REASONS), ["python -m jobs verify embed.yaml"])
    assert len(plan.splitlines()) <= 24
    assert len(summary.splitlines()) <= 24
    assert max(len(line) for line in plan.splitlines()) <= 80


def test_summary_text_accounts_for_every_row() -> None:
    text = summary_text(REPORT, ["python -m jobs verify embed.yaml", "python -m jobs index index.yaml"])
    assert line_with(text, "rows in").split()[-1] == "47,167"
    assert line_with(text, "embedded").split()[1] == "47,136"
    assert line_with(text, "rejected") == "  rejected      31  (blank_text 19, invalid_utf8 9, malformed_json 3)"
    assert line_with(text, "speed") == "  speed         6,612 tokens/s, padding 0.70 %, MFU 29.0 %, 2 workers"
    assert "s3://bucket/vectors" in text
    assert "40.3 MB, float16" in text
    assert "7 of 7 figures inside" in text
    assert [line.strip() for line in text.splitlines()[-2:]] == [
        "next          python -m jobs verify embed.yaml",
        "python -m jobs index index.yaml",
    ]


def test_summary_text_says_where_tokens_were_cut_off() -> None:
    lines = summary_text(REPORT).splitlines()
    at = next(i for i, line in enumerate(lines) if "cut off" in line)
    assert lines[at] == "  cut off       204,991 tokens (3.9 %) of 3,100 chunks"
    assert [line.split() for line in lines[at + 1 : at + 3]] == [
        ["73.2", "%", "in", "s3://bucket/corpus/b.jsonl"],
        ["26.8", "%", "in", "s3://bucket/corpus/a.jsonl"],
    ]
    one = summary_text(replace(REPORT, lost_by_file={"a.jsonl": 204_991}))
    assert "cut off" in one
    assert "a.jsonl" not in one


def test_summary_text_of_a_resumed_run_counts_what_was_there_apart() -> None:
    text = summary_text(replace(REPORT, fragments=FragmentTally(8, 32, 40)))
    assert text.splitlines()[0] == "embed done in 12 min 47 s: 8 of 40 fragments, 32 were there already"


def test_summary_text_names_the_most_frequent_reasons_and_counts_the_rest() -> None:
    rejected = line_with(summary_text(replace(REPORT, rejected_reasons=MANY_REASONS)), "rejected")
    assert rejected.endswith(f"reason_4 96, 25 other reasons {sum(range(71, 96)):,})")


def test_summary_text_names_what_fell_outside_the_plan() -> None:
    text = summary_text(replace(REPORT, dataset_bytes=99_000_000))
    assert "6 of 7 figures inside their interval; outside: bytes out 99.0 MB (planned 40.0 MB)" in text


def test_summary_text_lets_nothing_steer_the_terminal() -> None:
    text = summary_text(replace(REPORT, output="s3://b/\x1b[2J", rejected_reasons={"a\x07\nb": 1}, notes=("x\ry",)))
    assert not {"\x1b", "\x07", "\r"} & set(text)
    assert "a��b 1" in text
