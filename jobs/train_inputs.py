"""What a worker reads: the sets' rows with the tokenizers of their prompts, and what the model is judged by."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.teacher_outputs import TeacherOutputs
from jobs.train_data import PreparedSet
from jobs.train_run import TrainRun
from operators.evaluation.scoring import read_task
from operators.storage.cache import Cache
from operators.training.encoder import Reader
from operators.training.evaluating import Judged
from operators.training.objective_config import InfoNce, VectorLoss
from operators.training.prepared import Split
from operators.training.rank_batches import ReadySet, Said


def set_reader(run: TrainRun, prepared: PreparedSet) -> Reader:
    """Texts of a set to tokens, each side with its prompt."""
    config = prepared.config
    query = run.side_spec(config.query, "query")
    document = query if config.symmetric else run.side_spec(config.document, "document")
    return Reader({"query": query, "document": document})


def ready_sets(run: TrainRun, readers: Sequence[Reader], split: Split) -> list[ReadySet]:
    """All sets of a run with the rows of a split."""
    cache = Cache.at(run.config.prepared.cache_dir)
    ready = []
    for prepared, said, reader in zip(run.sets, run.said, readers, strict=True):
        objective = run.config.objective_of(prepared.config)
        rows = [outputs.rows(split, cache) for outputs in said]
        twice = isinstance(objective, InfoNce)
        if isinstance(objective, VectorLoss):
            found = Said(vectors=tuple(rows), weights=objective.teacher_weights)
        else:
            found = Said(scores=rows[0] if rows else None)
        ready.append(ReadySet(prepared.config, prepared.rows(split, cache), reader, twice, found))
    return ready


def teacher_width(said: Sequence[TeacherOutputs]) -> int:
    """The width of teachers' vectors side by side."""
    return sum(outputs.manifest.width or 0 for outputs in said)


def judged_by(run: TrainRun, readers: Sequence[Reader]) -> Judged | None:
    """What the model is judged by; None: nothing."""
    evaluation = run.evaluation
    if evaluation is None:
        return None
    dev = [ready for ready in ready_sets(run, readers, "dev") if len(ready.rows)]
    tasks = {task.name: (task, read_task(task)) for task in evaluation.tasks}
    return Judged(dev, tasks, evaluation.dev_rows, evaluation.main) if dev or tasks else None
