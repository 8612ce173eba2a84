"""The `tuning:` section of a training config."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Lora(BaseModel):
    """Low-rank adapters in place of full fine-tuning (Hu et al. 2021, arXiv 2106.09685)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=16, gt=0, description="rank of the update of each weight")
    alpha: int = Field(default=32, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="of what enters an adapter")
    targets: tuple[str, ...] | Literal["all-linear"] = Field(
        default="all-linear", description="names of the linear layers that get one"
    )
    quantized: Literal["nf4"] | None = Field(
        default=None, description="nf4: frozen weights of 4 bits (QLoRA, the extra `qlora`); null: as `precision` says"
    )


class Tuning(BaseModel):
    """What of a model is trained, and how its passes are computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lora: Lora | None = Field(default=None, description="train adapters alone; null: all weights")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of products, and of what is frozen beside adapters; trained weights stay float32. auto: bfloat16 "
        "where every worker multiplies it in hardware, else float32",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations twice in place of keeping them: less memory, a third slower"
    )
    sharding: Literal["none", "fsdp2"] = Field(
        default="none",
        description="fsdp2: each worker keeps a part of the weights, gradients and moments; none: all of them",
    )
    dropout: float | None = Field(default=None, ge=0, lt=1, description="of the model; null: as its config says")
    attention_dropout: float | None = Field(default=None, ge=0, lt=1, description="null: as the model's config says")

    @model_validator(mode="after")
    def _fits_quantized(self) -> Tuning:
        if self.lora is not None and self.lora.quantized is not None:
            if self.precision == "float32":
                raise ValueError(
                    "set precision to bfloat16: weights of lora.quantized are not computed with in float32"
                )
            if self.sharding != "none":
                raise ValueError("set sharding to none, or leave out lora.quantized: weights of 4 bits are not sharded")
        return self

    def settled(self, in_hardware: bool) -> Tuning:
        """The same with the precision that `auto` comes to; `in_hardware`: whether every worker multiplies bfloat16."""
        if self.precision != "auto":
            return self
        is_quantized = self.lora is not None and self.lora.quantized is not None
        return self.model_copy(update={"precision": "bfloat16" if in_hardware or is_quantized else "float32"})
