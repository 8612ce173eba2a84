"""Rows of a prepared set as a teacher reads them: different texts, or pairs of texts, each once, as token ids.

Shapes: R rows, K documents of each, T = 1 + K texts; M different inputs, I of each row (T texts, or K pairs).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TeacherInputs:
    """The M inputs of R rows; `places_RI` says which each row has."""

    input_ids: pa.ListArray  # list<int32>
    places_RI: NDArray[np.int32]
    num_queries: int = 0  # of texts: the first so many are read as queries
    type_ids: pa.ListArray | None = None  # of pairs: which of the two a token is of, for a model that is told

    @property
    def num_tokens(self) -> int:
        """Of all inputs."""
        return int(self.input_ids.offsets[-1].as_py() - self.input_ids.offsets[0].as_py())

    def of_rows(self, start: int, end: int) -> TeacherInputs:
        """The inputs of rows [start, end)."""
        if (start, end) == (0, len(self.places_RI)):
            return self
        used_M, places = np.unique(self.places_RI[start:end], return_inverse=True)
        places_RI = places.reshape(end - start, -1).astype(np.int32)
        taken = pa.array(used_M)
        types = None if self.type_ids is None else self.type_ids.take(taken)
        return TeacherInputs(self.input_ids.take(taken), places_RI, int((used_M < self.num_queries).sum()), types)


@dataclass(frozen=True, slots=True)
class Distinct:
    """Different texts, and which of them each row has."""

    texts: pa.StringArray
    places: NDArray[np.int64]


def distinct(texts: pa.StringArray) -> Distinct:
    """Each text once, in the order of their first occurrence."""
    encoded = texts.dictionary_encode()
    return Distinct(encoded.dictionary, encoded.indices.to_numpy().astype(np.int64))


def queries_of(rows: pa.Table) -> pa.StringArray:
    """The query of each row."""
    return rows["query"].combine_chunks()


def documents_of(rows: pa.Table) -> pa.StringArray:
    """The documents of all rows, one row's after another's."""
    return rows["documents"].combine_chunks().flatten()


def to_row(inputs: TeacherInputs) -> dict[str, pa.Array]:
    """The columns of one row of a table that holds the inputs."""
    types = inputs.type_ids
    return {
        "input_ids": _as_one(inputs.input_ids, pa.int32()),
        "type_ids": _as_one(types, pa.int8()) if types is not None else pa.nulls(1, pa.list_(pa.list_(pa.int8()))),
        "places": pa.array([inputs.places_RI.reshape(-1)], pa.list_(pa.int32())),
        "inputs_per_row": pa.array([inputs.places_RI.shape[1]]),
        "num_queries": pa.array([inputs.num_queries]),
    }


def from_row(row: pa.Table) -> TeacherInputs:
    """Unpack what `to_row` packed into the only row of a table."""
    types = row["type_ids"].combine_chunks()
    width = row["inputs_per_row"][0].as_py()
    return TeacherInputs(
        row["input_ids"].combine_chunks().flatten(),
        row["places"].combine_chunks().flatten().to_numpy().reshape(-1, width),
        row["num_queries"][0].as_py(),
        types.flatten() if types.null_count == 0 else None,
    )


def _as_one(lists: pa.ListArray, kind: pa.DataType) -> pa.Array:
    lists = lists.cast(pa.list_(kind))
    return pa.ListArray.from_arrays(pa.array([0, len(lists)], pa.int32()), lists)
