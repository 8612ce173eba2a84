"""The report of an index: as text for a terminal, and as a page with the curve of recall against cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from operators.index.snapshot import CurvePoint, IndexIdentity, IndexSnapshot
from operators.report import markup, plots
from operators.report.figures import count, duration, size


@dataclass(frozen=True, slots=True)
class IndexReport:
    """One run of the index job."""

    started: str
    seconds: float
    output: str
    snapshot: IndexSnapshot
    shards_built: int
    vectors_built: int
    build_cpu_seconds: float  # of the shards built by this run
    kernel: str  # OpenBLAS kernels that faiss ran on
    notes: tuple[str, ...]
    versions: Mapping[str, str]
    config: Mapping[str, Any]

    @property
    def vectors_per_cpu_second(self) -> float:
        """Speed of building, one core."""
        return self.vectors_built / self.build_cpu_seconds if self.build_cpu_seconds else 0.0


def index_text(report: IndexReport) -> str:
    """What a run made, on a few lines."""
    snapshot, identity = report.snapshot, report.snapshot.identity
    lines = [
        f"index done in {duration(report.seconds)}: {report.shards_built} shards built, {len(snapshot.shards)} in all",
        f"  spec          {identity.factory}, {identity.metric}; {identity.why}",
        f"  vectors       {snapshot.num_vectors:,} {_kinds(identity)}, {size(_bytes(snapshot))} in shards",
    ]
    if identity.sparse_dim:
        entries = sum(shard.sparse.entries for shard in snapshot.shards if shard.sparse is not None)
        lines.append(f"  sparse        {entries:,} entries, searched exactly; mode=dense, sparse or hybrid")
    if report.build_cpu_seconds:
        lines.append(f"  speed         {count(report.vectors_per_cpu_second)} vectors per CPU second")
    if snapshot.recall is not None:
        recall, chosen = snapshot.recall, snapshot.recall.chosen
        lines += [
            f"  recall@{recall.k:<6} {chosen.recall:.4f}, at least {chosen.lower:.4f} ({recall.queries:,} queries: "
            f"{recall.source})",
            f"  a search      {_settings(chosen)}; {chosen.cpu_ms:.3f} CPU ms, {chosen.scanned:,.0f} vectors compared",
        ]
    lines += [f"  note          {note}" for note in report.notes]
    lines += [
        f"  index         {report.output}, snapshot {snapshot.number}",
        f'next: python -m jobs search {report.output} query="..."',
    ]
    return "\n".join(lines)


def index_page(report: IndexReport) -> str:
    """The report as HTML."""
    snapshot, identity = report.snapshot, report.snapshot.identity
    recall = snapshot.recall
    cards = [
        ("vectors", count(snapshot.num_vectors), f"{_kinds(identity)}, {identity.metric}"),
        ("shards", f"{len(snapshot.shards):,}", f"{report.shards_built:,} built by this run"),
        ("size", size(_bytes(snapshot)), f"{_bytes(snapshot) / max(1, snapshot.num_vectors):.0f} bytes a vector"),
        ("time", duration(report.seconds), f"{count(report.vectors_per_cpu_second)} vectors per CPU second"),
    ]
    panels = ""
    if recall is not None:
        cards += [
            (f"recall@{recall.k}", f"{recall.chosen.recall:.4f}", f"at least {recall.chosen.lower:.4f}"),
            ("search", f"{recall.chosen.cpu_ms:.3f} ms", f"CPU time per query, {_settings(recall.chosen)}"),
        ]
        svg = plots.recall_svg(
            [(p.cpu_ms, p.recall, p.lower) for p in recall.curve],
            recall.target,
            (recall.chosen.cpu_ms, recall.chosen.recall),
        )
        panels = markup.panel("Recall against cost", svg, f"{recall.queries:,} queries: {recall.source}")
    facts = {
        "spec": identity.factory,
        "chosen because": identity.why,
        "output": report.output,
        "embeddings": f"{identity.embeddings}, snapshot {snapshot.embeddings_snapshot}",
        "model": identity.model,
        "fingerprint": identity.fingerprint,
        "matrix kernels": report.kernel,
    }
    body = [
        markup.head(f"index · {identity.factory}", f"{report.started} · {report.output}"),
        markup.cards(cards),
        markup.notes(report.notes),
        f'<div class="panels">{panels}</div>',
        markup.section("Settings tried", _curve_table(recall.curve if recall is not None else ())),
        markup.section("Shards", _shard_table(snapshot)),
        markup.section("Run", markup.facts(facts)),
        markup.section("Versions", markup.facts(report.versions)),
        markup.config_section(report.config),
    ]
    return markup.page("index report", body)


_MOST_SHARDS = 100


def _shard_table(snapshot: IndexSnapshot) -> str:
    rows = [
        [
            shard.key,
            f"{shard.rows:,}",
            f"{shard.rows - shard.live_rows:,}",
            size(shard.all_bytes),
            f"{shard.cpu_seconds:.1f}",
        ]
        for shard in snapshot.shards[:_MOST_SHARDS]
    ]
    if len(snapshot.shards) > _MOST_SHARDS:
        rest = snapshot.shards[_MOST_SHARDS:]
        rows.append(
            [f"{len(rest)} more", f"{sum(s.rows for s in rest):,}", "", size(sum(s.all_bytes for s in rest)), ""]
        )
    return markup.table(("shard", "vectors", "deleted", "size", "CPU seconds"), rows)


def _curve_table(curve: tuple[CurvePoint, ...]) -> str:
    rows = [[_settings(p), f"{p.recall:.4f}", f"{p.lower:.4f}", f"{p.cpu_ms:.3f}", f"{p.scanned:,.0f}"] for p in curve]
    return markup.table(("settings", "recall", "at least (95 %)", "CPU ms a query", "vectors compared"), rows)


def _settings(point: CurvePoint) -> str:
    chosen = point.settings
    return f"nprobe {chosen.nprobe}, ef {chosen.ef}, k_factor {chosen.k_factor}"


def _bytes(snapshot: IndexSnapshot) -> int:
    return sum(shard.all_bytes for shard in snapshot.shards)


def _kinds(identity: IndexIdentity) -> str:
    dense = [f"of {identity.dim} components"] if identity.dim else []
    return " and ".join([*dense, *([f"sparse over {identity.sparse_dim:,} ids"] if identity.sparse_dim else [])])
