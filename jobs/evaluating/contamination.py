"""Look for the tasks' texts in files of training pairs, one Ray task a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray

from operators.corpus.listing import list_source
from operators.corpus.source import Source
from operators.errors import InputError
from operators.evaluation.contamination import Contamination, Probe, contamination, search_file, task_texts
from operators.evaluation.scoring import TaskData
from operators.storage import locate

_CPUS = 0.5  # reading and hashing share a CPU


def check_contamination(
    paths: Sequence[str], num_words: int, data: Mapping[str, TaskData]
) -> tuple[Contamination, ...]:
    """What the files hold of every task's texts; InputError where a path names no file."""
    if not paths:
        return ()
    files = [file.path for file in list_source(Source(path=tuple(paths)))]
    if not files:
        raise InputError(f"check contamination: there is no file at {', '.join(paths)}")
    probe = Probe({task: task_texts(one) for task, one in data.items()}, num_words)
    shared, search = ray.put(probe), ray.remote(num_cpus=_CPUS)(search_file)
    found = ray.get([search.remote(locate(file), shared) for file in files])
    return contamination(probe, dict(zip(files, found, strict=True)))
