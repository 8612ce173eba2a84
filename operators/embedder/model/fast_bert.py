"""A fast forward pass on a CPU for BERT, RoBERTa, XLM-R and CamemBERT: packed tokens, fused linear layers, no mask.

What makes it fast, next to the transformers model (MiniLM, one Zen 5 core; benchmarks/RESULTS.md has all figures):

- All texts of a batch lie one after another, T tokens without padding. Only attention needs to know where a text ends:
  it takes runs of texts of equal length, side by side after sorting, so that it needs neither mask nor padding.
- Linear layers are oneDNN's, their weights laid out once for its kernels, with GELU or the residual sum computed before
  the result leaves the registers. In float32 this is also 2.4 times torch's own `linear` on an AMD CPU, where MKL runs
  at half the vector width.
- In bfloat16, scores -> exp -> weighted sum, divided afterwards by the sum of the weights: a third of the time that
  scaled_dot_product_attention or softmax need for such short rows. Scores are not shifted by their maximum first, so
  the sums are checked, and a run of texts where they leave the safe range is done again with softmax.

Weights come from a checkpoint's files (operators.embedder.model.bert_weights), which refuses a variant of the
architecture that this file does not know. What is computed is compared when it is built, with the formula in numpy or
with the transformers model (`pack_weights`, `pack`).

Shapes: T tokens of a batch (rounded up to TOKENS_STEP inside), B texts, D width, H heads, K width of a head,
N texts of a run and L their length, R = N * H, 3 = query, key, value.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from operators.embedder.model import bert_weights, plain_bert
from operators.embedder.model.bert_weights import (
    Array,
    BertLayer,
    BertShape,
    BertWeights,
    LayerNorm,
    Linear,
    difference,
)
from operators.embedder.model.device import multiplies
from operators.embedder.model.plain_bert import PlainBert
from operators.embedder.model.pooling import pool_chunks
from operators.embedder.recipe.keywords import Pooling
from operators.embedder.tokens.batching import Batch, Run

if TYPE_CHECKING:
    import transformers

logger = logging.getLogger(__name__)

# classes of transformers that compute this formula
MODELS = frozenset({"BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel"})
# So that few different shapes reach oneDNN, which compiles a kernel for each (0.3 ms, for AMX 4 ms) and keeps few
TOKENS_STEP = 64
MAX_SCORES = 1 << 20  # scores of one run of texts: 2 MB in bfloat16
MAX_SHORT = 1024  # longest text whose scores are kept whole
PACKED_FOR_TOKENS = 2048  # the number of tokens that oneDNN lays weights out for; others only run a little slower
MIN_SUM, MAX_SUM = 1e-30, 1e34  # of exp(scores): no weight that counts is below 1e-38, no weighted sum above 3e38
PROBE_LENGTHS = (33, 16, 7, 7, 2, 1)
# with the model in float32 (MiniLM: float32 1 - 1e-7, bfloat16 0.9999; deep models lose some more)
MIN_COSINE = {torch.float32: 1 - 1e-5, torch.bfloat16: 0.99}


def supports(config: Mapping[str, Any], pooling: str) -> bool:
    """Whether `pack` is worth trying, from config.json alone; logs what a model of these families has in the way."""
    found = difference(config)
    if found is not None and config.get("model_type") in bert_weights.FAMILIES:
        logger.info("no fast path: config.json has %s", found)
    return found is None and pooling in bert_weights.POOLINGS


def pack_weights(weights: BertWeights, pooling: Pooling, dtype: torch.dtype) -> PackedBert | None:
    """The packed form of a checkpoint's weights; None, with a logged reason, where it differs from the formula."""
    return _checked(PackedBert(weights, pooling, dtype), weights.shape, PlainBert(weights))


def pack(model: transformers.PreTrainedModel, pooling: Pooling, dtype: torch.dtype) -> PackedBert | None:
    """The packed form of `model` (in eval mode, on the CPU, in float32); None, with a logged reason, if they differ."""
    name = type(model).__name__
    if name not in MODELS or not type(model).__module__.startswith("transformers.models."):
        logger.warning("no fast path: %s is not the transformers model of its family", name)
        return None
    tensors = {key: tensor.detach().numpy() for key, tensor in model.state_dict().items()}
    weights = bert_weights.bert_weights(model.config.to_dict(), tensors)
    if weights is None:
        logger.warning("no fast path: %s has other weights than those of its family", name)
        return None

    def states_of(ids_L: NDArray[np.int64]) -> Array:
        mask_1L = torch.ones(1, len(ids_L), dtype=torch.bool)
        states_1LD = model(input_ids=torch.from_numpy(ids_L)[None], attention_mask=mask_1L).last_hidden_state
        states_LD: Array = states_1LD[0].numpy()
        return states_LD

    return _checked(PackedBert(weights, pooling, dtype), weights.shape, states_of)


