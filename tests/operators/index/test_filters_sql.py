"""Filters against DuckDB, over generated conditions and rows with nulls: the same rows match.

EMBEDFLEET_FILTERS says how many conditions; a failing one is shrunk, and printed with its seed.
"""

from __future__ import annotations

import datetime
import os
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operators.errors import InputError
from operators.index.filters import evaluate, parse_filter

duckdb = pytest.importorskip("duckdb")

CASES = int(os.environ.get("EMBEDFLEET_FILTERS", "150"))
DAY = datetime.date(2024, 2, 28)
NOON = datetime.datetime(2024, 2, 28, 12, 30)
_TIMES = [NOON + datetime.timedelta(hours=7 * i, milliseconds=250 * i) for i in range(5)]
_TABLE = pa.table(
    {
        "whole": pa.array([1, 2, None, -3, 2**62, 0, 7, None], pa.int64()),
        "small": pa.array([1, None, 3, -128, 127, 0, 7, 1], pa.int8()),
        "byte": pa.array([1, None, 3, 0, 255, 0, 7, 1], pa.uint8()),
        "single": pa.array([0.1, 0.5, None, -2.5, 1.0, 0.0, 3.25, None], pa.float32()),
        "double": pa.array([0.1, 0.5, None, -2.5, 1.0, 0.0, -0.0, None], pa.float64()),
        "price": pa.array(
            [Decimal(x) if x else None for x in ("0.10", "1.50", "", "-2.25", "9.99", "0", "1", "")]
        ).cast(pa.decimal128(8, 2)),
        "lang": pa.array(["en", "de", None, "", "it's", "en", "é", None]),
        "ok": pa.array([True, False, None, True, None, False, True, None]),
        "day": pa.array([DAY + datetime.timedelta(days=i) if i != 3 else None for i in range(8)], pa.date32()),
        "moment": pa.array([*_TIMES, None, NOON, None], pa.timestamp("us")),
        "seconds": pa.array([NOON, None, NOON + datetime.timedelta(seconds=1), *[None] * 3, NOON, NOON]).cast(
            pa.timestamp("s")
        ),
        "tags": pa.array([["a"], None, [], ["b"], None, ["a"], [], []], pa.list_(pa.string())),
        "part": pa.array([{"a": 1}, None] * 4, pa.struct([("a", pa.int64())])),
        "none": pa.nulls(8),
    }
)
_NUMBERS = [
    *(0, 1, 2, 3, -3, 7, 127, 128, 255, 256, -129, 2**62, 2**62 + 1, 2**63, -(2**63)),
    *(0.1, 0.5, 1.5, 2.5, -2.5, 0.105),
]
_LITERALS: dict[str, list[Any]] = {
    **dict.fromkeys(("whole", "small", "byte", "single", "double", "price"), _NUMBERS),
    "lang": ["en", "de", "", "it's", "é", "zz"],
    "ok": [True, False],
    "day": ["2024-02-28", "2024-02-29", "2024-03-02", "1999-12-31"],
    "moment": ["2024-02-28", "2024-02-28 12:30:00", "2024-02-28T19:30:00.250", "2024-02-29 02:30:00.500"],
    "seconds": ["2024-02-28 12:30:00", "2024-02-28T12:30:01", "2024-02-29"],
}
_SQL = {"==": "=", "!=": "<>"}


def _python(value: Any) -> str:
    return repr(value)


def _in_sql(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return format(Decimal(repr(value)), "f")


@st.composite
def _leaves(draw: st.DrawFn) -> tuple[str, str]:
    """A condition on one column, as a filter and in SQL."""
    name = draw(st.sampled_from(_TABLE.column_names))
    if name not in _LITERALS or draw(st.integers(0, 5)) == 0:
        word = draw(st.sampled_from(["is None", "is not None"]))
        return f"{name} {word}", f"({name} {word.replace('None', 'NULL')})"
    literals = st.sampled_from(_LITERALS[name])
    if name == "ok" and draw(st.booleans()):
        return "ok", "ok"
    if draw(st.booleans()):
        values = draw(st.lists(literals | st.none(), min_size=1, max_size=4))
        word = draw(st.sampled_from(["in", "not in"]))
        listed = ", ".join(map(_in_sql, values))
        # A cast of a list's literals to one type would round them, so that each is compared by itself.
        any_one = " OR ".join(f"{name} = {_typed(name, value)}" for value in values)
        assert listed
        sql = f"({any_one})" if word == "in" else f"(NOT ({any_one}))"
        return f"{name} {word} [{', '.join(map(_python, values))}]", sql
    op = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]))
    value = draw(literals)
    if draw(st.booleans()):
        return f"{name} {op} {_python(value)}", f"({name} {_SQL.get(op, op)} {_typed(name, value)})"
    return f"{_python(value)} {op} {name}", f"({_typed(name, value)} {_SQL.get(op, op)} {name})"


