"""The config of `evaluate`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.command_line.output_section import OutputFolder
from jobs.embedding.config import Compute
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.evaluation.statistics import Resampling
from operators.evaluation.tasks import Task
from operators.planning.estimate import Hardware

BM25 = "bm25"


class EvaluatedModel(BaseModel):
    """A model to evaluate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="what to call it in the output")
    model: str = Field(
        min_length=1,
        description="a recipe in configs/models, a recipe file, a checkpoint folder, a hub id; or bm25: the lexical "
        "baseline, for retrieval tasks",
    )
    embedder: EmbedderConfig = Field(default_factory=EmbedderConfig, description="what to change of the recipe")

    @model_validator(mode="after")
    def _prompts_belong_to_tasks(self) -> EvaluatedModel:
        if {"role", "prompt"} & self.embedder.model_fields_set:
            raise ValueError("embedder: set role, prompt and query_prompt in the tasks; they differ from task to task")
        return self


class EvaluateOutput(OutputFolder):
    """Where the scores go."""

    path: str = Field(
        pattern=r"\.json$",
        description="JSON file: {task: {metric: value}} for `model`, {model: {task: {metric: value}}} for `models`; "
        "beside it .report.json (intervals, tests, costs), .html (with plots) and .md (model card)",
    )


class EvaluateConfig(BaseModel):
    """The config of evaluate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[Task, ...] = Field(min_length=1, description="what to judge the models on")
    model: str | None = Field(default=None, min_length=1, description="one model: as models.model")
    embedder: EmbedderConfig = Field(default_factory=EmbedderConfig, description="what to change of its recipe")
    models: tuple[EvaluatedModel, ...] = Field(
        default=(), description="several models side by side; the others are compared with the first"
    )
    output: EvaluateOutput
    contamination: tuple[str, ...] = Field(
        default=(), description="files of training pairs (.jsonl, .gz and .zst too) to look for the tasks' texts in"
    )
    contamination_words: int = Field(
        default=13, ge=3, description="words in a row that count as an overlap (13: GPT-3, arXiv 2005.14165)"
    )
    resampling: Resampling = Field(default_factory=Resampling, description="of intervals and tests")
    compute: Compute = Field(default_factory=Compute)
    hardware: Hardware | None = Field(
        default=None, description="price of the workers, for the cost of a million documents"
    )

    @property
    def evaluated(self) -> tuple[EvaluatedModel, ...]:
        """All models, the first being what the others are compared with."""
        if self.model is None:
            return self.models
        return (EvaluatedModel(name=self.model, model=self.model, embedder=self.embedder),)

    @model_validator(mode="after")
    def _one_name_each(self) -> EvaluateConfig:
        if (self.model is None) == (not self.models):
            raise ValueError("give either model (one) or models (several, side by side)")
        if self.models and "embedder" in self.model_fields_set:
            raise ValueError("embedder: it belongs to model; with models, each has an embedder section of its own")
        for kind, names in (("tasks", [t.name for t in self.tasks]), ("models", [m.name for m in self.models])):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"{kind}: give each a name of its own: {twice!r} comes twice")
        for model in self.evaluated:
            if model.model == BM25 and not any(is_for_bm25(task) for task in self.tasks):
                raise ValueError("models: bm25 ranks texts of a corpus; give it a retrieval task without an index")
        return self


def is_for_bm25(task: Task) -> bool:
    """Whether the lexical baseline can be scored on a task."""
    return task.kind == "retrieval" and task.index is None
