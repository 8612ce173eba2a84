"""Static embedders: a text's vector is the mean of its tokens' vectors in a table; there is no model to run.

One call of torch's embedding_bag sums the rows of all texts (70 to 90 million tokens a second on one core, where
numpy's reduceat has 3 and the same call with mean and padding_idx 13), so tokenizing is what a run waits for.

Shapes: N rows of a call, T tokens of all rows, V ids, D dims.
"""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from operators.embedder.recipe import static_folder
from operators.embedder.recipe.keywords import Device
from operators.embedder.recipe.spec import EmbedderSpec, verified_folder
from operators.embedder.static.table import load_table
from operators.embedder.tokens.batching import OnTokens, untold
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.embedder.vectors import Vectors, finish
from operators.errors import InputError

TESTED_LENGTHS = (1, 60, 0, 17)  # a row without tokens among them
TESTED_IDS = 1000
TOLERANCE = 1e-5  # of a mean in float32 to one in float64, relative to the longest vector


class StaticEmbedder:
    """A loaded, self-tested table; the same call as `Embedder`. Raises InputError where the folder is wrong."""

    def __init__(self, spec: EmbedderSpec, device: Device = "auto", threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.spec = spec
        # a GPU would wait for its input: the table is read once for a token, which is as much as the ids themselves
        self.device = torch.device("cuda" if device == "cuda" else "cpu")
        folder = verified_folder(spec, weights=True)
        self._table_VD = load_table(folder).to(self.device)
        self._unknown_id = static_folder.unknown_id(folder)
        max_id = Tokenizer(spec).max_id
        if max_id >= len(self._table_VD):
            raise InputError(
                f"{spec.recipe.checkpoint}: the tokenizer has ids up to {max_id}, but the table has only "
                f"{len(self._table_VD)} vectors: they do not belong together"
            )
        self._check_mean()

    @torch.inference_mode()
    def __call__(self, input_ids: pa.ListArray, on_tokens: OnTokens = untold) -> Vectors:
        """Vectors of N rows of token ids (list<int32>, no nulls), in their order."""
        offsets = input_ids.offsets.to_numpy().astype(np.int64)
        ids_T = input_ids.values.to_numpy()[offsets[0] : offsets[-1]].astype(np.int64)
        offsets -= offsets[0]
        unknown_N = self._unknown(ids_T, offsets)
        known_N = np.maximum(np.diff(offsets) - unknown_N, 1)
        sums_ND = self._sum(ids_T, offsets)[:, : self.spec.dim]
        means_ND = sums_ND / torch.from_numpy(known_N).to(self.device)[:, None]
        values, finite = finish(means_ND, self.spec.recipe.normalize)
        num_unknown = int(unknown_N.sum())
        flops = float((len(ids_T) - num_unknown) * self.spec.dim)
        on_tokens(len(ids_T))
        return Vectors(values.cpu().numpy(), finite.cpu().numpy(), 0, flops, num_unknown)

    def _sum(self, ids_T: NDArray[np.int64], offsets: NDArray[np.int64]) -> torch.Tensor:
        """sums_ND of the rows of the table that each text's ids name."""
        if not len(ids_T):
            return torch.zeros(len(offsets) - 1, self._table_VD.shape[1], device=self.device)
        ids, starts = torch.from_numpy(ids_T).to(self.device), torch.from_numpy(offsets).to(self.device)
        return torch.nn.functional.embedding_bag(ids, self._table_VD, starts, mode="sum", include_last_offset=True)

    def _unknown(self, ids_T: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many tokens of each text are unknown and left out of its mean; their row of the table is zero."""
        if self._unknown_id is None:
            return np.zeros(len(offsets) - 1, np.int64)
        unknown_before = np.concatenate([[0], np.cumsum(ids_T == self._unknown_id)])
        return np.diff(unknown_before[offsets])

    def _check_mean(self) -> None:
        """Compare with means in float64, made another way: a damaged table or a broken kernel shows."""
        name = f"{self.spec.model} on {self.device.type}: self-test"
        num = len(self._table_VD)
        ids = np.unique(np.linspace(0, num - 1, min(TESTED_IDS, num)).astype(np.int64))
        own_VD = self._table_VD[torch.from_numpy(ids)].cpu().numpy()[:, : self.spec.dim].astype(np.float64)
        if not np.isfinite(own_VD).all() or not own_VD.any():
            raise InputError(f"{name}: the table has NaN, infinity or nothing but zeros: it is damaged")
        chosen = np.random.default_rng(0).integers(0, len(ids), sum(TESTED_LENGTHS))
        offsets = np.concatenate([[0], np.cumsum(TESTED_LENGTHS)])
        sums_ND = self._sum(ids[chosen], offsets).cpu().numpy()[:, : self.spec.dim]
        expected_ND = np.stack([own_VD[chosen[i:j]].sum(axis=0) for i, j in itertools.pairwise(offsets)])
        largest = np.abs(own_VD).max() * max(TESTED_LENGTHS)
        if np.abs(sums_ND - expected_ND).max() > TOLERANCE * largest:
            raise InputError(f"{name}: sums of vectors are wrong: the table or torch's embedding_bag is damaged")
