"""A batch search on Ray: queries stream through embedding workers and the workers that hold shards, to one file.

text queries     units -> read -> tokenize -> embed -> search -> part files
ready vectors    files -> read ------------------------> search -> part files      then: parts -> one Parquet file
"""

from __future__ import annotations

import functools
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from jobs.embedding.config import Compute, EmbedConfig
from jobs.embedding.pipeline import configure_ray_data, embedded_rows
from jobs.embedding.queries import document_config, query_spec
from jobs.embedding.remote_ledger import RemoteLedger
from jobs.embedding.workers import Setup, Work
from jobs.indexing.on_ray import open_shards
from jobs.indexing.place import Crew, Shards
from jobs.indexing.workers import ShardWorker
from jobs.searching.config import SearchConfig, mode_of
from jobs.searching.workers import SearchSetup, part_file, read_vectors, rejected_file, search_batch
from operators.corpus.listing import list_source
from operators.corpus.units import plan_units
from operators.embedder.recipe.fingerprint import mapping_digest
from operators.errors import InputError
from operators.index.group import settings_for
from operators.index.list_costs import finer_store
from operators.index.open import check_columns
from operators.index.queries import TEXTS_AT_ONCE
from operators.index.snapshot import IndexSnapshot, Settings
from operators.index.spec import make_index
from operators.index.training import num_lists
from operators.index.vectors import VECTORS_AT_ONCE
from operators.storage import Location, delete, exists, iter_files, locate, open_input, upload
from operators.store.dataset import Identity, encode_schema
from operators.work.fragment import SourceFile

logger = logging.getLogger(__name__)

_SHARE_BESIDE_EMBEDDING = 0.25  # of a CPU per thread: embedding a query costs far more than searching it
_SHARE_ALONE = 0.4
_SPARE_CPUS = 1.2  # Ray Data sizes its input with a task of one CPU; later the stages of the search take them
_SEARCH_CPUS = 0.1
_ANSWERS_AT_ONCE = 1 << 20  # queries times workers


def search_queries(config: SearchConfig, snapshot: IndexSnapshot, settings: Settings) -> int:
    """Search all queries of a config and write the results; returns the exit code."""
    assert config.queries is not None, "the config has queries"
    assert config.output is not None, "the config has an output"
    started = time.monotonic()
    files = list(list_source(config.queries.source))
    if not files:
        raise InputError(f"check queries.path: there is no file at {config.queries.path}")
    output = locate(config.output.path, config.output.storage_options)
    is_text = config.queries.vector is None
    crew = _crew(config, is_text)
    done = []
    index = locate(config.index, config.storage_options)
    with open_shards(index, snapshot, crew, config.compute.cache_dir) as shards:
        setup = _setup(config, snapshot, settings, output, shards)
        rows = _text_rows(config, snapshot, setup, crew) if is_text else _vector_rows(config, setup, files)
        for row in rows:
            done.append(row)
            if len(done) % 16 == 0:
                logger.info("%s queries searched", f"{sum(r['queries'] for r in done):,}")
    _put_together(done, setup.parts, output, files)
    queries, rejected = sum(r["queries"] for r in done), sum(r["rejected"] for r in done)
    seconds = time.monotonic() - started
    print(
        f"search done: {queries:,} queries, {sum(r['results'] for r in done):,} results in {seconds:.1f} s "
        f"({queries / seconds:,.0f} queries/s); {output.url}"
    )
    if rejected:
        print(f"{rejected:,} queries could not be embedded: {output.url}.rejected.parquet has them with reasons")
    return 0


