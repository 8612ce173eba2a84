"""How many numbers autograd keeps for backward at once: what grows or does not grow with a batch."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class LiveNumbers:
    """Numbers of tensors saved for backward that are alive, and the most there were; each storage once."""

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0
        self._holders: dict[int, int] = {}

    def saved(self, tensor: torch.Tensor) -> _Held:
        held = _Held(tensor)
        pointer, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes() // 4
        if pointer not in self._holders:
            self._holders[pointer] = 0
            self.now += size
            self.peak = max(self.peak, self.now)
        self._holders[pointer] += 1
        weakref.finalize(held, self._freed, pointer, size)
        return held

    def _freed(self, pointer: int, size: int) -> None:
        self._holders[pointer] -= 1
        if not self._holders[pointer]:
            del self._holders[pointer]
            self.now -= size


class _Held:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


@contextmanager
def counting_live_numbers() -> Iterator[LiveNumbers]:
    """Count what is saved for backward while this is open."""
    live = LiveNumbers()
    with torch.autograd.graph.saved_tensors_hooks(live.saved, lambda held: held.tensor):
        yield live
