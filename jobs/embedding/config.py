"""The config that embed, plan, verify and vacuum share; each section lives beside the operator that reads it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.command_line.output_section import OutputFolder
from operators.corpus.chunking_config import Chunking
from operators.corpus.source import Source
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.planning.estimate import Hardware
from operators.planning.sampling import PlanConfig


class Output(OutputFolder):
    """Where the vectors go, and in which form."""

    dtype: Literal["float32", "float16", "int8", "binary"] = Field(
        default="float32",
        description="form of the vectors; int8 has one scale for the whole output, binary is packed bits",
    )
    keep: tuple[str, ...] = Field(default=(), description="columns of the source to keep beside the vectors")


class Compute(BaseModel):
    """How many workers embed, and what each of them takes of the cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: tuple[int, int] | None = Field(
        default=None,
        description="fewest and most embedding workers; null = 1 to as many as the cluster has GPUs (or CPUs), and "
        "none for local work of a few seconds, which the job does itself",
    )
    cpus_per_worker: int = Field(default=1, ge=1, description="CPU threads of an embedding worker")
    gpus_per_worker: float = Field(default=0, ge=0, description="GPUs of an embedding worker; 0 = embed on CPUs")
    memory_per_worker_bytes: int | None = Field(
        default=None,
        ge=1,
        description="bytes of memory that Ray sets aside for an embedding worker; null = not counted",
    )
    local_cpus: int | None = Field(
        default=None, ge=1, description="CPUs of a Ray that this command starts itself; null = all of this machine"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Compute:
        if self.workers is not None and not 1 <= self.workers[0] <= self.workers[1]:
            raise ValueError("workers: expected [min, max] with 1 <= min <= max")
        return self


class Gates(BaseModel):
    """Limits that a finished run must keep, else the exit code is 3."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_rejected_fraction: float = Field(
        default=0.01, ge=0, le=1, description="rejected rows as a fraction of all rows of the snapshot"
    )
    max_dropped_fraction: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="rows of the latest snapshot that may leave because the source has them no more, as a fraction; "
        "above it nothing is published; 1 = any",
    )
    max_unreadable_files: int = Field(
        default=0, ge=0, description="files that broke before their end, as a cut .gz does: their last rows are lost"
    )
    max_lost_bytes: int = Field(
        default=0,
        ge=0,
        description="bytes of the source where nobody knows how many rows were lost: after a break, or an open quote",
    )


class Verification(BaseModel):
    """What `verify` checks beyond the counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_rows: int = Field(default=64, ge=0, description="documents embedded again and compared; 0 loads no model")
    min_cosine: float = Field(
        default=0.999, gt=0, le=1, description="least cosine of a vector to the one embedded again (float outputs)"
    )


class Retention(BaseModel):
    """What `vacuum` may remove."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grace_hours: float = Field(
        default=168, ge=0, description="files younger than this stay: a run that has not published yet owns them"
    )
    keep_snapshots: int = Field(default=3, ge=1, description="newest snapshots to keep with all their files")


class EmbedConfig(BaseModel):
    """The config of embed, plan, verify and vacuum."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Source
    model: str = Field(
        min_length=1,
        description="a recipe in configs/models, a recipe file, a checkpoint folder (s3:// too), or a hub id",
    )
    embedder: EmbedderConfig = Field(default_factory=EmbedderConfig, description="what to change of the recipe")
    chunking: Chunking = Field(default_factory=Chunking, description="how long documents are cut")
    output: Output
    compute: Compute = Field(default_factory=Compute)
    gates: Gates = Field(default_factory=Gates)
    plan: PlanConfig = Field(default_factory=PlanConfig)
    hardware: Hardware | None = Field(default=None, description="what plan and report count hours and money with")
    verify: Verification = Field(default_factory=Verification)
    vacuum: Retention = Field(default_factory=Retention)
