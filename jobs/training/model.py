"""The end of a training in its first worker: the model's folder, and what there is to say of it."""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path

import torch

from jobs.embedding.identity import RECIPES
from jobs.training.config import TrainConfig
from jobs.training.run import MODEL_FOLDER, TrainRun
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.storage import upload_folder
from operators.training.config.objectives import Loss, Stella
from operators.training.model.encoder import Encoder
from operators.training.model.export import export, says_it_all
from operators.training.record.outcome import TrainedModel


def trained_model(run: TrainRun, encoder: Encoder) -> TrainedModel:
    """Export the encoder into the run's folder; it is not to be trained any further."""
    num_parameters = sum(parameter.numel() for parameter in encoder.parameters())
    num_trained = sum(parameter.numel() for parameter in encoder.trained().values())
    with tempfile.TemporaryDirectory(prefix="embedfleet-model-") as folder:
        export(encoder, Path(folder), trained_widths(run.config))
        trusted = EmbedderConfig(trust_remote_code=run.spec.recipe.trust_remote_code)
        exported = embedder_spec(folder, trusted, RECIPES)
        upload_folder(Path(folder), run.output / MODEL_FOLDER)
    recipe = exported.recipe
    return TrainedModel(
        base=run.spec.model,
        base_fingerprint=run.spec.fingerprint,
        fingerprint=exported.fingerprint,
        dim=exported.dim,
        max_tokens=recipe.max_tokens,
        pooling=recipe.pooling,
        normalized=recipe.normalize,
        prompts={role: str(prompt) for role, prompt in recipe.prompts.items()},
        num_parameters=num_parameters,
        num_trained=num_trained,
        in_sentence_transformers=says_it_all(encoder),
    )


def trained_widths(config: TrainConfig) -> list[int]:
    """The widths at which losses compared vectors that were cut."""
    losses = [config.objective_of(training_set) for training_set in config.sets]
    matryoshka = {dim for loss in losses if isinstance(loss, Loss) and loss.matryoshka for dim in loss.matryoshka.dims}
    return sorted(matryoshka | {dim for loss in losses if isinstance(loss, Stella) for dim in loss.dims})


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process had at once; of a GPU its own."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
