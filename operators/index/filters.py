"""Filters on kept columns: `lang == 'en' and year >= 2020`, read as Python reads it and run by Arrow.

    comparison     == != < <= > >=      of a column and a value, or a value and a column
    membership     in, not in           a list of values:    lang in ['en', 'de']
    missing        is None, is not None
    combination    and, or, not, parentheses

Logic has three values, as in SQL: a row whose column is missing (null) matches no comparison, and neither its opposite.
What a literal means goes by its column's type (`operators.index.literals`).
"""

from __future__ import annotations

import ast
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from operators.errors import InputError
from operators.index.literals import WrongType, any_of, compared, is_among

_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_HELP = "write it as in: lang == 'en' and year >= 2020, or: lang in ['en', 'de']"


def parse_filter(text: str, columns: pa.Schema) -> pc.Expression:
    """The expression that a filter means. Raises InputError naming what it cannot be, or a column that is not kept."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"mend filter {text!r}: {_HELP} ({getattr(error, 'msg', error)})") from None
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for name in sorted(names - set(columns.names)):
        kept = ", ".join(columns.names) or "none"
        raise InputError(f"filter {text!r}: there is no column {name!r}; the index has: {kept}")
    try:
        expression = _expression(tree, text, columns)
        _datasets().dataset(columns.empty_table()).to_table(columns={"mask": expression})  # does Arrow know it all?
    except (pa.ArrowException, WrongType) as error:
        raise InputError(f"mend filter {text!r}: a column and a value are of different types ({error})") from None
    except RecursionError:
        raise InputError("shorten the filter: its conditions are nested too deeply") from None
    return expression


def evaluate(expression: pc.Expression, table: pa.Table) -> pa.ChunkedArray:
    """Which rows match; null where a column that decides is missing."""
    return _datasets().dataset(table).to_table(columns={"mask": expression})["mask"]


def _datasets() -> Any:
    import pyarrow.dataset  # here: it imports pandas, half a second that a search without a filter does without

    return pyarrow.dataset


def _expression(node: ast.expr, text: str, columns: pa.Schema) -> pc.Expression:
    if isinstance(node, ast.BoolOp):
        parts = [_expression(value, text, columns) for value in node.values]
        return any_of(parts) if isinstance(node.op, ast.Or) else ~any_of([~part for part in parts])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_expression(node.operand, text, columns)
    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        pairs = zip(operands[:-1], node.ops, operands[1:], strict=True)
        return ~any_of([~_comparison(left, op, right, text, columns) for left, op, right in pairs])
    if isinstance(node, ast.Name):
        return compared(columns.field(node.id), "==", True)  # a column of truth values stands for itself
    raise InputError(f"mend filter {text!r}: {ast.unparse(node)!r} is no condition; {_HELP}")


def _comparison(left: ast.expr, op: ast.cmpop, right: ast.expr, text: str, columns: pa.Schema) -> pc.Expression:
    if isinstance(op, (ast.In, ast.NotIn)) and isinstance(left, ast.Name):
        values = _value(right, text)
        if not isinstance(values, list):
            raise InputError(f"mend filter {text!r}: give the values in brackets, as in: lang in ['en', 'de']")
        found = is_among(columns.field(left.id), values)
        return ~found if isinstance(op, ast.NotIn) else found
    if isinstance(op, (ast.Is, ast.IsNot)) and isinstance(left, ast.Name) and _value(right, text) is None:
        return pc.field(left.id).is_null() if isinstance(op, ast.Is) else pc.field(left.id).is_valid()
    if type(op) in _COMPARE and isinstance(left, ast.Name) != isinstance(right, ast.Name):
        name, other = (left, right) if isinstance(left, ast.Name) else (right, left)
        assert isinstance(name, ast.Name), "one of them is"
        value, sign = _value(other, text), _COMPARE[type(op)]
        if value is None:
            raise InputError(f"mend filter {text!r}: nothing equals None; write: {name.id} is None, or: is not None")
        turned = sign if name is left else _TURNED.get(sign, sign)
        return compared(columns.field(name.id), turned, value)
    raise InputError(f"mend filter {text!r}: compare a column with a value; {_HELP}")


def _value(node: ast.expr, text: str) -> Any:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise InputError(f"mend filter {text!r}: {ast.unparse(node)!r} is no plain value; {_HELP}") from None
    return list(value) if isinstance(value, (tuple, set)) else value
