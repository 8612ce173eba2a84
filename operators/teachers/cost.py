"""What a teacher will read of a prepared set, before anything is computed: rows exactly, the rest from a sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from operators.teachers.choice import load_reader
from operators.teachers.outputs import PIECE_ROWS
from operators.teachers.spec import TeacherSpec, TextSpec
from operators.training.data.prepared import PreparedRows


@dataclass(frozen=True, slots=True)
class TeacherCost:
    """The work of a teacher for a set, both splits."""

    rows: int
    inputs: int  # different texts, or pairs, of each piece; from a sample
    tokens: int  # of those, prompts included and cut to fit; from a sample
    of: str  # texts or pairs

    def __str__(self) -> str:
        return f"{self.rows:,} rows: about {self.inputs:,} {self.of} and {self.tokens:,} tokens"


def teacher_cost(spec: TeacherSpec, splits: tuple[PreparedRows, ...]) -> TeacherCost:
    """Read one piece of each split, from its middle, as the teacher would; loads a tokenizer and fetches a part."""
    reader = load_reader(spec)
    rows, inputs, tokens = 0, 0.0, 0.0
    for split in splits:
        sample = min(PIECE_ROWS, len(split))
        if not sample:
            continue
        start = (len(split) - sample) // 2
        read = reader(split.take(np.arange(start, start + sample)))
        rows += len(split)
        inputs += len(read.input_ids) * len(split) / sample
        tokens += read.num_tokens * len(split) / sample
    return TeacherCost(rows, round(inputs), round(tokens), "texts" if isinstance(spec, TextSpec) else "pairs")