class PackedBert:
    """A PooledForward without padding; made by `pack`, which also checks it.

    `dtype` is what the linear layers and attention compute in. float16, and bfloat16 on a CPU that does not multiply it
    in hardware, are computed in float32: there that is both faster and closer to the model.
    """

    pads = False
    batch_tokens = 2048

    def __init__(self, weights: BertWeights, pooling: Pooling, dtype: torch.dtype) -> None:
        shape = weights.shape
        self.dtype = dtype if multiplies(dtype, torch.device("cpu")) else torch.float32
        self.pooling = pooling
        self._heads = shape.heads
        self._pad_id = shape.pad_id
        self._words_VD = torch.from_numpy(weights.words_VD)  # not copied: of the table a corpus uses a part
        # the sum that every token gets, whatever its text: token type 0 is the only one in embedding
        self._positions_PD = torch.from_numpy(weights.positions_PD + weights.type_D)
        self._norm = _LayerNorm(weights.norm, shape.eps, torch.float32)
        self._layers = [_Layer(layer, shape, self.dtype) for layer in weights.layers]

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> torch.Tensor:
        """pooled_BD float32 of texts in any order; fastest where equal lengths are side by side."""
        runs = list(batch.runs(MAX_SCORES // self._heads))
        states_TD = self._embed(batch)
        ends_B = torch.from_numpy(np.cumsum(batch.lengths_B))
        for layer in self._layers[:-1]:
            states_TD = layer.rest(self._attend(layer, states_TD, runs), states_TD)
        layer = self._layers[-1]
        context_TD = self._attend(layer, states_TD, runs)
        if batch.chunks_S3 is not None:
            places_P, begins_S = (torch.from_numpy(places) for places in batch.chunk_places(None))
            return pool_chunks(layer.rest(context_TD, states_TD), places_P, begins_S)
        if self.pooling == "mean":
            return _mean(layer.rest(context_TD, states_TD), runs)
        # what follows the last attention is per token, and only one token of a text is asked for
        token_B = ends_B - 1 if self.pooling == "last" else ends_B - torch.from_numpy(batch.lengths_B)
        return layer.rest(context_TD[token_B], states_TD[token_B]).to(torch.float32)

    def _embed(self, batch: Batch) -> torch.Tensor:
        num_tokens = len(batch.ids_T)
        states_TD = torch.zeros(-(-num_tokens // TOKENS_STEP) * TOKENS_STEP, self._words_VD.shape[1])
        torch.index_select(self._words_VD, 0, torch.from_numpy(batch.ids_T), out=states_TD[:num_tokens])
        states_TD[:num_tokens] += self._positions_PD[torch.from_numpy(batch.positions(self._pad_id))]
        return self._norm(states_TD).to(self.dtype)

    def _attend(self, layer: _Layer, states_TD: torch.Tensor, runs: list[Run]) -> torch.Tensor:
        qkv_TE = layer.qkv(states_TD)  # E = 3 * D
        context_TD = torch.zeros_like(states_TD)
        for run in runs:
            tokens = slice(run.first_token, run.first_token + run.num_texts * run.length)
            qkv_NL3HK = qkv_TE[tokens].view(run.num_texts, run.length, 3, self._heads, -1)
            out_NLHK = context_TD[tokens].view(run.num_texts, run.length, self._heads, -1)
            if self.dtype == torch.bfloat16 and run.length <= MAX_SHORT:
                _short_attention(qkv_NL3HK, out_NLHK)
            else:
                query, key, value = qkv_NL3HK.permute(2, 0, 3, 1, 4).unbind(0)
                out_NLHK.copy_(F.scaled_dot_product_attention(query, key, value, scale=1.0).transpose(1, 2))
        return context_TD


def _short_attention(qkv_NL3HK: torch.Tensor, out_NLHK: torch.Tensor) -> None:
    """Attention of every text to itself, the query already scaled, written to `out_NLHK`."""
    num_texts, length, _, heads, width = qkv_NL3HK.shape
    qkv_3RLK = qkv_NL3HK.permute(2, 0, 3, 1, 4).reshape(3, num_texts * heads, length, width)
    query_RLK, key_RLK, value_RLK = qkv_3RLK.unbind(0)
    weights_RLL = torch.bmm(query_RLK, key_RLK.transpose(1, 2)).exp_()
    sums_RL1 = weights_RLL.sum(dim=2, keepdim=True)
    low, high = torch.aminmax(sums_RL1)
    if low.item() > MIN_SUM and high.item() < MAX_SUM:
        result_RLK = torch.bmm(weights_RLL, value_RLK)
        sums_NL1H = sums_RL1.view(num_texts, heads, length, 1).transpose(1, 2)
        torch.div(result_RLK.view(num_texts, heads, length, width).transpose(1, 2), sums_NL1H, out=out_NLHK)
    else:  # also where an input is NaN
        weights_RLL = torch.bmm(query_RLK, key_RLK.transpose(1, 2)).softmax(dim=2)
        result_RLK = torch.bmm(weights_RLL, value_RLK)
        out_NLHK.copy_(result_RLK.view(num_texts, heads, length, width).transpose(1, 2))


class _Layer:
    """One layer of the encoder: `qkv`, then attention, then the `rest`."""

    def __init__(self, layer: BertLayer, shape: BertShape, dtype: torch.dtype) -> None:
        scale = np.float32((shape.width // shape.heads) ** -0.5)  # in the query's weights, so that scores come scaled
        linears = ((layer.query, scale), (layer.key, np.float32(1)), (layer.value, np.float32(1)))
        weight_EC = np.concatenate([linear.weight_EC * factor for linear, factor in linears])
        bias_E = np.concatenate([linear.bias_E * factor for linear, factor in linears])
        self.qkv = _Linear(Linear(weight_EC, bias_E), dtype)
        self._context = _Linear(layer.context, dtype)
        self._context_norm = _LayerNorm(layer.context_norm, shape.eps, dtype)
        self._inner = _Linear(layer.inner, dtype, gelu=True)
        self._outer = _Linear(layer.outer, dtype)
        self._norm = _LayerNorm(layer.norm, shape.eps, dtype)

    def rest(self, context_TD: torch.Tensor, states_TD: torch.Tensor) -> torch.Tensor:
        """The layer's output, from the heads' outputs and the layer's input."""
        states_TD = self._context_norm(self._context(context_TD, states_TD))
        return self._norm(self._outer(self._inner(states_TD), states_TD))


class _Linear:
    """x_TC -> x_TC @ weight_EC.T + bias_E, then GELU, or plus other_TE."""

    def __init__(self, linear: Linear, dtype: torch.dtype, gelu: bool = False) -> None:
        self._weight = torch.from_numpy(linear.weight_EC).to(dtype)
        self._bias = torch.from_numpy(linear.bias_E).to(dtype)
        self._gelu = gelu
        self._prepacked = prepacks()
        if self._prepacked:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight, PACKED_FOR_TOKENS)

    def __call__(self, x_TC: torch.Tensor, other_TE: torch.Tensor | None = None) -> torch.Tensor:
        if not self._prepacked:
            x_TE = F.linear(x_TC, self._weight, self._bias)
            x_TE = F.gelu(x_TE) if self._gelu else x_TE
            return x_TE if other_TE is None else x_TE + other_TE
        linear = torch.ops.mkldnn._linear_pointwise
        result: torch.Tensor
        if other_TE is None:
            result = linear(x_TC, self._weight, self._bias, "gelu" if self._gelu else "none", [], "none")
        else:
            result = linear.binary(x_TC, other_TE, self._weight, self._bias, "add")
        return result


class _LayerNorm:
    def __init__(self, norm: LayerNorm, eps: float, dtype: torch.dtype) -> None:
        self._weight = torch.from_numpy(norm.weight_D).to(dtype)
        self._bias = torch.from_numpy(norm.bias_D).to(dtype)
        self._eps = eps

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x_TD, self._weight.shape, self._weight, self._bias, self._eps)


def _mean(states_TD: torch.Tensor, runs: list[Run]) -> torch.Tensor:
    """pooled_BD, summed in float32."""
    pooled_BD = torch.empty(runs[-1].first_text + runs[-1].num_texts, states_TD.shape[1])
    for run in runs:
        states_NLD = states_TD[run.first_token : run.first_token + run.num_texts * run.length].view(
            run.num_texts, run.length, -1
        )
        torch.mean(states_NLD, 1, dtype=torch.float32, out=pooled_BD[run.first_text : run.first_text + run.num_texts])
    return pooled_BD


@lru_cache(maxsize=1)
def prepacks() -> bool:
    """Whether torch has oneDNN's fused linear layers, which are measured here on x86-64 alone."""
    return (
        platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


@torch.inference_mode()
def _checked(
    packed: PackedBert, shape: BertShape, states_of: Callable[[NDArray[np.int64]], Array]
) -> PackedBert | None:
    """`packed`, unless its vectors for texts of random ids differ from those of `states_of`, each text alone there."""
    first = shape.pad_id + 1 if shape.pad_id is not None else 0
    lengths_B = np.array([min(length, shape.positions - first) for length in PROBE_LENGTHS])
    ids_T = np.random.default_rng(0).integers(0, shape.vocab_size, lengths_B.sum())
    packed_BD = packed(Batch(ids_T, lengths_B))
    cosines = []
    for vector_D, ids_L in zip(packed_BD, np.split(ids_T, np.cumsum(lengths_B)[:-1]), strict=True):
        expected_D = torch.from_numpy(plain_bert.pooled(states_of(ids_L), packed.pooling))
        cosines.append(F.cosine_similarity(vector_D, expected_D, dim=0).item())
    if not float(np.min(cosines)) >= MIN_COSINE[packed.dtype]:
        logger.warning("no fast path: it differs from the model (cosine %.6f)", np.min(cosines))
        return None
    return packed
