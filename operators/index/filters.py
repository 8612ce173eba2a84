"""Filters on kept columns: `lang == 'en' and year >= 2020`, read as Python reads it and run by Arrow.

    comparison     == != < <= > >=      of a column and a value, or a value and a column
    membership     in, not in           a list of values:    lang in ['en', 'de']
    missing        is None, is not None
    combination    and, or, not, parentheses

A row whose column is missing (null) matches no comparison, and neither its opposite.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from operators.errors import InputError

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_HELP = "write it as in: lang == 'en' and year >= 2020, or: lang in ['en', 'de']"


def parse_filter(text: str, columns: pa.Schema) -> pc.Expression:
    """The expression that a filter means. Raises InputError naming what it cannot be, or a column that is not kept."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise InputError(f"mend filter {text!r}: {_HELP} ({getattr(error, 'msg', error)})") from None
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for name in sorted(names - set(columns.names)):
        kept = ", ".join(columns.names) or "none"
        raise InputError(f"filter {text!r}: there is no column {name!r}; the index has: {kept}")
    try:
        expression = _expression(tree, text)
        _datasets().dataset(columns.empty_table()).to_table(columns={"mask": expression})  # do the types go together?
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise InputError(f"mend filter {text!r}: a column and a value are of different types ({error})") from None
    return expression


def evaluate(expression: pc.Expression, table: pa.Table) -> pa.ChunkedArray:
    """Which rows match; null where a column that decides is missing."""
    return _datasets().dataset(table).to_table(columns={"mask": expression})["mask"]


def _datasets() -> Any:
    import pyarrow.dataset  # here: it imports pandas, half a second that a search without a filter does without

    return pyarrow.dataset


def _expression(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.BoolOp):
        parts = [_expression(value, text) for value in node.values]
        combined = parts[0]
        for part in parts[1:]:
            combined = combined & part if isinstance(node.op, ast.And) else combined | part
        return combined
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_expression(node.operand, text)
    if isinstance(node, ast.Compare):
        return _comparison(node, text)
    if isinstance(node, ast.Name):
        return pc.field(node.id)  # a column of truth values stands for itself
    raise InputError(f"mend filter {text!r}: {ast.unparse(node)!r} is no condition; {_HELP}")


def _comparison(node: ast.Compare, text: str) -> Any:
    operands = [node.left, *node.comparators]
    combined = None
    for left, op, right in zip(operands[:-1], node.ops, operands[1:], strict=True):
        one = _one_comparison(left, op, right, text)
        combined = one if combined is None else combined & one
    return combined


def _one_comparison(left: ast.expr, op: ast.cmpop, right: ast.expr, text: str) -> Any:
    if isinstance(op, (ast.In, ast.NotIn)) and isinstance(left, ast.Name):
        values = _value(right, text)
        if not isinstance(values, list):
            raise InputError(f"mend filter {text!r}: give the values in brackets, as in: lang in ['en', 'de']")
        found = pc.field(left.id).isin(values)
        return ~found & pc.field(left.id).is_valid() if isinstance(op, ast.NotIn) else found
    if isinstance(op, (ast.Is, ast.IsNot)) and isinstance(left, ast.Name) and _value(right, text) is None:
        return pc.field(left.id).is_null() if isinstance(op, ast.Is) else pc.field(left.id).is_valid()
    if type(op) in _COMPARE and isinstance(left, ast.Name) != isinstance(right, ast.Name):
        sides = [pc.field(s.id) if isinstance(s, ast.Name) else pc.scalar(_value(s, text)) for s in (left, right)]
        return _COMPARE[type(op)](*sides)
    raise InputError(f"mend filter {text!r}: compare a column with a value; {_HELP}")


def _value(node: ast.expr, text: str) -> Any:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        raise InputError(f"mend filter {text!r}: {ast.unparse(node)!r} is no plain value; {_HELP}") from None
    return list(value) if isinstance(value, (tuple, set)) else value
