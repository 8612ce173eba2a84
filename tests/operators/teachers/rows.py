"""Rows of a prepared set, and teachers' specs, for tests without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter

from operators.teachers.choice import load_reader, load_teacher
from operators.teachers.config import Teacher
from operators.teachers.outputs import Outputs
from operators.teachers.spec import TeacherSpec, teacher_spec
from operators.training.config.sets import TrainingSet
from operators.training.data.cleaning import ROW_SCHEMA
from tests.checkpoints import WORDS

RECIPES = Path("configs/models")


def text(number: int, longest: int = 23) -> str:
    """One of many texts of 1 to `longest` words."""
    return " ".join(WORDS[(7 * number + word) % len(WORDS)] for word in range(1 + 5 * number % longest))


# The documents of a row come again in the next, so that every text and pair is there more than once.
ROWS = [(text(i % 9), [text(20 + i % 11), text(20 + (i + 1) % 11), text(60 + i % 9, 90)]) for i in range(25)]


def table(rows: list[tuple[str, list[str]]]) -> pa.Table:
    """Rows as a prepared set has them."""
    return pa.Table.from_pylist([{"query": query, "documents": documents} for query, documents in rows], ROW_SCHEMA)


def teacher_of(**fields: Any) -> Teacher:
    """A teacher called t, on the CPU."""
    own = {} if fields["kind"] == "embedder" else {"device": "cpu"}
    teacher: Teacher = TypeAdapter(Teacher).validate_python({"name": "t", **own, **fields})
    return teacher


def spec_of(teacher: Teacher, **settings: Any) -> TeacherSpec:
    """The teacher for a set of triples."""
    chosen = {"name": "set", "path": "rows.jsonl", "kind": "triples", "num_negatives": 2, **settings}
    return teacher_spec(teacher, TrainingSet.model_validate(chosen), "fingerprint of the set", RECIPES)


def said(spec: TeacherSpec, rows: list[tuple[str, list[str]]]) -> Outputs:
    """What the teacher says of rows."""
    return load_teacher(spec)(spec, load_reader(spec)(table(rows)))
