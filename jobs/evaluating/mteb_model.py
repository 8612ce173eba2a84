"""Run any MTEB task with one of our recipes, on a pool of workers:

import mteb
from jobs.evaluating.mteb_model import mteb_model

with mteb_model("minilm") as model:
    mteb.evaluate(model, mteb.get_tasks(tasks=["STSBenchmark", "SciFact"]))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from cluster.environment import sane_environment
from jobs.embedding.config import Compute
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.evaluation.mteb_model import MtebModel


@contextmanager
def mteb_model(
    model: str,
    embedder: EmbedderConfig | None = None,
    compute: Compute | None = None,
    prompts: Mapping[str, str] | None = None,
) -> Iterator[MtebModel]:
    """A model for `mteb.evaluate`; its workers, and a Ray that was started for them, end with the block.

    `model`, `embedder` and `compute` are what a job's config has under these names; `prompts` go by mteb's names of
    tasks and types ("TASK-query", "TASK", "TYPE-query", "TYPE"). Raises InputError for a model that does not load.
    """
    sane_environment()  # before ray is imported
    from cluster.session import connect
    from jobs.embedding.pool import embedding_pool

    compute = compute or Compute()
    with (
        connect(local_cpus=compute.local_cpus),
        embedding_pool(model, embedder or EmbedderConfig(), compute) as pool,
    ):
        yield MtebModel(pool, pool.spec, prompts)
