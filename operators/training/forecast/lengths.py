"""The first rows of a training set, for a plan: how long its texts are, without preparing all of it."""

from __future__ import annotations

import pyarrow as pa

from operators.corpus.formats import Columns, read_extent
from operators.corpus.listing import list_source
from operators.corpus.units import PACK_BELOW_BYTES, plan_units
from operators.training.config.sets import TrainingSet, typed_columns
from operators.training.data.cleaning import ROW_SCHEMA, clean


def first_rows(training_set: TrainingSet, most: int, seed: int) -> pa.Table:
    """At most `most` rows in `cleaning.ROW_SCHEMA`, the first that are kept; fewer where the set has no more."""
    source, files = training_set.source(), tuple(list_source(training_set.source()))
    types = typed_columns(files, training_set)
    columns = Columns(tuple(name for name in training_set.wanted if name not in types.names), None, types)
    found = [ROW_SCHEMA.empty_table()]
    for unit in plan_units(files, source, (), PACK_BELOW_BYTES, {}):
        for extent in unit.extents:
            for raw in read_extent(extent, source, columns):
                found.append(clean(raw, extent.file.path, training_set, seed).rows)
                if sum(table.num_rows for table in found) >= most:
                    return pa.concat_tables(found).slice(0, most)
    return pa.concat_tables(found)
