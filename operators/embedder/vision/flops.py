"""The arithmetic of models with a vision tower: of a text's tokens, and of a tile's patches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from operators.embedder.model.flops import Flops


@dataclass(frozen=True, slots=True)
class VisionFlops:
    """What a forward pass costs: `text` by the tokens of a text (of a vision_llm: image tokens too), `image` by the
    patches of a tile."""

    text: Flops
    image: Flops

    @staticmethod
    def of(model: Any, kind: str) -> VisionFlops:
        """Count a transformers model's."""
        if kind == "two_towers":
            return VisionFlops(Flops.of(model.text_model), Flops.of(model.vision_model))
        return VisionFlops(Flops.of(model.language_model), Flops.of(model.vision_tower))

    @staticmethod
    def of_folder(folder: Path, kind: str) -> VisionFlops:
        """Count the model of a checkpoint without loading a weight."""
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            return VisionFlops.of(transformers.AutoModel.from_config(config), kind)

    def total(self, kind: str, of_images: bool) -> Callable[[NDArray[np.int64]], float]:
        """From the lengths of rows in tokens, all of them images or all of them texts, to FLOPs.

        A vision_llm's image has about as many patches as tokens, so each token is counted in both.
        """
        if not of_images:
            return self.text.total
        if kind == "two_towers":
            return self.image.total
        return lambda lengths_N: self.text.total(lengths_N) + self.image.per_token * float(lengths_N.sum())
