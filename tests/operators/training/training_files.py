"""Small training files, and what becomes of them without Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from operators.corpus.listing import list_source
from operators.corpus.units import PACK_BELOW_BYTES, plan_units
from operators.storage import locate
from operators.storage.cache import Cache
from operators.training.config.sets import TrainingSet, typed_columns
from operators.training.data.counts import RowCounts
from operators.training.data.prepared import Manifest, PreparedRows, Split, prepare_unit, write_manifest

Row = Mapping[str, Any]


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    """The rows as a JSONL or Parquet file."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def training_set(path: Path | str, kind: str, **settings: Any) -> TrainingSet:
    """A set called `set`."""
    return TrainingSet.model_validate({"name": "set", "path": str(path), "kind": kind, **settings})


def prepare(chosen: TrainingSet, folder: Path, seed: int = 0) -> Manifest:
    """Prepare a set in this process."""
    files = list(list_source(chosen.source()))
    types = typed_columns(files, chosen)
    target = locate(str(folder)) / chosen.fingerprint(files, seed)
    lines = [
        line
        for unit in plan_units(files, chosen.source(), (), PACK_BELOW_BYTES, {})
        for line in prepare_unit(unit, chosen, types, target, seed)
    ]
    parts = [part for part, _ in lines if part is not None]
    return write_manifest(target, chosen, parts, RowCounts.total(counts for _, counts in lines))


def open_rows(manifest: Manifest, folder: Path, split: Split = "train") -> PreparedRows:
    """The rows of a set that `prepare` made."""
    return PreparedRows(locate(str(folder)) / manifest.fingerprint, manifest, split, Cache.at(None))


def prepared(folder: Path, rows: Sequence[Row], kind: str, **settings: Any) -> tuple[list[Row], RowCounts]:
    """What a set of these rows holds, and its counts."""
    chosen = training_set(write_rows(folder / "rows.jsonl", rows), kind, **settings)
    manifest = prepare(chosen, folder / "sets")
    found = open_rows(manifest, folder / "sets")
    return found.take(np.arange(len(found))).to_pylist(), manifest.counts
