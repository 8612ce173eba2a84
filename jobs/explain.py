"""explain: where an indexed document came from: shard, embeddings file, source file and row, model.

python -m jobs explain INDEX doc_id=...
"""

from __future__ import annotations

from collections.abc import Iterator

from jobs.embedding.queries import document_config
from jobs.indexing.origin import Origin, find_origin, snippet, text_of
from jobs.searching.config import ExplainConfig as Config
from operators.embedder.recipe.files import load_recipe
from operators.embedder.recipe.recipe import Recipe
from operators.errors import InputError
from operators.index import Index, open_index
from operators.storage import Location, locate
from operators.store.dataset import Identity, read_identity

SUBJECT = "index"
_TEXT = 300  # characters shown


def run(config: Config) -> int:
    """Print everything that is known of a document; returns the exit code."""
    index = open_index(config.index, config.storage_options, config.snapshot, config.cache_dir)
    found = index.find_document(config.doc_id, [name for name in index.columns if name != "text_hash"])
    if not found.num_rows:
        raise InputError(
            f"check doc_id: {config.doc_id!r} is not in snapshot {index.snapshot.number} of {config.index}: "
            "it was never embedded, was rejected (see the embeddings' rejected/), or is deleted"
        )
    dataset = locate(index.identity.embeddings, config.storage_options)
    identity = read_identity(dataset)
    print(f"document    {config.doc_id}: {found.num_rows} vector{'s' if found.num_rows > 1 else ''}")
    for row in found.sort_by("chunk").to_pylist():
        shard = index.snapshot.shards[row["shard"]]
        print(f"\nchunk {row['chunk']}")
        print(f"  shard     {row['shard'] + 1} of {len(index.snapshot.shards)}: shards/{shard.key}.*")
        origin = find_origin(dataset, index.snapshot, row["fragment"], row["row"], row["doc_id"], row["chunk"])
        for line in _origin_lines(dataset, identity, origin):
            print(f"  {line}")
        kept = {name: row[name] for name in index.identity.keep}
        if kept:
            print(f"  columns   {', '.join(f'{name} = {value!r}' for name, value in kept.items())}")
    print()
    for line in (*_index_lines(index), *_model_lines(dataset, index)):
        print(line)
    return 0


def _origin_lines(dataset: Location, identity: Identity | None, origin: Origin) -> Iterator[str]:
    facts = origin.facts
    cut = ", cut to the model's length" if facts["truncated"] else ""
    file = f"{dataset.url}/data/{origin.record.key}.parquet"
    yield f"vector    {file}, row {origin.row}; {facts['num_tokens']} tokens{cut}"
    yield (
        f"source    {facts['source_path']}, row {facts['source_row']}, "
        f"characters {facts['char_start']:,} to {facts['char_end']:,}"
    )
    try:
        config = document_config(dataset)
    except InputError:
        return
    if identity is not None:
        found = text_of(config, identity.keep, origin)
        shown = snippet(found.text, _TEXT) if found.text is not None else found.missing
        if shown:
            yield f"text      {shown}"


def _index_lines(index: Index) -> Iterator[str]:
    snapshot = index.snapshot
    yield f"index       snapshot {snapshot.number} of {index.location.url}, made {snapshot.created}"
    yield f"            {snapshot.identity.factory}, {snapshot.identity.metric}; {snapshot.num_vectors:,} vectors"
    yield f"embeddings  snapshot {snapshot.embeddings_snapshot} of {snapshot.identity.embeddings}"


def _model_lines(dataset: Location, index: Index) -> Iterator[str]:
    yield f"model       {index.identity.model}, fingerprint {index.identity.fingerprint}"
    try:
        from jobs.embedding.identity import RECIPES

        recipe: Recipe = load_recipe(document_config(dataset).model, RECIPES)
    except InputError as error:
        yield f"recipe      not on this machine ({str(error).splitlines()[0]})"
        return
    shown = recipe.model_dump(exclude_defaults=True)
    yield f"recipe      {', '.join(f'{name} {value!r}' for name, value in shown.items())}"
