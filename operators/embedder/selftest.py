"""What every worker checks before it embeds: that this model, with this recipe, here, gives the vectors it promises.

The known texts are embedded alone, together and in another order. A wrong attention mask, padding side or position id,
half-read weights or a broken kernel all show as vectors that depend on their batch, are not finite, or are the same for
different texts; in none of these cases does anything else fail. What a recipe states is tried out: the attention by
changing a token and looking at its neighbours, the rest (tokens left out of pooling, token prepending; adapters where
they are loaded) by doing without, which has to make a difference.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from operators.embedder.model.forward import PooledForward
from operators.embedder.model.token_prepending import TokenPrepending
from operators.embedder.recipe.recipe import Recipe
from operators.embedder.recipe.spec import EmbedderSpec
from operators.embedder.tokens import known_texts, token_rows
from operators.embedder.tokens.batching import Batch
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.embedder.tokens.windows import Windows, tokenize_documents
from operators.embedder.vectors import Vectors
from operators.errors import InputError

if TYPE_CHECKING:
    import transformers

# Least cosine between two computations of one text: rounding differs with a batch's shape, and by no more than this
# (measured: float32 1 - 3e-7, bfloat16 1 - 2e-4 on MiniLM; deep models lose some more)
MIN_COSINE = {"float32": 1 - 1e-5, "float16": 0.999, "bfloat16": 0.99}
NORM_TOLERANCE = 1e-4
PROBE_TOKENS = 16
DAMAGED = "self-test: the model gives NaN, infinite or zero vectors: its weights are damaged"


class Checked(Protocol):
    """A loaded embedder of any kind."""

    spec: EmbedderSpec
    device: torch.device

    def __call__(self, inputs: pa.Array, /) -> Vectors:
        """Vectors of prepared inputs."""


class CheckedOnChunks(Checked, Protocol):
    """One that pools chunks late, too."""

    def of_chunks(self, windows: Windows) -> Vectors:
        """Vectors of the chunks that windows have."""


@torch.inference_mode()
def check_spans(forward: PooledForward, batch: Batch, name: str) -> None:
    """Raise InputError where leaving tokens out of pooling, as the recipe states, changes nothing."""
    over_some, over_all = forward(batch), forward(dataclasses.replace(batch, spans_B2=None))
    if torch.equal(over_some, over_all):
        raise InputError(f"{name}: self-test: the tokens that pool_over leaves out are pooled")


@torch.inference_mode()
def check_prepending(
    model: transformers.PreTrainedModel, prepending: TokenPrepending, tokenizer: Tokenizer, device: torch.device
) -> None:
    """Raise InputError where token prepending changes nothing."""
    reading = token_rows.split(tokenizer(known_texts.texts()).input_ids, len(tokenizer.readings))[0].as_py()
    ids_1L = torch.tensor([reading], device=device)
    plain = model(input_ids=ids_1L).last_hidden_state
    with prepending.on_batch(ids_1L, torch.ones_like(ids_1L, dtype=torch.bool)):
        prepended = model(input_ids=ids_1L).last_hidden_state
    if torch.equal(plain, prepended):
        raise InputError(f"self-test: prepend has no effect on {model.config.model_type}")


def probe_ids(tokenizer: Tokenizer) -> torch.Tensor:
    """ids_1L: some tokens of a known text, all different ones beside each other."""
    ids = token_rows.split(tokenizer(known_texts.texts()).input_ids, len(tokenizer.readings))
    longest = ids[int(np.argmax(np.diff(ids.offsets.to_numpy())))].values.to_numpy().astype(np.int64)
    return torch.from_numpy(longest[:PROBE_TOKENS])[None]


def probe_batch(tokenizer: Tokenizer, recipe: Recipe, config: transformers.PreTrainedConfig) -> Batch:
    """The known texts, and one that is longer than the model's sliding window, where it has one."""
    rows = token_rows.split(tokenizer(known_texts.texts()).input_ids, len(tokenizer.readings)).to_pylist()
    window = getattr(config, "sliding_window", None)
    if window is not None:
        rows.append(np.resize(np.concatenate(rows), min(recipe.max_tokens, int(window) + PROBE_TOKENS)))
    return Batch(np.concatenate(rows).astype(np.int64), np.array([len(row) for row in rows], np.int64))


def check_attention(
    model: transformers.PreTrainedModel, recipe: Recipe, tokenizer: Tokenizer, device: torch.device
) -> bool:
    """Whether the model is causal; raises InputError where that is not what the recipe states or needs."""
    before, after = tokens_that_see(model, probe_ids(tokenizer).to(device))
    if not after:
        raise InputError(f"self-test: a token of {recipe.checkpoint} does not see the one before it")
    causal = not before
    if recipe.attention != "as_trained" and causal != (recipe.attention == "causal"):
        seen = "do not see" if causal else "see"
        raise InputError(
            f"attention: {recipe.attention} has no effect on {recipe.checkpoint} ({model.config.model_type}): "
            f"its tokens still {seen} later ones"
        )
    if causal and recipe.pooling == "cls":
        raise InputError(
            f"pooling: cls gives every text the same vector: the first token of {recipe.checkpoint} sees no other"
        )
    return causal


