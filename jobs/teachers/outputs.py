"""What teachers say of prepared sets, computed once by Ray Data, stored beside the sets, and found there from then on.

    set + teacher -> fingerprint -> manifest there?  yes: nothing is read, no Ray
                                                     no:  missing pieces -> read + tokenize -> teacher (actor pool)
                                                          -> write -> records -> manifest

A teacher's model is loaded once for all the sets that it is for; teachers follow one another, so that each has every
GPU. A piece (operators.teachers.outputs) is a row of the dataset, so Ray places and retries pieces; the driver holds
their records. A run that was stopped goes on with the pieces that are missing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.session import connect
from jobs.embedding.config import Compute
from jobs.teachers.work import SPLITS, Wanted
from jobs.training.data import PreparedSet
from operators.storage import Location
from operators.storage.cache import Cache
from operators.teachers.config import Teacher
from operators.teachers.cost import TeacherCost, teacher_cost
from operators.teachers.outputs import OutputManifest, TeacherRows, read_outputs, write_outputs
from operators.training.data.prepared import Split

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TeacherOutputs:
    """What a teacher says of a set, whole on storage."""

    folder: Location
    manifest: OutputManifest

    def rows(self, split: Split, cache: Cache) -> TeacherRows:
        """Those of a split, on the machine that asks."""
        return TeacherRows(self.folder, self.manifest, split, cache)


def compute_teacher_outputs(
    pairs: Iterable[tuple[PreparedSet, Teacher]], compute: Compute, cache_dir: str | None = None
) -> tuple[TeacherOutputs, ...]:
    """The outputs of each teacher for its set, in order; computed where they are not there yet."""
    wanted = [Wanted.of(prepared, teacher) for prepared, teacher in pairs]
    found = {item.folder.url: read_outputs(item.folder) for item in wanted}
    by_teacher: dict[str, dict[str, Wanted]] = {}
    for item in wanted:
        if found[item.folder.url] is None:
            by_teacher.setdefault(item.teacher.model_dump_json(), {})[item.folder.url] = item
    if by_teacher:
        with connect(local_cpus=compute.local_cpus):
            for items in by_teacher.values():
                found |= _compute(list(items.values()), compute, cache_dir)
    outputs = []
    for item in wanted:
        manifest = found[item.folder.url]
        assert manifest is not None, "what was missing has been computed"
        outputs.append(TeacherOutputs(item.folder, manifest))
    return tuple(outputs)


def plan_teacher_outputs(
    pairs: Iterable[tuple[PreparedSet, Teacher]], cache_dir: str | None = None
) -> tuple[TeacherCost | None, ...]:
    """What each teacher will read of its set; None where it is done."""
    cache = Cache.at(cache_dir)
    wanted = [Wanted.of(prepared, teacher) for prepared, teacher in pairs]
    return tuple(
        None
        if read_outputs(item.folder) is not None
        else teacher_cost(item.spec, tuple(item.prepared.rows(split, cache) for split in SPLITS))
        for item in wanted
    )


def _compute(items: Sequence[Wanted], compute: Compute, cache_dir: str | None) -> dict[str, OutputManifest | None]:
    """What one teacher says of its sets; the manifests by folder."""
    from jobs.teachers.pipeline import said_pieces

    started = time.monotonic()
    records = [item.written() for item in items]
    work = [(n, piece) for n, item in enumerate(items) for piece in item.pieces if piece.key not in records[n]]
    if work:
        for number, record in said_pieces(tuple(items), work, compute, cache_dir):
            records[number][record.piece.key] = record
    manifests: dict[str, OutputManifest | None] = {}
    for item, found in zip(items, records, strict=True):
        manifest = item.manifest(found)
        write_outputs(item.folder, manifest)
        manifests[item.folder.url] = manifest
        read = f"{manifest.num_inputs:,} inputs, {manifest.num_tokens:,} tokens"
        logger.info("teacher %s, set %s: %s", item.teacher.name, item.prepared.config.name, read)
    logger.info("%d pieces in %.0f s", len(work), time.monotonic() - started)
    return manifests
