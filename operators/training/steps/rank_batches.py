"""A rank's part of each step's batch, read and tokenized: what a step needs beside the model.

Shapes: B rows of a global batch, b of this rank, K documents of a row, T = 1 + K texts, N texts of this rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from operators.errors import InputError
from operators.teachers.outputs import TeacherRows
from operators.training.config.sets import TrainingSet
from operators.training.data.batch_plan import BatchPlan, PlannedBatch, rank_slice
from operators.training.data.prepared import PreparedRows
from operators.training.model.encoder import Reader, Role, Tokenized
from operators.training.objectives.distillation import concatenated_teachers
from operators.training.objectives.gathering import RankRows
from operators.training.objectives.set_objective import RowFacts
from operators.training.steps.micro_batches import MicroBatches, micro_batches


@dataclass(frozen=True, slots=True)
class ReadySet:
    """A set to train on: its config, its rows, and how its texts become tokens."""

    config: TrainingSet
    rows: PreparedRows
    reader: Reader
    views: tuple[Role, ...] = ("query",)
    """How each of `texts` is read: once, or twice for two vectors of it that differ by dropout or prompt (SimCSE)."""
    said: Said = field(default_factory=lambda: Said())
    continues: bool = False
    """Of pairs: the positive is to be said after the query (language modelling)."""

    def texts(self, table: pa.Table) -> tuple[list[str], list[Role]]:
        """All texts of rows, queries first, and the role of each."""
        queries = table["query"].to_pylist()
        if self.config.kind == "texts":
            return queries * len(self.views), [role for role in self.views for _ in queries]
        documents = pc.list_flatten(table["documents"]).to_pylist()
        return queries + documents, [*_roles("query", len(queries)), *_roles("document", len(documents))]

    def tokenized(self, table: pa.Table) -> Tokenized:
        """The same as tokens; of pairs that are continued, one text for each."""
        texts, roles = self.texts(table)
        if self.continues:
            return self.reader.continuations(texts[: table.num_rows], texts[table.num_rows :])
        return self.reader(texts, roles)


@dataclass(frozen=True, slots=True)
class Said:
    """What teachers said of a set's rows, where its loss asks any."""

    vectors: tuple[TeacherRows, ...] = ()
    weights: tuple[float, ...] | None = None  # of each of these
    scores: TeacherRows | None = None

    def vectors_of(self, rows_B: NDArray[np.int64]) -> torch.Tensor | None:
        """teacher_NT of the texts of rows, the queries first: vectors of all teachers side by side."""
        if not self.vectors:
            return None
        teachers = []
        for rows in self.vectors:
            vectors_BTD = torch.from_numpy(rows.vectors(rows_B))
            teachers.append(torch.cat([vectors_BTD[:, 0], vectors_BTD[:, 1:].flatten(0, 1)]))
        return concatenated_teachers(teachers, self.weights) if len(teachers) > 1 else teachers[0]


@dataclass(frozen=True, slots=True)
class RankBatch:
    """What a rank computes in a step."""

    planned: PlannedBatch  # of all ranks
    tokenized: Tokenized  # N texts: the queries, then the documents of each row in turn
    micro_batches: MicroBatches
    facts: RowFacts
    num_tokens: int
    beside: RankBatch | None = None  # texts to generate in the same step (GRIT)


class RankBatches:
    """The batches of a rank from any step on, the next one read while one is trained on."""

    def __init__(
        self,
        plan: BatchPlan,
        sets: Sequence[ReadySet],
        rank: int,
        world_size: int,
        pass_tokens: int,
        beside: RankBatches | None = None,
    ) -> None:
        self._plan, self._sets, self._beside = plan, sets, beside
        self._rank, self._world_size, self._pass_tokens = rank, world_size, pass_tokens

    def __call__(self, first_step: int, num_steps: int) -> Iterator[RankBatch]:
        """The batches of steps `first_step` to `num_steps` - 1, in order."""
        with ThreadPoolExecutor(1) as ahead:  # one thread: files of rows are not safe for several
            coming = ahead.submit(self.read, first_step)
            for step in range(first_step, num_steps):
                batch = coming.result()
                if step + 1 < num_steps:
                    coming = ahead.submit(self.read, step + 1)
                yield batch

    def read(self, step: int) -> RankBatch:
        """The batch of one step. Raises InputError where there are not enough rows for every rank."""
        planned = self._plan.batch(step)
        num_rows = len(planned.rows_B)
        if num_rows < self._world_size:
            raise InputError(
                f"give a larger batch.size or fewer workers: the batch of step {step} has {num_rows} rows for "
                f"{self._world_size} workers"
            )
        own = rank_slice(num_rows, self._rank, self._world_size)
        ready = self._sets[planned.set_index]
        table = ready.rows.take(planned.rows_B[own])
        tokenized = ready.tokenized(table)
        lengths_N = np.array([len(ids) for ids in tokenized.ids], np.int64)
        slices = [rank_slice(num_rows, rank, self._world_size) for rank in range(self._world_size)]
        ranks = RankRows(tuple(one.stop - one.start for one in slices), self._rank)
        facts = _facts(table, ready, planned.rows_B[own], ranks)
        cut = micro_batches(lengths_N, self._pass_tokens)
        beside = None if self._beside is None else self._beside.read(step)
        num_tokens = int(lengths_N.sum()) + (0 if beside is None else beside.num_tokens)
        return RankBatch(planned, tokenized, cut, facts, num_tokens, beside)


def _roles(role: Role, count: int) -> list[Role]:
    return [role] * count


def _facts(table: pa.Table, ready: ReadySet, rows_b: NDArray[np.int64], rows: RankRows) -> RowFacts:
    num_rows = table.num_rows
    scores_bK = labels_b = None
    if ready.said.scores is not None:
        scores_bK = torch.from_numpy(ready.said.scores.scores(rows_b))
    elif table["scores"].null_count == 0 and num_rows:
        flat = pc.list_flatten(table["scores"]).to_numpy()
        scores_bK = torch.from_numpy(flat.reshape(num_rows, -1).astype(np.float32))
    if table["label"].null_count == 0 and num_rows:
        labels_b = torch.from_numpy(table["label"].to_numpy().astype(np.int64))
    ids_bT = torch.from_numpy(ready.rows.hashes(rows_b).view(np.int64))
    return RowFacts(rows, ids_bT, scores_bK, labels_b, ready.said.vectors_of(rows_b))
