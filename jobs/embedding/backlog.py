"""What is to be done: the listing against what the latest snapshot and the storage already hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jobs.embedding.config import EmbedConfig
from operators.corpus.units import plan_units
from operators.storage import Location, list_folder
from operators.store.dataset import Identity
from operators.store.fragments import FragmentRecord
from operators.store.left_out import doubtful_units
from operators.store.snapshots import (
    Snapshot,
    latest_snapshot,
    rejected_rows_there,
    unit_of_file,
    whole_files,
    whole_units,
    written_fragments,
)
from operators.work.fragment import SourceFile, Unit
from operators.work.packed_units import PackedUnits


@dataclass(frozen=True, slots=True)
class Backlog:
    """The units of the source, in order, and which fragments of them are on storage.

    Where ids must be unique, `unsettled` has those of which only the check of ids tells whether they hold the rows that
    they should: what a run wrote that died before its snapshot, and units that left rows out whose ids have gone since.
    """

    snapshot: Snapshot
    units: Sequence[Unit]
    records: dict[str, FragmentRecord]  # by key; of these units alone
    unsettled: tuple[FragmentRecord, ...] = ()

    @property
    def pending(self) -> Sequence[Unit]:
        """Units of which a part is missing."""
        whole = whole_units(self.records.values())
        return PackedUnits(unit for unit in self.units if unit.digest not in whole) if whole else self.units

    @property
    def complete(self) -> tuple[FragmentRecord, ...]:
        """Records of all whole units, in the order of the source."""
        whole = whole_units(self.records.values())
        return tuple(record for unit in self.units if unit.digest in whole for record in whole[unit.digest])

    def parts(self) -> dict[str, tuple[int, ...]]:
        """The parts that are on storage, by digest of their unit."""
        found: dict[str, tuple[int, ...]] = {}
        for record in self.records.values():
            digest = record.fragment.unit.digest
            found[digest] = (*found.get(digest, ()), record.fragment.part)
        return found

    def with_records(self, records: Sequence[FragmentRecord]) -> Backlog:
        """The same with further fragments on storage."""
        held = {**self.records, **{record.key: record for record in records}}
        return Backlog(self.snapshot, self.units, held, self.unsettled)

    def settled(self, duplicates: Mapping[str, tuple[int, ...]]) -> Backlog:
        """The same with the unsettled fragments that leave out just these rows, places by digest of the unit."""
        wanted = {unit.digest: unit.leaving_out(duplicates.get(unit.digest, ())).left_out for unit in self.pending}
        fitting = [
            record
            for record in self.unsettled
            if wanted.get(record.fragment.unit.digest) == record.fragment.unit.left_out
        ]
        return dataclasses.replace(self.with_records(fitting), unsettled=())


def find_backlog(dataset: Location, config: EmbedConfig, files: Iterator[SourceFile], identity: Identity) -> Backlog:
    """Compare the listing with the dataset; opens only files that have to be split and are not whole yet.

    A committed fragment whose file is gone or of another size counts as missing: it is done again.
    """
    checks_ids = config.source.checks_ids
    snapshot = latest_snapshot(dataset)
    sizes = {info.url.rsplit("/", 1)[-1]: info.size for info in list_folder(dataset / "data")}
    has_all = rejected_rows_there(dataset)
    committed = {r.key: r for r in snapshot.records if sizes.get(f"{r.key}.parquet") == r.bytes and has_all(r)}
    keep = config.output.keep
    known = whole_files(committed.values(), config.source.reading(keep))
    units = PackedUnits(
        plan_units(files, config.source, keep, identity.pack_below_bytes, known, even_packs=identity.fragment_rows > 0)
    )
    known_digests = {record.fragment.unit.digest for record in committed.values()}
    wanted = {unit.digest for unit in units if unit.digest in known_digests} if known_digests else set()
    records = {key: record for key, record in committed.items() if record.fragment.unit.digest in wanted}
    unsettled: list[FragmentRecord] = []
    if checks_ids:
        gone = [record for record in snapshot.records if record.key not in records]
        doubtful = doubtful_units(dataset, gone, records.values())
        unsettled = [record for record in records.values() if record.fragment.unit.digest in doubtful]
        records = {key: record for key, record in records.items() if record.fragment.unit.digest not in doubtful}
    backlog = Backlog(snapshot, units, records, tuple(unsettled))
    # Fragments that a run wrote before it died, or that another run is writing now, are in no snapshot yet.
    strays = {unit_of_file(name) for name in sizes if name.removesuffix(".parquet") not in committed}
    unfinished = [unit.digest for unit in backlog.pending if unit.digest in strays] if strays else []
    if not unfinished:
        return backlog
    written = [record for record in written_fragments(dataset, unfinished).values() if has_all(record)]
    if not checks_ids:
        return backlog.with_records(written)
    return dataclasses.replace(backlog, unsettled=(*backlog.unsettled, *written))
