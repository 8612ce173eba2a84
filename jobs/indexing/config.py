"""The config of `index`; each section lives beside the operator that reads it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.command_line.output_section import OutputFolder
from jobs.embedding.config import Retention
from operators.index.planning import Sharding
from operators.index.queries import Queries
from operators.index.training import Training
from operators.index.updating import Update


class RecallConfig(BaseModel):
    """How recall is measured, when no queries of your own are given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    k: int = Field(default=10, ge=1, le=1000, description="neighbours of which recall is the share that is found")
    queries: int = Field(
        default=1000,
        ge=2,
        description="held-out queries: the first of `queries`, or documents drawn at random (not to find themselves)",
    )


class Builders(BaseModel):
    """What a builder takes of the cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus_per_builder: int = Field(default=1, ge=1, description="CPU threads that build a shard")
    gpus_per_builder: float = Field(
        default=0, ge=0, description="GPUs that find the lists of a shard's vectors; needs faiss-gpu on the workers"
    )
    local_dir: str | None = Field(
        default=None, description="folder on each worker's disk for shards under construction; null = the system's"
    )
    cache_dir: str | None = Field(
        default=None, description="folder on each worker's disk for fetched index files; null = the system's"
    )
    local_cpus: int | None = Field(
        default=None, ge=1, description="CPUs of a Ray that this command starts itself; null = all of this machine"
    )


class IndexConfig(BaseModel):
    """The config of index."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embeddings: str = Field(min_length=1, description="the output of an embed job; local, s3:// or any fsspec URL")
    snapshot: int | None = Field(default=None, ge=1, description="snapshot of the embeddings; null = the newest")
    output: OutputFolder
    storage_options: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="fsspec options of the embeddings, never stored"
    )
    spec: str = Field(
        default="auto",
        min_length=1,
        description="auto = by size, memory and recall; or any faiss factory string, such as IVF4096,SQ8 or HNSW32",
    )
    metric: Literal["auto", "cosine", "ip", "l2", "hamming"] = Field(
        default="auto", description="auto = as the model compares (mostly cosine), and hamming for binary vectors"
    )
    bytes_per_vector: float | None = Field(
        default=None, gt=0, description="memory that searching may take per vector, for spec: auto; null = no limit"
    )
    recall_target: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="share of the exact neighbours that searches must find, with 95 % confidence; else exit code 3",
    )
    sparse: bool | None = Field(
        default=None,
        description="index sparse vectors for exact search; null = where the embeddings have them",
    )
    keep: tuple[str, ...] | None = Field(
        default=None, description="kept columns of the embeddings to carry along for filters and results; null = all"
    )
    queries: Queries | None = Field(default=None, description="real queries to measure recall with; null = documents")
    recall: RecallConfig = Field(default_factory=RecallConfig)
    train: Training = Field(default_factory=Training)
    shards: Sharding = Field(default_factory=Sharding)
    update: Update = Field(default_factory=Update)
    vacuum: Retention = Field(default_factory=Retention)
    compute: Builders = Field(default_factory=Builders)
