"""Our embedders in MTEB: an object that `mteb.evaluate` takes as its model, with a pool of workers behind it.

It has mteb's Encoder protocol (encode, similarity, ...) and its Search protocol (index, search), so that corpora of
retrieval tasks stream through the pool and only results come back. jobs/evaluating/mteb_model.py makes one.

A task's prompt is, in this order: that of `prompts` by mteb's names ("TASK-query", "TASK", "TYPE-query", "TYPE",
"query"), else the recipe's own for queries or documents, with mteb's instruction for the task as its {task}. Texts of
symmetric tasks get the prompt for queries where that holds a {task}. Shapes: N texts, D dimensions, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from operators.embedder.recipe.templates import TASK, as_tuple
from operators.errors import InputError
from operators.evaluation.beir import BLOCK_ROWS, DocumentBlock, document_text
from operators.evaluation.encoding import Encoder, Prompted, Vectors, comparable
from operators.evaluation.retrieval import Run

if TYPE_CHECKING:
    from mteb.models.model_meta import ModelMeta

    from operators.embedder.recipe.spec import EmbedderSpec


class CorpusEncoder(Encoder, Protocol):
    """An embedder that compares the documents it embeds with queries."""

    def nearest(
        self,
        query_ids: tuple[str, ...],
        queries_QD: Vectors,
        documents: Iterator[DocumentBlock],
        prompted: Prompted,
        k: int,
    ) -> Run:
        """The k documents of the highest similarity with each query."""
        ...


class MtebModel:
    """A model for `mteb.evaluate`; raises InputError for tasks that are not of plain texts."""

    def __init__(self, encoder: CorpusEncoder, spec: EmbedderSpec, prompts: Mapping[str, str] | None = None) -> None:
        self._encoder, self._spec, self._prompts = encoder, spec, dict(prompts or {})
        self._corpus: Any = None

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Name, size and fingerprint; results are kept by them, so another recipe is another model."""
        from mteb.models.model_meta import ModelMeta

        facts = {
            "name": f"embedfleet/{self._spec.model.strip('/').replace('/', '__')}",
            "revision": self._spec.fingerprint[:16],
            "embed_dim": self._spec.dim,
            "max_tokens": self._spec.recipe.max_tokens,
            "similarity_fn_name": self._spec.recipe.similarity,
        }
        return ModelMeta.create_empty(facts)

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **encode_kwargs: Any,
    ) -> Vectors:
        """Vectors [N, D] of the texts of a data loader, in order."""
        texts: list[str] = []
        for batch in inputs:
            if "text" not in batch:
                raise InputError(f"choose tasks of texts: {task_metadata.name} has {', '.join(batch)}")
            texts += batch["text"]
        return self._encoder.embed(texts, self._prompted(task_metadata, prompt_type))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Similarities of every row of one with every row of the other."""
        return self._comparable(embeddings1) @ self._comparable(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Similarities of each row of one with the same row of the other."""
        one_ND, other_ND = (self._comparable(rows) for rows in (embeddings1, embeddings2))
        return np.einsum("nd,nd->n", one_ND, other_ND)

    def _comparable(self, vectors: Any) -> Vectors:
        return comparable(np.atleast_2d(vectors), self._spec.recipe.similarity, "texts")

    def index(
        self,
        corpus: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        encode_kwargs: Any,
        num_proc: int | None,
        **more: Any,
    ) -> None:
        """Remember the corpus; it is embedded while it is searched, so that its vectors are never all in memory."""
        self._corpus = corpus

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        encode_kwargs: Any,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        num_proc: int | None,
        **more: Any,
    ) -> Run:
        """The top_k documents of every query, or its candidates in order where `top_ranked` names some."""
        assert self._corpus is not None, "mteb indexes before it searches"
        from mteb.types import PromptType

        texts, ids = _query_texts(queries, task_metadata.name), tuple(queries["id"])
        queries_QD = self._encoder.embed(texts, self._prompted(task_metadata, PromptType.query))
        prompted = self._prompted(task_metadata, PromptType.document)
        if top_ranked is None:
            return self._encoder.nearest(ids, queries_QD, _blocks(self._corpus), prompted, top_k)
        return self._rank(ids, queries_QD, top_ranked, prompted, top_k)

    def _rank(
        self,
        query_ids: tuple[str, ...],
        queries_QD: Vectors,
        candidates: Mapping[str, Sequence[str]],
        prompted: Prompted,
        k: int,
    ) -> Run:
        named = {doc for query in query_ids for doc in candidates.get(query, ())}
        texts: dict[str, str] = {}
        for block in _blocks(self._corpus):
            pairs = zip(block.ids.to_pylist(), block.texts.to_pylist(), strict=True)
            texts |= {doc: text for doc, text in pairs if doc in named}
        vectors_ND = self._comparable(self._encoder.embed(tuple(texts.values()), prompted))
        queries_QD = self._comparable(queries_QD)
        place = {doc: i for i, doc in enumerate(texts)}
        run: dict[str, dict[str, float]] = {}
        for number, query in enumerate(query_ids):
            documents = [doc for doc in candidates.get(query, ()) if doc in place]
            scores = vectors_ND[[place[doc] for doc in documents]] @ queries_QD[number]
            best = np.argsort(-scores, kind="stable")[:k]
            run[query] = {documents[i]: float(scores[i]) for i in best}
        return run

    def _prompted(self, task_metadata: Any, prompt_type: Any) -> Prompted:
        side = getattr(prompt_type, "value", None)
        names = [name for name in (task_metadata.name, task_metadata.type) if name]
        wanted = [key for name in names for key in ((f"{name}-{side}",) if side else ()) + (name,)]
        wanted += [side] if side else []
        prompt = next((self._prompts[name] for name in wanted if name in self._prompts), None)
        own = as_tuple(self._spec.recipe.prompts.get("query", ""))
        is_instructed = any(TASK in template for template in own)
        is_query = side == "query" or (side is None and is_instructed)
        told = task_metadata.prompt
        instruction = told.get(side or "query") if isinstance(told, dict) else told
        return Prompted("query" if is_query else "document", prompt, instruction)


def _blocks(corpus: Any) -> Iterator[DocumentBlock]:
    """A Hugging Face dataset of documents in blocks, read from its own file."""
    start = 0
    for rows in corpus.iter(batch_size=BLOCK_ROWS):
        if "text" not in rows:
            raise InputError(f"choose tasks of texts: these documents have {', '.join(rows)}")
        titles = rows.get("title") or [None] * len(rows["text"])
        texts = [document_text(title, text) for title, text in zip(titles, rows["text"], strict=True)]
        yield DocumentBlock(start, pa.array(rows["id"], pa.string()), pa.array(texts, pa.string()))
        start += len(texts)


def _query_texts(queries: Any, task: str) -> list[str]:
    """The texts of queries, each followed by its instruction where it has one, as mteb joins them."""
    texts: list[str] = list(queries["text"]) if "text" in queries.column_names else []
    if len(texts) != len(queries) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"choose tasks of texts: the queries of {task} are not plain texts")
    if "instruction" not in queries.column_names:
        return texts
    instructions = queries["instruction"]
    return [text if more is None else f"{text} {more}" for text, more in zip(texts, instructions, strict=True)]
