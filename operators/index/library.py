"""faiss, imported so that its matrix products run on this CPU's own kernels.

    from operators.index.library import faiss

The faiss wheels bundle OpenBLAS 0.3.15 (2021), which takes newer CPUs for old ones: an Intel Xeon of 2023 gets SSE3
kernels (26 instead of 98 GFLOP/s a core), an AMD EPYC of 2024 likewise (46 instead of 181). The kernel can be
named before the library is loaded, and only then. A kernel that the user names in OPENBLAS_CORETYPE stays.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy  # noqa: F401  # loads its own, newer OpenBLAS, which knows the CPU better than any name we could give

from operators.work.cpu import cpu_flags

logger = logging.getLogger(__name__)

_VARIABLE = "OPENBLAS_CORETYPE"
_AVX512 = frozenset({"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"})
_AVX2 = frozenset({"avx2", "fma"})
# Kernels of OpenBLAS 0.3.15 by what they need; its names for newer CPUs do not exist in it and fall back to SSE3.
_AVX512_KERNELS = frozenset({"SkylakeX", "Cooperlake", "SapphireRapids"})
_AVX2_KERNELS = frozenset({"Haswell", "Zen"})


@dataclass(frozen=True, slots=True)
class Kernel:
    """Which matrix kernels faiss runs on."""

    name: str  # OpenBLAS's name; empty where faiss uses another library (MKL in conda, Accelerate on macOS)
    wanted: str  # the best for this CPU; empty where any choice is as good

    @property
    def is_slow(self) -> bool:
        """Whether this CPU could do a multiple of it."""
        if not self.name or not self.wanted:
            return False
        return self.name not in (_AVX512_KERNELS if self.wanted == "SkylakeX" else _AVX512_KERNELS | _AVX2_KERNELS)


def best_kernel(flags: frozenset[str]) -> str:
    """The OpenBLAS kernel for a CPU with these flags; empty where OpenBLAS should choose."""
    if flags >= _AVX512:
        return "SkylakeX"
    return "Haswell" if flags >= _AVX2 else ""


@functools.cache
def kernel() -> Kernel:
    """What faiss was loaded with; logs once where that is slow and says what to do."""
    from threadpoolctl import threadpool_info

    loaded = [info for info in threadpool_info() if info.get("internal_api") == "openblas"]
    of_faiss = [info for info in loaded if "faiss" in info["filepath"]]
    found = Kernel(str(of_faiss[0].get("architecture") or "") if of_faiss else "", best_kernel(cpu_flags()))
    if found.is_slow and os.environ.get(_VARIABLE) != found.name:  # a slow one that the user chose is the user's
        logger.warning(
            "faiss multiplies with OpenBLAS's %s kernels, this CPU has %s: set %s=%s in the environment, or import "
            "operators.index before faiss",
            found.name,
            found.wanted,
            _VARIABLE,
            found.wanted,
        )
    return found


def _import() -> Any:
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it tells of every variant that a wheel lacks
    wanted = best_kernel(cpu_flags())
    is_ours = bool(wanted) and _VARIABLE not in os.environ and "faiss" not in sys.modules
    if is_ours:
        os.environ[_VARIABLE] = wanted
    try:
        import faiss
    finally:
        if is_ours:
            del os.environ[_VARIABLE]  # child processes choose for themselves
    kernel()
    return faiss


faiss = _import()


def use_threads(count: int) -> None:
    """Let faiss and numpy use this many threads in this process; their own default is every CPU of the machine."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(max(1, count), user_api="blas")
    faiss.omp_set_num_threads(max(1, count))
