"""The `output` section that configs have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class OutputFolder(BaseModel):
    """Where the job's results go."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1, description="folder; local, s3:// or any fsspec URL")
    storage_options: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="fsspec options of the output (endpoint_url, ...), never stored"
    )
