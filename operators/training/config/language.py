"""The losses of language modelling in a training config: of sets by themselves, or beside every step (GRIT)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Weighting = Literal["token", "sample", "sum_per_sample"]


class LanguageLoss(BaseModel):
    """What losses of single tokens have; they train the trunk and the language model's own head on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weighting: Weighting = Field(
        default="token",
        description="what counts alike: each token; each text (sample); or each token, divided by the number of texts "
        "(sum_per_sample, GritLM's `token`)",
    )


class CausalLm(LanguageLoss):
    """The next token, with causal attention whatever the recipe's; of pairs the positive alone, after its query."""

    loss: Literal["causal_lm"]


class Mntp(LanguageLoss):
    """Masked tokens, each from the state before it, with the recipe's bidirectional attention (arXiv 2404.05961)."""

    loss: Literal["mntp"]
    mask_probability: float = Field(
        default=0.2, gt=0, le=1, description="share of a text's tokens; LLM2Vec: 0.2, for Mistral 0.8"
    )
    mask_token: str = Field(default="_", min_length=1, description="what stands for a mask; causal models have none")
    replacement: Literal["mask", "bert"] = Field(
        default="mask", description="bert: of what is chosen 10 % become any token, and 10 % stay"
    )
