"""The config of distill-static."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

from operators.embedder.recipe.recipe import EmbedderConfig

UNUSED = r"\[unused\d+\]"  # BERT's spare tokens


class DistilledOutput(BaseModel):
    """Where the static embedder goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1, description="local folder; it is a checkpoint for `model` of any other job")


class DistillStaticConfig(BaseModel):
    """The config of distill-static."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        min_length=1, description="a recipe in configs/models, a recipe file, a checkpoint folder, or a hub id"
    )
    embedder: EmbedderConfig = Field(default_factory=EmbedderConfig, description="what to change of the recipe")
    dims: int | None = Field(default=256, gt=0, description="dims after PCA; null: the model's own, without PCA")
    sif_a: float | None = Field(
        default=1e-4, gt=0, description="tokens count a / (a + p), p by rank in the vocabulary; null: all alike"
    )
    exclude: str = Field(default=UNUSED, description="regular expression of tokens that get no vector")
    output: DistilledOutput
    threads: int | None = Field(default=None, gt=0, description="CPU threads; null: all")

    @field_validator("exclude")
    @classmethod
    def _is_expression(cls, exclude: str) -> str:
        try:
            re.compile(exclude)
        except re.error as error:
            raise ValueError(f"exclude is no regular expression: {error}") from None
        return exclude
