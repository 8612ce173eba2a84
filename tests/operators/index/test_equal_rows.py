"""Columns of any type compared row by row, against Python's own values."""

from __future__ import annotations

import datetime
import math
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import given, settings

from operators.index.equal_rows import equal_rows

_ints = st.one_of(st.none(), st.integers(0, 1))
_texts = st.one_of(st.none(), st.sampled_from(["", "a", "b"]))
_lists = st.one_of(st.none(), st.lists(_ints, max_size=2))
_structs = st.one_of(st.none(), st.fixed_dictionaries({"a": _ints, "b": _lists}))
TYPES: dict[str, tuple[pa.DataType, Any]] = {
    "float": (pa.float32(), st.one_of(st.none(), st.sampled_from([0.0, 1.0, math.nan]))),
    "half": (pa.float16(), st.one_of(st.none(), st.sampled_from([0.0, 1.0, math.nan]))),
    "timestamp": (pa.timestamp("ns", "UTC"), st.one_of(st.none(), st.integers(0, 1))),
    "decimal": (pa.decimal128(5, 2), _ints),
    "list": (pa.list_(pa.int32()), _lists),
    "large list": (pa.large_list(pa.string()), st.one_of(st.none(), st.lists(_texts, max_size=2))),
    "fixed list": (pa.list_(pa.int8(), 2), st.one_of(st.none(), st.lists(_ints, min_size=2, max_size=2))),
    "struct": (pa.struct([("a", pa.int64()), ("b", pa.list_(pa.int8()))]), _structs),
    "nested": (pa.list_(pa.struct([("a", pa.int64()), ("b", pa.list_(pa.int8()))])), st.lists(_structs, max_size=2)),
    "map": (pa.map_(pa.string(), pa.int32()), st.one_of(st.none(), st.lists(st.tuples(st.just("k"), _ints)))),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), _texts),
    "interval": (pa.month_day_nano_interval(), st.one_of(st.none(), st.sampled_from([(1, 2, 3), (1, 2, 4)]))),
    "null": (pa.null(), st.none()),
    "date": (
        pa.date32(),
        st.one_of(st.none(), st.sampled_from([datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)])),
    ),
}


@pytest.mark.parametrize("name", TYPES)
def test_rows_are_equal_where_their_values_are(name: str) -> None:
    kind, values = TYPES[name]

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(values, values), max_size=12), st.integers(0, 3))
    def compare(pairs: list[tuple[Any, Any]], offset: int) -> None:
        left, right = (pa.array([pair[side] for pair in pairs], kind) for side in (0, 1))
        found = equal_rows(pa.chunked_array([left.slice(offset)]), pa.chunked_array([right.slice(offset)]))
        assert found.tolist() == [a == b or (a != a and b != b) for a, b in pairs[offset:]]

    compare()
