"""An index that followed its embeddings through any history finds what one built anew finds.

Files come, go, change and swap rows; rows are alike in document, piece, text and vector (`duplicates: keep_all`); kept
columns are of types that Arrow cannot compare.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings

from operators.index.building import BuildSetup, ShardPlan, build_shard
from operators.index.comparing import diff_shard, plan_comparisons
from operators.index.library import use_threads
from operators.index.open import Index
from operators.index.snapshot import IndexIdentity, IndexSnapshot, TrainedRecord
from operators.index.trained import open_trained, store_trained
from operators.index.training import train
from operators.index.updating import Update, UpdatePlan, patch, plan_update
from operators.storage import Location
from operators.storage.cache import Cache
from operators.store.dataset import Identity, encode_schema
from operators.store.fragments import FragmentRecord, data_file, read_table, write_fragment
from operators.work.fragment import REJECTED_SCHEMA, Counts, Extent, Fragment, FragmentBatch, SourceFile, Unit
from tests.index_building import TRAINING

DIM, ROWS_PER_FRAGMENT, ROWS_PER_SHARD = 4, 3, 8
KINDS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "list": (pa.list_(pa.int32()), [None, [], [1], [1, None]]),
    "struct": (pa.struct([("a", pa.int8()), ("b", pa.list_(pa.string()))]), [None, {"a": 1, "b": ["x"]}, {"a": None}]),
    "nested": (pa.list_(pa.struct([("a", pa.int8())])), [None, [{"a": 1}], [None], [{"a": None}]]),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), [None, "x", "y"]),
    "float": (pa.float64(), [None, float("nan"), 0.5]),
    "text": (pa.string(), [None, "", "x"]),
}


@dataclass(frozen=True)
class Row:
    """A row of a source file; what it holds decides its vector."""

    doc: int
    text: int
    kept: int


Files = dict[str, tuple[Row, ...]]
rows = st.builds(Row, st.integers(0, 5), st.integers(0, 1), st.integers(0, 2))
files = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.lists(rows, min_size=1, max_size=9).map(tuple), min_size=1)
histories = st.tuples(
    st.sampled_from(sorted(KINDS)),
    st.lists(files, min_size=2, max_size=4),
    st.sampled_from(["auto", "patch", "rebuild"]),
)


@pytest.mark.parametrize("examples", [15, pytest.param(300, marks=pytest.mark.slow)])
def test_an_update_is_a_rebuild(examples: int) -> None:
    use_threads(1)

    @settings(max_examples=examples, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
    @given(histories)
    def follow(history: tuple[str, list[Files], Literal["auto", "patch", "rebuild"]]) -> None:
        kind, states, mode = history
        how = Update(mode=mode, max_patched=0.5)
        with tempfile.TemporaryDirectory() as folder:
            dataset, index = Location(f"{folder}/vectors"), Location(f"{folder}/index")
            setup, trained = set_up(dataset, index, KINDS[kind][0])
            previous, before = None, list[FragmentRecord]()
            for number, state in enumerate(states):
                files_now = [write(dataset, setup.identity, kind, path, state[path]) for path in sorted(state)]
                now = [record for records in files_now for record in records]
                previous = update(setup, trained, previous, before, now, how, number + 1)
                before = now
                assert_same(index, dataset, previous, update(setup, trained, None, [], now, Update(), 1), now)

    follow()


def set_up(dataset: Location, index: Location, kept: pa.DataType) -> tuple[BuildSetup, TrainedRecord]:
    keep = pa.schema([pa.field("kept", kept)])
    stored = Identity("f" * 64, "none", DIM, "float32", True, None, encode_schema(keep), 0)
    identity = index_identity()
    setup = BuildSetup(index, dataset, stored, identity.space, keep, None)
    trained = train(identity.spec, np.eye(DIM, dtype=np.float32), TRAINING)
    return setup, store_trained(index, 1, trained, identity.spec)


def index_identity() -> IndexIdentity:
    return IndexIdentity(
        requested="Flat",
        factory="Flat",
        why="",
        metric="ip",
        sharding="document",
        dim=DIM,
        dtype="float32",
        scale=None,
        fingerprint="",
        model="",
        embeddings="",
        keep=("kept",),
        seed=0,
    )


def write(dataset: Location, identity: Identity, kind: str, path: str, content: Sequence[Row]) -> list[FragmentRecord]:
    """The fragments of a file."""
    unit = Unit.of((Extent(SourceFile(path, len(content), repr(content))),), kind)
    cuts = [content[i : i + ROWS_PER_FRAGMENT] for i in range(0, len(content), ROWS_PER_FRAGMENT)]
    records = []
    for part, cut in enumerate(cuts):
        values = KINDS[kind][1]
        table = pa.table(
            {
                "doc_id": pa.array([f"doc-{row.doc}" for row in cut]),
                "chunk": pa.array([0] * len(cut), pa.int32()),
                "text_hash": pa.array([bytes([row.doc, row.text] * 8) for row in cut], pa.binary(16)),
                "num_tokens": pa.array([1] * len(cut), pa.int32()),
                "truncated": pa.array([False] * len(cut)),
                "char_start": pa.array([0] * len(cut), pa.int64()),
                "char_end": pa.array([1] * len(cut), pa.int64()),
                "source_path": pa.array([path] * len(cut)),
                "source_row": pa.array(range(len(cut)), pa.int64()),
                "kept": pa.array([values[row.kept] for row in cut], KINDS[kind][0]),
                "embedding": pa.FixedSizeListArray.from_arrays(
                    pa.array(np.concatenate([vector(row) for row in cut])), DIM
                ),
            }
        )
        fragment = Fragment(unit, part, part + 1 == len(cuts))
        counts = Counts(rows=len(cut), chunks=len(cut))
        batch = FragmentBatch(fragment, table, REJECTED_SCHEMA.empty_table(), counts)
        records.append(write_fragment(dataset, identity, batch))
    return records


def vector(row: Row) -> np.ndarray[Any, np.dtype[np.float32]]:
    values = np.random.default_rng([row.doc, row.text]).standard_normal(DIM).astype(np.float32)
    return values / np.linalg.norm(values)


def update(
    setup: BuildSetup,
    trained: TrainedRecord,
    previous: IndexSnapshot | None,
    before: Sequence[FragmentRecord],
    now: Sequence[FragmentRecord],
    how: Update,
    number: int,
) -> IndexSnapshot:
    """What the index job does, in this process."""
    plan = plan_of(setup, previous, before, now, how)
    kept = previous.shards if previous is not None else ()
    shards = [patch(setup.index, kept[n], plan.dead.get(n), plan.moved.get(n, {})) for n in plan.kept]
    identity = index_identity()
    for group in plan.groups:
        opened = open_trained(setup.index, trained, identity.spec, Cache.at(None))
        shards.append(build_shard(ShardPlan.of(group, trained.sha256, identity.keep), opened, setup))
    return IndexSnapshot(
        number=number,
        created="",
        identity=identity,
        trained=trained,
        embeddings_snapshot=number,
        fragments=tuple(record.key for record in now),
        shards=tuple(shard for shard in shards if shard.live_rows),
        replaced=plan.replaced,
        tracks_rows=True,
    )


def plan_of(
    setup: BuildSetup,
    previous: IndexSnapshot | None,
    before: Sequence[FragmentRecord],
    now: Sequence[FragmentRecord],
    how: Update,
) -> UpdatePlan:
    if previous is None:
        return plan_update(None, now, {}, ROWS_PER_SHARD, how)
    keys, known = {record.key for record in now}, {record.key for record in before}
    gone = [record for record in before if record.key not in keys]
    added = [record for record in now if record.key not in known]
    comparisons = plan_comparisons(previous, gone, added)
    diffs = {n: diff_shard(setup.index, previous.shards[n], setup.dataset, c) for n, c in comparisons.items()}
    return plan_update(previous, now, diffs, ROWS_PER_SHARD, how)


def assert_same(
    index: Location,
    dataset: Location,
    followed: IndexSnapshot,
    anew: IndexSnapshot,
    records: Sequence[FragmentRecord],
) -> None:
    """Live rows are the dataset's, and searching finds what an index that was built anew finds."""
    expected = Counter[tuple[str, str]]()
    for record in records:
        table = read_table(data_file(dataset, record.key), ["doc_id", "kept"])
        expected.update(zip(table["doc_id"].to_pylist(), map(repr, table["kept"].to_pylist()), strict=True))
    queries = np.concatenate([np.eye(DIM, dtype=np.float32), -np.eye(DIM, dtype=np.float32)])
    answers = []
    for snapshot in (followed, anew):
        assert snapshot.num_vectors == sum(record.chunks for record in records)
        found = Index(index, snapshot).search(queries, snapshot.num_vectors, columns=["kept"])
        first = found.filter(pc.equal(found["query"], 0))
        assert Counter(zip(first["doc_id"].to_pylist(), map(repr, first["kept"].to_pylist()), strict=True)) == expected
        answers.append(found)
    np.testing.assert_allclose(answers[0]["score"].to_numpy(), answers[1]["score"].to_numpy(), atol=1e-6)
