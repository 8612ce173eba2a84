"""What a worker reads: the sets' rows with the tokenizers of their prompts, and what the model is judged by."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.training.data import PreparedSet, batch_plan
from jobs.training.passes import language_passes
from jobs.training.run import TrainRun
from operators.errors import InputError
from operators.evaluation.scoring import read_task
from operators.storage.cache import Cache
from operators.training.config.language import LanguageLoss
from operators.training.config.objectives import InfoNce, Objective, VectorLoss
from operators.training.config.sets import TrainingSet
from operators.training.data.prepared import Split
from operators.training.judging.evaluating import Judged
from operators.training.judging.language import LanguageDev
from operators.training.model.encoder import Encoder, Reader, Role
from operators.training.steps.rank_batches import RankBatches, ReadySet, Said


def set_reader(run: TrainRun, prepared: PreparedSet) -> Reader:
    """Texts of a set to tokens, each side with its prompt."""
    config = prepared.config
    query = run.side_spec(config.query, "query")
    document = query if config.symmetric else run.side_spec(config.document, "document")
    return Reader({"query": query, "document": document})


def ready_sets(run: TrainRun, readers: Sequence[Reader], split: Split) -> list[ReadySet]:
    """All sets of a run with the rows of a split, those of `generation` last."""
    cache = Cache.at(run.config.prepared.cache_dir)
    ready = []
    for prepared, said, reader in zip(run.prepared, run.said, readers, strict=True):
        loss = run.loss_of(prepared.config)
        rows = [outputs.rows(split, cache) for outputs in said]
        if isinstance(loss, VectorLoss):
            found = Said(vectors=tuple(rows), weights=loss.teacher_weights)
        else:
            found = Said(scores=rows[0] if rows else None)
        ready.append(
            ReadySet(
                prepared.config,
                prepared.rows(split, cache),
                reader,
                _views(loss),
                found,
                _continues(loss, prepared.config),
            )
        )
    return ready


def _views(loss: Objective) -> tuple[Role, ...]:
    """How a text is read: once, or twice for two vectors of it."""
    if not isinstance(loss, InfoNce):
        return ("query",)
    return ("query", "document" if loss.template_denoising else "query")


def _continues(loss: Objective, training_set: TrainingSet) -> bool:
    return isinstance(loss, LanguageLoss) and training_set.kind == "pairs"


def rank_batches(run: TrainRun, sets: Sequence[ReadySet], rank: int, world_size: int, pass_tokens: int) -> RankBatches:
    """The batches of a rank, with those of `generation` beside them."""
    config, num = run.config, len(run.sets)
    beside = None
    if config.generation is not None:
        plan = batch_plan(config, run.generated, config.generation.size)
        beside = RankBatches(plan, sets[num:], rank, world_size, pass_tokens)
    return RankBatches(batch_plan(config, run.sets), sets[:num], rank, world_size, pass_tokens, beside)


def judged_by(
    run: TrainRun, encoder: Encoder, readers: Sequence[Reader], rank: int, world_size: int, pass_tokens: int
) -> Judged | None:
    """What the model is judged by; None: nothing."""
    evaluation = run.evaluation
    if evaluation is None:
        return None
    if evaluation.tasks and run.spec.sparse_dim:
        raise InputError("take evaluation.tasks out: sparse vectors are judged by rows held back (dev_fraction) alone")
    dev: list[ReadySet] = []
    language: list[LanguageDev] = []
    for number, ready in enumerate(ready_sets(run, readers, "dev")):
        loss = run.loss_of(ready.config)
        if not len(ready.rows):
            continue
        if isinstance(loss, LanguageLoss):
            passes = language_passes(run, encoder, loss, ready.reader)
            judges = number < len(run.sets)
            language.append(LanguageDev(ready, passes, rank, world_size, pass_tokens, judges))
        else:
            dev.append(ready)
    tasks = {task.name: (task, read_task(task)) for task in evaluation.tasks}
    some = dev or tasks or language
    return Judged(dev, tasks, evaluation.dev_rows, evaluation.main, language) if some else None
