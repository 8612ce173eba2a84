"""The pool that keeps a model: prompts, order, workers that die."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import yaml

from jobs.embedding.config import Compute
from jobs.embedding.pool import EmbeddingWorker, embedding_pool, prompted_spec
from operators.embedder.factory import load_embedder
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.errors import InputError
from operators.evaluation.encoding import Prompted
from tests.evaluation_sets import sentence

ONE = EmbedderConfig()


def some_texts(num: int) -> list[str]:
    """Texts of different lengths."""
    rng = np.random.default_rng(0)
    return [sentence(rng, i % 8, 1 + i % 30) for i in range(num)]


def recipe(folder: Path, model: Path, **fields: object) -> str:
    """A recipe file for a checkpoint."""
    path = folder / "recipe.yaml"
    known = {"checkpoint": str(model), "pooling": "mean", "normalize": True, "max_tokens": 64}
    path.write_text(yaml.safe_dump({**known, **fields}))
    return str(path)


@pytest.mark.parametrize("pool_over", [pytest.param("all", marks=pytest.mark.slow), "after_prompt"])
def test_every_prompt_gives_what_its_own_embedder_gives(tmp_path: Path, tiny_model: Path, pool_over: str) -> None:
    """A prompt that is left out of the pool, or read several times, is part of the model and not of the text."""
    prompts = {"query": "find people: ", "document": ["time: ", "the {text} again"]}
    model = recipe(tmp_path, tiny_model, prompts=prompts, pool_over=pool_over)
    texts = pa.array(some_texts(20))
    worker = EmbeddingWorker(ONE, 1, prompted_spec(model, ONE, Prompted()))
    for prompted in (Prompted("query"), Prompted(), Prompted("query", "other words: "), Prompted("query"), Prompted()):
        spec = prompted_spec(model, ONE, prompted)
        expected = load_embedder(spec)(Tokenizer(spec)(texts).input_ids).values_ND
        np.testing.assert_allclose(worker.embed(spec, 0, texts).vectors_ND, expected, atol=1e-5)


def test_vectors_come_in_order_and_a_dead_worker_costs_nothing(tiny_model: Path, local_ray: None) -> None:
    texts = some_texts(700)
    with embedding_pool(str(tiny_model), ONE, Compute(workers=(2, 2))) as pool:
        before = pool.embed(texts, Prompted())
        pid = ray.get(pool.workers[0].__ray_call__.remote(lambda worker: os.getpid()))
        os.kill(pid, signal.SIGKILL)
        after = pool.embed(texts, Prompted())
        assert pool.effort.texts == 1400
    spec = prompted_spec(str(tiny_model), ONE, Prompted())
    expected = load_embedder(spec)(Tokenizer(spec)(pa.array(texts)).input_ids).values_ND
    np.testing.assert_allclose(before, expected, atol=1e-5)
    np.testing.assert_allclose(after, expected, atol=1e-5)


def test_a_role_without_a_prompt_is_refused(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="embedder.role 'clustering' has no prompt"):
        prompted_spec(str(tiny_model), ONE, Prompted("clustering"))
