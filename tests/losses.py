"""How the tests of losses compare: a loss and its gradients against a formula, in float64, of plain loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

TOLERANCE = 1e-5

Loss = Callable[..., torch.Tensor]


def random_rows(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers of a normal distribution."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest of the expected numbers."""
    assert found.shape == expected.shape
    largest = expected.abs().max().item()
    assert largest > 0, "a reference of zeros shows nothing"
    return (found.to(torch.float64) - expected.to(torch.float64)).abs().max().item() / largest


def with_gradients(loss: Loss, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """A loss and its gradient at each input."""
    leaves = [values.detach().clone().requires_grad_() for values in inputs]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def assert_same_loss(found: Loss, expected: Loss, *inputs: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    """The loss in float32 is the expected one in float64, and so is its gradient at each input."""
    ours = with_gradients(found, inputs)
    theirs = with_gradients(expected, [values.to(torch.float64) for values in inputs])
    names = ["loss", *(f"gradient of input {i}" for i in range(len(inputs)))]
    for name, one, other in zip(names, ours, theirs, strict=True):
        assert one.dtype == inputs[0].dtype, name
        difference = relative_difference(one, other)
        assert difference <= tolerance, f"{name}: {difference:.2g}"


def cosine(left_D: torch.Tensor, right_D: torch.Tensor) -> torch.Tensor:
    """The cosine of two vectors, as it is defined."""
    return (left_D * right_D).sum() / ((left_D * left_D).sum().sqrt() * (right_D * right_D).sum().sqrt())
