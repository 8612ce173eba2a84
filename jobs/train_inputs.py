"""What a worker reads: the sets' rows with the tokenizers of their prompts, and what the model is judged by."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.train_data import PreparedSet
from jobs.train_run import TrainRun
from operators.evaluation.scoring import read_task
from operators.storage.cache import Cache
from operators.training.encoder import Reader
from operators.training.evaluating import Judged
from operators.training.prepared import Split
from operators.training.rank_batches import ReadySet


def set_reader(run: TrainRun, prepared: PreparedSet) -> Reader:
    """Texts of a set to tokens, each side with its prompt."""
    config = prepared.config
    query = run.side_spec(config.query, "query")
    document = query if config.symmetric else run.side_spec(config.document, "document")
    return Reader({"query": query, "document": document})


def ready_sets(run: TrainRun, readers: Sequence[Reader], split: Split) -> list[ReadySet]:
    """All sets of a run with the rows of a split."""
    cache = Cache.at(run.config.prepared.cache_dir)
    return [
        ReadySet(prepared.config, prepared.rows(split, cache), reader)
        for prepared, reader in zip(run.sets, readers, strict=True)
    ]


def judged_by(run: TrainRun, readers: Sequence[Reader]) -> Judged | None:
    """What the model is judged by; None: nothing."""
    evaluation = run.evaluation
    if evaluation is None:
        return None
    dev = [ready for ready in ready_sets(run, readers, "dev") if len(ready.rows)]
    tasks = {task.name: (task, read_task(task)) for task in evaluation.tasks}
    return Judged(dev, tasks, evaluation.dev_rows, evaluation.main) if dev or tasks else None
