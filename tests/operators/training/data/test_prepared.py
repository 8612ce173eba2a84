"""Prepared sets: the same whatever the order of work, held back by query, whole or not there, read by row."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from operators.corpus.listing import list_source
from operators.errors import InputError
from operators.storage import locate
from operators.storage.cache import Cache
from operators.training.config.sets import TrainingSet
from operators.training.data import prepared
from operators.training.data.batch_plan import BatchPlan, PlannedSet
from operators.training.data.prepared import PreparedRows, read_manifest
from tests.operators.training.training_files import open_rows, prepare, training_set, write_rows

PAIRS = Path(__file__).parents[5] / "shared" / "data" / "pairs"
needs_pairs = pytest.mark.skipif(not PAIRS.is_dir(), reason=f"the pairs are not there: {PAIRS}")


def pairs(num: int) -> list[dict[str, str]]:
    """Different pairs."""
    return [{"query": f"query {i}", "positive": f"positive {i}"} for i in range(num)]


def fingerprint(chosen: TrainingSet, seed: int = 0) -> str:
    """The name of a set as its files are now."""
    return chosen.fingerprint(list(list_source(chosen.source())), seed)


def test_rows_come_in_the_order_asked_for_across_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "PART_ROWS", 100)
    for number in range(3):
        write_rows(tmp_path / f"{number}.jsonl", pairs(1000)[number * 300 : (number + 1) * 300])
    # The reader gives 4096 rows at once, so that a part is a file here
    manifest = prepare(training_set(str(tmp_path / "*.jsonl"), "pairs"), tmp_path / "sets")
    assert [part.rows for part in manifest.parts] == [300] * 3
    rows = open_rows(manifest, tmp_path / "sets")
    asked = np.random.default_rng(0).permutation(900)[:50]
    table = rows.take(asked)
    assert table["query"].to_pylist() == [f"query {row}" for row in asked]
    whole = rows.hashes(np.arange(900))
    assert np.array_equal(rows.hashes(asked), whole[asked])
    assert len(np.unique(whole)) == 1800
    assert rows.take(np.array([], np.int64)).num_rows == 0
    with pytest.raises(IndexError, match="rows 0 to 899 are there; asked for 3 to 900"):
        rows.take(np.array([3, 900]))


def test_equal_texts_have_equal_hashes_wherever_they_stand(tmp_path: Path) -> None:
    rows = [{"query": "a", "positive": "b"}, {"query": "b ", "positive": "c"}, {"query": "d", "positive": "a"}]
    manifest = prepare(training_set(write_rows(tmp_path / "rows.jsonl", rows), "pairs"), tmp_path / "sets")
    hashes = open_rows(manifest, tmp_path / "sets").hashes(np.arange(3))
    assert hashes[0, 1] == hashes[1, 0]  # white space around a text does not count
    assert hashes[0, 0] == hashes[2, 1]
    assert len(np.unique(hashes)) == 4


def test_rows_are_held_back_by_their_query(tmp_path: Path) -> None:
    rows = [{"query": f"query {i % 1000}", "positive": f"positive {i}"} for i in range(3000)]
    chosen = training_set(write_rows(tmp_path / "a.jsonl", rows), "pairs", dev_fraction=0.1)
    manifest = prepare(chosen, tmp_path / "sets")
    train, dev = (open_rows(manifest, tmp_path / "sets", split) for split in ("train", "dev"))
    assert len(train) + len(dev) == 3000
    assert 200 < len(dev) < 400
    queries = [set(rows.take(np.arange(len(rows)))["query"].to_pylist()) for rows in (train, dev)]
    assert not queries[0] & queries[1]
    # Another order and further rows move no query to the other side
    more = [*rows[::-1], {"query": "new", "positive": "new too"}]
    again = prepare(
        training_set(write_rows(tmp_path / "b.parquet", more), "pairs", dev_fraction=0.1), tmp_path / "sets"
    )
    dev_again = open_rows(again, tmp_path / "sets", "dev")
    assert set(dev_again.take(np.arange(len(dev_again)))["query"].to_pylist()) - {"new"} == queries[1]


def test_formats_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"query": f"q {i}", "positive": f"p {i}", "negative": [f"n {i}", f"m {i}"]} for i in range(50)]
    write_rows(tmp_path / "a.jsonl", rows)
    write_rows(tmp_path / "b.parquet", rows)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    found = []
    for name in ("a.jsonl", "b.parquet", "c.jsonl.gz"):
        manifest = prepare(training_set(tmp_path / name, "triples", num_negatives=2), tmp_path / "sets")
        found.append(open_rows(manifest, tmp_path / "sets").take(np.arange(50)))
    assert found[0] == found[1] == found[2]


def test_preparing_again_writes_the_same_files(tmp_path: Path) -> None:
    chosen = training_set(write_rows(tmp_path / "rows.jsonl", pairs(100)), "pairs", dev_fraction=0.2)
    assert prepare(chosen, tmp_path / "sets") == prepare(chosen, tmp_path / "sets")


@pytest.mark.parametrize(
    ("settings", "is_same"),
    [
        ({}, True),
        ({"weight": 3.0, "symmetric": True, "query": {"task": "x"}, "in_batch_negatives": False}, True),
        ({"storage_options": {"anon": True}}, True),
        ({"dev_fraction": 0.1}, False),
        ({"max_chars": 10}, False),
        ({"columns": {"query": "positive", "positive": "query"}}, False),
    ],
)
def test_a_set_is_another_where_its_rows_are_others(settings: dict[str, Any], is_same: bool, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", pairs(3))
    assert (fingerprint(training_set(path, "pairs")) == fingerprint(training_set(path, "pairs", **settings))) is is_same


def test_a_set_is_another_where_its_files_or_drawn_negatives_are(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", pairs(3))
    first, drawn = training_set(path, "pairs"), training_set(path, "pairs", choose="draw")
    before = fingerprint(first)
    assert fingerprint(first, seed=1) == before
    assert fingerprint(drawn, seed=1) != fingerprint(drawn, seed=2)
    write_rows(path, pairs(4))
    assert fingerprint(first) != before


def test_a_set_without_a_manifest_is_not_there(tmp_path: Path) -> None:
    assert read_manifest(locate(str(tmp_path / "nothing"))) is None
    (tmp_path / "manifest.json").write_text('{"fingerprint": "x"}')
    with pytest.raises(InputError, match="remove .* and run again"):
        read_manifest(locate(str(tmp_path)))


def test_a_damaged_file_is_found(tmp_path: Path) -> None:
    chosen = training_set(write_rows(tmp_path / "rows.jsonl", pairs(10)), "pairs")
    manifest = prepare(chosen, tmp_path / "sets")
    file = tmp_path / "sets" / manifest.fingerprint / manifest.parts[0].table.name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    rows = PreparedRows(locate(str(file.parent)), manifest, "train", Cache.at(None))
    with pytest.raises(InputError, match="content is not what was written"):
        rows.take(np.arange(3))


def test_parts_are_mapped_into_memory_and_not_read(tmp_path: Path) -> None:
    rows = [{"query": f"q {i}", "positive": f"{i} " + "x" * 5000} for i in range(2000)]
    manifest = prepare(training_set(write_rows(tmp_path / "rows.parquet", rows), "pairs"), tmp_path / "sets")
    prepared_rows = open_rows(manifest, tmp_path / "sets")
    before = pa.total_allocated_bytes()
    table = prepared_rows.take(np.array([1999, 0]))
    assert table["documents"].to_pylist()[0][0].startswith("1999 ")
    assert pa.total_allocated_bytes() - before < 1 << 20  # of 10 MB


@needs_pairs
@pytest.mark.parametrize(
    ("name", "kind", "settings", "num_rows"),
    [
        ("medquad_qa.jsonl.gz", "pairs", {}, 16359),
        ("acl_title_abstract.jsonl.gz", "pairs", {}, 17750),
        ("snli_dev_triplets.jsonl.gz", "triples", {}, 2954),
        ("xnli_dev_triplets.jsonl.gz", "triples", {}, 12450),
        ("tydiqa_goldp.jsonl.gz", "pairs", {}, 13153),
    ],
)
def test_real_pairs_are_read_to_the_row(
    name: str, kind: str, settings: dict[str, Any], num_rows: int, tmp_path: Path
) -> None:
    manifest = prepare(training_set(PAIRS / name, kind, **settings), tmp_path / "sets")
    counts = manifest.counts
    assert counts.read == num_rows
    assert counts.kept + sum(counts.skipped.values()) == num_rows
    with gzip.open(PAIRS / name, "rt", encoding="utf-8") as lines:
        source = [json.loads(line) for line in lines]
    good = [row for row in source if row["query"].strip() != row["positive"].strip()]
    if kind == "triples":
        good = [row for row in good if row["negative"].strip() not in (row["query"].strip(), row["positive"].strip())]
    rows = open_rows(manifest, tmp_path / "sets")
    assert len(rows) == len(good)
    table = rows.take(np.arange(len(rows)))
    assert table["query"].to_pylist() == [row["query"] for row in good]
    names = ["positive", "negative"] if kind == "triples" else ["positive"]
    assert table["documents"].to_pylist() == [[row[name] for name in names] for row in good]


@needs_pairs
def test_real_pairs_with_repeated_questions_are_planned_without_a_text_twice(tmp_path: Path) -> None:
    manifest = prepare(training_set(PAIRS / "medquad_qa.jsonl.gz", "pairs"), tmp_path / "sets")
    rows = open_rows(manifest, tmp_path / "sets")
    hashes = rows.hashes(np.arange(len(rows)))
    assert len(np.unique(hashes)) < hashes.size - 1000  # questions come several times
    plan = BatchPlan([PlannedSet("medquad", len(rows), None, rows.hashes)], 256, 0)
    batches = [plan.batch(step).rows_B for step in range(plan.num_batches(0))]
    placed = np.concatenate(batches)
    assert all(len(np.unique(hashes[batch])) == 2 * len(batch) for batch in batches)
    assert len(np.unique(placed)) == len(placed)
    # Two answers come in 348 and 70 rows, of which 64 batches have place for 64 each; nothing else is left out.
    counts = np.unique(hashes[:, 1], return_counts=True)[1]
    assert len(rows) - len(placed) == np.maximum(counts - len(batches), 0).sum() == 290
