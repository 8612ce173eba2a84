"""What grows in the driver of a job with the size of the corpus: the plan of an index update, ids, listed files.

    python -m benchmarks.driver_scale update [--fragments 5000 10000 50000]
    python -m benchmarks.driver_scale ids [--millions 20 100 200]
    python -m benchmarks.driver_scale files [--files 1000000] [--folder /dev/shm]

CPU seconds and peak memory; nothing is embedded or indexed.

update  an index of shards of 256 fragments whose fragments are all gone, replaced by as many new ones: every file is
        one fragment, or one file has them all. Comparisons planned, what they find made up, and the update planned.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from cluster.environment import ROOT, sane_environment
from jobs.embedding.id_comparison import Holder, find_later
from operators.corpus.listing import list_source
from operators.corpus.source import Source
from operators.corpus.units import PACK_BELOW_BYTES, plan_units
from operators.index.comparing import Comparison, ShardDiff, plan_comparisons
from operators.index.places import Claims
from operators.index.snapshot import FragmentRows, IndexIdentity, IndexSnapshot, ShardRecord
from operators.index.updating import Update, plan_update
from operators.storage import Location
from operators.store.fragments import FragmentRecord
from operators.store.id_check import Role, cover, parts_of, suspects_in
from operators.store.id_hashes import read_segments
from operators.work.fragment import Extent, Fragment, SourceFile, Unit
from operators.work.packed_units import PackedUnits

ROWS_PER_FRAGMENT, FRAGMENTS_PER_SHARD = 64, 256
ROWS_PER_SHARD = ROWS_PER_FRAGMENT * FRAGMENTS_PER_SHARD
IDS_PER_UNIT = 250_000


def main() -> None:
    """Run one of the measurements, each size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    update = commands.add_parser("update")
    update.add_argument("--fragments", type=int, nargs="+", default=[5_000, 10_000, 50_000])
    ids = commands.add_parser("ids")
    ids.add_argument("--millions", type=int, nargs="+", default=[20, 100, 200])
    files = commands.add_parser("files")
    files.add_argument("--files", type=int, default=1_000_000)
    files.add_argument("--folder", help="where the files are made; as much memory as a tmpfs takes for them")
    options = parser.parse_args()
    if options.what == "update":
        measure_updates(options.fragments)
    elif options.what == "files":
        measure_files(options.files, options.folder)
    else:
        measure_ids([millions * 1_000_000 for millions in options.millions])


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
    surviving = {new: Claims(rows, rows + i * ROWS_PER_FRAGMENT) for i, new in enumerate(now.values())}
    return ShardDiff(dead, surviving, {old: (new,) for old, new in now.items()})


