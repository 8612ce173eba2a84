"""Which rows of two columns are equal, for every type that a kept column may have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def equal_rows(left: pa.ChunkedArray, right: pa.ChunkedArray) -> Mask:
    """Row by row whether two columns of one type and length are equal; nulls equal nulls, NaN equals NaN."""
    return _equal(_whole(left), _whole(right))


def _whole(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):  # none, or more than fit one array of its type
        return pa.concat_arrays(combined.chunks) if combined.num_chunks else pa.array([], combined.type)
    return combined


def _equal(left: pa.Array, right: pa.Array) -> Mask:
    if not len(left):
        return np.zeros(0, bool)
    left, right = _plain(left), _plain(right)
    is_null, other_null = _mask(left.is_null()), _mask(right.is_null())
    both = np.flatnonzero(~is_null & ~other_null)
    equal = is_null & other_null
    if len(both):
        if len(both) < len(left):
            left, right = left.take(pa.array(both)), right.take(pa.array(both))
        equal[both] = _equal_values(left, right)
    return equal


def _plain(array: pa.Array) -> pa.Array:
    """Without dictionaries, run ends and extensions, which are other forms of the same values."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _plain(array.storage)
    if pa.types.is_dictionary(kind):
        return _plain(array.dictionary_decode())
    if pa.types.is_run_end_encoded(kind):
        return _plain(pc.run_end_decode(array))
    if pa.types.is_map(kind):
        return array.cast(pa.list_(pa.struct([kind.key_field.with_name("key"), kind.item_field.with_name("value")])))
    return array


def _equal_values(left: pa.Array, right: pa.Array) -> Mask:
    """As `_equal`, for arrays without nulls."""
    kind = left.type
    if pa.types.is_struct(kind):
        equal = np.ones(len(left), bool)
        for ours, theirs in zip(left.flatten(), right.flatten(), strict=True):
            equal &= _equal(ours, theirs)
        return equal
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _equal_lists(left, right)
    if pa.types.is_floating(kind):
        ours, theirs = left.to_numpy(zero_copy_only=False), right.to_numpy(zero_copy_only=False)
        same: Mask = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
        return same
    try:
        return _mask(pc.equal(left, right))
    except pa.ArrowNotImplementedError:  # intervals and unions, which are rare
        return np.array([a.equals(b) for a, b in zip(left, right, strict=True)], bool)


def _equal_lists(left: pa.Array, right: pa.Array) -> Mask:
    lengths, others = (_lengths(array) for array in (left, right))
    equal: Mask = lengths == others
    rows = np.flatnonzero(equal & (lengths > 0))
    if len(rows):
        at = pa.array(rows)
        elements = _equal(left.take(at).flatten(), right.take(at).flatten())
        ends = np.cumsum(lengths[rows])
        equal[rows] = np.logical_and.reduceat(elements, np.concatenate([[0], ends[:-1]]))
    return equal


def _lengths(array: pa.Array) -> NDArray[np.int64]:
    lengths: NDArray[np.int64] = pc.list_value_length(array).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def _mask(array: Any) -> Mask:
    mask: Mask = array.to_numpy(zero_copy_only=False).astype(bool)
    return mask
