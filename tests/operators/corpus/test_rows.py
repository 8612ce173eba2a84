"""From raw columns to rows: templates, ids, blank texts, types."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.corpus.rows import make_rows, split_rejected
from operators.corpus.source import Source, template_fields
from operators.work.names import RAW_MESSAGE, RAW_REASON, RAW_ROW


def rows(columns: dict[str, Any], keep: pa.Schema | None = None, **source: Any) -> list[dict[str, Any]]:
    """`make_rows` on plain lists or Arrow arrays."""
    arrays = {name: column if isinstance(column, pa.Array) else pa.array(column) for name, column in columns.items()}
    size = len(next(iter(arrays.values())))
    raw = pa.table({RAW_ROW: pa.array(range(size), pa.int64()), **arrays})
    made = make_rows(raw, "/corpus/a", Source(path="/corpus", **source), keep or pa.schema([]))
    good, rejected = split_rejected(made)
    assert good.num_rows + rejected.num_rows == size
    return made.to_pylist()


def test_a_template_takes_values_as_they_are() -> None:
    made = rows(
        {"title": ["{text}", "a{{b}}", None, "%s \\n", None, " "], "text": ["{", "}", "alone", "é", None, "\t"]},
        text="{{{title}}}: {text}{title}",
    )
    assert [row["text"] for row in made[:4]] == [
        "{{text}}: {{text}",
        "{a{{b}}}: }a{{b}}",
        "{}: alone",
        "{%s \\n}: é%s \\n",
    ]
    assert [row["reason"] for row in made] == [None] * 4 + ["null_text", "blank_text"]


@settings(deadline=None)
@given(title=st.text(), text=st.text(min_size=1))
def test_a_template_is_what_str_format_makes_of_it(title: str, text: str) -> None:
    template = "<{title}> {{x}} {text}\n{title}"
    made = rows({"title": [title], "text": [text + "."]}, text=template)
    assert made[0]["text"] == template.format(title=title, text=text + ".")


@pytest.mark.parametrize("bad", ["{", "}", "{a", "{a!r}", "{a:>3}", "{{a}}", "{}", "", " ", "{ }"])
def test_a_template_that_is_none_is_refused(bad: str) -> None:
    with pytest.raises(ValidationError, match="template|column name"):
        Source(path="/corpus", text=bad)


def test_template_columns_are_named_once() -> None:
    assert Source(path="/corpus", text="{b} {a} {b}").text_columns == ("b", "a")
    assert template_fields("plain") == ()


@pytest.mark.parametrize("blank", ["", " ", "\t\r\n", "\x0b\x0c\x1c\x1f", "\u00a0\u3000", "\u2028\u2029\x85"])
def test_white_space_is_no_text(blank: str) -> None:
    assert [row["reason"] for row in rows({"text": ["x", blank]})] == [None, "blank_text"]
    assert rows({"a": [blank]}, text="title: {a}")[0]["reason"] == "blank_text"


@pytest.mark.parametrize("odd", ["\x00", "\x01\x02", "\u200b", "\ufeff", "a\x00b", "\x7f", "😀" * 1000])
def test_control_and_odd_characters_are_text(odd: str) -> None:
    made = rows({"text": [odd], "id": [odd]}, id="id")
    assert (made[0]["reason"], made[0]["text"], made[0]["doc_id"]) == (None, odd, odd)


@pytest.mark.parametrize("odd", ["a/b", "../../etc/passwd", "..", "\"quoted\" 'id'", "😀", "a\nb", "#", "x" * 5000])
def test_ids_are_taken_to_the_letter(odd: str) -> None:
    assert rows({"text": ["t"], "id": [odd]}, id="id")[0]["doc_id"] == odd


def test_ids_null_empty_and_missing() -> None:
    made = rows({"text": ["t"] * 4, "id": ["a", None, "", " "]}, id="id")
    assert [row["reason"] for row in made] == [None, "missing_id", "missing_id", None]
    assert {row["reason"] for row in rows({"text": ["t", "u"]}, id="id")} == {"missing_column"}
    nulls = rows({"text": ["t"], "id": pa.nulls(1)}, id="id")
    assert nulls[0]["reason"] == "missing_id"


@pytest.mark.parametrize("kind", [pa.int8(), pa.int64(), pa.uint64(), pa.dictionary(pa.int8(), pa.int64())])
def test_integer_ids_become_text(kind: pa.DataType) -> None:
    ids = pa.array([0, 7, None], pa.int64())
    ids = ids.dictionary_encode() if pa.types.is_dictionary(kind) else ids.cast(kind)
    made = rows({"text": ["t"] * 3, "id": ids}, id="id")
    assert [row["doc_id"] for row in made] == ["0", "7", None]


@pytest.mark.parametrize("column", ["text", "id"])
@pytest.mark.parametrize("values", [[1.5, 2.5], [[1], [2]], [{"a": 1}, None], [True, False]])
def test_columns_of_another_type_reject_their_rows(column: str, values: list[object]) -> None:
    made = rows({"text": ["t", "u"], "id": ["1", "2"], column: values}, id="id")
    assert [row["reason"] for row in made] == ["wrong_type"] * 2
    assert all(repr(column) in row["message"] for row in made)


def test_the_first_reason_stays() -> None:
    columns = {"text": [None, "t", " "], "id": ["", "b", "c"]}
    columns |= {RAW_REASON: [None, "malformed_json", None], RAW_MESSAGE: [None, "at 3", None]}
    made = rows(columns, id="id")
    assert [row["reason"] for row in made] == ["missing_id", "malformed_json", "blank_text"]
    assert made[1]["message"] == "at 3"


def test_kept_columns_have_the_type_asked_for() -> None:
    keep = pa.schema([("n", pa.int64()), ("gone", pa.float32()), ("tags", pa.list_(pa.string()))])
    made = rows({"text": ["t", "u"], "n": ["12", "x"], "tags": [["a"], None]}, keep)
    assert [(row["n"], row["gone"], row["tags"]) for row in made] == [(12, None, ["a"]), (None, None, None)]
    assert {row["reason"] for row in made} == {None}


def test_ids_without_a_column_are_path_and_row() -> None:
    assert [row["doc_id"] for row in rows({"text": ["t", None]})] == ["/corpus/a#0", "/corpus/a#1"]
