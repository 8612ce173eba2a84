"""CLIP and SigLIP: a text and an image each go through a tower of their own, into one space.

A call holds texts, images or both, in any order. Texts are sorted by length as everywhere; images are all of one size.
SigLIP's text tower was trained on texts padded to their full length, without a mask: it takes its vector from the last
place, padding or not (`pad_token` in the recipe). CLIP's is causal and takes it from the end token, so padding after it
is never looked at.

Shapes: N rows of a call, B rows of a batch, L padded length, D width of a vector.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from operators.embedder.recipe.spec import EmbedderSpec
from operators.embedder.tokens import batching
from operators.embedder.tokens.batching import OnTokens
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.embedder.vision.embedder import VisionEmbedder
from operators.embedder.vision.inputs import Inputs
from operators.errors import InputError


class TwoTowerEmbedder(VisionEmbedder):
    """A pair of towers: a text goes through one, an image through the other."""

    def _begin(self, tokenizer: Tokenizer) -> None:
        self._pad_id = _pad_id(self.spec, tokenizer, self._facts.model_type)
        tokenizer.check_vocabulary(self._model.text_model.get_input_embeddings().num_embeddings)

    def _embed(self, inputs: Inputs, pooled_ND: torch.Tensor, on_tokens: OnTokens) -> int:
        padding_tokens = self._embed_texts(inputs, _text_lengths(inputs), pooled_ND, on_tokens)
        self._embed_images(inputs, pooled_ND, on_tokens)
        return padding_tokens

    def _flops_of(self, inputs: Inputs) -> float:
        num_images = int(inputs.has_image_N.sum())
        flops = self.flops.text.total(_text_lengths(inputs))
        return flops + self.flops.image.total(np.full(num_images, self._facts.tile_tokens))

    def _embed_texts(
        self, inputs: Inputs, lengths_N: NDArray[np.int64], pooled_ND: torch.Tensor, on_tokens: OnTokens
    ) -> int:
        plan = batching.plan(lengths_N, self.batch_tokens)
        padding_tokens = 0
        cuts = zip(plan.cuts[:-1], plan.cuts[1:], strict=True)
        for (start, end), batch in zip(cuts, batching.batches(inputs.input_ids, plan), strict=True):
            ids_BL = batch.pad(0 if self._pad_id is None else self._pad_id)
            if self._pad_id is not None:
                width = ((0, 0), (0, self.spec.recipe.max_tokens - ids_BL.shape[1]))
                ids_BL = np.pad(ids_BL, width, constant_values=self._pad_id)
            padding_tokens += ids_BL.size - len(batch.ids_T)
            found = self._model.get_text_features(input_ids=torch.from_numpy(ids_BL).to(self.device))
            self._put(found.pooler_output, plan.order[start:end], pooled_ND)
            on_tokens(len(batch.ids_T))
        return padding_tokens

    def _embed_images(self, inputs: Inputs, pooled_ND: torch.Tensor, on_tokens: OnTokens) -> None:
        num_images = max(1, self.batch_tokens // self._facts.tile_tokens)
        places = np.flatnonzero(inputs.has_image_N)
        for start in range(0, len(places), num_images):
            batch = places[start : start + num_images]
            found = self._model.get_image_features(pixel_values=self._pixels(inputs, batch))
            self._put(found.pooler_output, batch, pooled_ND)
            on_tokens(len(batch) * self._facts.tile_tokens)

    def _put(self, found_BD: torch.Tensor, rows: NDArray[np.int64], pooled_ND: torch.Tensor) -> None:
        if found_BD.shape[1] != self._facts.width:
            raise InputError(
                f"{self.spec.model}: a tower gives {found_BD.shape[1]} dimensions, and its config.json says "
                f"{self._facts.width}: texts and images do not meet"
            )
        places = torch.from_numpy(rows).to(self.device)
        pooled_ND[places] = found_BD[:, : self.spec.dim].to(torch.float32)


def _text_lengths(inputs: Inputs) -> NDArray[np.int64]:
    """Token ids of each row that is a text; 0 for an image, which has none to read."""
    return np.where(inputs.has_image_N, 0, inputs.lengths_N)


def _pad_id(spec: EmbedderSpec, tokenizer: Tokenizer, model_type: str) -> int | None:
    """The id that texts are padded with to their full length; None where padding is never looked at."""
    pad_token = spec.recipe.pad_token
    if (pad_token is None) == (model_type == "siglip"):
        raise InputError(
            f"pad_token belongs in recipes of siglip, which reads texts padded to max_tokens: {spec.model} is "
            f"{model_type} and has {'none' if pad_token is None else repr(pad_token)}"
        )
    return None if pad_token is None else tokenizer.token_id(pad_token)
