"""What a run leaves beside the vectors: config, progress, report.json and report.html, and the gates."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import yaml

from jobs.embedding.backlog import Backlog
from jobs.embedding.config import EmbedConfig
from jobs.embedding.watching import RunProgress
from operators.embedder.recipe.spec import EmbedderSpec
from operators.errors import GateMissed
from operators.planning.estimate import Estimate, mfu_of
from operators.report.losses import loss_note, lost_by_file
from operators.report.page import report_page
from operators.report.summary import FragmentTally, RunReport, ThroughputPoint, sum_counts, to_json
from operators.report.text import summary_text
from operators.storage import Location, exists, read_bytes, redact, write_whole
from operators.store.dataset import Identity
from operators.store.fragments import FragmentRecord, read_table, rejected_file
from operators.store.snapshots import Snapshot
from operators.work.fragment import Counts

_VERSIONS = ("ray", "torch", "transformers", "pyarrow", "s3fs", "embedfleet")
_REASONS_FROM_FRAGMENTS = 1000  # rejected files read for the report's reasons; more would hold up the end of a run


def store_config(config: EmbedConfig, dataset: Location, identity: Identity) -> None:
    """Keep the resolved config with its fingerprint beside the output, without secrets."""
    text = yaml.safe_dump({"fingerprint": identity.fingerprint, "config": public_config(config)}, sort_keys=False)
    write_whole(dataset / "config.yaml", text.encode())


def public_config(config: EmbedConfig) -> dict[str, object]:
    """The config as it may be stored and shown: storage options out, what looks like a secret masked."""
    values = config.model_dump(mode="json")
    for section in ("source", "output"):
        values[section].pop("storage_options", None)
    redacted: dict[str, object] = redact(values)
    return redacted


def check_gates(config: EmbedConfig, records: Sequence[FragmentRecord]) -> int:
    """0 where the dataset keeps the config's gates; raises GateMissed (exit code 3) where not."""
    rows, rejected = sum(r.rows for r in records), sum(r.rejected for r in records)
    if rows and rejected / rows > config.gates.max_rejected_fraction:
        raise GateMissed(
            f"look into {config.output.path}/rejected: {rejected:,} of {rows:,} rows got no vector, more than "
            f"gates.max_rejected_fraction {config.gates.max_rejected_fraction:g} allows; the rest is in place"
        )
    files, lost = sum(r.unreadable_files for r in records), sum(r.lost_bytes for r in records)
    if files > config.gates.max_unreadable_files or lost > config.gates.max_lost_bytes:
        raise GateMissed(
            f"mend the files that {config.output.path}/rejected names and run again: {files:,} broke before their end "
            f"and {lost:,} bytes are lost with an unknown number of rows, more than gates.max_unreadable_files "
            f"{config.gates.max_unreadable_files} and gates.max_lost_bytes {config.gates.max_lost_bytes} allow; "
            "the rest is in place"
        )
    return 0


class RunLog:
    """Follows one run: progress while it goes on, the summary and the report at its end."""

    def __init__(self, config: EmbedConfig, spec: EmbedderSpec, dataset: Location) -> None:
        self._config, self._spec, self._dataset = config, spec, dataset
        self._started, self._clock = datetime.now(UTC), time.monotonic()
        self._backlog = Backlog(Snapshot(0, ()), (), {})
        self._counts: list[Counts] = []
        self._points: tuple[ThroughputPoint, ...] = ()
        self._workers: int | None = None

    @contextmanager
    def progress(self) -> Iterator[RunProgress]:
        """Show what the run is at and, when it embeds, how far it is."""
        offset = time.monotonic() - self._clock
        shown = RunProgress()
        with shown.display:
            yield shown
        self._counts, self._workers = shown.counts, shown.workers
        self._points = tuple(ThroughputPoint(p.seconds + offset, p.tokens, p.rows) for p in shown.display.history)

    def settle(self, config: EmbedConfig, backlog: Backlog) -> None:
        """Take the config with the output's own settings, and what is to be done."""
        self._config, self._backlog = config, backlog

    def nothing_to_do(self) -> None:
        """Say that the dataset is up to date."""
        snapshot = self._backlog.snapshot
        print(
            f"nothing to do: snapshot {snapshot.number} of {self._dataset.url} holds all {len(self._backlog.units):,} "
            f"units of the source ({sum(r.rows for r in snapshot.records):,} rows, "
            f"{sum(r.chunks for r in snapshot.records):,} vectors); no source data was read and no model loaded"
        )

    def finish(self, snapshot: Snapshot) -> None:
        """Write report.json and report.html, print the summary."""
        report = self._report(snapshot)
        write_whole(self._dataset / "report.json", to_json(report).encode())
        write_whole(self._dataset / "report.html", report_page(report).encode())
        steps = [
            f"python -m jobs verify CONFIG    proves that snapshot {snapshot.number} accounts for every row",
            f"open {self._dataset.url}/report.html",
        ]
        print(summary_text(report, steps))

    def _report(self, snapshot: Snapshot) -> RunReport:
        seconds = time.monotonic() - self._clock
        hardware, workers = self._config.hardware, self._workers
        cost = None
        if hardware is not None and hardware.price_per_hour is not None and self._counts:
            cost = hardware.price_per_hour * (workers or 1) * seconds / 3600
        counts = sum_counts(self._counts)
        return RunReport(
            job="embed",
            started=self._started.isoformat(timespec="seconds"),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=seconds,
            output=self._dataset.url,
            model=self._spec.model,
            fingerprint=self._spec.fingerprint,
            dtype=self._config.output.dtype,
            fragments=FragmentTally(len(self._counts), len(self._backlog.records), len(snapshot.records)),
            counts=counts,
            dataset=_dataset_counts(snapshot.records),
            dataset_bytes=sum(record.bytes for record in snapshot.records),
            rejected_reasons=_rejected_reasons(self._dataset, snapshot.records),
            lost_by_file=lost_by_file(snapshot.records),
            throughput=self._points,
            hardware=hardware.name if hardware is not None else platform.machine(),
            workers=workers,
            mfu=mfu_of(counts, hardware),
            cost_usd=cost,
            versions={name: importlib.metadata.version(name) for name in _VERSIONS}
            | {"python": platform.python_version()},
            config=public_config(self._config),
            plan=stored_plan(self._dataset),
            notes=loss_note(
                counts.lost_tokens,
                counts.tokens,
                self._spec.recipe.max_tokens,
                self._config.chunking.tokens is not None,
            ),
        )


def stored_plan(dataset: Location) -> Estimate | None:
    """The estimate that `plan` left beside the output, or None."""
    location = dataset / "plan.json"
    return Estimate.from_json(read_bytes(location)) if exists(location) else None


def _dataset_counts(records: Sequence[FragmentRecord]) -> Counts:
    names = (
        "rows",
        "rejected",
        "chunks",
        "tokens",
        "padding_tokens",
        "lost_tokens",
        "truncated",
        "unreadable_files",
        "lost_bytes",
    )
    return Counts(**{name: sum(getattr(record, name) for record in records) for name in names})


def _rejected_reasons(dataset: Location, records: Sequence[FragmentRecord]) -> dict[str, int]:
    reasons: Counter[str] = Counter()
    for record in [record for record in records if record.rejected][:_REASONS_FROM_FRAGMENTS]:
        reasons.update(read_table(rejected_file(dataset, record.key), ["reason"])["reason"].to_pylist())
    return dict(reasons)
