"""The size of a new output's fragments, from its model, the head of its source and the workers that it will have."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cluster.environment import expected_cpus
from jobs.embedding.config import EmbedConfig
from operators.corpus.cutting import FRAGMENTS_PER_WORKER, SECONDS, FragmentSize, choose_size, largest, sample_rows
from operators.embedder.factory import flops_of
from operators.embedder.recipe import workload
from operators.embedder.recipe.recipe import VISION_KINDS
from operators.embedder.recipe.spec import EmbedderSpec, verified_folder
from operators.embedder.recipe.vision_facts import vision_facts
from operators.work.cpu import cpu_flags
from operators.work.fragment import SourceFile

_FILES_TO_SAMPLE_FROM = 4096
_MOST_FILES_COUNTED = 65536  # what is listed before its size is known is held in memory
_CPUS_OF_A_CLUSTER = 64  # that is joined only later


def fragment_size(
    config: EmbedConfig, spec: EmbedderSpec, files: Iterator[SourceFile]
) -> tuple[FragmentSize, Iterator[SourceFile]]:
    """The size that a new output's fragments get, and the listing unharmed."""
    source = config.source
    if source.is_cut_by_config:
        return FragmentSize(source.max_rows, source.max_bytes), files
    if config.compute.gpus_per_worker or config.embedder.device == "cuda":
        return largest(source), files
    head = list(itertools.islice(files, _FILES_TO_SAMPLE_FROM))
    if not head:
        return largest(source), files
    seen = sample_rows(head, source)
    seconds_R = _seconds(seen.content_bytes_R, config, spec)
    workers = _workers(config)
    enough = FRAGMENTS_PER_WORKER * workers * SECONDS * seen.storage_bytes / max(float(seconds_R.sum()), 1e-9)
    total_bytes = sum(file.size for file in head)
    while total_bytes < enough and len(head) < _MOST_FILES_COUNTED:
        more = list(itertools.islice(files, _FILES_TO_SAMPLE_FROM))
        if not more:
            break
        total_bytes += sum(file.size for file in more)
        head += more
    kinds = {".".join(filter(None, described)) for file in head if (described := source.described(file.path))}
    size = choose_size(seen, seconds_R, total_bytes, workers, source, kinds)
    return size, itertools.chain(head, files)


def seconds_of_one_worker(config: EmbedConfig, spec: EmbedderSpec, files: Sequence[SourceFile]) -> float:
    """About how long one CPU worker takes for these files, of which some rows are read."""
    if not files:
        return 0.0
    seen = sample_rows(files, config.source)
    total_bytes = sum(file.size for file in files)
    return float(_seconds(seen.content_bytes_R, config, spec).sum()) * total_bytes / max(1, seen.storage_bytes)


def _seconds(content_bytes_R: NDArray[np.int64], config: EmbedConfig, spec: EmbedderSpec) -> NDArray[np.float64]:
    """About how long one worker takes for rows of so many bytes."""
    speed = workload.core_flops(spec.recipe.compute_dtype, cpu_flags()) * config.compute.cpus_per_worker
    if config.source.image is not None:
        facts = vision_facts(verified_folder(spec, weights=False), spec.recipe.kind)
        flops = flops_of(spec, of_images=True)(np.array([facts.max_num_tokens]))
        return np.full(len(content_bytes_R), flops / speed)
    tokens_R = workload.tokens_of(content_bytes_R, spec, config.chunking)
    measured = config.hardware.tokens_per_second if config.hardware is not None else None
    if measured is not None:
        return tokens_R / measured
    if spec.recipe.kind in VISION_KINDS:
        return tokens_R * flops_of(spec)(np.array([64])) / 64 / speed
    length = config.chunking.tokens or spec.recipe.max_tokens
    return tokens_R * workload.flops_per_token(spec, min(length, float(tokens_R.mean()))) / speed


def _workers(config: EmbedConfig) -> int:
    compute = config.compute
    if compute.workers is not None:
        return compute.workers[1]
    cpus = expected_cpus(compute.local_cpus) or _CPUS_OF_A_CLUSTER
    return max(1, cpus // compute.cpus_per_worker)
