"""Bad data: refused before a worker starts, in words that say what to do, or skipped and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.running import run_job, write_jsonl
from tests.jobs.test_train import topics, write_train_config
from tests.jobs.train_kills import report_of

pytestmark = pytest.mark.usefixtures("local_ray")
SAME = [{"query": "one question", "positive": "one answer"}] * 40


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([], {}, "check the path of the set 'pairs': no file there has a row that reads"),
        ([{"question": "a", "positive": "b"}], {}, "set columns.query of the set 'pairs' to a column that exists"),
        (SAME, {}, "give the set 'pairs' more rows, or rows of more different texts: each of its batches has one row"),
        (SAME[:1], {}, "give the set 'pairs' more rows"),
        ([{"query": "a", "positive": "a"}], {}, "positive_equals_query"),
        (
            topics(4),
            {"dev_fraction": 0.9999},
            "lower dev_fraction of the set 'pairs': 0.9999 holds all 4",
        ),
        (topics(3), {"compute": {"workers": 4}}, "give a larger batch.size or fewer compute.workers: a batch of the"),
        (topics(40), {"batch": {"size": 2}, "compute": {"workers": [1, 3]}}, "has 2 rows for 3 workers"),
        (
            [{"sentence1": "a", "sentence2": "b", "score": float("nan")}] * 9,
            {"kind": "scored"},
            "check the set 'pairs', which is left without a row: 9 rows, 0 kept, skipped: 9 bad_score",
        ),
        (
            [{"query": "a", "positive": "b", "negative": " b "}] * 9,
            {"kind": "triples"},
            "9 no_documents",
        ),
    ],
)
def test_sets_that_teach_nothing_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]],
    changes: dict[str, Any],
    message: str,
) -> None:
    own = {"name": "pairs", "path": str(tmp_path / "pairs.jsonl"), "kind": "pairs"}
    own |= {name: changes.pop(name) for name in ("kind", "dev_fraction") if name in changes}
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    config = write_train_config(tmp_path, sets=[own], evaluation=None, **changes)
    assert run_job("train", config) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "run.json").exists()  # mended, the config may have the same folder


def test_generation_with_fewer_rows_than_workers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", topics(40))
    generated = {"name": "answers", "path": str(path), "kind": "pairs"}
    generation = {"sets": [generated], "size": 2}
    config = write_train_config(tmp_path, generation=generation, evaluation=None, compute={"workers": 3})
    assert run_job("train", config) == 2
    error = capsys.readouterr().err
    assert "give a larger generation.size or fewer compute.workers: a batch of the set 'answers' has 2 rows" in error


@pytest.mark.slow
def test_bad_rows_are_counted_in_the_report_and_large_ones_cut(tmp_path: Path) -> None:
    huge = "word " * 200_000
    rows = [
        *topics(20),
        {"query": huge, "positive": "of 1 MB"},
        {"query": None, "positive": "of nobody"},
        {"query": "asked and", "positive": "asked and"},
        {"query": " ", "positive": "blank"},
    ]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write("no json\n")
    scored = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": float("nan") if i % 2 else 0.5} for i in range(8)]
    write_jsonl(tmp_path / "scored.jsonl", scored)
    sets = [
        {"name": "pairs", "path": str(tmp_path / "pairs.jsonl"), "kind": "pairs"},
        {"name": "scored", "path": str(tmp_path / "scored.jsonl"), "kind": "scored"},
    ]
    config = write_train_config(tmp_path, sets=sets, batch={"size": 512}, steps=4, evaluation=None)
    assert run_job("train", config) == 0
    report = report_of(tmp_path / "out")
    counts = {one["name"]: one["counts"] for one in report["sets"]}
    assert counts["pairs"]["read"] == 25
    assert counts["pairs"]["kept"] == 21
    skipped = {"null_text": 1, "positive_equals_query": 1, "blank_text": 1, "malformed_json": 1}
    assert counts["pairs"]["skipped"] == skipped
    assert counts["pairs"]["changed"] == {"cut_text": 1}
    assert counts["scored"]["skipped"] == {"bad_score": 4}
    assert set(report["curve"]["steps"]["rows"]) == {4, 21}  # a batch is never larger than its set
    page = (tmp_path / "out" / "report.html").read_text()
    for reason in (*skipped, "cut_text", "bad_score"):
        assert reason in page
    json.dumps(report, allow_nan=False)
