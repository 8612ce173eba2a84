"""The temperature of a softmax over similarities as a trained parameter."""

from __future__ import annotations

import math

import torch

from operators.errors import InputError


class LearnedTemperature(torch.nn.Module):
    """A temperature that is trained as the logarithm of its inverse (CLIP, arXiv 2103.00020), at least `lowest`.

    Its gradient is made with the representations', so under data parallelism it is summed like theirs
    (operators.training.objectives.gathering); it belongs to no wrapped model.
    """

    def __init__(self, temperature: float = 0.07, lowest: float = 0.01) -> None:
        super().__init__()
        if not 0 < lowest <= temperature:
            raise InputError(f"temperature must be at least {lowest:g} when learned, got {temperature:g}")
        self.log_scale = torch.nn.Parameter(torch.tensor(-math.log(temperature)))
        self._highest = -math.log(lowest)

    def forward(self) -> torch.Tensor:
        """The temperature, a scalar."""
        with torch.no_grad():
            # of the parameter, not of the result: beyond a bound of the result no gradient leads back
            self.log_scale.clamp_(max=self._highest)
        return torch.exp(-self.log_scale)
