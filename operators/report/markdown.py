"""Markdown of a card: tables, and text in them that stays text."""

from __future__ import annotations

from collections.abc import Sequence

from operators.report.figures import printable


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell(text) for text in line) + " |" for line in lines]


def cell(text: str) -> str:
    """Text that ends no cell and is no markup."""
    return printable(text).replace("|", "\\|").replace("<", "&lt;")
