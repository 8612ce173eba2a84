"""One model, several prompts: embedders of a recipe, loaded no more often than its prompts differ for the model."""

from __future__ import annotations

from typing import Any

from operators.embedder.factory import load_embedder
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import EmbedderSpec

_LOADED = 2  # models in memory of a recipe whose pooling depends on the prompt: for documents and for queries


class PromptedEmbedders:
    """The embedders of one process for specs that differ in their prompt alone."""

    def __init__(self, config: EmbedderConfig, threads: int | None) -> None:
        self._config, self._threads = config, threads
        self._embedders: dict[str, Any] = {}  # by what of the prompt they depend on, the latest used last

    def __call__(self, spec: EmbedderSpec) -> Any:
        """The embedder for a prompt, which `load_embedder` made now or before."""
        # A prompt is only tokens to a model that pools them all; else places in it tell what is pooled or averaged.
        depends = len(spec.templates) > 1 or spec.recipe.pool_over != "all"
        key = spec.fingerprint if depends else ""
        embedder = self._embedders.pop(key, None)
        while embedder is None and len(self._embedders) >= _LOADED:
            self._embedders.pop(next(iter(self._embedders)))
        if embedder is None:
            config = self._config
            embedder = load_embedder(spec, config.batch_tokens, config.device, self._threads, config.packing)
        self._embedders[key] = embedder
        return embedder
