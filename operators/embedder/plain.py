"""The embedder of a few texts: quick to start, without torch and transformers, where a recipe needs no more than BERT.

A search's query is one text: importing torch and a model's code takes it longer than everything else. This one maps the
weights and computes in numpy. Above some thousand tokens operators.embedder.engine is faster.

Shapes: N rows, L tokens of one, D width of a vector.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from operators.embedder.model.bert_weights import BertWeights, asks_for_no_more, bert_shape, read_bert
from operators.embedder.model.plain_bert import PlainBert, pooled
from operators.embedder.recipe.checkpoint import read_config
from operators.embedder.recipe.spec import EmbedderSpec, verified_folder
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.embedder.vectors import Vectors, finish_numpy


class PlainEmbedder:
    """Token ids of a few texts -> their vectors; made by `load_plain_embedder`."""

    def __init__(self, spec: EmbedderSpec, weights: BertWeights) -> None:
        self.spec = spec
        self._states_of = PlainBert(weights)

    def __call__(self, input_ids: pa.ListArray) -> Vectors:
        """Vectors of N rows of token ids (list<int32>, no nulls), in their order."""
        pooled_ND = np.zeros((len(input_ids), self.spec.dim), np.float32)
        # one thread: for products this small, BLAS's threads wait for each other 20 times as long as they compute
        with threadpool_limits(1, user_api="blas"), np.errstate(over="ignore", invalid="ignore"):
            for row, ids_L in enumerate(input_ids):
                if len(ids_L):
                    pooled_ND[row] = self._vector(ids_L.values.to_numpy().astype(np.int64))
        values_ND, finite_N = finish_numpy(pooled_ND, self.spec.recipe.normalize)
        return Vectors(values_ND, finite_N, padding_tokens=0)

    def _vector(self, ids_L: NDArray[np.int64]) -> NDArray[np.float32]:
        return pooled(self._states_of(ids_L), self.spec.recipe.pooling)[: self.spec.dim]


def load_plain_embedder(spec: EmbedderSpec, tokenizer: Tokenizer) -> PlainEmbedder | None:
    """The embedder of a few texts for a spec; None where the recipe or its checkpoint need more."""
    recipe = spec.recipe
    is_plain = asks_for_no_more(recipe) and not recipe.head and recipe.sparse is None
    if not is_plain or not tokenizer.pools_all or len(tokenizer.readings) > 1:
        return None
    shape = bert_shape(read_config(verified_folder(spec, weights=False)))
    weights = None if shape is None else read_bert(verified_folder(spec, weights=True))
    if weights is None:
        return None
    tokenizer.check_vocabulary(weights.shape.vocab_size)
    return PlainEmbedder(spec, weights)
