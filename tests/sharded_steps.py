"""What ranks that share a tiny model do in the tests: train, store, go on in another number, embed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.training.config.tuning import Tuning
from operators.training.judging.evaluating import RankEmbedder
from operators.training.model.encoder import Encoder, Reader
from operators.training.model.sharding import one_rank_at_a_time, own_rows
from operators.training.steps import state
from tests.checkpoints import WORDS
from tests.training_steps import FOLDER, RECIPES, make_step

STOPS = (3, 6, 8)
SHARDED = Tuning(precision="float32", sharding="fsdp2")
RUN = "run"


def first_steps() -> dict[str, Any]:
    """The first steps of a run, its state stored by every rank; and what a rank has of the weights."""
    folder = Path(os.environ[FOLDER])
    step, batches = make_step(folder, tokens=512, tuning=SHARDED)
    losses = [step(batch).loss for batch in batches(0, STOPS[0])]
    state.save(folder / "first", step.parameters, step.optimizer, state.Progress(STOPS[0], RUN))
    trunk = {name: one for name, one in step.parameters.items() if name.startswith("trunk.")}
    return {
        "losses": losses,
        "own": sum(own_rows(one)[0].numel() for one in trunk.values()),
        "all": sum(one.numel() for one in trunk.values()),
        "vectors": [embedded(step.encoder, texts) for texts in uneven_texts()],
        "turns": turns(folder),
        "half": half_losses(folder),
    }


def more_steps() -> list[float]:
    """The run goes on, on other ranks, and is stored again."""
    folder = Path(os.environ[FOLDER])
    step, batches = make_step(folder, tokens=512, tuning=SHARDED)
    done = state.load(folder / "first", step.parameters, step.optimizer, RUN).step
    losses = [step(batch).loss for batch in batches(done, STOPS[1])]
    state.save(folder / "second", step.parameters, step.optimizer, state.Progress(STOPS[1], RUN))
    return losses


def half_losses(folder: Path) -> list[float]:
    """Some steps in bfloat16."""
    step, batches = make_step(folder, tokens=512, tuning=SHARDED.model_copy(update={"precision": "bfloat16"}))
    assert {one.dtype for one in step.parameters.values()} == {torch.float32}
    return [step(batch).loss for batch in batches(0, STOPS[0])]


def uneven_texts() -> list[list[str]]:
    """Texts of which the first rank gets most tokens, and one that leaves other ranks without any; then none."""
    return [[*(" ".join(WORDS[:20]) for _ in range(9)), *WORDS[:8]], ["a single text"], []]


def embedded(encoder: Encoder, texts: list[str]) -> torch.Tensor:
    """Vectors by all ranks there are, in passes of 32 tokens."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    spec = embedder_spec(str(Path(os.environ[FOLDER]) / "model"), EmbedderConfig(), RECIPES)
    embedder = RankEmbedder(encoder, lambda _: Reader({"document": spec}), rank, world_size, pass_tokens=32)
    found = embedder.embed_read(texts, ["document"] * len(texts), Reader({"document": spec}))
    return torch.from_numpy(np.ascontiguousarray(found))


def turns(folder: Path) -> list[str]:
    """Who was at work when, where the first rank's work fails."""
    log = folder / "turns.txt"
    try:
        with one_rank_at_a_time(torch.device("cpu")):
            for what in ("begins", "ends"):
                with log.open("a") as file:
                    file.write(f"{dist.get_rank()} {what}\n")
            if dist.get_rank() == 0:
                raise ValueError("broken")
    except ValueError:
        assert dist.get_rank() == 0
    return log.read_text().splitlines()
