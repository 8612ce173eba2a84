"""The `flops:` of a loss of sparse vectors in a training config."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class FlopsRegularisation(BaseModel):
    """What keeps sparse vectors sparse (arXiv 2004.05665), ramped up quadratically (SPLADE, arXiv 2107.05720)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: float = Field(ge=0, description="weight for queries; SPLADE v2: 0.1 to 0.5 by margin_mse, 3e-4 by info_nce")
    document: float = Field(ge=0, description="weight for documents; SPLADE v2: 0.08 to 0.4, 1e-4")
    ramp_steps: int | None = Field(
        default=None,
        ge=1,
        description="steps until they are full; null = a third of the run (SPLADE: 50,000)",
    )
