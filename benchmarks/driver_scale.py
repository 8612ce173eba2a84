"""What grows in the driver of a job with the size of the corpus: the plan of an index update, ids, listed files.

    python -m benchmarks.driver_scale update [--fragments 5000 10000 50000]

CPU seconds of one process and its peak memory; nothing is embedded or indexed.

update  an index of shards of 256 fragments whose fragments are all gone, replaced by as many new ones: every file is
        one fragment, or one file has them all. Comparisons planned, what they find made up, and the update planned.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from operators.index.comparing import Comparison, ShardDiff, plan_comparisons
from operators.index.snapshot import FragmentRows, IndexIdentity, IndexSnapshot, ShardRecord
from operators.index.updating import Update, plan_update
from operators.store.fragments import FragmentRecord
from operators.work.fragment import Extent, Fragment, SourceFile, Unit

ROWS_PER_FRAGMENT, FRAGMENTS_PER_SHARD = 64, 256
ROWS_PER_SHARD = ROWS_PER_FRAGMENT * FRAGMENTS_PER_SHARD


def main() -> None:
    """Run one of the measurements, each size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    update = commands.add_parser("update")
    update.add_argument("--fragments", type=int, nargs="+", default=[5_000, 10_000, 50_000])
    options = parser.parse_args()
    measure_updates(options.fragments)


def measure_updates(counts: Sequence[int]) -> None:
    """Print what planning an update takes for each number of fragments."""
    print("| fragments | in | CPU s | us a fragment | peak MB above its inputs |\n|---|---|---|---|---|")
    for count in counts:
        for num_files in (count, 1):
            seconds, grown = apart(plan_an_update, count, num_files)
            where = "one file" if num_files == 1 else "files of their own"
            print(
                f"| {count:,} | {where} | {seconds:.2f} | {seconds / count * 1e6:.1f} | {grown / 1e6:,.0f} |",
                flush=True,
            )


def plan_an_update(num_fragments: int, num_files: int) -> tuple[float, int]:
    """CPU seconds, and bytes that the peak memory grew by, of planning an update in which every fragment is new."""
    gone, records = fragments(num_fragments, num_files, "1"), fragments(num_fragments, num_files, "2")
    previous = index_of(gone)
    held, started = peak_bytes(), time.process_time()
    known = frozenset(previous.fragments)
    added = [record for record in records if record.key not in known]
    comparisons = plan_comparisons(previous, gone, added)
    diffs = {number: as_compared(plan, num_files) for number, plan in comparisons.items()}
    plan = plan_update(previous, records, diffs, ROWS_PER_SHARD, Update())
    assert plan.is_patch, "a few rows of each fragment change"
    assert sum(len(rows) for rows in plan.dead.values()) == num_fragments, "one row of each dies"
    return time.process_time() - started, peak_bytes() - held


def fragments(count: int, num_files: int, version: str) -> list[FragmentRecord]:
    """Records of equal fragments, spread over files."""
    each = count // num_files
    units = [
        Unit.of((Extent(SourceFile(f"/corpus/{i:06d}.jsonl.gz", 1 << 20, version)),), "") for i in range(num_files)
    ]
    return [
        FragmentRecord(
            Fragment(unit, part, part + 1 == each), ROWS_PER_FRAGMENT, ROWS_PER_FRAGMENT, 0, 0, 0, 0, 0, 1 << 20, ""
        )
        for unit in units
        for part in range(each)
    ]


def index_of(records: Sequence[FragmentRecord]) -> IndexSnapshot:
    """An index of these fragments as it was built at first."""
    held = [FragmentRows(key=record.key, rows=record.chunks) for record in records]
    shards = [held[i : i + FRAGMENTS_PER_SHARD] for i in range(0, len(held), FRAGMENTS_PER_SHARD)]
    identity = IndexIdentity(
        requested="Flat",
        factory="Flat",
        why="",
        metric="ip",
        sharding="document",
        dim=8,
        dtype="float32",
        scale=None,
        fingerprint="",
        model="",
        embeddings="",
        keep=(),
        seed=0,
    )
    return IndexSnapshot(
        number=1,
        created="",
        identity=identity,
        trained=None,
        embeddings_snapshot=1,
        fragments=tuple(record.key for record in records),
        shards=tuple(
            ShardRecord(
                key=str(number),
                rows=sum(part.rows for part in parts),
                bytes=1,
                sha256="",
                trained_sha256="",
                fragments=tuple(parts),
            )
            for number, parts in enumerate(shards)
        ),
    )


def as_compared(plan: Comparison, num_files: int) -> ShardDiff:
    """What a comparison finds where the first row of each fragment has changed and the others have stayed."""
    fragments, rows = sorted(plan.fragments), np.arange(1, ROWS_PER_FRAGMENT, dtype=np.int32)
    if num_files == 1:
        now = {fragment: plan.candidates[int(fragment.rsplit("-", 1)[1])] for fragment in fragments}
    else:
        now = dict(zip(fragments, plan.candidates, strict=True))
    dead = np.arange(len(fragments), dtype=np.int64) * ROWS_PER_FRAGMENT
    return ShardDiff(dead, dict.fromkeys(now.values(), rows), {old: (new,) for old, new in now.items()})


def apart(measure: Callable[..., Any], *arguments: Any) -> Any:
    """Run a measurement in a fresh process, so that no other has raised the peak of its memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def peak_bytes() -> int:
    """The most resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