def _crew(config: SearchConfig, is_text: bool) -> Crew:
    cpus = int(ray.cluster_resources().get("CPU", 1))
    threads = config.compute.threads_per_worker or min(4, cpus)
    share = _SHARE_BESIDE_EMBEDDING if is_text else _SHARE_ALONE
    return Crew(threads, share * threads, config.compute.workers or max(1, cpus // 4), _SPARE_CPUS)


def _setup(
    config: SearchConfig, snapshot: IndexSnapshot, settings: Settings, output: Location, shards: Shards
) -> SearchSetup:
    index = locate(config.index, config.storage_options)
    check_columns(config.columns, shards.ask_any(ShardWorker.columns))
    selected = 0
    if config.filter is not None:
        selected = sum(shards.ask(ShardWorker.select, config.filter))
        logger.info("%s of %s vectors match the filter", f"{selected:,}", f"{snapshot.num_vectors:,}")
        settings = settings_for(settings, selected, snapshot.num_vectors)
    if config.k > snapshot.num_vectors:
        logger.warning("k is %d, the index has %d vectors: each query gets all of them", config.k, snapshot.num_vectors)
    mode = mode_of(config, snapshot.identity)
    if snapshot.identity.sparse_dim:
        logger.info("%s search%s", mode, f", {config.fusion.method}" if mode == "hybrid" else "")
    # Every worker answers every query, and a batch's answers meet in one process.
    batch_rows = min(VECTORS_AT_ONCE, max(4096, _ANSWERS_AT_ONCE // shards.workers))
    facts = {
        "index": index.url,
        "snapshot": snapshot.number,
        "trained": snapshot.trained.sha256 if snapshot.trained is not None else None,
        "mode": mode,
        "fusion": config.fusion.model_dump() if mode == "hybrid" else None,
        "k": config.k,
        "settings": settings.model_dump(),
        "filter": config.filter,
        "columns": list(config.columns),
        "prompt": config.prompt,
        "batch_rows": batch_rows,
    }
    parts = Location(f"{output.url}.parts/{mapping_digest(facts)[:16]}", output.options)
    return SearchSetup(
        parts,
        shards,
        snapshot.identity.space,
        config.k,
        settings,
        config.filter,
        config.columns,
        snapshot.identity.spec.larger_is_better,
        finer_store(snapshot),
        batch_rows,
        mode,
        config.fusion,
        selected,
        num_lists(make_index(spec), spec) if (spec := snapshot.identity.spec).dim else 0,
    )


def _text_rows(
    config: SearchConfig, snapshot: IndexSnapshot, setup: SearchSetup, crew: Crew
) -> Iterator[dict[str, Any]]:
    """The embed pipeline with the queries as its source and the search as its last stage."""
    assert config.queries is not None, "the config has queries"
    identity = snapshot.identity
    dataset = locate(identity.embeddings, config.storage_options)
    spec = query_spec(dataset, identity.fingerprint, config.prompt, config.trust_remote_code)
    source = config.queries.source.model_copy(update={"rows_per_fragment": TEXTS_AT_ONCE})
    documents = document_config(dataset)
    cpus = ray.cluster_resources().get("CPU", 1)
    room = int((cpus - crew.cpus * setup.shards.workers - 0.6) / 0.75)
    embed = EmbedConfig(
        source=source,
        model=documents.model,
        embedder=documents.embedder.model_copy(update={"role": "query", "prompt": config.prompt}),
        output={"path": setup.parts.url},  # type: ignore[arg-type]  # pydantic makes the section
        compute=Compute(workers=(1, max(1, room))),
    )
    none = pa.schema([])
    # Vectors travel as floats; the search packs them where the index has bits.
    as_floats = Identity(
        identity.fingerprint,
        identity.model,
        spec.dim,
        "float32",
        False,
        None,
        encode_schema(none),
        0,
        sparse_dim=spec.sparse_dim,
    )
    work = [Work(unit) for unit in plan_units(list_source(source), source, (), 0, {})]
    queries = Setup(embed, spec, as_floats, setup.parts, RemoteLedger())
    return embedded_rows(work, queries, functools.partial(search_batch, setup=setup))


def _vector_rows(config: SearchConfig, setup: SearchSetup, files: list[SourceFile]) -> Iterator[dict[str, Any]]:
    configure_ray_data()
    assert config.queries is not None, "the config has queries"
    columns = {name: [getattr(file, name) for file in files] for name in ("path", "size", "version")}
    blocks = [pa.table(columns).slice(i, 1) for i in range(len(files))]
    most = max(1, min(4, setup.shards.workers * 2))
    stages = (
        ray.data.from_arrow(blocks)
        .map_batches(
            functools.partial(read_vectors, queries=config.queries, setup=setup),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0.11,
            compute=ray.data.TaskPoolStrategy(size=min(most, len(files))),
        )
        .map_batches(
            functools.partial(search_batch, setup=setup),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=_SEARCH_CPUS,
            compute=ray.data.TaskPoolStrategy(size=most),
        )
    )
    yield from stages.iter_rows()


def _put_together(done: list[dict[str, Any]], parts: Location, output: Location, files: list[SourceFile]) -> None:
    """One file of all parts, in the order of the queries; the parts go when it is in place."""
    order = {file.path: i for i, file in enumerate(files)}
    ordered = sorted(done, key=lambda row: (order[row["path"]], row["start"], row["part"]))
    _concatenate([part_file(parts, row["key"]) for row in ordered], output)
    rejected = [rejected_file(parts, row["key"]) for row in ordered if row["rejected"]]
    if rejected:
        _concatenate(rejected, Location(f"{output.url}.rejected.parquet", output.options))
    for info in list(iter_files(parts)):
        delete(Location(info.url, parts.options))
    if parts.is_local:
        shutil.rmtree(Path(parts.path).parent, ignore_errors=True)


def _concatenate(pieces: list[Location], output: Location) -> None:
    with tempfile.TemporaryDirectory(prefix="embedfleet-search-") as folder:
        local = Path(folder) / "whole.parquet"
        writer: pq.ParquetWriter | None = None
        for piece in pieces:
            with open_input(piece) as stream:
                table = pq.ParquetFile(stream).read()
            writer = writer or pq.ParquetWriter(local, table.schema, compression="zstd")
            writer.write_table(table)
        assert writer is not None, "every unit has a part, empty ones too"
        writer.close()
        upload(local, output)
    assert exists(output), "the upload raises where it fails"
