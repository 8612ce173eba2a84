"""Texts of tasks found in training pairs, against a plain search over all n-grams."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

from operators.evaluation.contamination import Probe, contamination, search_file, task_texts, words_of
from operators.evaluation.scoring import read_task
from operators.evaluation.tasks import Task
from operators.storage import locate
from tests.checkpoints import WORDS
from tests.evaluation_sets import write_beir


def write_pairs(path: Path, rows: list[dict[str, object]]) -> Path:
    """Training pairs."""
    with gzip.open(path, "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_exact_and_overlapping_texts_are_counted(tmp_path: Path) -> None:
    long = "one two three four five six seven eight nine ten"
    probe = Probe({"a": ["The CAT, sat!", "short", f"before {long} after"], "b": [long, long, "unseen words"]}, 5)
    rows: list[dict[str, object]] = [
        {"query": "nothing", "positive": "at all", "negative": ["some", "the cat sat"]},
        {"query": "x", "positive": f"Said: {long.upper()}."},
    ]
    file = write_pairs(tmp_path / "pairs.jsonl.gz", rows)
    found = contamination(probe, {"pairs": search_file(locate(str(file)), probe)})
    assert [(c.task, c.texts, c.exact, c.overlapping, c.too_short) for c in found] == [
        ("a", 3, 1, 1, 2),
        ("b", 2, 0, 1, 1),
    ]
    assert found[0].examples[0].exact
    assert found[0].examples[0].seen_in == "pairs, row 1"
    assert found[0].share == 2 / 3


def test_overlaps_are_those_of_a_plain_search(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stream = " ".join(rng.choice(WORDS[:12], 4000))
    words = stream.split()
    starts = rng.integers(0, len(words) - 20, 120)
    texts = [" ".join([*words[s : s + int(n)], "own"]) for s, n in zip(starts, rng.integers(2, 12, 120), strict=True)]
    training = [" ".join(words[i : i + 50]) for i in range(0, 2000, 50)]
    probe = Probe({"t": texts}, 6)
    file = write_pairs(tmp_path / "pairs.jsonl.gz", [{"query": text} for text in training])
    [found] = contamination(probe, {"pairs": search_file(locate(str(file)), probe)})

    def runs(text: str) -> set[tuple[str, ...]]:
        parts = words_of(text)
        return {tuple(parts[i : i + 6]) for i in range(len(parts) - 5)}

    known = set().union(*map(runs, training))
    unique = list(dict.fromkeys(texts))
    assert found.overlapping == sum(bool(runs(text) & known) for text in unique)
    assert 0 < found.overlapping < len(unique)


def test_queries_and_relevant_documents_are_looked_for(tmp_path: Path) -> None:
    data = read_task(Task(name="t", kind="retrieval", path=str(write_beir(tmp_path))))
    texts = task_texts(data)
    assert texts[:23] == list(data.queries)  # type: ignore[union-attr]
    assert len(texts) > 23


def test_words_have_one_spelling() -> None:
    assert words_of("Ｆｕｌｌ—width, STRASSE straße 'n ﬁne") == ["full", "width", "strasse", "strasse", "n", "fine"]
