"""The config of `train`. A section that an operator reads lives beside it; the job's own are in sections.py."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.command_line.output_section import OutputFolder
from jobs.training.sections import Batches, Checkpoints, Evaluating, PreparedSets, TrainCompute
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.teachers.config import Teacher
from operators.training.config.choice import default_objective, fault_of
from operators.training.config.generation import Generation
from operators.training.config.language import LanguageLoss
from operators.training.config.objectives import Objective, teachers_of
from operators.training.config.sets import TrainingSet
from operators.training.config.tuning import Tuning
from operators.training.forecast.config import ForecastConfig
from operators.training.record.tracking import Tracking
from operators.training.steps.optimization import Optimization


class TrainConfig(BaseModel):
    """The config of train."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        min_length=1, description="what to begin with: a recipe in configs/models, a recipe file, a folder, a hub id"
    )
    embedder: EmbedderConfig = Field(default_factory=EmbedderConfig, description="what to change of the recipe")
    sets: tuple[TrainingSet, ...] = Field(min_length=1, description="what to train on; each batch is of one set")
    objective: Objective | None = Field(
        default=None, description="loss of all sets without an `objective` of their own; null = by kind of set"
    )
    teachers: tuple[Teacher, ...] = Field(
        default=(), description="models whose vectors or scores losses name; what they say is computed once"
    )
    generation: Generation | None = Field(
        default=None, description="language modelling beside every step (GRIT); null = none"
    )
    tuning: Tuning = Field(default_factory=Tuning, description="what of the model is trained")
    optimization: Optimization = Field(default_factory=Optimization)
    batch: Batches = Field(default_factory=Batches)
    epochs: float | None = Field(default=None, gt=0, description="times through the sets; null = 1")
    steps: int | None = Field(default=None, ge=1, description="optimisation steps, in place of epochs")
    seed: int = Field(default=0, ge=0, description="of the order of rows and sets, of drawn negatives, of dropout")
    evaluation: Evaluating | None = Field(
        default=None, description="null = of the sets' dev parts, where there are any"
    )
    checkpoints: Checkpoints = Field(default_factory=Checkpoints)
    tracking: Tracking = Field(default_factory=Tracking)
    forecast: ForecastConfig = Field(default_factory=ForecastConfig, description="what `plan` reckons with")
    output: OutputFolder
    prepared: PreparedSets = Field(default_factory=PreparedSets)
    compute: TrainCompute = Field(default_factory=TrainCompute)

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        names = [training_set.name for training_set in self.all_sets]
        if len(set(names)) < len(names):
            raise ValueError(f"sets: each has a name of its own, got {', '.join(names)}")
        known = [teacher.name for teacher in self.teachers]
        if len(set(known)) < len(known):
            raise ValueError(f"teachers: each has a name of its own, got {', '.join(known)}")
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        for training_set in self.sets:
            fault = self._fault_of(training_set)
            if fault is not None:
                raise ValueError(f"sets.{training_set.name}: {fault}")
        return self

    def _fault_of(self, training_set: TrainingSet) -> str | None:
        objective = self.objective_of(training_set)
        fault = fault_of(objective, training_set)
        if fault is not None:
            return fault
        names = [teacher.name for teacher in self.teachers]
        for asked in teachers_of(objective):
            if asked not in names:
                return f"the loss {objective.loss} asks {asked!r}; teachers: {', '.join(names) or 'none'}"
        has_labels = training_set.columns.label is not None
        judges = bool(teachers_of(objective)) or isinstance(objective, LanguageLoss)
        if training_set.dev_fraction and not judges and (has_labels or training_set.kind == "texts"):
            what = "classes" if has_labels else "single texts"
            return f"{what} cannot judge a model: take dev_fraction out, and give evaluation.tasks"
        return None

    def objective_of(self, training_set: TrainingSet) -> Objective:
        """The loss of a set: its own, the run's, or that of its kind."""
        return training_set.objective or self.objective or default_objective(training_set)

    def asked(self, training_set: TrainingSet) -> tuple[Teacher, ...]:
        """The teachers that a set's loss asks, in its order."""
        by_name = {teacher.name: teacher for teacher in self.teachers}
        return tuple(by_name[name] for name in teachers_of(self.objective_of(training_set)))

    @property
    def all_sets(self) -> tuple[TrainingSet, ...]:
        """The sets, then those that are generated from beside them."""
        return self.sets + (() if self.generation is None else self.generation.sets)

    @property
    def measured(self) -> tuple[TrainingSet, ...]:
        """The sets of which rows are held back."""
        return tuple(training_set for training_set in self.all_sets if training_set.dev_fraction)
