"""Comparisons of a column with a literal, by the column's type and exactly: what a filter's leaves mean.

    numbers        whole and decimal columns exactly, whatever the literal; float columns in their own precision
    dates, times   text as ISO 8601 has it: '2024-05-01', '2024-05-01T12:30', '2024-05-01 12:30:00+02:00'
    text, truth    as they stand

A column with a time zone takes a literal without one as UTC.
"""

from __future__ import annotations

import datetime
import math
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_FLOATS = {16: np.float16, 32: np.float32, 64: np.float64}


class WrongType(Exception):
    """A literal that a column cannot be compared with; says why."""


def compared(field: pa.Field, op: str, value: Any) -> pc.Expression:
    """`field op value`, null where the column is; raises WrongType."""
    column, kind = pc.field(field.name), _plain(field.type)
    if pa.types.is_null(kind):
        return known(column, False)
    if pa.types.is_integer(kind):
        bits, low = kind.bit_width, not pa.types.is_unsigned_integer(kind)
        least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if low else (0, 2**bits - 1)
        return _on_grid(column, column, op, _number(value), 1, (least, most), lambda n: pa.scalar(n, kind))
    if pa.types.is_decimal(kind):
        step, most = 10**kind.scale, 10**kind.precision - 1
        return _on_grid(column, column, op, _number(value), step, (-most, most), lambda n: _decimal(n, kind))
    if pa.types.is_timestamp(kind):
        # As ticks: a literal may be finer than the column, or outside of what its unit can tell.
        ticks = column.cast(pa.int64())
        seconds = _seconds(value, kind.tz is not None)
        limits = (-(2**63), 2**63 - 1)
        return _on_grid(column, ticks, op, seconds, _PER_SECOND[kind.unit], limits, lambda n: pa.scalar(n, pa.int64()))
    if pa.types.is_floating(kind):
        with np.errstate(over="ignore"):
            rounded: float = float(np.array(_as_float(value)).astype(_FLOATS[kind.bit_width]))
        same = column.cast(pa.float32()) if kind.bit_width == 16 else column
        return COMPARE[op](same, pa.scalar(rounded, _compared_type(kind)))
    return COMPARE[op](column, _exactly(value, kind))


def is_among(field: pa.Field, values: Sequence[Any]) -> pc.Expression:
    """Whether a column is one of some values, as SQL has it: null where it is not and one of the values is null."""
    column = pc.field(field.name)
    given = [value for value in values if value is not None]
    kind = _plain(field.type)
    if given and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        found: Any = column.isin(pa.array([_exactly(value, kind).as_py() for value in given], kind))
    else:
        found = any_of([compared(field, "==", value) for value in given]) if given else False
    if len(given) < len(values):
        found = pc.if_else(found, True, pa.scalar(None, pa.bool_())) if given else pa.scalar(None, pa.bool_())
    return known(column, found)


def any_of(parts: Sequence[pc.Expression]) -> pc.Expression:
    """Their disjunction, as a shallow tree: Arrow walks it recursively."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    return any_of(parts[:middle]) | any_of(parts[middle:])


def known(column: pc.Expression, matches: Any) -> pc.Expression:
    """`matches`, but null where the column is."""
    matches = matches if isinstance(matches, pc.Expression) else pc.scalar(matches)
    return pc.if_else(column.is_valid(), matches, pc.scalar(pa.scalar(None, pa.bool_())))


def _compared_type(kind: pa.DataType) -> pa.DataType:
    """The type that floats are compared in: Arrow has no comparison of halves."""
    return pa.float32() if kind.bit_width == 16 else kind


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _on_grid(
    column: pc.Expression,
    compared_as: pc.Expression,
    op: str,
    value: Fraction | float,
    step: int,
    limits: tuple[int, int],
    scalar: Callable[[int], Any],
) -> pc.Expression:
    """Compare multiples of 1 / step with any number: one between two of them, or beyond all, equals none."""
    if isinstance(value, float):  # infinite
        place, is_exact = (limits[1] + 1 if value > 0 else limits[0] - 1), False
    else:
        place = math.floor(value * step)
        is_exact = place == value * step
    if limits[0] <= place <= limits[1]:
        if is_exact:
            return COMPARE[op](compared_as, scalar(place))
        if op in ("<", "<="):
            return compared_as <= scalar(place)
        if op in (">", ">="):
            return compared_as > scalar(place)
        return known(column, op == "!=")
    is_above = place > limits[1]
    return known(column, {"==": False, "!=": True, "<": is_above, "<=": is_above}.get(op, not is_above))


def _number(value: Any) -> Fraction | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise WrongType("a number is wanted")
    if isinstance(value, float):
        # A fraction means what is written, as in SQL: 0.1 is a tenth.
        return Fraction(repr(value)) if math.isfinite(value) else value
    return Fraction(value)


def _as_float(value: Any) -> float:
    _number(value)
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _decimal(number: int, kind: pa.DataType) -> pa.Scalar:
    from decimal import Context, Decimal

    return pa.scalar(Decimal(number).scaleb(-kind.scale, Context(prec=kind.precision + 1)), kind)


def _seconds(value: Any, has_zone: bool) -> Fraction:
    """Seconds since 1970 of a literal in ISO 8601, exactly to the microsecond."""
    if not isinstance(value, str):
        raise WrongType("a time such as '2024-05-01T12:30' is wanted")
    try:
        moment = datetime.datetime.fromisoformat(value)
    except ValueError as error:
        raise WrongType(f"a time such as '2024-05-01T12:30' is wanted: {error}") from None
    if moment.tzinfo is not None and not has_zone:
        raise WrongType("the column has no time zone, so that the time can have none")
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)
    since = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return Fraction(since // datetime.timedelta(microseconds=1), 10**6)


def _exactly(value: Any, kind: pa.DataType) -> pa.Scalar:
    """A literal as a scalar of the column's type."""
    wanted: dict[Callable[[pa.DataType], bool], tuple[type, Callable[[Any], Any]]] = {
        pa.types.is_boolean: (bool, bool),
        pa.types.is_string: (str, str),
        pa.types.is_large_string: (str, str),
        pa.types.is_binary: (bytes, bytes),
        pa.types.is_large_binary: (bytes, bytes),
        pa.types.is_fixed_size_binary: (bytes, bytes),
        pa.types.is_date: (str, datetime.date.fromisoformat),
        pa.types.is_time: (str, datetime.time.fromisoformat),
    }
    for is_kind, (given, read) in wanted.items():
        if is_kind(kind):
            if not isinstance(value, given):
                raise WrongType(f"the column is of {kind}")
            try:
                return pa.scalar(read(value), kind)
            except (ValueError, pa.ArrowException) as error:
                raise WrongType(f"{value!r} is no {kind}: {error}") from None
    raise WrongType(f"a column of {kind} can only be tested with: is None, is not None")
