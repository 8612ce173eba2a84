"""Vectors as they are stored: float32, float16, int8 with one scale, or one bit a dimension.

One symmetric scale for the whole dataset keeps inner products of int8 vectors comparable between all fragments, and
they give cosines without knowing it; it is calibrated once, on a sample, before any fragment is written.

Shapes: N vectors of D dimensions.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.errors import InputError

OutputDtype = Literal["float32", "float16", "int8", "binary"]
# Shares of the largest value at which the int8 range may end: the few values above are clipped for a finer grid
CLIP_SHARES = np.linspace(0.3, 1.0, 15)


def to_arrow(values_ND: NDArray[np.float32], dtype: OutputDtype, scale: float | None = None) -> pa.FixedSizeListArray:
    """The embedding column: fixed_size_list<float32|float16|int8|uint8>[width], width being ceil(D / 8) for binary.

    int8 is round(x / scale) clipped to -127..127; binary is x > 0, eight a byte, the first in the highest bit.
    """
    stored = _stored(values_ND, dtype, scale)
    return pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1)), stored.shape[1])


def calibrate_scale(sample_ND: NDArray[np.float32]) -> float:
    """The int8 scale with the least squared error on a sample of vectors."""
    largest = float(np.abs(sample_ND).max(initial=0.0))
    if not np.isfinite(largest) or largest == 0.0:
        raise InputError("cannot calibrate int8: the sample of vectors is empty, all zero or not finite")
    scales = largest * CLIP_SHARES / 127
    errors = [float(np.square(_int8(sample_ND, scale) * scale - sample_ND).mean()) for scale in scales]
    return float(scales[int(np.argmin(errors))])


def _stored(values_ND: NDArray[np.float32], dtype: OutputDtype, scale: float | None) -> NDArray[np.generic]:
    if dtype == "float32":
        return np.ascontiguousarray(values_ND, np.float32)
    if dtype == "float16":
        largest = np.abs(values_ND).max(initial=0.0)
        if largest > np.finfo(np.float16).max:
            raise InputError(f"output.dtype float16 cannot hold {largest:.3g}: set output.dtype=float32")
        return values_ND.astype(np.float16)
    if dtype == "int8":
        if scale is None or not scale > 0:
            raise ValueError(f"int8 needs a calibrated scale above 0, got {scale}")
        return _int8(values_ND, scale)
    return np.packbits(values_ND > 0, axis=1, bitorder="big")


def _int8(values_ND: NDArray[np.float32], scale: float) -> NDArray[np.int8]:
    return np.clip(np.round(values_ND / scale), -127, 127).astype(np.int8)
