"""The config of `train`: so far what it trains on; each section lives beside the operator that reads it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from operators.training.sets import TrainingSet


class TrainOutput(BaseModel):
    """Where the run goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1, description="folder; local, s3:// or any fsspec URL")
    storage_options: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="fsspec options of the output (endpoint_url, ...), never stored"
    )


class PreparedSets(BaseModel):
    """Where sets are kept ready to train on; runs that name the same folder share them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | None = Field(
        default=None, min_length=1, description="folder; null = sets, in the output, with its storage_options"
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="fsspec options of the folder, never stored"
    )
    cache_dir: str | None = Field(
        default=None, description="folder on each worker's disk for fetched sets; null = the system's"
    )

    @model_validator(mode="after")
    def _options_have_a_path(self) -> PreparedSets:
        if self.storage_options and self.path is None:
            raise ValueError("storage_options: they belong to `path`, which is null")
        return self


class Batches(BaseModel):
    """How rows become batches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(default=64, ge=2, description="rows of one set in a step, of all workers together")
    tokens: int = Field(
        default=16384, ge=1, description="padded tokens that a worker has in one forward and backward (GradCache)"
    )


class TrainCompute(BaseModel):
    """What the run takes of a cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    local_cpus: int | None = Field(
        default=None, ge=1, description="CPUs of a Ray that this command starts itself; null = all of this machine"
    )


class TrainConfig(BaseModel):
    """The config of train."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sets: tuple[TrainingSet, ...] = Field(min_length=1, description="what to train on; each batch is of one set")
    batch: Batches = Field(default_factory=Batches)
    seed: int = Field(default=0, ge=0, description="of the order of rows and sets, of drawn negatives, of dropout")
    output: TrainOutput
    prepared: PreparedSets = Field(default_factory=PreparedSets)
    compute: TrainCompute = Field(default_factory=TrainCompute)

    @model_validator(mode="after")
    def _names_differ(self) -> TrainConfig:
        names = [training_set.name for training_set in self.sets]
        if len(set(names)) < len(names):
            raise ValueError(f"sets: each has a name of its own, got {', '.join(names)}")
        return self
