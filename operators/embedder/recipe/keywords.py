"""The words that keys of a recipe may hold, for the recipe and for what carries them out."""

from __future__ import annotations

from typing import Literal

ComputeDtype = Literal["float32", "bfloat16", "float16"]
Pooling = Literal["mean", "weighted_mean", "cls", "last", "token", "latent_attention", "own", "none"]
PoolOver = Literal["all", "after_prompt", "text"]
Device = Literal["auto", "cpu", "cuda"]  # auto: cuda where there is a GPU
Side = Literal["right", "left"]
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
