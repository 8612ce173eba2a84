"""A static embedder out of a transformer, as model2vec makes them (github.com/MinishLab/model2vec): no training data.

    each token of the vocabulary alone, between special tokens -> vectors -> PCA -> weight by rank -> table

PCA is more than a saving: it centres the vectors, which all point in much the same direction. Weighting stands in for
what attention does with words that say little. Ranks are ids, since vocabularies are listed about by frequency.
Shapes: V ids of the vocabulary, K of them kept, D the model's width, P dims after PCA.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray

from operators.embedder.factory import load_embedder
from operators.embedder.recipe import static_folder
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import EmbedderSpec, templates_of, verified_folder
from operators.embedder.recipe.word_vectors.weights import sif, zipf
from operators.embedder.static.table import write_sentence_transformers
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.errors import InputError

TOKENS_PER_CALL = 1 << 15  # rows of a call to the embedder; bounds its result to 0.5 GB at 4,096 dims


@dataclasses.dataclass(frozen=True, slots=True)
class Distilled:
    """What a distillation did."""

    num_tokens: int  # with a vector
    num_zero: int  # special, unused and refused tokens, which count for nothing
    dim: int
    explained_variance: float  # share that PCA kept


def distill_static(
    spec: EmbedderSpec,
    folder: Path,
    dims: int | None,
    sif_a: float | None,
    exclude: str,
    threads: int | None = None,
) -> Distilled:
    """Fill `folder` with the static embedder of a recipe's model, which sentence-transformers loads too.

    dims None keeps the model's own, without PCA; sif_a None weights all tokens alike; tokens that match `exclude` get
    no vector. The prompt is left out. Raises InputError where `dims` does not fit or the model is static already.
    """
    if spec.recipe.kind == "static":
        raise InputError(f"give a transformer to distil: {spec.model} is static already")
    backend = _tokenizer(spec)
    ids_K = _kept_ids(backend, exclude)
    if dims is not None and dims > min(spec.dim, len(ids_K)):
        raise InputError(f"set dims to {min(spec.dim, len(ids_K))} or less, or to null: {spec.model} has no {dims}")
    values_KD, finite_K = _embed_alone(spec, ids_K, threads)
    ids_K, values_KD = ids_K[finite_K], values_KD[finite_K]
    values_KP, explained = (values_KD, 1.0) if dims is None else principal_components(values_KD, dims)
    if sif_a is not None:
        values_KP = values_KP * sif(zipf(len(ids_K)), sif_a)[:, None]
    table_VP = np.zeros((max(backend.get_vocab(with_added_tokens=True).values()) + 1, values_KP.shape[1]), np.float32)
    table_VP[ids_K] = values_KP
    write_sentence_transformers(folder, torch.from_numpy(table_VP), backend)
    return Distilled(len(ids_K), len(table_VP) - len(ids_K), values_KP.shape[1], explained)


def principal_components(values_KD: NDArray[np.float32], dims: int) -> tuple[NDArray[np.float64], float]:
    """Vectors, centred, in the `dims` directions of most variance, largest first; and the share of variance kept."""
    centred_KD = values_KD.astype(np.float64) - values_KD.mean(axis=0, dtype=np.float64)
    variances_D, directions_DD = np.linalg.eigh(centred_KD.T @ centred_KD)
    kept_DP = directions_DD[:, : -dims - 1 : -1]
    signs_P = np.sign(kept_DP[np.abs(kept_DP).argmax(axis=0), np.arange(dims)])  # eigh leaves them to chance
    return centred_KD @ (kept_DP * signs_P), float(variances_D[-dims:].sum() / variances_D.sum())


def _tokenizer(spec: EmbedderSpec) -> tokenizers.Tokenizer:
    """The model's tokenizer without the special tokens around a text."""
    return static_folder.load_tokenizer(verified_folder(spec, weights=False))


def _kept_ids(backend: tokenizers.Tokenizer, exclude: str) -> NDArray[np.int32]:
    """The ids of the vocabulary, in order, that are text."""
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    unwanted = re.compile(exclude)
    ids = sorted(
        number
        for token, number in backend.get_vocab(with_added_tokens=True).items()
        if token not in special and unwanted.fullmatch(token) is None
    )
    return np.array(ids, np.int32)


def _embed_alone(
    spec: EmbedderSpec, ids_K: NDArray[np.int32], threads: int | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """values_KD of each id between special tokens, as long as the model gives them, and whether they are finite."""
    recipe = spec.recipe.model_copy(update={"normalize": False})
    bare = dataclasses.replace(spec, recipe=recipe, templates=templates_of(recipe, EmbedderConfig(prompt="")))
    embedder = load_embedder(bare, threads=threads)
    rows = Tokenizer(bare).alone(ids_K)
    calls = [embedder(rows.slice(start, TOKENS_PER_CALL)) for start in range(0, len(rows), TOKENS_PER_CALL)]
    return np.concatenate([call.values_ND for call in calls]), np.concatenate([call.finite_N for call in calls])
