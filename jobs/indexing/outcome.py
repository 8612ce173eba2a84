"""What an index run says and leaves behind: progress, report.json and report.html, and the recall gate."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
import platform
import time
from datetime import UTC, datetime

from jobs.indexing.config import IndexConfig
from jobs.indexing.source import Embeddings
from operators.errors import GateMissed
from operators.index.library import kernel
from operators.index.snapshot import IndexIdentity, IndexSnapshot, ShardRecord
from operators.report.index_page import IndexReport, index_page, index_text
from operators.storage import Location, redact, write_whole

logger = logging.getLogger(__name__)
_VERSIONS = ("faiss-cpu", "faiss-gpu-cu12", "ray", "pyarrow", "numpy", "embedfleet")


def check_recall(config: IndexConfig, snapshot: IndexSnapshot) -> int:
    """0 where the index finds enough; raises GateMissed (exit code 3) where not."""
    recall = snapshot.recall
    if recall is not None and recall.chosen.lower < config.recall_target:
        raise GateMissed(
            f"choose a finer spec, or lower recall_target: searches find {recall.chosen.recall:.4f} of the "
            f"{recall.k} nearest (at least {recall.chosen.lower:.4f} with 95 % confidence, {recall.queries} queries), "
            f"{config.recall_target:g} is wanted; the index is in place"
        )
    return 0


class IndexLog:
    """Follows one run."""

    def __init__(self, config: IndexConfig, index: Location, identity: IndexIdentity, source: Embeddings) -> None:
        self._config, self._index, self._identity, self._source = config, index, identity, source
        self._started, self._clock = datetime.now(UTC), time.monotonic()
        self._built: list[tuple[ShardRecord, float]] = []
        self._notes: list[str] = []

    def is_measured(self, previous: IndexSnapshot, name: str) -> bool:
        """Whether recall was measured with these queries, for this k and target."""
        if not previous.identity.dim:
            return True  # sparse searches are exact
        recall = previous.recall
        asked = (self._config.recall.k, self._config.recall_target)
        return recall is not None and previous.queries == name and (recall.k, recall.target) == asked

    def nothing_to_do(self, snapshot: IndexSnapshot) -> None:
        """Say that the index is up to date."""
        print(
            f"nothing to do: snapshot {snapshot.number} of {self._index.url} holds all {snapshot.num_vectors:,} "
            f"vectors of the embeddings in {len(snapshot.shards)} shards; nothing was read or built"
        )

    def say(self, text: str) -> None:
        """Tell the user; what explains the result also goes into the report."""
        logger.info(text)
        self._notes.append(text)

    def built(self, record: ShardRecord, seconds: float, done: int, total: int) -> None:
        """A shard is on storage."""
        if not done - 1:
            logger.info("%s: %s", self._identity.factory, self._identity.why)
        how = f"{record.rows / seconds:,.0f} vectors/s" if seconds else "built by an earlier run"
        logger.info("shard %d of %d: %s vectors, %s", done, total, f"{record.rows:,}", how)
        self._built.append((record, seconds))

    def finish(self, snapshot: IndexSnapshot) -> None:
        """Write report.json and report.html, print the summary."""
        config = self._config.model_dump(mode="json")
        for section in (config, config["output"], config["queries"] or {}):
            section.pop("storage_options", None)
        versions = {name: _version(name) for name in _VERSIONS}
        new = [(record, seconds) for record, seconds in self._built if seconds]
        report = IndexReport(
            started=self._started.isoformat(timespec="seconds"),
            seconds=time.monotonic() - self._clock,
            output=self._index.url,
            snapshot=snapshot,
            shards_built=len(new),
            vectors_built=sum(record.rows for record, _ in new),
            build_cpu_seconds=sum(record.cpu_seconds for record, _ in new),
            kernel=kernel().name,
            notes=tuple(note for note in self._notes if "anew" in note),
            versions={name: v for name, v in versions.items() if v} | {"python": platform.python_version()},
            config=redact(config),
        )
        stored = dataclasses.asdict(report) | {"snapshot": snapshot.model_dump(mode="json")}
        write_whole(self._index / "report.json", json.dumps(stored, indent=1).encode())
        write_whole(self._index / "report.html", index_page(report).encode())
        print(index_text(report))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
