"""The plan and the summary of a run as plain text, each on one screen of a terminal (80 columns, 24 lines)."""

from __future__ import annotations

from collections.abc import Sequence

from operators.planning.estimate import Estimate
from operators.planning.expansion import Interval
from operators.report.figures import bars, count, duration, files, money, percent, plus_minus, printable, size
from operators.report.summary import Comparison, RunReport, compare

MAX_REASONS = 5
MAX_LOSSES = 3


def plan_text(plan: Estimate, dtype: str) -> str:
    """A plan as a table; the row of the output's own `dtype` is marked."""
    read = percent(plan.sampled_bytes / plan.num_bytes) if plan.num_bytes else "100 %"
    units = f"{plan.sampled_units:,} of {plan.num_units:,} units ({read})"
    lines = [
        f"plan    {files(plan.num_files)}, {size(plan.num_bytes)}; read {plan.sampled_rows:,} rows of {units}",
        "",
        f"{'':16}{'estimate':>12}   {'95 % interval':^26}  error",
    ]
    lines += [
        _row(name, interval)
        for name, interval in (
            ("documents", plan.documents),
            ("rejected rows", plan.rejected),
            ("chunks", plan.chunks),
            ("tokens", plan.tokens),
        )
    ]
    lines += [_row(f"bytes {name}", value, size, name == dtype) for name, value in plan.bytes_out.items()]
    if plan.cost.hours is not None:
        lines.append(_row("time", plan.cost.hours, lambda hours: duration(hours * 3600)))
    if plan.cost.usd is not None:
        lines.append(_row("cost", plan.cost.usd, money))
    lines.append("")
    lines += _facts(plan)
    lines += [f"note    {printable(note)}" for note in plan.notes]
    return "\n".join(lines)


def summary_text(report: RunReport, next_steps: Sequence[str] = ()) -> str:
    """What a run did, where it is, and what to do next."""
    counts, fragments = report.counts, report.fragments
    embedded = counts.rows - counts.rejected
    done = f"{fragments.done:,} of {fragments.total:,} fragments"
    done += f", {fragments.skipped:,} were there already" if fragments.skipped else ""
    lines = [
        f"{report.job} done in {duration(report.seconds)}: {done}",
        f"  rows in       {counts.rows:,}",
        f"  embedded      {embedded:,} rows as {counts.chunks:,} vectors, {counts.tokens:,} tokens",
        f"  rejected      {counts.rejected:,}{_reasons(report)}",
    ]
    if report.dataset.unreadable_files or report.dataset.lost_bytes:
        lines.append(
            f"  lost          {report.dataset.unreadable_files:,} files broke before their end and "
            f"{report.dataset.lost_bytes:,} bytes do not read: see rejected/ of the output"
        )
    if counts.lost_tokens:
        cut = percent(counts.lost_tokens / (counts.lost_tokens + counts.tokens))
        lines.append(f"  cut off       {count(counts.lost_tokens)} tokens ({cut}) of {counts.truncated:,} chunks")
        lines += _lost_most(report)
    if counts.unknown_tokens:
        share = percent(counts.unknown_tokens / max(counts.tokens, 1))
        lines.append(f"  unknown       {count(counts.unknown_tokens)} words ({share}), left out")
    if counts.tokens:
        lines.append(f"  speed         {_speed(report)}")
    if report.cost_usd is not None:
        lines.append(f"  cost          {money(report.cost_usd)} on {printable(report.hardware)}")
    lines.append(f"  output        {printable(report.output)}")
    lines.append(f"                {report.dataset.chunks:,} vectors, {size(report.dataset_bytes)}, {report.dtype}")
    against = _against(compare(report))
    if against:
        lines.append(f"  plan          {against}")
    lines += [f"  note          {printable(note)}" for note in report.notes]
    lines += [f"  {'next' if i == 0 else '':<14}{printable(step)}" for i, step in enumerate(next_steps)]
    return "\n".join(lines)


def figure(value: float, unit: str) -> str:
    """A value of a comparison in its unit."""
    if unit == "bytes":
        return size(value)
    if unit == "share":
        return percent(value)
    if unit == "hours":
        return duration(value * 3600)
    return money(value) if unit == "USD" else count(value)


def _row(name: str, interval: Interval, show: object = count, mark: bool = False) -> str:
    assert callable(show)
    bounds = f"{show(interval.low):>11} to {show(interval.high):<11}" if interval.high > interval.low else ""
    return f"{name:<14}{'*' if mark else ' '} {show(interval.value):>12}   {bounds:<26} {plus_minus(interval)}".rstrip()


def _facts(plan: Estimate) -> list[str]:
    lines = []
    if plan.length_percentiles:
        median, most, longest = (plan.length_percentiles[key] for key in ("50", "95", "100"))
        lines.append(f"lengths {bars(plan.lengths)} tokens; median {median}, 95 % up to {most}, longest {longest}")
    if plan.tokens_per_text_token is not None:
        lines.append(f"recipe  {plan.tokens_per_text_token:.2f} tokens computed per token of text (prompts, copies)")
    if plan.padding_share is not None:
        lines.append(f"padding {percent(plan.padding_share)} of the tokens computed")
    cost = plan.cost
    if cost.tokens_per_second is not None:
        where = f"{cost.workers} x {printable(cost.hardware or '')}"
        where += f", MFU {percent(cost.mfu)}" if cost.mfu is not None else ""
        lines.append(f"speed   {count(cost.tokens_per_second)} tokens/s on {where}")
    if cost.message is not None:
        lines.append(f"cost    {cost.message}")
    return lines


def _reasons(report: RunReport) -> str:
    ranked = sorted(report.rejected_reasons.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{printable(reason)} {num:,}" for reason, num in ranked[:MAX_REASONS]]
    if len(ranked) > MAX_REASONS:
        parts.append(f"{len(ranked) - MAX_REASONS} other reasons {sum(num for _, num in ranked[MAX_REASONS:]):,}")
    return f"  ({', '.join(parts)})" if parts else ""


def _lost_most(report: RunReport) -> list[str]:
    """The files with the most lost tokens, where there are several."""
    total = sum(report.lost_by_file.values())
    ranked = list(report.lost_by_file.items())[:MAX_LOSSES]
    if len(report.lost_by_file) < 2:
        return []
    lines = [f"{percent(lost / total):>8} in {printable(name)}" for name, lost in ranked]
    return [f"                {line}" for line in lines]


def _speed(report: RunReport) -> str:
    parts = [f"{report.tokens_per_second:,.0f} tokens/s", f"padding {percent(report.padding_share)}"]
    if report.mfu is not None:
        parts.append(f"MFU {percent(report.mfu)}")
    if report.workers is not None:
        parts.append(f"{report.workers} workers" if report.workers != 1 else "1 worker")
    return ", ".join(parts)


def _against(rows: Sequence[Comparison]) -> str:
    judged = [row for row in rows if row.inside is not None]
    outside = [
        f"{row.quantity} {figure(row.actual, row.unit)} (planned {figure(row.planned.value, row.unit)})"
        for row in judged
        if not row.inside
    ]
    if not judged:
        return ""
    kept = f"{len(judged) - len(outside)} of {len(judged)} figures inside their interval"
    return kept + (f"; outside: {', '.join(outside)}" if outside else "")
