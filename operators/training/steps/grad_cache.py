"""Batches larger than memory, with the gradient of the whole batch (GradCache, arXiv 2101.06983).

    1  every micro-batch is encoded without a graph, and the random state before it is kept
    2  the loss of all representations gives their gradients
    3  every micro-batch is encoded again, from the same random state, and takes its rows' gradients back

Activations of one micro-batch live at a time, whatever the batch. The loss may be any function of the representations:
it may cut them (Matryoshka), gather them over ranks (operators.training.objectives.gathering), and have parameters of
its own. As dropout draws in step 3 what it drew in step 1, the gradient is the plain one.

Shapes: B representations of a tower, m of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from operators.training.objectives.representations import Objective, full_precision


@dataclass(frozen=True, slots=True)
class Tower:
    """One kind of representation of a batch, and how it is made."""

    encode: Callable[[Any], torch.Tensor]
    """A micro-batch -> its representations, rows first. It enters autocast itself, where there is any."""
    micro_batches: Sequence[Any]
    rows: torch.Tensor | None = None
    """The row of each representation, as micro-batches sorted by length want it; None: the order in which they come."""
    frozen: bool = False
    """Not trained: encoded once."""


def cached_backward(
    towers: Sequence[Tower],
    objective: Objective,
    *,
    scale: float = 1.0,
    kept: int = 1,
    unsynchronised: Callable[[], AbstractContextManager[Any]] | None = None,
) -> torch.Tensor:
    """Add the gradients of `scale` * objective(representations of each tower) to all parameters; return the objective.

    `kept` micro-batches, the last ones, keep their graph from the first time and are not encoded again: as many as
    there is memory for besides the one at work; all of them is plain training. `unsynchronised` is the `no_sync` of a
    model that adds up gradients over ranks by itself: it then does so once, at the last micro-batch, and at least one
    micro-batch is encoded twice. Gradients of several calls add up, as accumulation wants it. A model that gathers its
    parameters over ranks when it encodes (FSDP) wants the same number of micro-batches on every rank. Raises ValueError
    under autocast.
    """
    if any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")):
        raise ValueError("autocast is on: only `encode` enters it, or the loss and its gradient have half precision")
    passes = [_passes(tower) for tower in towers]
    trained = [one for tower, its in zip(towers, passes, strict=True) for one in its if not tower.frozen]
    for one in trained[max(len(trained) - kept, 1 if unsynchronised else 0) :]:
        one.is_kept = True
    outside = unsynchronised or nullcontext
    with outside():
        leaves = [_leaf(tower, its) for tower, its in zip(towers, passes, strict=True)]
        loss = objective(leaves)
        torch.autograd.backward(loss * scale)
        for tower, its, leaf in zip(towers, passes, leaves, strict=True):
            _hand_out(tower, its, leaf)
        for one in trained:
            if one.is_kept:
                one.backward()  # first, as these graphs are what takes memory
    # what the objective made no use of has no gradient
    again = [one for one in trained if not one.is_kept and one.gradient is not None]
    for one in again:
        with nullcontext() if one is again[-1] else outside():
            one.encode_again()
            one.backward()
    return loss.detach()


class _Pass:
    """A micro-batch of a tower on its way: representation, random state before it, gradient."""

    def __init__(self, encode: Callable[[Any], torch.Tensor], micro_batch: Any) -> None:
        self.is_kept = False
        self.size = 0
        self.representation = torch.empty(0)
        self.gradient: torch.Tensor | None = None
        self._encode = encode
        self._micro_batch = micro_batch
        self._random: RandomState | None = None

    def encode(self) -> torch.Tensor:
        """The representation without its graph, which stays here where it is kept."""
        if not self.is_kept:
            self._random = RandomState()
        with torch.set_grad_enabled(self.is_kept):
            representation = self._encode(self._micro_batch)
        self.size = len(representation)
        if self.is_kept:
            self.representation = representation
        return representation.detach()

    def encode_again(self) -> None:
        assert self._random is not None
        with self._random.restored():
            self.representation = self._encode(self._micro_batch)

    def backward(self) -> None:
        if self.gradient is not None and self.representation.requires_grad:
            torch.autograd.backward(self.representation, self.gradient.to(self.representation.dtype))
        self.representation, self.gradient = torch.empty(0), None


def _passes(tower: Tower) -> list[_Pass]:
    return [_Pass(tower.encode, micro_batch) for micro_batch in tower.micro_batches]


def _leaf(tower: Tower, passes: Sequence[_Pass]) -> torch.Tensor:
    """All representations of a tower, in order, where gradients end."""
    encoded = full_precision(torch.cat([one.encode() for one in passes]))
    if tower.rows is not None:
        encoded = torch.empty_like(encoded).index_copy_(0, tower.rows, encoded)
    return encoded.requires_grad_(not tower.frozen)


def _hand_out(tower: Tower, passes: Sequence[_Pass], leaf: torch.Tensor) -> None:
    if leaf.grad is None:
        return
    gradient = leaf.grad if tower.rows is None else leaf.grad[tower.rows]
    for one, part in zip(passes, torch.split(gradient, [one.size for one in passes]), strict=True):
        one.gradient = part


class RandomState:
    """The state of torch's generators, of the CPU and of the GPU in use, when this was made."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Draw from here on what was drawn then; afterwards the generators are where they were before."""
        devices = [] if self._gpu is None else [torch.cuda.current_device()]
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self._cpu)
            if self._gpu is not None:
                torch.cuda.set_rng_state(self._gpu)
            yield
