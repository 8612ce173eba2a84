"""Files of evaluation sets: what reads, and what each wrong one is told."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from operators.errors import InputError
from operators.evaluation.beir import document_text, read_corpus, read_retrieval
from operators.evaluation.scoring import TextPairs, read_task
from operators.evaluation.tables import read_columns
from operators.evaluation.tasks import Task
from operators.storage import locate
from tests.evaluation_sets import write_beir


def retrieval(folder: Path, **keys: object) -> Task:
    """A retrieval task."""
    return Task(name="t", kind="retrieval", path=str(folder), **keys)  # type: ignore[arg-type]


def test_a_beir_folder_reads_whole(tmp_path: Path) -> None:
    data = read_retrieval(retrieval(write_beir(tmp_path)))
    assert len(data.queries) == 23
    assert data.notes == ("1 of 24 queries are not judged and were left out",)
    blocks = list(read_corpus(data.corpus, block_rows=50))
    assert [(block.start, len(block.ids)) for block in blocks] == [(0, 50), (50, 50), (100, 20)]
    assert blocks[2].ids.to_pylist() == [f"d{i}" for i in range(100, 120)]
    assert not blocks[0].texts[0].as_py().startswith("title")
    assert blocks[0].texts[2].as_py().startswith("title ")


def test_judgements_of_a_split_come_from_qrels_folder(tmp_path: Path) -> None:
    write_beir(tmp_path)
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq3\td1\t1\n")
    assert read_retrieval(retrieval(tmp_path, split="dev")).query_ids == ("q3",)
    assert len(read_retrieval(retrieval(tmp_path, split="dev", qrels="qrels.tsv")).query_ids) == 23


def test_a_documents_text_is_title_and_text() -> None:
    assert document_text("a title", " and a text ") == "a title  and a text"
    assert document_text("", " text ") == "text"
    assert document_text(None, "") == ""


def test_tsv_knows_no_quoting_and_csv_does(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"Open\tx\n')
    (tmp_path / "a.csv").write_text('text,label\r\n"He said ""no"", twice",x\r\n')
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as stream:
        stream.write('{"text": "t", "label": 3}\n\n')
    assert read_columns(locate(str(tmp_path / "a.tsv")), ("text", "label")) == (['"Open'], ["x"])
    assert read_columns(locate(str(tmp_path / "a.csv")), ("text",)) == (['He said "no", twice'],)
    assert read_columns(locate(str(tmp_path / "a.jsonl.gz")), ("label",)) == ([3],)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.tsv", "sentence1\tsentence2\tscore\nx\ty\n", "row 1 of .*a.tsv has 2 fields, its header has 3"),
        ("a.tsv", "sentence1\tsentence2\tgrade\nx\ty\t1\n", "has no 'score' in row 1: .*'grade'"),
        ("a.tsv", "sentence1\tsentence2\tscore\n", "has no rows"),
        ("a.tsv", "sentence1\tsentence2\tscore\nx\ty\thigh\n", "mend the score of row 1.*number, got 'high'"),
        ("a.tsv", "sentence1\tsentence2\tscore\nx\ty\tnan\n", "finite number, got 'nan'"),
        ("a.jsonl", '{"sentence1": "x"', "mend row 1"),
        ("a.jsonl", "[1]\n", "expected a JSON object, got list"),
        ("a.xml", "<a/>", "give a .tsv, .csv, .jsonl file, or a folder with one called test"),
        ("a.tsv.gz", "not gzip", "does not read to its end"),
    ],
)
def test_a_broken_file_is_told_with_its_row(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=told):
        read_task(Task(name="t", kind="sts", path=str(tmp_path / name)))


def test_a_folder_has_a_file_for_each_part(tmp_path: Path) -> None:
    for split, score in (("test", 1.0), ("dev", 2.0)):
        (tmp_path / f"{split}.tsv").write_text(f"sentence1\tsentence2\tscore\nx\ty\t{score}\n")
    assert read_task(Task(name="t", kind="sts", path=str(tmp_path))) == TextPairs(("x",), ("y",), (1.0,))
    assert read_task(Task(name="t", kind="sts", path=str(tmp_path), split="dev")) == TextPairs(("x",), ("y",), (2.0,))
    with pytest.raises(InputError, match="a folder with one called train"):
        read_task(Task(name="t", kind="sts", path=str(tmp_path), split="train"))
    with pytest.raises(InputError, match="a folder with one called train"):
        read_task(Task(name="t", kind="classification", path=str(tmp_path), columns=("sentence1", "score")))


def test_other_columns_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("left,right,gold\nx,y,1.5\n")
    task = Task(name="t", kind="sts", path=str(tmp_path / "a.csv"), columns=("left", "right", "gold"))
    assert read_task(task) == TextPairs(("x",), ("y",), (1.5,))


def test_what_a_beir_folder_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no corpus.jsonl"):
        read_retrieval(retrieval(tmp_path))
    write_beir(tmp_path)
    (tmp_path / "qrels.tsv").rename(tmp_path / "judged.tsv")
    with pytest.raises(InputError, match="neither qrels.tsv nor qrels/dev.tsv"):
        read_retrieval(retrieval(tmp_path, split="dev"))
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nother\td1\t1\n")
    with pytest.raises(InputError, match="no query of .* is judged"):
        read_retrieval(retrieval(tmp_path))
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t0.5\n")
    with pytest.raises(InputError, match="whole number"):
        read_retrieval(retrieval(tmp_path))
