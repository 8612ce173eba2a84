"""Real queries to measure an index with: read or embedded once, and kept beside it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from jobs.embedding.queries import QueryEmbedder, query_spec
from jobs.indexing.place import Needs, Place
from jobs.indexing.source import Embeddings
from operators.corpus.listing import list_source
from operators.corpus.reading import read_fragments
from operators.corpus.units import plan_units
from operators.embedder.recipe.spec import EmbedderSpec
from operators.errors import InputError
from operators.index.building import BuildSetup
from operators.index.held_out import store_held_out
from operators.index.queries import Queries, read_query_vectors
from operators.index.vectors import Vectors, VectorSpace


def store_real_queries(
    place: Place, queries: Queries, count: int, source: Embeddings, setup: BuildSetup, name: str
) -> None:
    """Take the first `count` queries of a config; InputError where there are none."""
    if queries.vector is not None:
        vectors_QD = _first_vectors(queries, setup.space, count)
    else:
        spec = query_spec(source.dataset, source.identity.fingerprint)
        [vectors_QD] = place.results([place.submit(Needs(), embed_first, queries, count, spec, setup.space)])
    if not len(vectors_QD):
        raise InputError(f"check queries.path: {queries.path} holds no query")
    store_held_out(setup.index, name, vectors_QD, None, f"queries of {queries.path}")


def embed_first(queries: Queries, count: int, spec: EmbedderSpec, space: VectorSpace) -> Vectors:
    """Embed the first texts."""
    return QueryEmbedder(spec, space)(pa.array(first_texts(queries, count), pa.string()))


def first_texts(queries: Queries, count: int) -> list[str]:
    """The texts of the first queries."""
    texts: list[str] = []
    for unit in plan_units(list_source(queries.source), queries.source, (), 0, {}):
        for batch in read_fragments(unit, queries.source, pa.schema([])):
            texts += batch.table["text"].to_pylist()
            if len(texts) >= count:
                return texts[:count]
    return texts


def _first_vectors(queries: Queries, space: VectorSpace, count: int) -> Vectors:
    parts: list[Vectors] = []
    for batch in read_query_vectors(queries, space):
        parts.append(batch.vectors_QD)
        if sum(map(len, parts)) >= count:
            break
    return np.concatenate(parts)[:count] if parts else np.empty((0, space.width), np.float32)
