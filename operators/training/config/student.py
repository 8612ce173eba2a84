"""The `student:` section of a distillation's config."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Student(BaseModel):
    """What a student keeps of its teacher."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[int, ...] | None = Field(default=None, description="layers to keep, from 0, ascending")
    num_layers: int | None = Field(
        default=None, ge=1, description="in place of layers: how many, spread evenly, the first and the last kept"
    )
    dims: int | None = Field(
        default=None,
        ge=1,
        description="width of its vectors: a projection to the principal directions of the teacher's; null = as wide",
    )

    @model_validator(mode="after")
    def _one_choice(self) -> Student:
        if (self.layers is None) == (self.num_layers is None):
            raise ValueError("give layers or num_layers, and not both")
        if self.layers is not None and (not self.layers or list(self.layers) != sorted(set(self.layers))):
            raise ValueError(f"layers: expected ascending numbers, each once, got {list(self.layers)}")
        return self
