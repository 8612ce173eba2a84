"""Filters: what they match, and what is refused."""

from __future__ import annotations

import pyarrow as pa
import pytest

from operators.errors import InputError
from operators.index.filters import evaluate, parse_filter

TABLE = pa.table({"lang": ["en", "de", None, "fr"], "year": [2019, 2020, 2021, None], "ok": [True, False, None, True]})


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("lang == 'en'", [0]),
        ("lang != 'en'", [1, 3]),
        ("'en' == lang", [0]),
        ("year >= 2020", [1, 2]),
        ("2019 <= year < 2021", [0, 1]),
        ("lang in ['en', 'fr']", [0, 3]),
        ("lang not in ('en', 'fr')", [1]),
        ("lang is None", [2]),
        ("lang is not None and year < 2020", [0]),
        ("lang == 'en' or year == 2021", [0, 2]),
        ("not (lang == 'en')", [1, 3]),
        ("ok", [0, 3]),
        ("not ok", [1]),
        ("(lang == 'de' or lang == 'fr') and ok", [3]),
    ],
)
def test_rows_that_match(text: str, rows: list[int]) -> None:
    mask = evaluate(parse_filter(text, TABLE.schema), TABLE).fill_null(False).to_pylist()
    assert [row for row, matches in enumerate(mask) if matches] == rows


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lang =", "mend filter"),
        ("color == 'red'", "there is no column 'color'; the index has: lang, year, ok"),
        ("lang == year", "compare a column with a value"),
        ("lang == 3", "different types"),
        ("lang + 'x' == 'enx'", "compare a column with a value"),
        ("len(lang) == 2", "no column 'len'"),
        ("lang in 'en'", "in brackets"),
        ("1 == 1", "compare a column with a value"),
        ("lang.startswith('e')", "is no condition"),
        ("__import__('os').system('true')", "no column '__import__'"),
        ("", "mend filter"),
    ],
)
def test_what_is_no_filter(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told.replace("(", r"\(").replace(".", r"\.")):
        parse_filter(text, TABLE.schema)
