"""The config of `search` and `explain`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.command_line.output_section import OutputFolder
from operators.errors import InputError
from operators.index.fusion import Fusion, Mode
from operators.index.queries import Queries
from operators.index.snapshot import IndexIdentity


class SearchOutput(OutputFolder):
    """Where results go."""

    path: str = Field(min_length=1, description="Parquet file: query_id, rank (from 1), doc_id, chunk, score, columns")


class Searchers(BaseModel):
    """What a batch search takes of the cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int | None = Field(
        default=None, ge=1, description="processes that hold shards; null = one for every 4 CPUs, at most one a shard"
    )
    threads_per_worker: int | None = Field(default=None, ge=1, description="CPU threads of each; null = 4, or all")
    cache_dir: str | None = Field(
        default=None, description="folder on each worker's disk for fetched index files; null = the system's"
    )
    local_cpus: int | None = Field(
        default=None, ge=1, description="CPUs of a Ray that this command starts itself; null = all of this machine"
    )


class SearchConfig(BaseModel):
    """The config of search."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: str = Field(min_length=1, description="the output of an index job; local, s3:// or any fsspec URL")
    snapshot: int | None = Field(default=None, ge=1, description="snapshot of the index; null = the newest")
    query: str | None = Field(default=None, description="one query as text: its results are printed as a table")
    queries: Queries | None = Field(default=None, description="many queries: their results go to output.path")
    output: SearchOutput | None = None
    k: int = Field(default=10, ge=1, le=2048, description="results of a query")
    mode: Literal["auto", "dense", "sparse", "hybrid"] = Field(
        default="auto",
        description="by which vectors; auto = by all that the index has and the queries give: hybrid is both, fused",
    )
    fusion: Fusion = Field(default_factory=Fusion)
    filter: str | None = Field(
        default=None, description="condition on kept columns, such as: lang == 'en' and year >= 2020"
    )
    columns: tuple[str, ...] = Field(default=(), description="kept columns to put beside the results")
    prompt: str | None = Field(
        default=None, description="text put before each query, in place of the recipe's prompt for queries"
    )
    trust_remote_code: bool = Field(
        default=False, description="run Python code that comes with the checkpoint which embedded the documents"
    )
    nprobe: int | None = Field(default=None, ge=1, description="inverted lists to look into; null = as tuned")
    ef: int | None = Field(default=None, ge=1, description="candidates of a graph search; null = as tuned")
    k_factor: int | None = Field(default=None, ge=1, description="candidates a result to rank; null = as tuned")
    storage_options: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="fsspec options of the index and its embeddings, never stored"
    )
    compute: Searchers = Field(default_factory=Searchers)

    @model_validator(mode="after")
    def _one_or_many(self) -> SearchConfig:
        if (self.query is None) == (self.queries is None):
            raise ValueError('give either query="..." (one, printed) or queries: {path: ...} (many, with output.path)')
        if self.queries is not None and self.output is None:
            raise ValueError("give output.path: the Parquet file for the results of queries")
        return self


def mode_of(config: SearchConfig, identity: IndexIdentity) -> Mode:
    """How to search; raises InputError for a mode that the index or the queries have no vectors for."""
    ready = config.queries is not None and config.queries.vector is not None
    has = {"dense": bool(identity.dim), "sparse": bool(identity.sparse_dim) and not ready}
    has["hybrid"] = all(has.values())
    if config.mode != "auto":
        if not has[config.mode]:
            what = (
                "queries.vector gives dense vectors alone"
                if ready
                else f"{config.index} has only {_sides(has)} vectors"
            )
            raise InputError(f"choose another mode than {config.mode}: {what}")
        return config.mode
    if has["hybrid"]:
        return "hybrid"
    if not any(has.values()):
        raise InputError(f"give queries as text: {config.index} has sparse vectors alone")
    return "dense" if has["dense"] else "sparse"


def _sides(has: dict[str, bool]) -> str:
    return " and ".join(side for side in ("dense", "sparse") if has[side])


class ExplainConfig(BaseModel):
    """The config of explain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: str = Field(min_length=1, description="the output of an index job")
    doc_id: str = Field(min_length=1, description="the document to look up; in a config file in quotes")
    snapshot: int | None = Field(default=None, ge=1, description="snapshot of the index; null = the newest")
    storage_options: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="fsspec options of the index and its embeddings, never stored"
    )
    cache_dir: str | None = Field(default=None, description="folder for fetched index files; null = the system's")
