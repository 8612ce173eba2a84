"""BERT's formula in numpy, float32, one text at a time: quick to start, and what the fast forward is compared with.

A query embedded with it needs neither torch nor transformers, whose imports cost more than the query (3 s and 300 MB
against 20 ms for MiniLM). It is no engine: beyond some thousand tokens operators.embedder.model.fast_bert is faster.

Formula: Devlin et al. 2019 (arXiv 1810.04805), as transformers computes it in eval mode. Positions of RoBERTa's family
start after the padding id and skip it.

Shapes: L tokens of a text, D width, H heads, K width of a head.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from operators.embedder.model.bert_weights import Array, BertLayer, BertWeights, LayerNorm, Linear
from operators.embedder.tokens.batching import Batch


class PlainBert:
    """Token ids of a text -> its token states."""

    def __init__(self, weights: BertWeights) -> None:
        self._weights = weights
        self._eps = np.float32(weights.shape.eps)

    def __call__(self, ids_L: NDArray[np.int64]) -> Array:
        """states_LD of one text."""
        weights = self._weights
        positions_L = Batch(ids_L, np.array([len(ids_L)])).positions(weights.shape.pad_id)
        states_LD = weights.words_VD[ids_L] + weights.positions_PD[positions_L] + weights.type_D
        states_LD = self._normed(states_LD, weights.norm)
        for layer in weights.layers:
            states_LD = self._layer(layer, states_LD)
        return states_LD

    def _layer(self, layer: BertLayer, states_LD: Array) -> Array:
        context_LD = _linear(self._attention(layer, states_LD), layer.context)
        states_LD = self._normed(states_LD + context_LD, layer.context_norm)
        inner_LI = _gelu(_linear(states_LD, layer.inner))
        return self._normed(states_LD + _linear(inner_LI, layer.outer), layer.norm)

    def _attention(self, layer: BertLayer, states_LD: Array) -> Array:
        length, width = states_LD.shape
        parts = (_linear(states_LD, linear) for linear in (layer.query, layer.key, layer.value))
        heads = self._weights.shape.heads
        query_HLK, key_HLK, value_HLK = (part.reshape(length, heads, -1).transpose(1, 0, 2) for part in parts)
        scores_HLL = query_HLK @ key_HLK.transpose(0, 2, 1) / np.float32(np.sqrt(width // heads))
        weights_HLL = np.exp(scores_HLL - scores_HLL.max(axis=2, keepdims=True))
        weights_HLL /= weights_HLL.sum(axis=2, keepdims=True)
        return np.ascontiguousarray((weights_HLL @ value_HLK).transpose(1, 0, 2)).reshape(length, width)

    def _normed(self, x_LD: Array, norm: LayerNorm) -> Array:
        centred_LD = x_LD - x_LD.mean(axis=1, keepdims=True)
        variance_L1 = np.square(centred_LD).mean(axis=1, keepdims=True)
        normed_LD: Array = centred_LD / np.sqrt(variance_L1 + self._eps) * norm.weight_D + norm.bias_D
        return normed_LD


def pooled(states_LD: Array, pooling: str) -> Array:
    """vector_D of a text's states; pooling is mean, cls or last."""
    assert pooling in ("mean", "cls", "last"), pooling
    vector_D: Array = states_LD.mean(axis=0) if pooling == "mean" else states_LD[0 if pooling == "cls" else -1]
    return vector_D


def _linear(x_LC: Array, linear: Linear) -> Array:
    product_LE: Array = x_LC @ linear.weight_EC.T
    return product_LE + linear.bias_E


def _gelu(x: Array) -> Array:
    from scipy.special import erf  # here: 0.2 s that a process without a model of this kind does without

    activated: Array = np.float32(0.5) * x * (1 + erf(x * np.float32(np.sqrt(0.5))))
    return activated
