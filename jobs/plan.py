"""plan: what a run will read, make and cost, from a sample of the source, with an error bar; nothing is embedded.

    python -m jobs plan CONFIG.yaml [plan.sample_rows=2000]

Takes the config of `embed`, prints the estimate and leaves it as plan.json and plan.html beside the output, where the
report of the run puts it against what came out. Hours and money need `hardware`, or `plan.report` of an earlier run.
The config of `train` is planned on paper: memory and time for several numbers of GPUs (jobs/training/plan.py).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel

from jobs.embedding.backlog import find_backlog
from jobs.embedding.config import EmbedConfig as Config
from jobs.embedding.identity import RECIPES, cut_as, identify
from jobs.embedding.outcome import public_config
from jobs.training.config import TrainConfig
from operators.corpus.chunking_config import check_fits
from operators.corpus.listing import list_source
from operators.corpus.reading import read_sample
from operators.corpus.units import choose_pack_below
from operators.embedder.factory import flops_of, load_image_reader
from operators.embedder.recipe.sparse_head import ASSUMED_ENTRIES
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec
from operators.embedder.tokens.batching import CPU_BATCH_TOKENS, CUDA_BATCH_TOKENS
from operators.planning.estimate import Estimate, Hardware, Reading, Setting, estimate_run
from operators.planning.sampling import UnitSample, choose_units, sample_of
from operators.report.page import plan_page
from operators.report.summary import from_json, with_measured_speed
from operators.report.text import plan_text
from operators.storage import locate, read_bytes, write_whole
from operators.store.dataset import Identity
from operators.work.fragment import Unit
from operators.work.guard import AttemptLedger


def config_of(values: Mapping[str, Any]) -> type[BaseModel]:
    """Which job's config these keys are."""
    return TrainConfig if "sets" in values else Config


def run(config: Config | TrainConfig) -> int:
    """Sample, estimate, print and store the plan; returns the exit code."""
    if isinstance(config, TrainConfig):
        # it needs torch, which a plan of `embed` does not before its config is checked
        from jobs.training import plan as plan_training

        return plan_training.run(config)
    spec = embedder_spec(config.model, config.embedder, RECIPES)
    dataset = locate(config.output.path, config.output.storage_options)
    pack_below_bytes, files = choose_pack_below(list_source(config.source), config.source)
    identity, files = identify(config, spec, dataset, pack_below_bytes, files)
    config = cut_as(config, identity)
    backlog = find_backlog(dataset, config, files, identity)
    plan = _estimate(config, spec, identity, backlog.units, _hardware(config))
    write_whole(dataset / "plan.json", plan.to_json().encode())
    write_whole(dataset / "plan.html", plan_page(plan, public_config(config)).encode())
    print(plan_text(plan, config.output.dtype))
    if backlog.records:
        print(f"{len(backlog.units) - len(backlog.pending):,} of {len(backlog.units):,} units are embedded already")
    return 0


def _estimate(
    config: Config, spec: EmbedderSpec, identity: Identity, units: Sequence[Unit], hardware: Hardware | None
) -> Estimate:
    sizes = np.fromiter((unit.size_bytes for unit in units), np.int64, len(units))
    draw = choose_units(sizes, config.plan.sample_units, config.plan.seed)
    rows_to_read = [int(rows) for rows in draw.rows_to_read(sizes, config.plan.sample_rows)]
    samples, reading = _sample(config, spec, identity, [units[index] for index in draw.indices_D], rows_to_read)
    sparse = spec.recipe.sparse
    setting = Setting(
        dim=identity.dim,
        fragment_rows=config.source.max_rows,
        batch_tokens=_batch_tokens(config, spec),
        flops=flops_of(spec, config.source.image is not None)
        if hardware is not None and hardware.peak_tflops
        else None,
        reading=reading,
        sparse_entries=sparse.most_entries if sparse is not None else None,
    )
    # those of one file stand together
    num_files = sum(1 for _ in itertools.groupby(extent.file.path for unit in units for extent in unit.extents))
    plan = estimate_run(samples, draw, setting, num_files, hardware)
    if sparse is None or sparse.is_bounded:
        return plan
    note = f"bytes are for {ASSUMED_ENTRIES} entries a sparse vector; set sparse.top in the recipe to bound them"
    return dataclasses.replace(plan, notes=(*plan.notes, note))


def _sample(
    config: Config, spec: EmbedderSpec, identity: Identity, units: list[Unit], rows_to_read: Sequence[int]
) -> tuple[list[UnitSample], Reading]:
    """Read, chunk and tokenize the head of each drawn unit; and what is read of a chunk."""
    # Imported here: transformers takes seconds, and a wrong config should be told at once.
    from operators.embedder.tokens.tokenizing import Tokenizer
    from operators.pipeline.stages import tokenize_fragment

    tokenizer = Tokenizer(spec)
    images = load_image_reader(spec, config.source)
    check_fits(config.chunking, tokenizer.max_text_tokens)
    samples = []
    for unit, wanted in zip(units, rows_to_read, strict=True):
        rows, bytes_read = read_sample(unit, config.source, identity.keep, wanted)
        tokens = tokenize_fragment(rows, config.chunking, tokenizer, AttemptLedger(), images)
        samples.append(sample_of(unit.size_bytes, bytes_read, tokens))
    if config.chunking.late or images is not None:
        # the tokens of late chunks are counted without those of the prompt, and an image is no text of so many tokens
        return samples, Reading()
    layouts = tokenizer.layouts
    fixed_tokens = sum(layout.fixed for layout in layouts)
    return samples, Reading(len(layouts), sum(layout.copies for layout in layouts), fixed_tokens)


def _batch_tokens(config: Config, spec: EmbedderSpec) -> int | None:
    """The budget of a batch, the engine's own where the config says nothing; None for an engine that never pads."""
    if spec.recipe.kind == "static" or config.embedder.packing:
        return None
    if config.embedder.batch_tokens is not None:
        return config.embedder.batch_tokens
    return CUDA_BATCH_TOKENS if config.compute.gpus_per_worker else CPU_BATCH_TOKENS


def _hardware(config: Config) -> Hardware | None:
    if config.plan.report is None:
        return config.hardware
    earlier = from_json(read_bytes(locate(config.plan.report, config.output.storage_options)), config.plan.report)
    return with_measured_speed(config.hardware, earlier, config.model)
