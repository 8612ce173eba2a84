"""Codes of faiss's stores and inverted lists, as views of their memory or mapping, and as the vectors they stand for.

Shapes: N vectors of D components, B bytes a code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.index.library import faiss

Codes = NDArray[np.uint8]


def flat_codes(store: Any) -> Codes:
    """All codes of a flat store: [N, B]."""
    size = store.sa_code_size()
    view: Codes = faiss.rev_swig_ptr(store.codes.data(), store.ntotal * size).reshape(-1, size)
    return view


def list_ids(core: Any, number: int) -> NDArray[np.int64]:
    """The ids of one inverted list."""
    size = core.invlists.list_size(number)
    ids: NDArray[np.int64] = faiss.rev_swig_ptr(core.invlists.get_ids(number), size) if size else np.empty(0, np.int64)
    return ids


def list_codes(core: Any, number: int) -> Codes:
    """The codes of one inverted list, [N, B]; not of those kinds that interleave them."""
    size = core.invlists.list_size(number)
    if not size:
        return np.empty((0, core.code_size), np.uint8)
    codes: Codes = faiss.rev_swig_ptr(core.invlists.get_codes(number), size * core.code_size)
    return codes.reshape(size, core.code_size)


def has_plain_codes(core: Any) -> bool:
    """Whether an index with inverted lists keeps each vector's code by itself, and scores as a decoded vector would."""
    return isinstance(core, (faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ))


def decode(store: Any, codes: Codes) -> NDArray[np.float32]:
    """The vectors [N, D] of some codes of a flat store, or of inverted lists (there, what is left of the centroid)."""
    codes = np.ascontiguousarray(codes)
    if isinstance(store, (faiss.IndexFlat, faiss.IndexIVFFlat)):
        return codes.view(np.float32)
    if isinstance(store, faiss.IndexIVFPQ):
        vectors: NDArray[np.float32] = store.pq.decode(codes)
        return vectors
    if not isinstance(store, (faiss.IndexScalarQuantizer, faiss.IndexIVFScalarQuantizer)):
        vectors = store.sa_decode(codes)
        return vectors
    if store.sq.qtype == faiss.ScalarQuantizer.QT_fp16:
        return _from_halves(codes)
    vectors = store.sq.decode(codes)
    return vectors


def _from_halves(codes: Codes) -> NDArray[np.float32]:
    """float16 as float32.

    A half's bits moved to a float's places, its exponent's bias mended by a product: 4 times as fast as faiss's decoder
    (0.10 instead of 0.44 us for 384 components), and the same but for infinities.
    """
    halves = codes.view(np.int16)
    vectors = np.empty(halves.shape, np.float32)
    bits = vectors.view(np.uint32)
    bits[:] = halves
    np.left_shift(bits, 13, out=bits)
    bits &= np.uint32(0x8FFFE000)  # the sign, which came along to the left, and what was moved
    vectors *= np.float32(2.0**112)
    return vectors
