"""CLIP and SigLIP: a text and an image each go through a tower of their own, into one space.

A call holds texts, images or both, in any order. Texts are sorted by length as everywhere; images are all of one size.
SigLIP's text tower was trained on texts padded to their full length, without a mask: it takes its vector from the last
place, padding or not (`pad_token` in the recipe). CLIP's is causal and takes it from the end token, so padding after it
is never looked at.

Shapes: N rows of a call, B rows of a batch, L padded length, D width of a vector, T tiles, C channels, S pixels.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from operators.embedder.model.forward import default_batch_tokens
from operators.embedder.model.loading import DTYPES
from operators.embedder.recipe.spec import EmbedderSpec
from operators.embedder.starting import Device, check_vocabulary
from operators.embedder.tokens import batching
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.embedder.vectors import Vectors, finish
from operators.embedder.vision import selftest
from operators.embedder.vision.flops import VisionFlops
from operators.embedder.vision.inputs import Inputs
from operators.embedder.vision.processing import tiles_of
from operators.embedder.vision.starting import prepare
from operators.errors import InputError


class TwoTowerEmbedder:
    """A loaded, self-tested pair of towers; the same call as `Embedder`, with images too."""

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
        self._pad_id = _pad_id(spec, reader.tokenizer, self._facts.model_type)
        table = self._model.text_model.get_input_embeddings()
        check_vocabulary(table.num_embeddings, spec, reader.tokenizer)
        self.flops = VisionFlops.of(self._model, spec.recipe.kind)
        self.batch_tokens = batch_tokens or default_batch_tokens(self.device)
        selftest.check(self, selftest.known_inputs(reader, spec))

    @torch.inference_mode()
    def __call__(self, rows: pa.Array) -> Vectors:
        """Vectors of N rows, in their order: token ids alone, or structs of `input_ids` and `pixels`."""
        inputs = Inputs.of(rows)
        features_ND = torch.zeros(len(rows), self.spec.dim, device=self.device)
        lengths_N = np.where(inputs.has_image_N, 0, inputs.lengths_N)
        padding_tokens = self._embed_texts(inputs, lengths_N, features_ND)
        self._embed_images(inputs, features_ND)
        values, finite = finish(features_ND, self.spec.recipe.normalize)
        num_images = int(inputs.has_image_N.sum())
        flops = self.flops.text.total(lengths_N)
        flops += self.flops.image.total(np.full(num_images, self._facts.tile_tokens))
        return Vectors(values.cpu().numpy(), finite.cpu().numpy(), padding_tokens, flops)

    def _embed_texts(self, inputs: Inputs, lengths_N: NDArray[np.int64], features_ND: torch.Tensor) -> int:
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
            self._put(found.pooler_output, plan.order[start:end], features_ND)
        return padding_tokens

    def _embed_images(self, inputs: Inputs, features_ND: torch.Tensor) -> None:
        num_images = max(1, self.batch_tokens // self._facts.tile_tokens)
        places = np.flatnonzero(inputs.has_image_N)
        for start in range(0, len(places), num_images):
            batch = places[start : start + num_images]
            assert inputs.pixels is not None, "rows with images have pixels"
            tiles_BCSS = np.concatenate([tiles_of(inputs.pixels[int(row)], self._facts.image_size) for row in batch])
            pixels_BCSS = self._scaling(torch.from_numpy(tiles_BCSS).to(self.device)).to(self._dtype)
            self._put(self._model.get_image_features(pixel_values=pixels_BCSS).pooler_output, batch, features_ND)

    def _put(self, found_BD: torch.Tensor, rows: NDArray[np.int64], features_ND: torch.Tensor) -> None:
        if found_BD.shape[1] != self._facts.width:
            raise InputError(
                f"{self.spec.model}: a tower gives {found_BD.shape[1]} dimensions, and its config.json says "
                f"{self._facts.width}: texts and images do not meet"
            )
        places = torch.from_numpy(rows).to(self.device)
        features_ND[places] = found_BD[:, : self.spec.dim].to(torch.float32)


def _pad_id(spec: EmbedderSpec, tokenizer: Tokenizer, model_type: str) -> int | None:
    """The id that texts are padded with to their full length; None where padding is never looked at."""
    pad_token = spec.recipe.pad_token
    if (pad_token is None) == (model_type == "siglip"):
        raise InputError(
            f"pad_token belongs in recipes of siglip, which reads texts padded to max_tokens: {spec.model} is "
            f"{model_type} and has {'none' if pad_token is None else repr(pad_token)}"
        )
    return None if pad_token is None else tokenizer.token_id(pad_token)
