"""Storage formats: exact layouts, and how much similarity each keeps."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from operators.embedder.quantization import OutputDtype, calibrate_scale, to_arrow
from operators.errors import InputError


def unit_vectors(num: int, dim: int) -> NDArray[np.float32]:
    values = np.random.default_rng(0).normal(size=(num, dim)).astype(np.float32)
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


@pytest.mark.parametrize(
    ("dtype", "arrow"), [("float32", pa.float32()), ("float16", pa.float16()), ("int8", pa.int8())]
)
def test_cosines_survive(dtype: Literal["float32", "float16", "int8"], arrow: pa.DataType) -> None:
    values_ND = unit_vectors(500, 96)
    column = to_arrow(values_ND, dtype, calibrate_scale(values_ND))
    assert column.type == pa.list_(arrow, 96)
    stored_ND = np.stack(column.to_numpy(zero_copy_only=False)).astype(np.float32)
    cosine_N = (stored_ND * values_ND).sum(1) / np.linalg.norm(stored_ND, axis=1)
    assert cosine_N.min() > {"float32": 1 - 1e-6, "float16": 1 - 1e-5, "int8": 0.999}[dtype]


def test_int8_is_rounded_and_clipped() -> None:
    column = to_arrow(np.array([[0.0, 0.26, -0.24, 90.0, -90.0]], np.float32), "int8", 0.5)
    assert column.to_pylist() == [[0, 1, 0, 127, -127]]


def test_binary_is_big_endian_signs() -> None:
    column = to_arrow(np.array([[1, -1, 0, 2, -3, -3, -3, 1, 1]], np.float32), "binary")
    assert column.type == pa.list_(pa.uint8(), 2)
    assert column.to_pylist() == [[0b10010001, 0b10000000]]


def test_no_vectors() -> None:
    dtypes: list[OutputDtype] = ["float32", "float16", "int8", "binary"]
    for dtype in dtypes:
        assert len(to_arrow(np.empty((0, 8), np.float32), dtype, 1.0)) == 0


def test_float16_overflow_is_refused() -> None:
    with pytest.raises(InputError, match=r"float16 cannot hold 1e\+05: set output.dtype=float32"):
        to_arrow(np.array([[1e5]], np.float32), "float16")


def test_scale_has_the_least_error_of_any_clipping() -> None:
    values_ND = unit_vectors(200, 64)
    values_ND[0, 0] = 3.0  # one outlier must not cost all the others their precision
    scale = calibrate_scale(values_ND)

    def error(scale: float) -> float:
        stored = np.stack(to_arrow(values_ND, "int8", scale).to_numpy(zero_copy_only=False))
        return float(np.square(stored * scale - values_ND).mean())

    assert error(scale) <= error(3.0 / 127)
    assert error(scale) <= error(scale * 1.5)


@pytest.mark.parametrize("sample", [np.zeros((3, 4)), np.full((3, 4), np.nan), np.empty((0, 4))])
def test_scale_of_nothing_is_refused(sample: NDArray[np.float64]) -> None:
    with pytest.raises(InputError, match="cannot calibrate int8"):
        calibrate_scale(sample.astype(np.float32))


def test_int8_without_scale_is_a_bug() -> None:
    with pytest.raises(ValueError, match="needs a calibrated scale"):
        to_arrow(np.ones((1, 4), np.float32), "int8")
