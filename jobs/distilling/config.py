"""The config of `distill`: that of `train`, with teachers, and a student that may be made of the model."""

from __future__ import annotations

from pydantic import Field

from jobs.training.config import TrainConfig
from operators.teachers.config import Teacher
from operators.training.config.objectives import Objective, Stella
from operators.training.config.sets import TrainingSet
from operators.training.config.student import Student


class DistillConfig(TrainConfig):
    """The config of distill."""

    model: str = Field(min_length=1, description="the student, or what it is made of: as `model` of train")
    student: Student | None = Field(
        default=None, description="make the student of some of the layers of `model`; null = `model` is the student"
    )
    teachers: tuple[Teacher, ...] = Field(
        min_length=1, description="models whose vectors or scores losses name; what they say is computed once"
    )
    objective: Objective | None = Field(
        default=None,
        description="loss of all sets without an `objective` of their own; null = stella, by all teachers",
    )

    def objective_of(self, training_set: TrainingSet) -> Objective:
        """The loss of a set: its own, the run's, or stella."""
        stella = Stella(loss="stella", teachers=tuple(teacher.name for teacher in self.teachers))
        return training_set.objective or self.objective or stella
