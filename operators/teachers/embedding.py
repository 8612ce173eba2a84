"""An embedder as a teacher: texts in the prompts of their sides, each different one of a piece read once.

Shapes: R rows, K documents of each, T = 1 + K texts, M different texts, D dims.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from operators.embedder.prompted_embedders import PromptedEmbedders
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.teachers.config import EmbedderTeacher
from operators.teachers.inputs import Distinct, TeacherInputs, distinct, documents_of, queries_of
from operators.teachers.outputs import Outputs, cosines
from operators.teachers.spec import TextSpec

_CHUNK_ROWS = 256  # whose vectors are side by side in memory for their cosines


class TextReader:
    """Rows to the token ids of their texts."""

    def __init__(self, spec: TextSpec) -> None:
        self._is_symmetric = spec.query.fingerprint == spec.document.fingerprint
        self._query = Tokenizer(spec.query)
        self._document = self._query if self._is_symmetric else Tokenizer(spec.document)

    def __call__(self, rows: pa.Table) -> TeacherInputs:
        """The inputs of R rows: different queries, then different documents, or all in one where prompts are equal."""
        queries, documents = queries_of(rows), documents_of(rows)
        if self._is_symmetric:
            together = distinct(pa.concat_arrays([queries, documents]))
            first = Distinct(together.texts, together.places[: len(queries)])
            input_ids, shift, rest = self._query(together.texts).input_ids, 0, together.places[len(queries) :]
        else:
            first, second = distinct(queries), distinct(documents)
            read = self._query(first.texts).input_ids, self._document(second.texts).input_ids
            input_ids, shift, rest = pa.concat_arrays(read), len(first.texts), second.places
        places_RT = np.concatenate([first.places[:, None], (rest + shift).reshape(rows.num_rows, -1)], axis=1)
        return TeacherInputs(input_ids, places_RT.astype(np.int32), len(first.texts))


class TextTeacher:
    """Inputs to vectors or cosines; one model for all sets, whatever their prompts."""

    def __init__(self, teacher: EmbedderTeacher, threads: int | None) -> None:
        self._embedder = PromptedEmbedders(teacher.embedder, threads)

    def __call__(self, spec: TextSpec, inputs: TeacherInputs) -> Outputs:
        """What the teacher says of the rows; NaN where its model gives a text no vector."""
        parts = []
        for side, rows in (
            (spec.query, slice(0, inputs.num_queries)),
            (spec.document, slice(inputs.num_queries, len(inputs.input_ids))),
        ):
            if rows.start < rows.stop:
                found = self._embedder(side)(inputs.input_ids[rows])
                if side.recipe.kind != "static":  # that has zeros for a text without a known word
                    found.values_ND[~found.finite_N] = np.nan
                parts.append(found.values_ND)
        vectors_MD, places_RT = np.concatenate(parts), inputs.places_RI
        counts = (len(inputs.input_ids), inputs.num_tokens)
        if spec.output == "vectors":
            with np.errstate(over="ignore"):  # what does not fit into float16 is infinite, and found so
                return Outputs(vectors_MD.astype(spec.teacher.dtype), places_RT, *counts)
        chunks = [places_RT[i : i + _CHUNK_ROWS] for i in range(0, len(places_RT), _CHUNK_ROWS)]
        return Outputs(np.concatenate([cosines(vectors_MD[chunk]) for chunk in chunks]), None, *counts)
