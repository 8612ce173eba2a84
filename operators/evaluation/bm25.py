"""The lexical baseline: BM25 with English stop words and stems (bm25s, arXiv 2407.03618), k1 1.5 and b 0.75.

It holds a corpus's tokens in memory, in one process: a baseline for evaluation sets, not for a billion documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from operators.evaluation.beir import DocumentBlock
from operators.evaluation.retrieval import Run

STOP_WORDS = "en"
STEMMER = "english"


def bm25_run(query_ids: Sequence[str], queries: Sequence[str], documents: Iterable[DocumentBlock], k: int) -> Run:
    """The k documents of the highest BM25 score for each query; documents that share no word with it are not found."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer(STEMMER)
    ids: list[str] = []
    texts: list[str] = []
    for block in documents:
        ids += block.ids.to_pylist()
        texts += block.texts.to_pylist()
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, stopwords=STOP_WORDS, stemmer=stemmer, show_progress=False), show_progress=False)
    asked = bm25s.tokenize(list(queries), stopwords=STOP_WORDS, stemmer=stemmer, show_progress=False)
    places_QK, scores_QK = index.retrieve(asked, k=min(k, len(ids)), show_progress=False)
    run = {}
    for query, places_K, scores_K in zip(query_ids, places_QK, scores_QK, strict=True):
        hit = np.flatnonzero(scores_K > 0)
        run[query] = {ids[int(places_K[i])]: float(scores_K[i]) for i in hit}
    return run
