"""Some steps of a training on a tiny model and sets of every kind, on whichever ranks there are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.training.config.choice import default_objective
from operators.training.config.sets import TrainingSet
from operators.training.config.tuning import Tuning
from operators.training.data.batch_plan import BatchPlan, PlannedSet
from operators.training.model.encoder import Encoder, Reader
from operators.training.objectives.set_objective import SetObjective
from operators.training.steps.optimization import Optimization
from operators.training.steps.passes import VectorPasses
from operators.training.steps.rank_batches import RankBatches, ReadySet
from operators.training.steps.step import TrainStep
from tests.checkpoints import WORDS
from tests.operators.training.training_files import open_rows, prepare, write_rows

FOLDER = "TRAINING_STEPS_FOLDER"  # of the environment, by which ranks find the model and the sets
RECIPES = Path("configs/models")
TUNING = "TRAINING_STEPS_TUNING"  # likewise, as JSON
NUM_STEPS = 15
KINDS: dict[str, dict[str, Any]] = {
    "pairs": {},
    "triples": {"num_negatives": 2},
    "texts": {},
    "scored": {},
    "classes": {"columns": {"label": "label"}, "labels": ["no", "yes"]},
    "lists": {"num_candidates": 3},
}


def write_sets(folder: Path, num_rows: int = 40) -> None:
    """A file for a set of each kind."""
    rng = np.random.default_rng(3)

    def text() -> str:
        return " ".join(rng.choice(WORDS, rng.integers(2, 20)))

    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in KINDS}
    for _ in range(num_rows):
        rows["pairs"].append({"query": text(), "positive": text()})
        rows["triples"].append({"query": text(), "positive": text(), "negative": [text(), text()]})
        rows["texts"].append({"text": text()})
        rows["scored"].append({"sentence1": text(), "sentence2": text(), "score": float(rng.random())})
        rows["classes"].append({"sentence1": text(), "sentence2": text(), "label": str(rng.choice(["no", "yes"]))})
        rows["lists"].append(
            {"query": text(), "candidates": [text() for _ in range(3)], "scores": rng.random(3).tolist()}
        )
    for name, lines in rows.items():
        write_rows(folder / f"{name}.jsonl", lines)


def make_step(
    folder: Path,
    tokens: int = 4096,
    dropout: float = 0.0,
    num_steps: int = NUM_STEPS,
    tuning: Tuning | None = None,
    **optimization: Any,
) -> tuple[TrainStep, RankBatches]:
    """A step and its batches on this rank, for `folder/model` and the files of `write_sets`."""
    tuning = (tuning or Tuning(precision="float32")).model_copy(
        update={"dropout": dropout, "attention_dropout": dropout}
    )
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    spec = embedder_spec(str(folder / "model"), EmbedderConfig(), RECIPES)
    torch.manual_seed(0)
    encoder = Encoder(spec, tuning, torch.device("cpu"))
    sets, planned = [], []
    for name, settings in KINDS.items():
        kind = "scored" if name == "classes" else name
        chosen = TrainingSet.model_validate(
            {"name": name, "path": str(folder / f"{name}.jsonl"), "kind": kind, **settings}
        )
        rows = open_rows(prepare(chosen, folder / f"sets-{rank}-{world_size}"), folder / f"sets-{rank}-{world_size}")
        sets.append(ReadySet(chosen, rows, Reader({"query": spec, "document": spec}), ("query", "query")))
        planned.append(PlannedSet(name, len(rows), None, rows.hashes if chosen.has_in_batch_negatives else None))
    objectives = [SetObjective(default_objective(one.config), one.config, spec.dim) for one in sets]
    config = Optimization(**{"learning_rate": 1e-3, "warmup": 2, **optimization})
    passes = [VectorPasses(encoder, objective, tokens, seed=7) for objective in objectives]
    step = TrainStep(encoder, passes, list(KINDS), config, num_steps)
    return step, RankBatches(BatchPlan(planned, 9, 7), sets, rank, world_size, pass_tokens=min(tokens, 128))


def steps_on_this_rank() -> dict[str, Any]:
    """Losses, gradient norms and the weights after them."""
    tuning = Tuning.model_validate_json(os.environ.get(TUNING, '{"precision": "float32"}'))
    step, batches = make_step(Path(os.environ[FOLDER]), tokens=512, tuning=tuning)
    metrics = [step(batch) for batch in batches(0, NUM_STEPS)]
    return {
        "sets": [one.set for one in metrics],
        "losses": [one.loss for one in metrics],
        "norms": [one.gradient_norm for one in metrics],
        "tokens": [one.tokens for one in metrics],
        "weights": {name: whole(parameter) for name, parameter in step.parameters.items()},
    }


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """All of a parameter, of which this rank may have a part; every rank is to ask."""
    found = parameter.detach()
    return found.full_tensor() if isinstance(found, DTensor) else found
