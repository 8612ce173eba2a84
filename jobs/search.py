"""search: the nearest documents of one query, as a table, or of many, as a Parquet file.

    python -m jobs search INDEX query="how do I ..."
    python -m jobs search CONFIG.yaml queries.path=questions.jsonl output.path=results.parquet

Queries are embedded with the model that embedded the documents and its prompt for queries. A batch search that was
stopped goes on where it was when it is run again.
"""

from __future__ import annotations

import logging

from cluster.session import connect
from jobs.embedding.queries import QueryEmbedder, document_config, query_spec
from jobs.indexing.origin import SourceText, origins_of, snippet, text_of
from jobs.searching.config import SearchConfig as Config
from jobs.searching.config import mode_of
from operators.errors import InputError
from operators.index import Index, open_index
from operators.index.open import tuned_settings
from operators.index.snapshot import IndexSnapshot, Settings, read_index
from operators.storage import locate
from operators.storage.lease import using
from operators.store.dataset import read_identity

logger = logging.getLogger(__name__)

SUBJECT = "index"
_TEXT = 72  # characters of a result's text
_MOST_TEXTS = 20  # results whose text is read from the source


def run(config: Config) -> int:
    """Search; returns the exit code."""
    return _search_one(config) if config.query is not None else _search_many(config)


def settings_of(config: Config, snapshot: IndexSnapshot) -> Settings:
    """The tuned settings with what the config changes of them."""
    changed = {name: getattr(config, name) for name in ("nprobe", "ef", "k_factor")}
    return tuned_settings(snapshot).model_copy(update={name: v for name, v in changed.items() if v is not None})


def _search_one(config: Config) -> int:
    """Search in this process, and print the results with the beginnings of their texts."""
    assert config.query is not None, "the config has one query"
    index = open_index(config.index, config.storage_options, config.snapshot, config.compute.cache_dir)
    dataset = locate(index.identity.embeddings, config.storage_options)
    spec = query_spec(dataset, index.identity.fingerprint, config.prompt, config.trust_remote_code)
    if not config.query.strip():
        raise InputError("give a query of at least one word: it is empty")
    mode = mode_of(config, index.identity)
    vectors_QD, sparse = QueryEmbedder(spec, index.identity.space, few=True).both([config.query], mode)
    columns = list(dict.fromkeys((*config.columns, "fragment", "row")))
    settings = settings_of(config, index.snapshot)
    found = index.search(vectors_QD, config.k, config.filter, columns, settings, sparse, config.fusion)
    if index.identity.sparse_dim:
        logger.info("%s search%s", mode, f", {config.fusion.method}" if mode == "hybrid" else "")
    if not found.num_rows:
        print("nothing found" + (f": no document matches {config.filter}" if config.filter else ""))
        return 0
    texts = _texts(config, index, found.slice(0, _MOST_TEXTS).to_pylist())
    for row, text in zip(found.to_pylist(), texts + [""] * found.num_rows, strict=False):
        shown = "".join(f"  {name} {row[name]}" for name in config.columns)
        print(f"{row['rank']:>3}  {row['score']:.4f}  {row['doc_id']}" + _chunk(row["chunk"]) + shown)
        if text:
            print(f"             {text}")
    return 0


def _chunk(number: int) -> str:
    return f" [{number}]" if number else ""


def _texts(config: Config, index: Index, rows: list[dict[str, object]]) -> list[str]:
    """The beginning of each result's text, or why there is none; empty where the embeddings are gone."""
    dataset = locate(index.identity.embeddings, config.storage_options)
    identity = read_identity(dataset)
    if identity is None:
        return [""] * len(rows)
    embedded = document_config(dataset)
    origins = origins_of(dataset, index.snapshot, rows)
    return [_shown(text_of(embedded, identity.keep, origin)) if origin is not None else "" for origin in origins]


def _shown(found: SourceText) -> str:
    if found.text is not None:
        return snippet(found.text, _TEXT)
    return f"(text {found.missing})" if found.missing else ""


def _search_many(config: Config) -> int:
    """Stream the queries of a config through the workers that hold the shards."""
    index = locate(config.index, config.storage_options)
    snapshot = read_index(index, config.snapshot)
    # Workers that are started again open the index again.
    with using(index, "search", (snapshot.number,), is_optional=True), connect(local_cpus=config.compute.local_cpus):
        from jobs.searching.pipeline import search_queries

        return search_queries(config, snapshot, settings_of(config, snapshot))
