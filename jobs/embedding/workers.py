"""What runs in the workers of the embed pipeline: one function a stage, one fragment a call.

A fragment comes and goes as one row (operators.work.fragment.to_row). Storage faults that outlast the storage layer's
own retries are marked, so that Ray tries the task again; `operators.work.guard` bounds how often a process may die.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from jobs.embedding.board import Reporter, RunLedger
from jobs.embedding.config import EmbedConfig
from operators.corpus.chunking_config import Chunking, check_fits
from operators.corpus.reading import empty_rows, read_fragments, read_sample
from operators.corpus.source import Source
from operators.embedder import quantization
from operators.embedder.factory import load_chunk_embedder, load_embedder, load_image_reader
from operators.embedder.recipe.spec import EmbedderSpec
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.errors import InputError
from operators.pipeline.stages import embed_fragment, inputs_of, tokenize_fragment, unreadable_unit
from operators.storage import Location, exists
from operators.store.dataset import Identity
from operators.store.fragments import FragmentRecord, data_file, read_record, record_from_dict, write_fragment
from operators.store.snapshots import readable_record
from operators.work.fragment import (
    REJECTED_SCHEMA,
    Counts,
    Fragment,
    FragmentBatch,
    Unit,
    from_row,
    to_row,
    unit_from_dict,
)
from operators.work.guard import PATIENCE, Attempt, AttemptLedger

if TYPE_CHECKING:
    from operators.embedder.vision.reading import ImageReader

RETRY_MARK = "storage fault, tried again:"  # Ray looks for it in the text of an exception, also as a regex
CALIBRATION_UNITS, CALIBRATION_ROWS_PER_UNIT = 16, 64


@dataclass(frozen=True, slots=True)
class Work:
    """A unit with what must not be done again and which of its rows are duplicates (places in the unit)."""

    unit: Unit
    skip_parts: tuple[int, ...] = ()
    duplicate_positions: tuple[int, ...] = ()

    @staticmethod
    def of(unit: Unit, parts: Mapping[str, tuple[int, ...]], duplicates: tuple[int, ...]) -> Work:
        """What is left of a unit, by the parts that are on storage, and the rows that others have."""
        return Work(unit.leaving_out(duplicates), parts.get(unit.digest, ()), duplicates)


@dataclass(frozen=True, slots=True)
class Setup:
    """What every stage is told; travels to the workers once per task."""

    config: EmbedConfig
    spec: EmbedderSpec
    identity: Identity
    dataset: Location
    ledger: RunLedger


def work_to_row(work: Work) -> pa.Table:
    """Pack a unit's work as one row."""
    return pa.table({"work": [json.dumps(dataclasses.asdict(work))]})


def work_from_row(row: dict[str, str]) -> Work:
    """Unpack `work_to_row`'s row."""
    work = json.loads(row["work"])
    return Work(unit_from_dict(work["unit"]), tuple(work["skip_parts"]), tuple(work["duplicate_positions"]))


def read(block: pa.Table, setup: Setup) -> Iterator[pa.Table]:
    """Units in, their fragments out, each as soon as it is cut."""
    for row in block.to_pylist():
        work = work_from_row(row)
        fragments = _fragments_to_do(work, setup)
        for step in itertools.count():
            key = f"read:{work.unit.digest}:{step}"
            attempt = setup.ledger.begin(key, 1)
            try:
                if attempt.deaths > PATIENCE:
                    yield to_row(_unreadable(work, step, attempt, setup.identity))
                    break
                batch = next(fragments, None)
            except OSError as error:
                raise retried(error) from error
            finally:
                setup.ledger.end(key)
            if batch is None:
                break
            yield to_row(batch)


def _fragments_to_do(work: Work, setup: Setup) -> Iterator[FragmentBatch]:
    positions = np.array(work.duplicate_positions, np.int64)
    keep = setup.identity.keep
    for batch in read_fragments(work.unit, setup.config.source, keep, work.skip_parts, positions):
        # Another run of the same job may have written it meanwhile: the work is shared, not done twice. It still
        # travels on, since Ray counts what a generator yields and expects the same from a second try.
        place = data_file(setup.dataset, batch.fragment.key)
        if exists(place) and readable_record(place) is not None:
            batch = dataclasses.replace(batch, table=batch.table.slice(0, 0), is_written=True)
        yield batch


def _unreadable(work: Work, step: int, attempt: Attempt, identity: Identity) -> FragmentBatch:
    """The last fragment of a unit whose reading kills its process after `step` fragments."""
    parts = (part for part in itertools.count() if part not in work.skip_parts)
    fragment = Fragment(work.unit, next(itertools.islice(parts, step, None)), last=True)
    rows, rejected = empty_rows(identity.keep), REJECTED_SCHEMA.empty_table()
    return unreadable_unit(FragmentBatch(fragment, rows, rejected, Counts()), attempt.deaths)


