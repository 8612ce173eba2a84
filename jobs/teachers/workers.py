"""What runs in the workers that compute teachers' outputs: one function or class a stage, one piece a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.embedding.workers import retried
from jobs.teachers.work import Wanted
from operators.errors import InputError
from operators.storage.cache import Cache
from operators.teachers.choice import load_reader, load_teacher
from operators.teachers.inputs import TeacherInputs, from_row, to_row
from operators.teachers.outputs import Outputs, Piece, StoredPiece, encoded, joined, write_piece
from operators.work.guard import Ledger, run_guarded


@dataclass(frozen=True, slots=True)
class Setup:
    """What every stage is told; travels to the workers once per task."""

    wanted: tuple[Wanted, ...]  # of one teacher
    threads: int
    cache_dir: str | None
    ledger: Ledger


def work_row(number: int, piece: Piece) -> pa.Table:
    """A piece of the set with this number, as one row."""
    return pa.table({"number": [number], "piece": [piece.model_dump_json()]})


def _piece_of(block: pa.Table) -> tuple[int, Piece]:
    return block["number"][0].as_py(), Piece.model_validate_json(block["piece"][0].as_py())


_readers: dict[str, Callable[[pa.Table], TeacherInputs]] = {}


def read(block: pa.Table, setup: Setup) -> pa.Table:
    """The token ids of a piece's rows."""
    number, piece = _piece_of(block)
    wanted = setup.wanted[number]
    if wanted.spec.fingerprint not in _readers:  # a tokenizer takes a second to load; a run has as many as sets
        _readers[wanted.spec.fingerprint] = load_reader(wanted.spec)
    try:
        rows = wanted.prepared.rows(piece.split, Cache.at(setup.cache_dir))
        inputs = _readers[wanted.spec.fingerprint](rows.take(np.arange(piece.start, piece.start + piece.rows)))
    except OSError as error:
        raise retried(error) from error
    return pa.table({"number": block["number"], "piece": block["piece"], **to_row(inputs)})


class TeacherWorker:
    """One process with a teacher: its model is loaded once, then pieces pass through it."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._teacher = load_teacher(setup.wanted[0].spec, setup.threads)

    def __call__(self, block: pa.Table) -> pa.Table:
        number, piece = _piece_of(block)
        outputs = self._outputs(self._setup.wanted[number], piece, from_row(block))
        columns = {
            "values": pa.array([encoded(outputs.values)], pa.large_binary()),
            "places": pa.array([None if outputs.places_RT is None else encoded(outputs.places_RT)], pa.large_binary()),
            "num_inputs": [outputs.num_inputs],
            "num_tokens": [outputs.num_tokens],
        }
        return pa.table({"number": block["number"], "piece": block["piece"], **columns})

    def _outputs(self, wanted: Wanted, piece: Piece, inputs: TeacherInputs) -> Outputs:
        """The outputs of a piece. Raises InputError for a row without any, and for rows that kill the process."""
        who = f"the teacher {wanted.teacher.name!r}"
        rows = f"of the {piece.split} rows of {wanted.prepared.config.name!r}"

        def say(start: int, end: int) -> Outputs:
            return self._teacher(wanted.spec, inputs.of_rows(start, end))

        key = f"{wanted.spec.fingerprint}:{piece.key}"
        guarded = run_guarded(self._setup.ledger, key, piece.rows, say)
        if guarded.killers:
            numbers = ", ".join(str(piece.start + row) for row in sorted(set(guarded.killers)))
            raise InputError(
                f"look at number {numbers} {rows} ({wanted.prepared.folder}): "
                f"{guarded.deaths} processes died while {who} read it"
            )
        outputs = joined([found for _, _, found in guarded.pieces])
        bad = outputs.first_bad_row()
        if bad is not None:
            raise InputError(f"check {who}: it gives NaN, infinity or no vector for number {piece.start + bad} {rows}")
        return outputs


def write(block: pa.Table, setup: Setup) -> pa.Table:
    """Put a piece on storage; its record goes to the driver."""
    number, piece = _piece_of(block)
    row: dict[str, Any] = block.select(["values", "places", "num_inputs", "num_tokens"]).to_pylist()[0]
    try:
        record = write_piece(setup.wanted[number].folder, piece, **row)
    except OSError as error:
        raise retried(error) from error
    return pa.table({"number": [number], "record": [record.model_dump_json()]})


def record_from_row(row: dict[str, Any]) -> tuple[int, StoredPiece]:
    """Unpack what `write` made."""
    return row["number"], StoredPiece.model_validate_json(row["record"])
