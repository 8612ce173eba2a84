"""Language models that see (LLaVA, LLaVA-NeXT) as embedders of texts, images, and both: one prompt for each.

    "<image>\\nSummary above image in one word: "          E5-V (arXiv 2407.12580): the state of the last token, of
    "{text}\\nSummary above sentence in one word: "        texts and of images alike, is the vector

Rows with an image and rows without go in batches of their own, so that a text which spells out the image token is only
a text. Within a batch they are sorted by length, as everywhere, and padded on the right, where a causal model never
looks.

Shapes: N rows of a call, B rows of a batch, L padded length, D width of a state, T tiles of a batch, C channels, S
pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from operators.embedder.model.forward import default_batch_tokens
from operators.embedder.model.loading import DTYPES
from operators.embedder.model.pooling import pool
from operators.embedder.recipe.spec import EmbedderSpec
from operators.embedder.starting import Device, check_vocabulary
from operators.embedder.tokens import batching
from operators.embedder.tokens.batching import Batch
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.embedder.vectors import Vectors, finish
from operators.embedder.vision import selftest
from operators.embedder.vision.flops import VisionFlops
from operators.embedder.vision.inputs import Inputs
from operators.embedder.vision.processing import tiles_of
from operators.embedder.vision.starting import prepare
from operators.errors import InputError


class VisionLanguageEmbedder:
    """A loaded, self-tested language model with a vision tower; the same call as `Embedder`, with images too."""

    def __init__(
        self,
        spec: EmbedderSpec,
        batch_tokens: int | None = None,
        device: Device = "auto",
        threads: int | None = None,
    ) -> None:
        self.spec = spec
        self.device, reader, self._model = prepare(spec, device, threads)
        self._facts, self._scaling = reader.facts, reader.processor.scaling
        self._dtype = DTYPES[spec.recipe.compute_dtype]
        self._model.language_model.config.use_cache = False
        _check_ids(self._model, spec, reader.tokenizer, reader.facts.image_token_id)
        self.flops = VisionFlops.of(self._model, spec.recipe.kind)
        self.batch_tokens = batch_tokens or default_batch_tokens(self.device)
        selftest.check(self, selftest.known_inputs(reader, spec))

    @torch.inference_mode()
    def __call__(self, rows: pa.Array) -> Vectors:
        """Vectors of N rows, in their order: token ids alone, or structs of `input_ids` and `pixels`."""
        inputs = Inputs.of(rows)
        pooled_ND = torch.zeros(len(rows), self.spec.dim, device=self.device)
        padding_tokens = 0
        for of_this_kind in (~inputs.has_image_N, inputs.has_image_N):
            plan = batching.plan(np.where(of_this_kind, inputs.lengths_N, 0), self.batch_tokens)
            padding_tokens += plan.padding_tokens
            cuts = zip(plan.cuts[:-1], plan.cuts[1:], strict=True)
            for (start, end), batch in zip(cuts, batching.batches(inputs.input_ids, plan), strict=True):
                rows_B = plan.order[start:end]
                places = torch.from_numpy(rows_B).to(self.device)
                pooled_ND[places] = self._pooled(batch, self._images(inputs, rows_B))[:, : self.spec.dim]
        values, finite = finish(pooled_ND, self.spec.recipe.normalize)
        num_tiles = sum(self._num_tiles(inputs, int(row)) for row in np.flatnonzero(inputs.has_image_N))
        flops = self.flops.text.total(inputs.lengths_N)
        flops += self.flops.image.total(np.full(num_tiles, self._facts.patches**2))
        return Vectors(values.cpu().numpy(), finite.cpu().numpy(), padding_tokens, flops)

    def _pooled(self, batch: Batch, images: dict[str, torch.Tensor]) -> torch.Tensor:
        mask_BL = torch.from_numpy(batch.mask()).to(self.device)
        states_BLD = self._model(
            input_ids=torch.from_numpy(batch.pad(0)).to(self.device), attention_mask=mask_BL, **images
        ).last_hidden_state
        return pool(states_BLD, mask_BL, self.spec.recipe.pooling)

    def _images(self, inputs: Inputs, rows_B: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """What the model takes beside token ids, in the order of the rows; nothing for a batch of texts."""
        if not inputs.has_image_N[rows_B[0]]:
            return {}
        assert inputs.pixels is not None, "rows with images have pixels"
        tiles_TCSS = np.concatenate([tiles_of(inputs.pixels[int(row)], self._facts.image_size) for row in rows_B])
        pixels_TCSS = self._scaling(torch.from_numpy(tiles_TCSS).to(self.device)).to(self._dtype)
        images = {"pixel_values": pixels_TCSS}
        if self._facts.grids:
            images["image_sizes"] = torch.from_numpy(inputs.sizes_N2[rows_B]).to(self.device)
        return images

    def _num_tiles(self, inputs: Inputs, row: int) -> int:
        assert inputs.pixels is not None
        return len(tiles_of(inputs.pixels[row], self._facts.image_size))


def _check_ids(model: Any, spec: EmbedderSpec, tokenizer: Tokenizer, image_token_id: int | None) -> None:
    check_vocabulary(int(model.get_input_embeddings().num_embeddings), spec, tokenizer)
    if image_token_id is None or image_token_id > tokenizer.max_id:
        raise InputError(f"{spec.recipe.checkpoint}: its image token ({image_token_id}) is not one of its tokenizer's")
