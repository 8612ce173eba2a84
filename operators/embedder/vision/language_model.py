"""Language models that see (LLaVA, LLaVA-NeXT) as embedders of texts, images, and both: one prompt for each.

    "<image>\\nSummary above image in one word: "          E5-V (arXiv 2407.12580): the state of the last token, of
    "{text}\\nSummary above sentence in one word: "        texts and of images alike, is the vector

Rows with an image and rows without go in batches of their own, so that a text which spells out the image token is only
a text. Within a batch they are sorted by length, as everywhere, and padded on the right, where a causal model never
looks.

Shapes: N rows of a call, B rows of a batch, L padded length, D width of a state.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from operators.embedder.model.pooling import pool
from operators.embedder.tokens import batching
from operators.embedder.tokens.batching import Batch, OnTokens
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.embedder.vision.embedder import VisionEmbedder
from operators.embedder.vision.inputs import Inputs
from operators.embedder.vision.processing import tiles_of
from operators.errors import InputError


class VisionLanguageEmbedder(VisionEmbedder):
    """A language model with a vision tower: an image becomes tokens among those of its prompt."""

    def _begin(self, tokenizer: Tokenizer) -> None:
        self._model.language_model.config.use_cache = False
        tokenizer.check_vocabulary(int(self._model.get_input_embeddings().num_embeddings))
        image_token_id = self._facts.image_token_id
        if image_token_id is None or image_token_id > tokenizer.max_id:
            raise InputError(
                f"{self.spec.recipe.checkpoint}: its image token ({image_token_id}) is not one of its tokenizer's"
            )

    def _embed(self, inputs: Inputs, pooled_ND: torch.Tensor, on_tokens: OnTokens) -> int:
        padding_tokens = 0
        for of_this_kind in (~inputs.has_image_N, inputs.has_image_N):
            plan = batching.plan(np.where(of_this_kind, inputs.lengths_N, 0), self.batch_tokens)
            padding_tokens += plan.padding_tokens
            cuts = zip(plan.cuts[:-1], plan.cuts[1:], strict=True)
            for (start, end), batch in zip(cuts, batching.batches(inputs.input_ids, plan), strict=True):
                rows_B = plan.order[start:end]
                places = torch.from_numpy(rows_B).to(self.device)
                pooled_ND[places] = self._pooled(batch, self._images(inputs, rows_B))[:, : self.spec.dim]
                on_tokens(len(batch.ids_T))
        return padding_tokens

    def _flops_of(self, inputs: Inputs) -> float:
        num_tiles = sum(self._num_tiles(inputs, int(row)) for row in np.flatnonzero(inputs.has_image_N))
        flops = self.flops.text.total(inputs.lengths_N)
        return flops + self.flops.image.total(np.full(num_tiles, self._facts.patches**2))

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
        images = {"pixel_values": self._pixels(inputs, rows_B)}
        if self._facts.grids:
            images["image_sizes"] = torch.from_numpy(inputs.sizes_N2[rows_B]).to(self.device)
        return images

    def _num_tiles(self, inputs: Inputs, row: int) -> int:
        assert inputs.pixels is not None
        return len(tiles_of(inputs.pixels[row], self._facts.image_size))
