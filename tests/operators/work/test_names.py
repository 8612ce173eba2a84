"""Names of columns that are ours at some stage: refused where they are kept, as they stand where they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.corpus.inspect import inspect_source
from operators.corpus.reading import empty_rows
from operators.corpus.source import Source
from operators.errors import InputError
from operators.index.ids import ids_schema
from operators.index.open import check_columns, result_table
from operators.store.dataset import Identity, encode_schema
from operators.store.fragments import output_schema
from operators.work.fragment import REJECTED_SCHEMA
from operators.work.names import OURS, RAW, RESULTS, check_kept
from tests.operators.corpus.reading_files import rows_of, source_file, texts

NONE = pa.schema([])


def _write(folder: Path, kind: str, columns: dict[str, list[str]]) -> Path:
    path = folder / f"docs.{kind}"
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if kind == "parquet":
        pq.write_table(pa.table(columns), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("\n".join(",".join(line) for line in [list(columns), *(list(row.values()) for row in rows)]))
    return path


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_name_of_ours_is_refused_by_name_before_anything_is_read(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path, "jsonl", {name: ["x"], "body": ["y"]})
    with pytest.raises(InputError, match=f"take '{name}' out of output.keep"):
        inspect_source([source_file(path)], Source(path=str(path), text="body"), ("body", name))


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("name", sorted(OURS - set(RAW)))
def test_a_column_of_any_name_is_read_as_text_and_as_id(tmp_path: Path, kind: str, name: str) -> None:
    path = _write(tmp_path, kind, {name: ["one", "two"], "other": ["a", "b"]})
    assert texts(rows_of(path, text=name)) == ["one", "two"]
    assert texts(rows_of(path, text="{other} of {" + name + "}")) == ["a of one", "b of two"]
    read = rows_of(path, id=name, text="other")
    assert [(row["doc_id"], row["text"], row["reason"], row["source_row"]) for row in read] == [
        ("one", "a", None, read[0]["source_row"]),
        ("two", "b", None, read[1]["source_row"]),
    ]


def test_every_column_of_every_stage_is_among_the_names() -> None:
    identity = Identity("f", "m", 8, "float32", True, None, encode_schema(NONE), 0, sparse_dim=8)
    result = result_table(
        pa.array(["q"]), "query_id", pa.array([0]).to_numpy(), [1.0], pa.table({"doc_id": ["a"], "chunk": [0]})
    )
    for schema in (REJECTED_SCHEMA, empty_rows(NONE), ids_schema(NONE), output_schema(identity), result.schema):
        names = schema.column_names if isinstance(schema, pa.Table) else schema.names
        assert set(names) <= OURS


def test_a_kept_name_comes_once() -> None:
    with pytest.raises(InputError, match="'lang' once"):
        check_kept(["lang", "year", "lang"])


@pytest.mark.parametrize("name", RESULTS)
def test_results_take_no_kept_column_over_their_own(name: str) -> None:
    with pytest.raises(InputError, match=f"take '{name}' out of columns"):
        check_columns([name], [name])
