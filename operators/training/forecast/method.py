"""How a model is trained, and on what batches: the other half of a forecast, beside the model's shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from operators.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What is trained, in what precision, and where its state lies."""

    precision: Literal["float32", "bfloat16"] = "bfloat16"  # of products; trained weights are float32 always
    rank: int | None = None  # of adapters on all linear layers; None: all weights are trained
    adapter_dropout: bool = True
    frozen: Literal["float32", "bfloat16", "nf4"] = "float32"  # what is not trained beside adapters
    dropout: bool = False  # the model's own
    checkpointing: bool = False  # keep the input of each block, and compute the rest of it again
    sharded: bool = False  # FSDP2: weights, gradients and moments over all GPUs; else each has all of them

    def __post_init__(self) -> None:
        if self.rank is None and self.frozen != "float32":
            raise InputError(f"give a rank of adapters: weights in {self.frozen} are not trained themselves")
        if self.frozen != "float32" and self.precision == "float32":
            raise InputError(f"set precision bfloat16: weights in {self.frozen} are not computed with in float32")
        if self.frozen == "nf4" and self.sharded:
            raise InputError("give sharded or nf4, not both: weights of 4 bits are not sharded here")

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number in products."""
        return 4 if self.precision == "float32" else 2

    @property
    def stream_bytes(self) -> int:
        """Bytes of a number between blocks, which is that of the weights that blocks see.

        float32, unless FSDP2 gathers trained weights in bfloat16, or frozen ones are kept in it.
        """
        if self.precision == "float32":
            return 4
        return 2 if self.frozen != "float32" or self.sharded else 4

    @property
    def is_autocast(self) -> bool:
        """Whether float32 weights and states are cast at each product."""
        return self.stream_bytes != self.compute_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The batches of a training: `rows` in a step of all GPUs, each a query and its documents."""

    rows: int
    query_tokens: float
    document_tokens: float
    documents: int = 1  # of a row: positive and hard negatives
    dim: int  # of a vector
    tokens: int  # whose activations a GPU holds at once; what a step has beyond them is encoded twice (GradCache)
    pass_tokens: int = 16384  # of one forward pass

    @property
    def texts(self) -> int:
        """Of a step."""
        return self.rows * (1 + self.documents)

    @property
    def step_tokens(self) -> float:
        """Of all GPUs; padding is left out (length-aware batches have about 1 % of it)."""
        return self.rows * (self.query_tokens + self.documents * self.document_tokens)

    @property
    def step_pairs(self) -> float:
        """Pairs of tokens that attend to each other, of all GPUs: as many as each text has tokens, squared."""
        return self.rows * (self.query_tokens**2 + self.documents * self.document_tokens**2)

    def held_tokens(self, num_gpus: int) -> float:
        """Tokens whose activations a GPU holds at once."""
        return min(float(self.tokens), self.step_tokens / num_gpus)

    def encoded_twice(self, num_gpus: int) -> float:
        """Share of the tokens that GradCache encodes a second time."""
        return 1 - self.held_tokens(num_gpus) / (self.step_tokens / num_gpus)

    def passes(self, tokens: float) -> int:
        """Forward passes for so many tokens."""
        return max(1, math.ceil(tokens / self.pass_tokens))