def measure_ids(counts: Sequence[int]) -> None:
    """Print what the id check takes for each number of ids, and for 1 % more."""
    print(
        "| ids | CPU us an id | wall s | peak MB a worker | driver | 1 % more: CPU s | wall s | peak MB a worker "
        "| bytes read a stored id |\n|---|---|---|---|---|---|---|---|---|"
    )
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="bench-ids-") as folder:
            first = apart(check_ids, folder, 0, count)
            more = apart(check_ids, folder, count, count // 100)
            read = apart(bytes_compared, folder, count, count // 100)
        print(
            f"| {count:,} | {first.cpu_seconds / count * 1e6:.2f} | {first.seconds:.0f} "
            f"| {first.worker_bytes / 1e6:,.0f} | {first.driver_bytes / 1e6:,.0f} "
            f"| {more.cpu_seconds:.1f} | {more.seconds:.0f} "
            f"| {more.worker_bytes / 1e6:,.0f} | {read / count:.2f} |",
            flush=True,
        )


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check took."""

    cpu_seconds: float  # of the workers
    seconds: float
    worker_bytes: int  # peak resident memory of the largest
    driver_bytes: int


def check_ids(folder: str, stored: int, new: int) -> Checked:
    """Check `new` ids beside `stored` ones whose hashes are in the folder already."""
    sane_environment()
    import ray

    os.environ["PYTHONPATH"] = str(ROOT)
    ray.init(num_cpus=2, object_store_memory=80 << 20, log_to_driver=False, include_dashboard=False)
    holders = [*holders_of(0, stored), *holders_of(stored, new)]
    roles: list[Role] = ["stored"] * (len(holders) - len(holders_of(stored, new)))
    roles += ["pending"] * (len(holders) - len(roles))
    started = time.perf_counter()
    with watched_workers() as watched:
        later = find_later(Location(folder), holders, roles, generated, 5)
    assert not later.num_rows, "every id is there once"
    seconds = time.perf_counter() - started
    ray.shutdown()
    return Checked(sum(watched.cpu_seconds.values()), seconds, max(watched.peak_bytes.values()), peak_bytes())


def bytes_compared(folder: str, stored: int, new: int) -> int:
    """Bytes that finding and comparing the hashes reads."""
    roles: dict[str, Role] = {holder.digest: "stored" for holder in holders_of(0, stored)}
    roles |= {holder.digest: "pending" for holder in holders_of(stored, new)}
    dataset, before = Location(folder), bytes_read()
    uses, missing = cover([segment for _, segment in read_segments(dataset) if segment is not None], roles)
    assert not missing, "both checks have written theirs"
    for part in parts_of(uses, 8):
        assert not suspects_in(dataset, uses, part).num_rows
    return bytes_read() - before


def measure_files(count: int, folder: str | None) -> None:
    """Print what listing and planning files takes."""
    print(
        "| files | bytes each | units | listed, us | listed and planned, us | bytes a file |\n|---|---|---|---|---|---|"
    )
    for size in (100_000, 2_000):
        with tempfile.TemporaryDirectory(prefix="bench-files-", dir=folder) as root:
            for number in range(count):
                if number % 1000 == 0:
                    os.mkdir(f"{root}/part-{number // 1000:05d}")
                path = f"{root}/part-{number // 1000:05d}/file-{number:08d}.jsonl"
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
                os.truncate(path, size)
            listed = apart(list_files, root)
            units, planned, grown = apart(plan_files, root)
        print(
            f"| {count:,} | {size:,} | {units:,} | {listed / count * 1e6:.1f} | {planned / count * 1e6:.1f} "
            f"| {grown / count:.0f} |",
            flush=True,
        )


def list_files(root: str) -> float:
    """CPU seconds of listing alone."""
    started = time.process_time()
    for _ in list_source(Source(path=root, id="id")):
        pass
    return time.process_time() - started


def plan_files(root: str) -> tuple[int, float, int]:
    """Units, CPU seconds of listing and planning, and bytes that the process holds for them."""
    source = Source(path=root, id="id")
    before, started = resident_bytes(), time.process_time()
    units = PackedUnits(plan_units(list_source(source), source, (), PACK_BELOW_BYTES, {}))
    return len(units), time.process_time() - started, resident_bytes() - before


def resident_bytes() -> int:
    """Resident memory now."""
    return int(psutil.Process().memory_info().rss)


def holders_of(first: int, count: int) -> list[Holder]:
    """Units of the ids [first, first + count); what they hold is in the digest."""
    edges = [*range(first, first + count, IDS_PER_UNIT), first + count]
    return [Holder(f"{a:012d}{b:012d}", (), None, IDS_PER_UNIT * 500) for a, b in itertools.pairwise(edges)]


def generated(holder: Holder) -> Iterator[pa.Array]:
    """The ids of a unit, some thousand at a time."""
    first, end = int(holder.digest[:12]), int(holder.digest[12:])
    for start in range(first, end, 50_000):
        numbers = pa.array(np.arange(start, min(start + 50_000, end))).cast(pa.string())
        yield pc.binary_join_element_wise("document-", numbers, "")


@dataclass
class Watched:
    """Peaks by process, and CPU seconds since watching began."""

    peak_bytes: dict[int, int]
    cpu_seconds: dict[int, float]


@contextmanager
def watched_workers() -> Iterator[Watched]:
    """Follow Ray's worker processes below this one."""
    watched, done = Watched({}, {}), threading.Event()
    first: dict[int, float] = {}

    def look() -> None:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if process.name().startswith("ray::"):
                    used = sum(process.cpu_times()[:2])
                    watched.cpu_seconds[process.pid] = used - first.setdefault(process.pid, used)
                    watched.peak_bytes[process.pid] = max(
                        watched.peak_bytes.get(process.pid, 0), process.memory_info().rss
                    )

    def follow() -> None:
        while not done.wait(0.1):
            look()

    thread = threading.Thread(target=follow)
    thread.start()
    yield watched
    look()
    done.set()
    thread.join()


def bytes_read() -> int:
    """Bytes that this process has read from files."""
    return int(psutil.Process().io_counters().read_chars)


def apart(measure: Callable[..., Any], *arguments: Any) -> Any:
    """Run a measurement in a fresh process, so that no other has raised the peak of its memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def peak_bytes() -> int:
    """The most resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    from benchmarks import driver_scale  # by the name under which worker processes find its functions

    driver_scale.main()
