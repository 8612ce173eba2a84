"""What a run of `train` is: what every worker of it is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.embedding.config import Compute
from jobs.embedding.identity import RECIPES
from jobs.teachers.outputs import TeacherOutputs, compute_teacher_outputs
from jobs.training.config import TrainConfig
from jobs.training.data import PreparedSet, batch_plan
from jobs.training.sections import Evaluating
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec
from operators.errors import InputError
from operators.evaluation.encoding import Prompted
from operators.storage import Location
from operators.training.config.choice import fault_of_sparse, needs_other_rows
from operators.training.config.objectives import Objective
from operators.training.config.sets import Side, TrainingSet
from operators.training.data.batch_plan import BatchPlan

MODEL_FOLDER, CHECKPOINTS = "model", "checkpoints"
_TIMES = 10  # checkpoints and evaluations of a run, where the config does not say how often


@dataclass(frozen=True, slots=True)
class TrainRun:
    """Everything a worker needs; picklable."""

    config: TrainConfig
    spec: EmbedderSpec  # of the model to begin with
    prepared: tuple[PreparedSet, ...]  # as `config.all_sets`
    said: tuple[tuple[TeacherOutputs, ...], ...]  # by the teachers that the loss of each asks
    fingerprint: str
    num_steps: int
    output: Location  # the run's folder
    directory: str  # the one that relative paths of the config are relative to

    def loss_of(self, training_set: TrainingSet) -> Objective:
        """The loss of any of its sets."""
        generation = self.config.generation
        if generation is not None and training_set in generation.sets:
            return generation.loss
        return self.config.objective_of(training_set)

    @property
    def sets(self) -> tuple[PreparedSet, ...]:
        """Those that have their turns."""
        return self.prepared[: len(self.config.sets)]

    @property
    def generated(self) -> tuple[PreparedSet, ...]:
        """Those of which each step has a batch beside its own (GRIT)."""
        return self.prepared[len(self.config.sets) :]

    @property
    def checkpoint_every(self) -> int:
        """Steps from one checkpoint to the next."""
        return self.config.checkpoints.every or max(1, math.ceil(self.num_steps / _TIMES))

    @property
    def evaluation(self) -> Evaluating | None:
        """What the model is judged by; None: nothing."""
        if self.config.evaluation is None and self.config.measured:
            return Evaluating()
        return self.config.evaluation

    @property
    def evaluate_every(self) -> int | None:
        """Steps from one evaluation to the next."""
        evaluation = self.evaluation
        return None if evaluation is None else evaluation.every or max(1, math.ceil(self.num_steps / _TIMES))

    def side_spec(self, side: Side, default_role: str) -> EmbedderSpec:
        """The spec by whose templates the texts of one side of a set are read."""
        return prompted_spec(self.config, side.role or default_role, side.prompt, side.task)

    def prompted_spec(self, prompted: Prompted) -> EmbedderSpec:
        """The same for a task's texts."""
        return prompted_spec(self.config, prompted.role, prompted.prompt, prompted.instruction)


def start_spec(config: TrainConfig) -> EmbedderSpec:
    """The model to begin with, checked without loading it."""
    spec = embedder_spec(config.model, config.embedder, RECIPES)
    for one in config.sets:
        fault = fault_of_sparse(config.objective_of(one), bool(spec.sparse_dim))
        if fault is not None:
            raise InputError(f"sets.{one.name}: {fault}")
    return spec


def prompted_spec(
    config: TrainConfig, role: str, prompt: str | tuple[str, ...] | None, task: str | None
) -> EmbedderSpec:
    """The model with the prompt that some texts get; InputError where its recipe has none of that role."""
    changed: dict[str, object] = {"role": role, "prompt": prompt}
    if task is not None:
        changed["task"] = task
    embedder: EmbedderConfig = config.embedder.model_copy(update=changed)
    return embedder_spec(config.model, embedder, RECIPES)


def number_of_steps(config: TrainConfig, plan: BatchPlan) -> int:
    """Steps of the whole run."""
    if config.steps is not None:
        return config.steps
    return max(1, math.ceil((config.epochs or 1.0) * plan.steps_per_epoch))


def teachers_said(config: TrainConfig, sets: Sequence[PreparedSet]) -> tuple[tuple[TeacherOutputs, ...], ...]:
    """What teachers say of each set, by those that its loss asks; computed where it is not there yet."""
    asked = [(prepared, teacher) for prepared in sets for teacher in config.asked(prepared.config)]
    compute = Compute(
        cpus_per_worker=config.compute.cpus_per_worker or 1,
        gpus_per_worker=config.compute.gpus_per_worker,
        local_cpus=config.compute.local_cpus,
    )
    said = iter(compute_teacher_outputs(asked, compute, config.prepared.cache_dir))
    return tuple(tuple(next(said) for _ in config.asked(prepared.config)) for prepared in sets)


def check_batches(config: TrainConfig, sets: Sequence[PreparedSet], plan: BatchPlan, workers: int) -> None:
    """Raise InputError where batches have too few rows for that many workers, or to contrast any."""
    _check_sizes(config.sets, plan, workers, "batch.size")
    for number, training_set in enumerate(config.sets):
        if max(plan.batch_sizes(number)) == 1 and needs_other_rows(config.objective_of(training_set), training_set):
            raise InputError(
                f"give the set {training_set.name!r} more rows, or rows of more different texts: each of its batches "
                "has one row (no text comes twice in a batch), and its loss learns from several"
            )
    if config.generation is not None:
        generated = batch_plan(config, sets[len(config.sets) :], config.generation.size)
        _check_sizes(config.generation.sets, generated, workers, "generation.size")


def _check_sizes(sets: Sequence[TrainingSet], plan: BatchPlan, workers: int, key: str) -> None:
    for number, training_set in enumerate(sets):
        fewest = min(plan.batch_sizes(number))
        if fewest < workers:
            raise InputError(
                f"give a larger {key} or fewer compute.workers: a batch of the set {training_set.name!r} has "
                f"{fewest} rows for {workers} workers"
            )
