"""Embed queries with the model that embedded the documents, and its prompt for queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pydantic
import yaml

from jobs.embedding.config import EmbedConfig
from jobs.embedding.identity import RECIPES, dataset_fingerprint
from operators.embedder.factory import load_embedder, load_embedder_of_few
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec
from operators.embedder.sparse_vectors import SparseVectors
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.embedder.vectors import Vectors as Embedded
from operators.errors import InputError
from operators.index.fusion import Mode
from operators.index.vectors import Vectors, VectorSpace
from operators.storage import Location, exists, read_bytes


def document_config(dataset: Location) -> EmbedConfig:
    """The config that a dataset was embedded with; what it says of running code is left out, since it is data.

    Raises InputError where it is gone or from another version.
    """
    location = dataset / "config.yaml"
    if not exists(location):
        raise InputError(f"restore {location}, or give ready vectors (queries.vector): it says which model to use")
    try:
        stored = EmbedConfig.model_validate(yaml.safe_load(read_bytes(location))["config"])
    except (pydantic.ValidationError, KeyError, TypeError) as error:
        raise InputError(f"give ready vectors (queries.vector): {location} does not read ({error})") from None
    return stored.model_copy(update={"embedder": stored.embedder.model_copy(update={"trust_remote_code": False})})


def query_spec(
    dataset: Location, fingerprint: str, prompt: str | None = None, trust_remote_code: bool = False
) -> EmbedderSpec:
    """How to embed queries for a dataset's vectors; `prompt` in place of the recipe's own for queries.

    Code that comes with the checkpoint runs only where `trust_remote_code` says so, whatever the dataset says.

    Raises InputError where the model on this machine is not the one that embedded the documents.
    """
    config = document_config(dataset)
    trusted = config.embedder.model_copy(update={"trust_remote_code": trust_remote_code})
    documents = embedder_spec(config.model, trusted, RECIPES)
    if dataset_fingerprint(config, documents) != fingerprint:
        raise InputError(
            f"use the model that embedded the documents: {config.model} on this machine has another fingerprint than "
            f"{dataset.url} ({fingerprint[:12]}); its files or recipe have changed"
        )
    changed = trusted.model_copy(update={"role": "query", "prompt": prompt})
    return embedder_spec(config.model, changed, RECIPES)


class QueryEmbedder:
    """Texts to query vectors, in one process; for `few` texts in all, what starts soonest embeds them."""

    def __init__(self, spec: EmbedderSpec, space: VectorSpace, threads: int | None = None, few: bool = False) -> None:
        self._space = space
        self._tokenizer = Tokenizer(spec)
        self._embedder: Callable[[pa.ListArray], Embedded] = (
            load_embedder_of_few(spec, self._tokenizer, threads) if few else load_embedder(spec, threads=threads)
        )

    def __call__(self, texts: Sequence[str] | pa.Array) -> Vectors:
        """Vectors of texts, as the index takes them."""
        return as_queries(self._embedded(texts).values_ND, self._space)

    def both(self, texts: Sequence[str], mode: Mode) -> tuple[Vectors | None, SparseVectors | None]:
        """The dense and the sparse vectors of texts, of which a mode of search may need one alone."""
        vectors = self._embedded(texts)
        dense_QD = as_queries(vectors.values_ND, self._space) if mode != "sparse" else None
        return dense_QD, vectors.sparse if mode != "dense" else None

    def _embedded(self, texts: Sequence[str] | pa.Array) -> Embedded:
        array = texts if isinstance(texts, pa.Array) else pa.array(list(texts), pa.string())
        return self._embedder(self._tokenizer(array).input_ids)


def as_queries(values_QD: Any, space: VectorSpace) -> Vectors:
    """Vectors fresh from a model in the form that is searched: packed bits for binary, else floats."""
    vectors = np.packbits(values_QD > 0, axis=1, bitorder="big") if space.dtype == "binary" else values_QD
    return space.prepared(vectors, "the queries")
