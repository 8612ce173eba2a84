"""Some steps of language modelling, GRIT and SPLADE on tiny models, on whichever ranks there are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml

from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec
from operators.training.config.flops import FlopsRegularisation
from operators.training.config.language import CausalLm, LanguageLoss, Mntp
from operators.training.config.objectives import InfoNce
from operators.training.config.sets import TrainingSet
from operators.training.config.tuning import Tuning
from operators.training.data.batch_plan import BatchPlan, PlannedSet
from operators.training.model.encoder import Encoder, Reader, Role
from operators.training.objectives.set_objective import SetObjective
from operators.training.objectives.sparsity import Sparsity
from operators.training.steps.language_passes import LanguagePasses
from operators.training.steps.optimization import Optimization
from operators.training.steps.passes import GritPasses, Passes, VectorPasses
from operators.training.steps.rank_batches import RankBatches, ReadySet
from operators.training.steps.step import TrainStep
from tests.checkpoints import WORDS
from tests.operators.training.training_files import open_rows, prepare, write_rows

FOLDER = "LANGUAGE_STEPS_FOLDER"  # of the environment, by which ranks find model and sets
RECIPES = Path("configs/models")
NUM_STEPS = 5
STILL = Tuning(precision="float32", dropout=0.0, attention_dropout=0.0)
GENERATIVE: dict[str, LanguageLoss] = {
    "mntp": Mntp(loss="mntp", mask_probability=0.5, replacement="bert"),
    "mntp-sample": Mntp(loss="mntp", mask_probability=0.5, weighting="sample"),
    "causal_lm": CausalLm(loss="causal_lm"),
    "grit": CausalLm(loss="causal_lm", weighting="sum_per_sample"),
}


def write_texts(folder: Path, num_rows: int = 60) -> None:
    """Texts, and pairs."""
    rng = np.random.default_rng(3)

    def text() -> str:
        return " ".join(rng.choice(WORDS, rng.integers(2, 20)))

    write_rows(folder / "texts.jsonl", [{"text": text()} for _ in range(num_rows)])
    write_rows(folder / "pairs.jsonl", [{"query": text(), "positive": text()} for _ in range(num_rows)])


def write_recipe(folder: Path, **fields: Any) -> Path:
    """A recipe on `folder/decoder`: bidirectional, mean."""
    recipe = {
        "checkpoint": str(folder / "decoder"),
        "attention": "bidirectional",
        "pooling": "mean",
        "normalize": True,
        "max_tokens": 64,
        **fields,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def ready_set(folder: Path, spec: EmbedderSpec, name: str, kind: str, views: tuple[Role, ...]) -> ReadySet:
    """A set of `folder/name.jsonl`."""
    rank, world_size = ranks()
    chosen = TrainingSet.model_validate({"name": name, "path": str(folder / f"{name}.jsonl"), "kind": kind})
    rows = open_rows(prepare(chosen, folder / f"sets-{rank}-{world_size}"), folder / f"sets-{rank}-{world_size}")
    return ReadySet(chosen, rows, Reader({"query": spec, "document": spec}), views)


def ranks() -> tuple[int, int]:
    """This rank, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def batches_of(sets: Sequence[ReadySet], size: int, pass_tokens: int, beside: RankBatches | None) -> RankBatches:
    """The batches of sets on this rank."""
    planned = [PlannedSet(one.config.name, len(one.rows), None, None) for one in sets]
    return RankBatches(BatchPlan(planned, size, 7), sets, *ranks(), pass_tokens, beside)


def make_step(folder: Path, loss: str, pass_tokens: int = 128) -> tuple[TrainStep, RankBatches]:
    """A step and its batches on this rank, of `folder/recipe.yaml` and the files of `write_texts`."""
    spec = embedder_spec(str(folder / "recipe.yaml"), EmbedderConfig(), RECIPES)
    torch.manual_seed(0)
    encoder = Encoder(spec, STILL, torch.device("cpu"), language=True)
    texts = ready_set(folder, spec, "texts", "texts", ("query",))
    config = GENERATIVE[loss]
    mask_id = texts.reader.token_id("_") if isinstance(config, Mntp) else None
    passes: Passes = LanguagePasses(encoder, config, mask_id, seed=7)
    batches = batches_of([texts], 7, pass_tokens, None)
    if loss == "grit":
        assert isinstance(passes, LanguagePasses)
        pairs = ready_set(folder, spec, "pairs", "pairs", ("query",) * 2)
        objective = SetObjective(InfoNce(), pairs.config, spec.dim)
        passes = GritPasses(VectorPasses(encoder, objective, 4096, seed=7), passes, balance=0.5)
        batches = batches_of([pairs], 9, pass_tokens, batches)
    optimization = Optimization(learning_rate=1e-3, warmup=2)
    return TrainStep(encoder, [passes], ["set"], optimization, NUM_STEPS), batches


def steps_on_this_rank() -> dict[str, Any]:
    """What a run of each loss comes to."""
    folder = Path(os.environ[FOLDER])
    found = {loss: run_steps(*make_step(folder, loss)) for loss in GENERATIVE}
    return {**found, "splade": run_steps(*make_sparse_step(folder))}


def make_sparse_step(folder: Path) -> tuple[TrainStep, RankBatches]:
    """The same of SPLADE, of `folder/splade.yaml`."""
    spec = embedder_spec(str(folder / "splade.yaml"), EmbedderConfig(), RECIPES)
    encoder = Encoder(spec, STILL, torch.device("cpu"))
    flops = FlopsRegularisation(query=0.02, document=0.01, ramp_steps=3)
    config = InfoNce(similarity="dot", temperature=1.0, flops=flops)
    pairs = ready_set(folder, spec, "pairs", "pairs", ("query",))
    objective = SetObjective(config, pairs.config, encoder.width)
    passes = VectorPasses(encoder, objective, 4096, 7, Sparsity(flops, NUM_STEPS))
    step = TrainStep(encoder, [passes], ["set"], Optimization(learning_rate=1e-3, warmup=2), NUM_STEPS)
    return step, batches_of([pairs], 9, 128, None)


def run_steps(step: TrainStep, batches: RankBatches) -> dict[str, Any]:
    """Losses, gradient norms and the weights after them."""
    metrics = [step(batch) for batch in batches(0, NUM_STEPS)]
    return {
        "losses": [one.loss for one in metrics],
        "norms": [one.gradient_norm for one in metrics],
        "tokens": [one.tokens for one in metrics],
        "weights": {name: parameter.detach() for name, parameter in step.parameters.items()},
    }