def _typed(name: str, value: Any) -> str:
    """A literal in SQL; of whole and decimal columns as a wide decimal, so that nothing is rounded or overflows."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _in_sql(value)
    kind = {"single": "FLOAT", "double": "DOUBLE"}.get(name, "DECIMAL(38, 5)")
    return f"CAST({_in_sql(value)} AS {kind})"


def _joined(children: st.SearchStrategy[tuple[str, str]]) -> st.SearchStrategy[tuple[str, str]]:
    pairs = st.tuples(children, st.sampled_from(["and", "or"]), children)
    both = pairs.map(lambda p: (f"({p[0][0]} {p[1]} {p[2][0]})", f"({p[0][1]} {p[1]} {p[2][1]})"))
    return both | children.map(lambda one: (f"(not {one[0]})", f"(NOT {one[1]})"))


@settings(max_examples=CASES, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(condition=st.recursive(_leaves(), _joined, max_leaves=6))
def test_a_filter_says_what_sql_says(condition: tuple[str, str]) -> None:
    text, sql = condition
    found = evaluate(parse_filter(text, _TABLE.schema), _TABLE).to_pylist()
    assert found == _asked(sql), sql


_connection = duckdb.connect()
_connection.execute("SET TimeZone = 'UTC'")
_connection.register("arrow_rows", _TABLE)
_connection.execute("CREATE TABLE rows AS SELECT * FROM arrow_rows")


def _asked(sql: str) -> list[bool | None]:
    answer = _connection.execute(f"SELECT CAST({sql} AS BOOLEAN) FROM rows ORDER BY rowid").fetchall()
    return [row[0] for row in answer]


_ANY = st.sampled_from(
    [*_NUMBERS, True, "en", "2024-02-28", "2024-13-45", "12:00", "\ud800", b"en", 1e999, 10**400, 1j]
)


@settings(max_examples=CASES, deadline=None, print_blob=True)
@given(
    name=st.sampled_from(_TABLE.column_names),
    op=st.sampled_from(["==", "<", "in", "is", "+", "not in"]),
    value=_ANY | st.none() | st.lists(_ANY, max_size=3),
)
def test_any_literal_of_any_column_is_compared_or_refused(name: str, op: str, value: Any) -> None:
    try:
        expression = parse_filter(f"{name} {op} {value!r}", _TABLE.schema)
    except InputError:
        return
    assert len(evaluate(expression, _TABLE)) == 8


@pytest.mark.parametrize(
    "text",
    ["whole", "lang == None", "tags == 1", "day == '2024-02-30'", "moment > '2024-01-01T00:00+02:00'",
     "ok == 1", "whole == '1'",
     "(" * 300 + "ok" + ")" * 300, "not " * 5000 + "ok", "ok\0", "lang in {[]}"],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_filter(text, _TABLE.schema)


def test_a_zone_and_a_finer_literal_are_told_apart() -> None:
    table = pa.table({"t": pa.array([0, 1, None], pa.timestamp("s", "Europe/Berlin"))})
    for text, expected in {
        "t == '1970-01-01T01:00+01:00'": [True, False, None],
        "t < '1970-01-01T00:00:00.5'": [True, False, None],
        "t == '1970-01-01T00:00:00.5'": [False, False, None],
        "t >= '1970-01-01T00:00:01'": [False, True, None],
    }.items():
        assert evaluate(parse_filter(text, table.schema), table).to_pylist() == expected, text
