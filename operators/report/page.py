"""report.html: one file that needs nothing else, no network and no scripts, to be opened years later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from operators.planning.estimate import Estimate
from operators.planning.expansion import Interval
from operators.report import markup, plots
from operators.report.figures import count, duration, files, money, percent, plus_minus, size
from operators.report.summary import Comparison, RunReport, compare
from operators.report.text import figure

_MOST_REASONS = 50


def report_page(report: RunReport) -> str:
    """The report of a run as HTML."""
    plan, counts = report.plan, report.counts
    planned_speed = plan.cost.tokens_per_second if plan is not None else None
    panels = []
    if report.throughput:
        svg = plots.throughput_svg(report.throughput, report.tokens_per_second, planned_speed)
        panels.append(markup.panel("Tokens per second", svg, "real tokens, padding not counted"))
    if any(counts.lengths):
        # The plan is of the whole dataset: its outline fits only a run that embedded all of it.
        planned = plan.lengths if plan is not None and not report.fragments.skipped else ()
        svg = plots.lengths_svg(counts.lengths, planned)
        panels.append(markup.panel("Chunk lengths", svg, "chunks by number of tokens"))
    if counts.seconds:
        panels.append(markup.panel("Stages", plots.stages_svg(counts.seconds), "busy time, all workers together"))
    if report.rejected_reasons:
        panels.append(markup.panel("Rejected rows", plots.reasons_svg(report.rejected_reasons), "rows by reason"))
    body = [
        markup.head(f"{report.job} · {report.model}", f"{report.started} to {report.finished} · {report.output}"),
        markup.cards(_report_cards(report)),
        markup.notes(report.notes),
        _comparison(compare(report)),
        f'<div class="panels">{"".join(panels)}</div>',
        _reasons(report),
        _losses(report),
        markup.section("Run", markup.facts(_report_facts(report))),
        markup.section("Versions", markup.facts(report.versions)) if report.versions else "",
        markup.config_section(report.config),
    ]
    return markup.page(f"{report.job} report", body)


def plan_page(plan: Estimate, config: Mapping[str, Any]) -> str:
    """A plan alone as HTML, before anything ran."""
    cost = plan.cost
    cards = [
        ("documents", count(plan.documents.value), plus_minus(plan.documents)),
        ("tokens", count(plan.tokens.value), plus_minus(plan.tokens)),
        ("vectors", count(plan.chunks.value), plus_minus(plan.chunks)),
        ("time", duration(cost.hours.value * 3600) if cost.hours else "unknown", cost.hardware or ""),
        ("cost", money(cost.usd.value) if cost.usd else "unknown", plus_minus(cost.usd) if cost.usd else ""),
        ("rejected", count(plan.rejected.value), f"at most {count(plan.rejected.high)}"),
        ("float32 out", size(plan.bytes_out["float32"].value), plus_minus(plan.bytes_out["float32"])),
        ("padding", percent(plan.padding_share) if plan.padding_share is not None else "unknown", "of tokens computed"),
    ]
    if plan.tokens_per_text_token is not None:
        cards.append(("recipe", f"{plan.tokens_per_text_token:.2f}", "tokens computed per token of text"))
    rows: list[tuple[str, Interval, str]] = [
        ("documents", plan.documents, ""),
        ("rejected rows", plan.rejected, ""),
        ("chunks", plan.chunks, ""),
        ("tokens", plan.tokens, ""),
        *((f"bytes as {dtype}", interval, "bytes") for dtype, interval in plan.bytes_out.items()),
    ]
    rows += [("time", cost.hours, "hours")] if cost.hours else []
    rows += [("cost", cost.usd, "USD")] if cost.usd else []
    cells = [
        [name, figure(at.value, unit), _bounds(at, unit), plus_minus(at), _whisker(at, None)] for name, at, unit in rows
    ]
    sampled = f"read {plan.sampled_rows:,} rows of {plan.sampled_units:,} of {plan.num_units:,} units"
    table = markup.table(("quantity", "estimate", "95 % interval", "error", ""), cells, raw_last=True)
    lengths = markup.panel("Chunk lengths", plots.lengths_svg((), plan.lengths), _percentiles(plan))
    body = [
        markup.head("plan", f"{files(plan.num_files)}, {size(plan.num_bytes)} · {sampled}"),
        markup.cards(cards),
        markup.notes([*plan.notes, *([cost.message] if cost.message else [])]),
        markup.section("Estimate", table),
        f'<div class="panels">{lengths}</div>',
        markup.config_section(config),
    ]
    return markup.page("plan", body)


def _report_cards(report: RunReport) -> list[tuple[str, str, str]]:
    counts, tally = report.counts, report.fragments
    share = percent(counts.rejected / counts.rows) if counts.rows else ""
    cards = [
        ("rows embedded", count(counts.rows - counts.rejected), f"of {counts.rows:,} read"),
        ("vectors", count(counts.chunks), f"{size(report.dataset_bytes)} {report.dtype} in all"),
        ("rejected", count(counts.rejected), share),
        ("time", duration(report.seconds), f"{tally.done:,} fragments, {tally.skipped:,} were there"),
        ("tokens/s", count(report.tokens_per_second), f"{count(counts.tokens)} tokens"),
        ("padding", percent(report.padding_share), "of tokens computed"),
    ]
    if report.mfu is not None:
        cards.append(("MFU", percent(report.mfu), "model FLOPs utilisation"))
    if report.cost_usd is not None:
        cards.append(("cost", money(report.cost_usd), report.hardware))
    return cards


def _report_facts(report: RunReport) -> dict[str, str]:
    counts = report.counts
    return {
        "output": report.output,
        "model": report.model,
        "fingerprint": report.fingerprint,
        "hardware": report.hardware + (f", {report.workers} workers" if report.workers is not None else ""),
        "vectors in the output": f"{report.dataset.chunks:,} of {report.dataset.rows:,} rows",
        "files that broke before their end": f"{report.dataset.unreadable_files:,}",
        "bytes that do not read": f"{report.dataset.lost_bytes:,}",
        "chunks cut": f"{counts.truncated:,} ({counts.lost_tokens:,} tokens lost)",
        "unknown words left out": f"{counts.unknown_tokens:,}",
        "worker deaths survived": f"{counts.deaths:,}",
        "tokens/s after the start": count(report.steady_tokens_per_second),
    }


def _comparison(rows: Sequence[Comparison]) -> str:
    if not rows:
        return ""
    cells = [
        [
            row.quantity,
            figure(row.planned.value, row.unit),
            _bounds(row.planned, row.unit),
            figure(row.actual, row.unit),
            _verdict(row),
        ]
        for row in rows
    ]
    names = ("", "planned", "95 % interval", "actual", "")
    return markup.section("Plan against actual", markup.table(names, cells, raw_last=True))


def _verdict(row: Comparison) -> str:
    if row.inside is None:
        change = row.actual / row.planned.value - 1 if row.planned.value else 0.0
        return f'<span class="na">{percent(abs(change))} {"more" if change >= 0 else "less"}</span>'
    word = '<b class="in">inside</b>' if row.inside else '<b class="out">outside</b>'
    return f"{_whisker(row.planned, row.actual)} {word}"


def _bounds(interval: Interval, unit: str) -> str:
    if interval.high <= interval.low:
        return ""
    return f"{figure(interval.low, unit)} to {figure(interval.high, unit)}"


def _whisker(planned: Interval, actual: float | None) -> str:
    """The planned interval as a line with its value as a tick, the actual value as a dot, on one scale."""
    points = [planned.low, planned.value, planned.high, *([actual] if actual is not None else [])]
    low, high = min(points), max(points)
    margin = 0.12 * (high - low) or 1.0

    def at(value: float) -> str:
        return f"{4 + 132 * (value - low + margin) / (high - low + 2 * margin):.1f}"

    color = plots.INK if actual is None or planned.low <= actual <= planned.high else plots.RED
    dot = f'<circle cx="{at(actual)}" cy="8" r="3.5" fill="{color}"/>' if actual is not None else ""
    left, middle, right = at(planned.low), at(planned.value), at(planned.high)
    return (
        f'<svg class="whisker" viewBox="0 0 140 16" role="img" aria-label="interval">'
        f'<path d="M{left} 8H{right}M{left} 5v6M{right} 5v6" stroke="{plots.ORANGE}" stroke-width="2"/>'
        f'<path d="M{middle} 2v12" stroke="{plots.ORANGE}" stroke-width="2"/>{dot}</svg>'
    )


def _percentiles(plan: Estimate) -> str:
    at = plan.length_percentiles
    names = {"50": "median", "100": "longest"}
    return ", ".join(f"{names.get(key, key + ' %')} {value}" for key, value in at.items())


def _reasons(report: RunReport) -> str:
    ranked = sorted(report.rejected_reasons.items(), key=lambda item: (-item[1], item[0]))
    if not ranked:
        return ""
    total = max(report.counts.rows, 1)
    cells = [[reason, f"{num:,}", percent(num / total)] for reason, num in ranked[:_MOST_REASONS]]
    if len(ranked) > _MOST_REASONS:
        rest = sum(num for _, num in ranked[_MOST_REASONS:])
        cells.append([f"{len(ranked) - _MOST_REASONS} more reasons", f"{rest:,}", percent(rest / total)])
    return markup.section("Rejected rows by reason", markup.table(("reason", "rows", "of all rows"), cells))


def _losses(report: RunReport) -> str:
    total = sum(report.lost_by_file.values())
    cells = [[name, f"{lost:,}", percent(lost / total)] for name, lost in report.lost_by_file.items()]
    names = ("file", "tokens", "of all lost")
    return markup.section("Tokens cut off by truncation", markup.table(names, cells)) if cells else ""
