"""Whether the files that a snapshot of an index names are there, whole and those that were written."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from operators.index.snapshot import IndexSnapshot, NamedFile
from operators.storage import Location, file_info, list_folder, stored_sha256

# Read whole without being asked: seconds from a local disk. More than that is compared by size alone (update.check).
HASHED_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Fault:
    """A file that is not what its snapshot says."""

    path: str
    message: str
    shard: int | None  # the shard's number; None: the trained index


def named_files(snapshot: IndexSnapshot) -> Iterator[tuple[int | None, NamedFile]]:
    """Every file that searching a snapshot needs, with the number of its shard (None: the trained index)."""
    if snapshot.trained is not None:
        yield None, NamedFile(snapshot.trained.path, snapshot.trained.bytes, snapshot.trained.sha256)
    for number, shard in enumerate(snapshot.shards):
        for file in (*shard.files, *shard.patches):
            yield number, file


def find_faults(index: Location, snapshot: IndexSnapshot, check: str) -> list[Fault]:
    """Files of a snapshot that are lost, short or, where `check` says `hashes`, not what was written.

    `check` is `sizes` (one listing), `hashes` (every byte is read), or `auto`: hashes up to HASHED_BYTES.
    """
    sizes = {info.name: info.size for info in list_folder(index)}
    sizes |= {f"shards/{info.name}": info.size for info in list_folder(index / "shards")}
    faults, sound = [], []
    for shard, file in named_files(snapshot):
        if sizes.get(file.path) != file.bytes and (info := file_info(index / file.path)) is not None:
            sizes[file.path] = info.size  # the listing lags behind, or the file is another one in fact
        if file.path not in sizes:
            faults.append(Fault(file.path, "is gone", shard))
        elif file.bytes is not None and sizes[file.path] != file.bytes:
            faults.append(Fault(file.path, f"has {sizes[file.path]:,} bytes, {file.bytes:,} were written", shard))
        else:
            sound.append((shard, file))
    if check == "sizes" or (check == "auto" and sum(sizes[file.path] for _, file in sound) > HASHED_BYTES):
        return faults
    with ThreadPoolExecutor(8, thread_name_prefix="hashes") as threads:
        found = threads.map(lambda named: _hash(index / named[1].path), sound)
        for (shard, file), digest in zip(sound, found, strict=True):
            if digest != file.sha256:
                faults.append(Fault(file.path, "is gone" if not digest else "is not what was written", shard))
    return faults


def _hash(location: Location) -> str:
    try:
        return stored_sha256(location)
    except FileNotFoundError:
        return ""