def check(embedder: Checked, ids: pa.Array) -> None:
    """Raise InputError naming the fault unless `embedder` gives the known texts (token ids) the vectors it should."""
    name = f"{embedder.spec.model} on {embedder.device.type}"
    together = embedder(ids)
    if not together.finite_N.all():
        raise InputError(f"{name}: {DAMAGED}")
    if embedder.spec.recipe.normalize and embedder.spec.dim:
        norms_N = np.linalg.norm(together.values_ND, axis=1)
        if np.abs(norms_N - 1).max() > NORM_TOLERANCE:
            raise InputError(f"{name}: self-test: normalised vectors have lengths {norms_N}")
    least = MIN_COSINE[embedder.spec.recipe.compute_dtype]
    backwards = pa.array(range(len(ids) - 1, -1, -1))
    num_ids = embedder.spec.sparse_dim
    alone = [_kinds(embedder(ids.slice(i, 1)), num_ids) for i in range(len(ids))]
    others = {
        "alone": [np.concatenate(rows) for rows in zip(*alone, strict=True)],
        "in another order": [values_ND[::-1] for values_ND in _kinds(embedder(ids.take(backwards)), num_ids)],
    }
    kinds = _kinds(together, num_ids)
    for how, other in others.items():
        pairs = zip(kinds, other, strict=True)
        cosine = min(_cosines(values_ND, other_ND).min() for values_ND, other_ND in pairs)
        if not cosine >= least:
            raise InputError(
                f"{name}: self-test: a text embedded together with others and {how} gives different vectors "
                f"(cosine {cosine:.6f}, at least {least} expected): attention, padding or positions are wrong"
            )
    if max(_cosines(values_ND[:1], values_ND[1:2]).max() for values_ND in kinds if values_ND[:2].any()) > 1 - 1e-7:
        raise InputError(f"{name}: self-test: different texts get the same vector: check pooling and attention")


def check_chunks(embedder: CheckedOnChunks, tokenizer: Tokenizer) -> None:
    """Raise InputError unless the halves of the known texts, pooled late, have the same vectors alone and together."""
    halves = [(text, np.array([[0, len(text) // 2], [len(text) // 2, len(text)]])) for text in known_texts.TEXTS]
    windows = Windows.of_table(pa.table(tokenize_documents(halves, tokenizer, overlap=0).columns()))
    together_CD = embedder.of_chunks(windows).values_ND
    alone_CD = np.concatenate([embedder.of_chunks(windows.slice(i, 1)).values_ND for i in range(len(windows))])
    cosine = _cosines(together_CD, alone_CD).min()
    if not cosine >= MIN_COSINE[embedder.spec.recipe.compute_dtype]:
        raise InputError(
            f"{embedder.spec.model} on {embedder.device.type}: self-test: a late chunk embedded together with others "
            f"and alone gives different vectors (cosine {cosine:.6f})"
        )


@torch.inference_mode()
def tokens_that_see(model: transformers.PreTrainedModel, ids_1L: torch.Tensor) -> tuple[bool, bool]:
    """Whether tokens before, and tokens after, a token in the middle of a text change their states with it.

    Asked of the model because configs do not say it reliably (`is_causal` is often missing, or ignored by the code).
    """
    middle = ids_1L.shape[1] // 2
    changed_1L = ids_1L.clone()
    others = ids_1L[0][ids_1L[0] != ids_1L[0, middle]]
    changed_1L[0, middle] = others[0]
    states_LD, other_LD = (model(input_ids=ids).last_hidden_state[0].float() for ids in (ids_1L, changed_1L))
    if not torch.isfinite(states_LD).all():
        raise InputError(f"{DAMAGED} ({model.config.model_type})")
    moved_L = (states_LD - other_LD).abs().amax(dim=1)
    least = 1e-5 * moved_L[middle]
    return bool((moved_L[:middle] > least).any()), bool((moved_L[middle + 1 :] > least).any())


def _kinds(vectors: Vectors, num_ids: int) -> list[NDArray[np.float32]]:
    """The dense vectors and, written out, the sparse ones, where there are any."""
    dense = [vectors.values_ND] if vectors.values_ND.shape[1] else []
    return dense if vectors.sparse is None else [*dense, vectors.sparse.dense(num_ids)]


def _cosines(one_ND: NDArray[np.float32], other_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    one, other = one_ND.astype(np.float64), other_ND.astype(np.float64)
    lengths_2N = np.stack([np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)])
    same = np.where(lengths_2N.any(axis=0), 0.0, 1.0)  # a sparse vector may have no entries: it then is like itself
    np.divide((one * other).sum(1), lengths_2N.prod(axis=0), out=same, where=lengths_2N.all(axis=0))
    return same
