"""Training rows of each kind, and what becomes of bad ones: counted by reason, never lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from operators.errors import InputError
from operators.training.data.counts import RowCounts
from tests.operators.training.training_files import open_rows, prepare, prepared, training_set, write_rows

NAN = float("nan")


def add_up(counts: RowCounts) -> bool:
    """Whether every row that was read is kept or skipped."""
    return counts.read + counts.added == counts.kept + sum(counts.skipped.values())


def test_pairs_are_a_query_and_one_document(tmp_path: Path) -> None:
    rows, counts = prepared(tmp_path, [{"query": "a", "positive": "b"}, {"query": "c", "positive": "d"}], "pairs")
    assert rows == [
        {"query": "a", "documents": ["b"], "scores": None, "label": None},
        {"query": "c", "documents": ["d"], "scores": None, "label": None},
    ]
    assert counts == RowCounts(read=2, kept=2)


def test_bad_pairs_are_counted_by_reason(tmp_path: Path) -> None:
    good = {"query": "q", "positive": "p"}
    bad: list[dict[str, Any]] = [
        {"query": None, "positive": "p"},
        {"query": "q2", "positive": "  "},
        {"query": "q3"},
        {"query": "same", "positive": "same "},
        {"query": 5, "positive": "p"},
    ]
    rows, counts = prepared(tmp_path, [good, *bad], "pairs")
    assert [row["query"] for row in rows] == ["q"]
    assert counts.skipped == {"null_text": 2, "blank_text": 1, "positive_equals_query": 1, "wrong_type": 1}
    assert add_up(counts)
    assert counts.examples["blank_text"][0].endswith(": the text is empty or white space only")
    assert "rows.jsonl#" in counts.examples["blank_text"][0]


def test_each_text_of_a_list_of_positives_is_a_row(tmp_path: Path) -> None:
    rows, counts = prepared(
        tmp_path,
        [{"query": "a", "pos": ["b", "c"]}, {"query": "d", "pos": []}, {"query": "e", "pos": ["f"]}],
        "pairs",
        columns={"positive": "pos"},
    )
    assert [(row["query"], row["documents"]) for row in rows] == [("a", ["b"]), ("a", ["c"]), ("e", ["f"])]
    assert (counts.read, counts.added, counts.skipped) == (3, 1, {"null_text": 1})


def test_texts_may_be_templates(tmp_path: Path) -> None:
    source = [{"query": "a", "title": "T", "text": "body"}]
    rows, _ = prepared(tmp_path, source, "pairs", columns={"positive": "{title}\n{text}"})
    assert rows[0]["documents"] == ["T\nbody"]


def test_negatives_come_from_texts_and_lists_without_the_positive_and_repeats(tmp_path: Path) -> None:
    source = [{"query": "q", "positive": "p", "n1": "x", "n2": ["p", "x", "", None, "y", "q", "z"]}]
    rows, counts = prepared(tmp_path, source, "triples", columns={"negatives": ["n1", "n2"]}, num_negatives=2)
    assert rows[0]["documents"] == ["p", "x", "y"]
    assert counts.changed == {
        "empty_document": 2,
        "negative_equals_positive_or_query": 2,
        "repeated_document": 1,
    }


def test_a_row_with_too_few_negatives_repeats_its_own_or_is_skipped(tmp_path: Path) -> None:
    source = [
        {"query": "q1", "positive": "p1", "negative": ["a", "b"]},
        {"query": "q2", "positive": "p2", "negative": ["a", "b", "c", "d"]},
        {"query": "q3", "positive": "p3", "negative": ["p3"]},
    ]
    rows, counts = prepared(tmp_path, source, "triples", num_negatives=3)
    assert [row["documents"] for row in rows] == [["p1", "a", "b", "a"], ["p2", "a", "b", "c"]]
    assert counts.changed["row_with_repeats"] == 1
    assert counts.skipped == {"no_documents": 1}
    rows, counts = prepared(tmp_path, source, "triples", num_negatives=3, fewer="skip")
    assert [row["query"] for row in rows] == ["q2"]
    assert counts.skipped == {"no_documents": 1, "too_few_documents": 1}
    assert add_up(counts)


def test_drawn_negatives_depend_on_the_row_alone(tmp_path: Path) -> None:
    source = [{"query": f"q{i}", "positive": f"p{i}", "negative": [f"n{j}" for j in range(20)]} for i in range(50)]
    settings = {"num_negatives": 3, "choose": "draw"}
    rows, _ = prepared(tmp_path, source, "triples", **settings)
    again, _ = prepared(tmp_path, source[::-1], "triples", **settings)
    assert rows == again[::-1]
    drawn = [text for row in rows for text in row["documents"][1:]]
    assert len(set(drawn)) == 20
    assert all(len(set(row["documents"])) == 4 for row in rows)


def test_scores_that_are_no_numbers_are_skipped(tmp_path: Path) -> None:
    source = [{"sentence1": "a", "sentence2": "a", "score": score} for score in (5, 2.5, None, NAN, 1e400, -1, 6)]
    rows, counts = prepared(tmp_path, source, "scored", score_range=(0, 5))
    assert [row["scores"] for row in rows] == [[1.0], [0.5]]
    assert counts.skipped == {"bad_score": 3, "score_out_of_range": 2}


def test_scores_of_text_files_are_read_as_numbers(tmp_path: Path) -> None:
    (tmp_path / "sts.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t3.5\nc\td\tmuch\n")
    manifest = prepare(training_set(tmp_path / "sts.tsv", "scored"), tmp_path / "sets")
    assert manifest.counts.skipped == {"bad_score": 1}
    assert len(open_rows(manifest, tmp_path / "sets")) == 1


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(InputError, match="check the path of the set 'set': no file there has a row"):
        prepare(training_set(tmp_path / "rows.jsonl", "pairs"), tmp_path / "sets")


@pytest.mark.parametrize("values", [(0, 1, 2, -1), ("yes", "maybe", "no", "-")])
def test_labels_are_places_in_the_list_of_classes(values: tuple[Any, ...], tmp_path: Path) -> None:
    source = [{"sentence1": "a", "sentence2": f"b{i}", "gold": value} for i, value in enumerate(values)]
    rows, counts = prepared(tmp_path, source, "scored", columns={"label": "gold"}, labels=values[:3])
    assert [row["label"] for row in rows] == [0, 1, 2]
    assert counts.skipped == {"unknown_label": 1}


def test_lists_have_a_score_for_each_candidate(tmp_path: Path) -> None:
    source = [
        {"query": "q1", "candidates": ["a", "b", "a", "c"], "scores": [3, 2.5, 9, 1]},
        {"query": "q2", "candidates": ["a", "b"], "scores": [1]},
        {"query": "q3", "candidates": ["a", "b"], "scores": [1, NAN]},
        {"query": "q4", "candidates": ["a", "a"], "scores": [1, 1]},
    ]
    rows, counts = prepared(tmp_path, source, "lists", num_candidates=2)
    assert [(row["documents"], row["scores"]) for row in rows] == [(["a", "b"], [3.0, 2.5])]
    assert counts.skipped == {"scores_do_not_match": 1, "bad_score": 1, "too_few_documents": 1}
    assert counts.changed["repeated_document"] == 2


def test_labels_as_documents_have_the_other_labels_as_negatives(tmp_path: Path) -> None:
    source = [{"query": "my card is lost", "positive": "card"}, {"query": "hello", "positive": "greeting"}]
    settings = {"labels": ["card", "transfer", "pin"], "labels_as_documents": True}
    rows, counts = prepared(tmp_path, source, "pairs", **settings)
    assert [row["documents"] for row in rows] == [["card", "transfer", "pin"]]
    assert counts.skipped == {"unknown_label": 1}
    assert not training_set("x", "pairs", **settings).has_in_batch_negatives
    rows, _ = prepared(tmp_path, source, "pairs", **settings, num_negatives=1, choose="draw")
    assert len(rows[0]["documents"]) == 2


def test_single_texts_have_no_documents(tmp_path: Path) -> None:
    rows, _ = prepared(tmp_path, [{"text": "a"}, {"text": "b"}], "texts")
    assert rows == [{"query": text, "documents": [], "scores": None, "label": None} for text in ("a", "b")]


def test_a_text_of_a_megabyte_is_cut_or_its_row_skipped(tmp_path: Path) -> None:
    source = [
        {"query": "q", "positive": "é" * (1 << 20), "negative": ["n" * 2_000_000, "n"]},
        {"query": "r", "positive": "p", "negative": ["n"]},
    ]
    rows, counts = prepared(tmp_path, source, "triples", max_chars=1000)
    assert rows[0]["documents"] == ["é" * 1000, "n" * 1000]
    assert counts.changed["cut_text"] == 2
    rows, counts = prepared(tmp_path, source, "triples", max_chars=1000, too_long="skip")
    assert [row["query"] for row in rows] == ["r"]
    assert counts.skipped == {"too_long": 1}


def test_lines_that_do_not_parse_are_counted(tmp_path: Path) -> None:
    lines = '{"query": "a", "positive": "b"}\n{"query": "a", \n[1]\n'
    (tmp_path / "rows.jsonl").write_text(lines)
    counts = prepare(training_set(tmp_path / "rows.jsonl", "pairs"), tmp_path / "sets").counts
    assert counts.skipped == {"malformed_json": 2}
    assert add_up(counts)


def test_a_missing_column_is_named_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"set columns.positive of the set 'set'.*'answer' is not in .*query, positive"
    ):
        prepared(tmp_path, [{"query": "a", "positive": "b"}], "pairs", columns={"positive": "answer"})


def test_a_later_file_without_the_column_is_counted(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", [{"query": "a", "positive": "b"}])
    write_rows(tmp_path / "b.parquet", [{"query": "a", "answer": "b"}] * 3)
    counts = prepare(training_set(str(tmp_path / "*.parquet"), "pairs"), tmp_path / "sets").counts
    assert (counts.kept, counts.skipped) == (1, {"missing_column": 3})


def test_a_set_without_a_good_row_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"check the set 'set', which is left without a row: 2 rows.*2 null_text"):
        prepared(tmp_path, [{"query": None, "positive": "b"}] * 2, "pairs")


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("pairs", {"columns": {"score": "s"}}, "columns.score: pairs have positive, query"),
        ("scored", {"columns": {"score": "s", "label": "l"}}, "score or label, not both"),
        ("scored", {"columns": {"label": "l"}}, "labels: list the classes"),
        ("scored", {"in_batch_negatives": True}, "a scored pair has no negatives"),
        ("pairs", {"labels_as_documents": True}, "labels: list the labels"),
        ("lists", {"labels_as_documents": True}, "expected of pairs or triples"),
        (
            "pairs",
            {"labels_as_documents": True, "labels": ["a", "b"], "in_batch_negatives": True},
            "in_batch_negatives: labels repeat",
        ),
        ("pairs", {"num_negatives": 3}, "num_negatives: pairs have no hard negatives"),
        ("pairs", {"symmetric": True, "document": {"prompt": "x"}}, "document: a symmetric set"),
        ("pairs", {"score_range": (0, 1)}, "score_range: expected"),
        ("pairs", {"columns": {"query": "{broken"}}, "does not parse"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        training_set("x.jsonl", kind, **settings)


def test_a_symmetric_set_has_the_queries_prompt_on_both_sides() -> None:
    settings = {"query": {"prompt": "Instruct: {task}\nQuery: ", "task": "find duplicates"}}
    assert training_set("x", "pairs", **settings, symmetric=True).document_side.task == "find duplicates"
    assert training_set("x", "pairs", **settings).document_side.role == "document"
