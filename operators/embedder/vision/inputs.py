"""What travels to a model with a vision tower, as one array: token ids, and pixels where a row has an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Inputs:
    """N rows of texts and images."""

    input_ids: pa.ListArray
    pixels: pa.LargeBinaryArray | None  # null for a text; None where all rows are texts
    sizes_N2: NDArray[np.int64]  # height and width of each image; 0 for a text
    has_image_N: NDArray[np.bool_]

    @staticmethod
    def of(rows: pa.Array) -> Inputs:
        """From token ids alone (texts, such as queries), or from structs of `input_ids` and `pixels`."""
        if not pa.types.is_struct(rows.type):
            num_rows = len(rows)
            return Inputs(rows, None, np.zeros((num_rows, 2), np.int64), np.zeros(num_rows, np.bool_))
        input_ids, pixels = rows.flatten()
        data, height, width = pixels.flatten()
        sizes_N2 = np.stack([side.fill_null(0).to_numpy().astype(np.int64) for side in (height, width)], axis=1)
        return Inputs(input_ids, data, sizes_N2, pc.is_valid(data).to_numpy(zero_copy_only=False))

    @property
    def lengths_N(self) -> NDArray[np.int64]:
        """Token ids of each row."""
        lengths_N: NDArray[np.int64] = np.diff(self.input_ids.offsets.to_numpy().astype(np.int64))
        return lengths_N
