"""Read Parquet row group by row group; one that does not decode costs its own rows only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from operators.corpus.formats.raw import READ_FAULTS, Columns, bad_rows, one_line, raise_if_about_the_run
from operators.corpus.formats.streams import Pace
from operators.storage import Location, open_input
from operators.work.fragment import Extent
from operators.work.names import RAW_ROW


def read_parquet(location: Location, extent: Extent, columns: Columns, pace: Pace) -> Iterator[pa.Table]:
    """Raw rows of the extent's row groups."""
    with open_input(location) as stream:
        file = pq.ParquetFile(stream)
        present = [name for name in columns.names if name in file.schema_arrow.names]
        end = file.num_row_groups if extent.end < 0 else extent.end
        row = max(extent.first_row, 0)
        for group in range(extent.start, end):
            group_rows = file.metadata.row_group(group).num_rows
            done = 0
            try:
                for batch in file.iter_batches(pace.batch_rows, row_groups=[group], columns=present):
                    numbers = pa.array(np.arange(row + done, row + done + batch.num_rows, dtype=np.int64))
                    done += batch.num_rows
                    pace.bytes_read += extent.file.size * batch.num_rows / file.metadata.num_rows
                    yield pa.Table.from_batches([batch]).append_column(RAW_ROW, numbers)
            except READ_FAULTS as error:
                raise_if_about_the_run(error, location)
                lost = range(row + done, row + group_rows)
                yield bad_rows(lost, "unreadable_rows", f"row group {group} does not decode: {one_line(error)}")
            row += group_rows