def tokenize(block: pa.Table, setup: Setup) -> pa.Table:
    """Chunk and tokenize a fragment."""
    batch = from_row(block)
    if batch.is_written:
        return block
    tokenizer, images = _tokenizer(setup.spec, setup.config.source)
    check_fits(setup.config.chunking, tokenizer.max_text_tokens)
    try:
        return to_row(tokenize_fragment(batch, setup.config.chunking, tokenizer, setup.ledger, images))
    except OSError as error:  # of the storage that images are fetched from
        raise retried(error) from error


_tokenizers: dict[tuple[str, str | None], tuple[Tokenizer, ImageReader | None]] = {}


def _tokenizer(spec: EmbedderSpec, source: Source) -> tuple[Tokenizer, ImageReader | None]:
    # A tokenizer takes a second to load and a worker process serves many fragments; one run has one spec.
    key = (spec.fingerprint, source.image)
    if key not in _tokenizers:
        _tokenizers.clear()
        _tokenizers[key] = (Tokenizer(spec), load_image_reader(spec, source))
    return _tokenizers[key]


class EmbedWorker:
    """One embedding process: the model is loaded and tested once, then fragments pass through it."""

    def __init__(self, setup: Setup) -> None:
        embedder = setup.config.embedder
        self._setup = setup
        setup.ledger.worker(is_ready=False)
        load = load_chunk_embedder if setup.config.chunking.late else load_embedder
        embed = load(
            setup.spec,
            batch_tokens=embedder.batch_tokens,
            device=embedder.device,
            threads=setup.config.compute.cpus_per_worker,
            packing=embedder.packing,
        )
        self._reporter = Reporter(setup.ledger.report)
        self._embed = functools.partial(embed, on_tokens=self._reporter.add)
        setup.ledger.worker(is_ready=True)

    def __call__(self, block: pa.Table) -> pa.Table:
        batch = from_row(block)
        if batch.is_written:
            return block
        self._reporter.begin(batch)
        embedded = embed_fragment(batch, self._embed, self._setup.identity, self._setup.ledger)
        self._reporter.end()
        return to_row(embedded)


def write(block: pa.Table, setup: Setup) -> pa.Table:
    """Put a fragment on storage; its record and counts go to the driver."""
    batch = from_row(block)
    started = time.perf_counter()
    try:
        if batch.is_written:
            record = read_record(data_file(setup.dataset, batch.fragment.key))
            batch = dataclasses.replace(batch, counts=Counts())
        else:
            record = write_fragment(setup.dataset, setup.identity, batch)
    except OSError as error:
        raise retried(error) from error
    counts = batch.spent("write", time.perf_counter() - started).counts
    return pa.table(
        {
            "fragment": [json.dumps(dataclasses.asdict(record))],
            "counts": [json.dumps(dataclasses.asdict(counts))],
        }
    )


def retried(error: OSError) -> OSError:
    """The same fault with the mark by which Ray knows to try the task again."""
    return OSError(error.errno, f"{RETRY_MARK} {error}")


def record_from_row(row: dict[str, str]) -> tuple[FragmentRecord, Counts]:
    """Unpack what `write` made."""
    counts = json.loads(row["counts"])
    return record_from_dict(json.loads(row["fragment"])), Counts(**{**counts, "lengths": tuple(counts["lengths"])})


def scale_of_sample(config: EmbedConfig, spec: EmbedderSpec, keep: pa.Schema, units: Sequence[Unit]) -> float:
    """The int8 scale that fits the vectors of a few hundred documents."""
    step = max(1, len(units) // CALIBRATION_UNITS)
    tokenizer = Tokenizer(spec)
    images = load_image_reader(spec, config.source)
    embedder = load_embedder(spec, device=config.embedder.device, threads=config.compute.cpus_per_worker)
    vectors = []
    for unit in units[::step][:CALIBRATION_UNITS]:
        rows = read_sample(unit, config.source, keep, CALIBRATION_ROWS_PER_UNIT)[0]
        tokens = tokenize_fragment(rows, Chunking(), tokenizer, AttemptLedger(), images).table
        if tokens.num_rows:
            result = embedder(inputs_of(tokens))
            vectors.append(result.values_ND[result.finite_N])
    if not vectors:
        raise InputError("check source.text: no document of the sampled files has content to calibrate int8 with")
    return quantization.calibrate_scale(np.concatenate(vectors))
