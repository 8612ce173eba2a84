"""report.html: one file that needs nothing else, no network and no scripts, to be opened years later.

Whatever comes from outside (config values, paths, reasons, notes) goes through `_text`, and the page's own
Content-Security-Policy forbids scripts and loading, so that a document id with markup in it stays what it is: text.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from operators.planning.estimate import Estimate
from operators.planning.expansion import Interval
from operators.report import plots
from operators.report.figures import count, duration, files, money, percent, plus_minus, printable, size
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
        panels.append(_panel("Tokens per second", svg, "real tokens, padding not counted"))
    if any(counts.lengths):
        # The plan is of the whole dataset: its outline fits only a run that embedded all of it.
        planned = plan.lengths if plan is not None and not report.fragments.skipped else ()
        panels.append(_panel("Chunk lengths", plots.lengths_svg(counts.lengths, planned), "chunks by number of tokens"))
    if counts.seconds:
        panels.append(_panel("Stages", plots.stages_svg(counts.seconds), "busy time, all workers together"))
    if report.rejected_reasons:
        panels.append(_panel("Rejected rows", plots.reasons_svg(report.rejected_reasons), "rows by reason"))
    body = [
        _head(f"{report.job} · {report.model}", f"{report.started} to {report.finished} · {report.output}"),
        _cards(_report_cards(report)),
        _notes(report.notes),
        _comparison(compare(report)),
        f'<div class="panels">{"".join(panels)}</div>',
        _reasons(report),
        _section("Run", _facts(_report_facts(report))),
        _section("Versions", _facts(report.versions)) if report.versions else "",
        _section(
            "Config", f"<pre>{_text(json.dumps(report.config, indent=2, ensure_ascii=False, default=str), True)}</pre>"
        ),
    ]
    return _page(f"{report.job} report", body)


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
    table = _table(("quantity", "estimate", "95 % interval", "error", ""), cells, raw_last=True)
    body = [
        _head("plan", f"{files(plan.num_files)}, {size(plan.num_bytes)} · {sampled}"),
        _cards(cards),
        _notes([*plan.notes, *([cost.message] if cost.message else [])]),
        _section("Estimate", table),
        f'<div class="panels">{_panel("Chunk lengths", plots.lengths_svg((), plan.lengths), _percentiles(plan))}</div>',
        _config(config),
    ]
    return _page("plan", body)


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
        "chunks cut": f"{counts.truncated:,} ({counts.lost_tokens:,} tokens lost)",
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
    return _section("Plan against actual", _table(("", "planned", "95 % interval", "actual", ""), cells, raw_last=True))


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
    return _section("Rejected rows by reason", _table(("reason", "rows", "of all rows"), cells))


def _config(config: Mapping[str, Any]) -> str:
    text = json.dumps(config, indent=2, ensure_ascii=False, default=str)
    return _section("Config", f"<pre>{_text(text, keep_lines=True)}</pre>")


def _text(value: object, keep_lines: bool = False) -> str:
    """Any value as text of the page: escaped, and without control characters."""
    lines = str(value).split("\n")
    return html.escape(("\n" if keep_lines else " ").join(printable(line) for line in lines))


def _head(title: str, subtitle: str) -> str:
    return f"<header><h1>{_text(title)}</h1><p>{_text(subtitle)}</p></header>"


def _cards(cards: Sequence[tuple[str, str, str]]) -> str:
    inner = "".join(
        f'<div class="card"><span>{_text(name)}</span><b>{_text(value)}</b><i>{_text(note)}</i></div>'
        for name, value, note in cards
    )
    return f'<div class="cards">{inner}</div>'


def _notes(notes: Sequence[str]) -> str:
    return "".join(f'<p class="note">{_text(note)}</p>' for note in notes)


def _section(title: str, inner: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{inner}</section>"


def _panel(title: str, svg: str, caption: str) -> str:
    return f'<figure><h2>{_text(title)}</h2><p class="caption">{_text(caption)}</p>{svg}</figure>'


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], raw_last: bool = False) -> str:
    """A table; with `raw_last` the last column is markup of ours already."""
    head = "".join(f"<th>{_text(name)}</th>" for name in names)
    body = []
    for row in rows:
        cells = [_text(cell) for cell in row]
        if raw_last:
            cells[-1] = row[-1]
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _facts(facts: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in facts.items()) + "</dl>"


def _page(title: str, body: Sequence[str]) -> str:
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )


_STYLE = """
:root{--ink:#1f2933;--muted:#66727f;--line:#e4e8ec;--paper:#fff;--ground:#f5f7f9}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1060px;margin:0 auto;padding:32px 20px 56px}
h1{font-size:25px;margin:0;overflow-wrap:anywhere}
h2{font-size:15px;margin:0 0 10px}
header p,.caption{color:var(--muted);margin:2px 0 0;overflow-wrap:anywhere}
.caption{font-size:13px;margin:-8px 0 6px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:12px;margin:22px 0}
.card,section,figure{background:var(--paper);border:1px solid var(--line);border-radius:10px}
.card{padding:12px 14px;min-width:0}
.card span,.card i{display:block;color:var(--muted);font-size:12.5px;font-style:normal;overflow-wrap:anywhere}
.card b{display:block;font-size:22px;white-space:nowrap;font-weight:650;font-variant-numeric:tabular-nums}
section,figure{padding:16px 18px;margin:0 0 14px;min-width:0}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:14px;margin:0 0 14px}
.panels figure{margin:0}
figure svg{width:100%;max-width:620px;margin:0 auto;height:auto;display:block}
svg text{font-family:system-ui,-apple-system,"Segoe UI",sans-serif!important}
.whisker{width:140px;height:16px;vertical-align:middle;margin-right:8px}
.note{background:#fff7e8;border:1px solid #f1dcb3;border-radius:8px;padding:8px 12px;margin:0 0 10px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th{font-size:12.5px;font-weight:500;color:var(--muted);text-align:left}
th,td{padding:5px 14px 5px 0;border-bottom:1px solid var(--line);white-space:nowrap}
td:first-child{white-space:normal;overflow-wrap:anywhere}
tbody tr:last-child td{border-bottom:0}
b.in{color:#23804a}b.out{color:#c8453b}.na{color:var(--muted)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 18px;margin:0}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
pre{margin:0;font:12.5px/1.5 ui-monospace,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
@media print{body{background:#fff}section,figure,.card{break-inside:avoid}}
"""
