"""What a worker computes in a step, by the losses of the run's sets."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from jobs.training.run import TrainRun
from operators.training.config.language import LanguageLoss, Mntp
from operators.training.config.objectives import InfoNce, Loss
from operators.training.config.sets import TrainingSet
from operators.training.config.tuning import Tuning
from operators.training.model.encoder import Encoder, Reader
from operators.training.objectives.set_objective import SetObjective
from operators.training.objectives.sparsity import Sparsity
from operators.training.steps.denoising_passes import DenoisingPasses
from operators.training.steps.language_passes import LanguagePasses
from operators.training.steps.passes import GritPasses, Passes, VectorPasses


def load_encoder(run: TrainRun, tuning: Tuning, device: torch.device) -> Encoder:
    """The model to begin with, with its head over the vocabulary where a loss asks for it."""
    losses = [run.config.objective_of(one) for one in run.config.sets]
    language = run.config.generation is not None or any(isinstance(one, LanguageLoss) for one in losses)
    return Encoder(run.spec, tuning, device, language)


def set_passes(run: TrainRun, encoder: Encoder, readers: Sequence[Reader]) -> list[Passes]:
    """The passes of each set's batches; `readers` are the sets'."""
    said = run.said[: len(run.sets)]
    passes = [
        _passes(run, encoder, one, reader, sum(outputs.manifest.width or 0 for outputs in own))
        for one, reader, own in zip(run.config.sets, readers, said, strict=True)
    ]
    generation = run.config.generation
    if generation is None:
        return passes
    beside = LanguagePasses(encoder, generation.loss, None, run.config.seed)
    return [GritPasses(one, beside, generation.balance) for one in passes]


def language_passes(run: TrainRun, encoder: Encoder, loss: LanguageLoss, reader: Reader) -> LanguagePasses:
    """The passes of a loss of language modelling."""
    mask_id = reader.token_id(loss.mask_token) if isinstance(loss, Mntp) else None
    return LanguagePasses(encoder, loss, mask_id, run.config.seed)


def _passes(run: TrainRun, encoder: Encoder, training_set: TrainingSet, reader: Reader, teacher_width: int) -> Passes:
    config, loss = run.config, run.config.objective_of(training_set)
    if isinstance(loss, LanguageLoss):
        return language_passes(run, encoder, loss, reader)
    objective = SetObjective(loss, training_set, encoder.width, teacher_width).to(encoder.device)
    if isinstance(loss, InfoNce) and loss.template_denoising:
        return DenoisingPasses(encoder, objective, reader, config.batch.tokens, config.seed)
    flops = loss.flops if isinstance(loss, Loss) else None
    sparsity = None if flops is None else Sparsity(flops, run.num_steps)
    return VectorPasses(encoder, objective, config.batch.tokens, config.seed, sparsity)
