"""The `sparse` section of a recipe, and the files of its head; without torch, for the driver of a job.

A sparse vector has a weight above 0 for some ids of the tokenizer's vocabulary; the inner product of two of them is
exact search's score. `pooling: none` beside it makes a recipe that has no dense vectors at all.

Shapes: N texts, V ids of the vocabulary, D width of a token state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from operators.embedder.recipe.keywords import PoolOver
from operators.errors import InputError

TOKEN_WEIGHTS_FILE = "sparse_linear.safetensors"
ASSUMED_ENTRIES = 256  # of a SPLADE vector of a passage; published ones have 100 to 300


class SparseHead(BaseModel):
    """How token states become a sparse vector."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    head: Literal["mlm", "lm", "token_weights", "next_word"] = Field(
        description="mlm, lm: largest log(1 + relu(logit)) over the tokens, of the masked or causal language model's "
        "own head (SPLADE); token_weights: a linear layer's weight of each token (BGE-M3); next_word: logits of the "
        "word that would come next, for words of the text (PromptReps)"
    )
    top: int | None = Field(default=None, gt=0, description="entries kept of a vector, the heaviest; null: all above 0")
    pool_over: PoolOver = Field(
        default="all",
        description="tokens that count; after_prompt: without prompt and what is before it; text: its own alone",
    )
    stop_words: tuple[str, ...] = Field(default=(), description="with next_word: words of a text that are left out")
    integer_scale: int | None = Field(
        default=None, gt=0, description="weights are multiplied by it and rounded to whole numbers; null: as they are"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> SparseHead:
        if self.head == "next_word" and self.pool_over != "all":
            raise ValueError("sparse.pool_over has no meaning with head: next_word, which reads the last token alone")
        if self.stop_words and self.head != "next_word":
            raise ValueError("sparse.stop_words are for head: next_word")
        return self

    @property
    def is_bounded(self) -> bool:
        """Whether it is known before a run how many entries a vector has at most."""
        return self.top is not None or self.head in ("token_weights", "next_word")

    def most_entries(self, tokens_per_text: float) -> float:
        """Entries of the vector of a text of so many tokens, at most; ASSUMED_ENTRIES where only the model knows."""
        bounds: list[float] = [] if self.top is None else [self.top]
        if self.head in ("token_weights", "next_word"):
            bounds.append(tokens_per_text)
        return min(bounds, default=ASSUMED_ENTRIES)

    def flops(self, lengths_N: NDArray[np.int64], vocabulary: int, width: int) -> float:
        """FLOPs of the head for texts of these lengths in tokens."""
        per_state = {"mlm": 2.0 * width * (vocabulary + width), "token_weights": 2.0 * width}
        states = len(lengths_N) if self.head == "next_word" else int(lengths_N.sum())
        return per_state.get(self.head, 2.0 * width * vocabulary) * states


def token_weights_file(root: Path) -> Path:
    """The linear layer of head `token_weights` in a checkpoint; InputError, with the remedy, where there is none."""
    file = root / TOKEN_WEIGHTS_FILE
    if not file.is_file():
        raise InputError(
            f"convert sparse_linear.pt to {file}: pickled weights can run code when they are loaded. In that folder: "
            "python -c \"import torch, safetensors.torch as s; s.save_file(torch.load('sparse_linear.pt', "
            f"weights_only=True), '{TOKEN_WEIGHTS_FILE}')\", and name the folder as the recipe's checkpoint"
        )
    return file


def head_files(root: Path, sparse: SparseHead | None) -> list[Path]:
    """The files beside the checkpoint's own weights that determine a sparse vector."""
    return [token_weights_file(root)] if sparse is not None and sparse.head == "token_weights" else []
