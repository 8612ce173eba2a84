"""What both kinds of embedders that see have in common: how they begin, the pixels they take, how vectors are finished.

Shapes: N rows of a call, B rows of a batch, D width of a vector, T tiles of a batch, C channels, S pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from operators.embedder.model.device import compute_dtype, prepare_process
from operators.embedder.model.forward import default_batch_tokens
from operators.embedder.model.loading import load_model
from operators.embedder.recipe.keywords import Device
from operators.embedder.recipe.spec import EmbedderSpec, verified_folder
from operators.embedder.tokens.batching import OnTokens, untold
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.embedder.vectors import Vectors, finish
from operators.embedder.vision import selftest
from operators.embedder.vision.flops import VisionFlops
from operators.embedder.vision.inputs import Inputs
from operators.embedder.vision.processing import tiles_of
from operators.embedder.vision.reading import ImageReader


class VisionEmbedder(ABC):
    """A loaded, self-tested model with a vision tower; the same call as `Embedder`, with images too."""

    def __init__(
        self,
        spec: EmbedderSpec,
        batch_tokens: int | None = None,
        device: Device = "auto",
        threads: int | None = None,
    ) -> None:
        self.spec = spec
        self.device = prepare_process(device, threads)
        reader = ImageReader(spec)
        self._facts, self._scaling = reader.facts, reader.processor.scaling
        self._dtype = compute_dtype(spec.recipe.compute_dtype, self.device)
        self._model: Any = load_model(verified_folder(spec, weights=True), self._dtype, spec.recipe).to(self.device)
        self._begin(reader.tokenizer)
        self.flops = VisionFlops.of(self._model, spec.recipe.kind)
        self.batch_tokens = batch_tokens or default_batch_tokens(self.device)
        selftest.check(self, selftest.known_inputs(reader, spec))

    @torch.inference_mode()
    def __call__(self, rows: pa.Array, on_tokens: OnTokens = untold) -> Vectors:
        """Vectors of N rows, in their order: token ids alone, or structs of `input_ids` and `pixels`."""
        inputs = Inputs.of(rows)
        pooled_ND = torch.zeros(len(rows), self.spec.dim, device=self.device)
        padding_tokens = self._embed(inputs, pooled_ND, on_tokens)
        values, finite = finish(pooled_ND, self.spec.recipe.normalize)
        return Vectors(values.cpu().numpy(), finite.cpu().numpy(), padding_tokens, self._flops_of(inputs))

    @abstractmethod
    def _begin(self, tokenizer: Tokenizer) -> None:
        """Make the model ready; raises InputError where it and the tokenizer do not belong together."""

    @abstractmethod
    def _embed(self, inputs: Inputs, pooled_ND: torch.Tensor, on_tokens: OnTokens) -> int:
        """Fill in what the model gives for each row, cut to D; returns how many tokens were padding."""

    @abstractmethod
    def _flops_of(self, inputs: Inputs) -> float:
        """What the model needs for the rows."""

    def _pixels(self, inputs: Inputs, rows_B: NDArray[np.int64]) -> torch.Tensor:
        """pixels_TCSS of rows with images, as the model takes them, on its device."""
        assert inputs.pixels is not None, "rows with images have pixels"
        tiles_TCSS = np.concatenate([tiles_of(inputs.pixels[int(row)], self._facts.image_size) for row in rows_B])
        return self._scaling(torch.from_numpy(tiles_TCSS).to(self.device)).to(self._dtype)
