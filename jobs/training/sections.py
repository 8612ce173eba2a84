"""The sections of a training's config that are the job's own."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from operators.evaluation.tasks import Task


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
    """How rows become batches, and how much of one is computed at once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(default=64, ge=2, description="rows of one set in a step, of all workers together")
    tokens: int = Field(
        default=8192,
        ge=1,
        description="padded tokens whose activations a worker holds at once; what a step has beyond them is encoded "
        "twice (GradCache), so that memory does not grow with the batch",
    )
    pass_tokens: int | None = Field(
        default=None, ge=1, description="padded tokens of one forward pass; null = what the device does best"
    )


class Evaluating(BaseModel):
    """What the model is judged by while it is trained: rows held back from the sets, and tasks as in `evaluate`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int | None = Field(default=None, ge=1, description="steps from one evaluation to the next; null = 10 times")
    tasks: tuple[Task, ...] = Field(default=(), description="tasks, as in evaluate")
    dev_rows: int = Field(default=2000, ge=1, description="rows at most of each set's dev part (dev_fraction)")
    main: str | None = Field(
        default=None, description="the score that decides which weights are best; null = mean of all main scores"
    )
    patience: int | None = Field(
        default=None, ge=1, description="evaluations without a better main score after which training ends"
    )


class Checkpoints(BaseModel):
    """What a run goes on from after a failure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int | None = Field(default=None, ge=1, description="steps from one to the next; null = 10 times in a run")
    keep: int = Field(default=2, ge=1, description="newest ones to keep, beside the best of all evaluations")


class TrainCompute(BaseModel):
    """What the run takes of a cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int | tuple[int, int] | None = Field(
        default=None,
        description="training workers; [fewest, most]: elastic, as many as fit; null = one for each GPU, or one",
    )
    cpus_per_worker: int | None = Field(
        default=None, ge=1, description="CPU threads of a worker; null = 1 beside a GPU, else an even share of the CPUs"
    )
    gpus_per_worker: int = Field(default=0, ge=0, le=1, description="GPUs of a worker; 0 = train on CPUs")
    max_failures: int = Field(default=8, ge=-1, description="failures of workers to recover from; -1: any number")
    resize_seconds: float = Field(default=60, ge=1, description="how often an elastic run looks for more workers")
    local_cpus: int | None = Field(
        default=None, ge=1, description="CPUs of a Ray that this command starts itself; null = all of this machine"
    )

    @model_validator(mode="after")
    def _ordered(self) -> TrainCompute:
        fewest, most = self.workers if isinstance(self.workers, tuple) else (self.workers or 1, self.workers or 1)
        if not 1 <= fewest <= most:
            raise ValueError("workers: expected a number, or [min, max] with 1 <= min <= max")
        return self
