"""The `forecast:` section of a training config; it imports no torch, so that a wrong config is told at once."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ForecastConfig(BaseModel):
    """What GPUs `plan` reckons with; nothing of a run depends on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu: Literal["H100", "H200", "A100", "L4"] = Field(default="H100", description="kind of GPU")
    num_gpus: tuple[int, ...] = Field(default=(1, 8, 16, 32, 64), min_length=1, description="how many, one plan each")
    utilization: float | None = Field(
        default=None, gt=0, le=1, description="share of the peak that products reach; null = 0.35 to 0.45, assumed"
    )
    query_tokens: float | None = Field(
        default=None, gt=0, description="of a query; null = mean of the sets' first rows"
    )
    document_tokens: float | None = Field(default=None, gt=0, description="of a document; null: likewise")
    sample_rows: int = Field(default=1000, ge=1, description="rows of each set that are read for it")
