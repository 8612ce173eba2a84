"""A training on paper, as rows of a table and as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators.report import markup
from operators.report.figures import count, duration, percent, printable, size
from operators.training.forecast.forecast import Forecast
from operators.training.forecast.planning import AS_CONFIGURED, TrainingPlan

HEAD = ("method", "GPUs", "tokens held", "memory of one", "fits", "a step", "M rows in", "tokens/s", "MFU", "waiting")
PARTS_NONE = "–"


def forecast_row(name: str, found: Forecast) -> list[str]:
    """A forecast as cells under `HEAD`; of one that does not fit, what breaks first in place of the times."""
    memory, gpu = found.memory, found.gpu
    first = [name, f"{found.num_gpus} {gpu.name}", f"{found.held_tokens:,.0f}", size(memory.total)]
    part = found.breaks_first
    if part is not None:
        return [*first, f"no: {part} {size(memory.parts[part])}", *([PARTS_NONE] * 5)]
    return [
        *first,
        f"of {size(gpu.memory_bytes)}",
        _step(found.time.total),
        duration(3600 * found.hours_per_million_rows),
        count(found.tokens_per_second),
        percent(found.mfu),
        percent(found.time.waiting_share),
    ]


def part_rows(found: Mapping[str, Forecast]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of memory by part, one column a forecast."""
    names = next(iter(found.values())).memory.parts
    rows = [[part, *(size(one.memory.parts[part]) for one in found.values())] for part in names]
    rows.append(["all", *(size(one.memory.total) for one in found.values())])
    return ["", *found], rows


def training_plan_text(plan: TrainingPlan) -> str:
    """A plan for the terminal."""
    rows = _plan_rows(plan)
    widths = [max(len(line[i]) for line in [HEAD, *rows]) for i in range(len(HEAD))]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [HEAD, *rows]
    ]
    return "\n".join(map(printable, [f"plan    {_what(plan)}", f"        {plan.verdict}", "", *table, "", _ASSUMED]))


def training_plan_page(plan: TrainingPlan, config: Mapping[str, Any]) -> str:
    """A plan as HTML."""
    own = plan.forecasts[AS_CONFIGURED]
    parts = {f"{one.num_gpus} {one.gpu.name}": one for one in own}
    body = [
        markup.head(f"plan · train {plan.model}", _what(plan)),
        markup.notes([plan.verdict, _ASSUMED]),
        markup.section("Methods", markup.table(HEAD, _plan_rows(plan))),
        markup.section("Memory of one GPU, as configured", markup.table(*part_rows(parts))),
        markup.config_section(config),
    ]
    return markup.page("plan", body)


_ASSUMED = "on paper: docs/scale-training.md says what is assumed, and what of it was checked against torch"


def _step(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else duration(seconds)


def _what(plan: TrainingPlan) -> str:
    load = plan.load
    return (
        f"{plan.model}, {count(plan.num_parameters)} parameters; {load.rows:,} rows a step, {count(load.step_tokens)} "
        f"tokens: a query of {load.query_tokens:.0f} and {load.documents} x {load.document_tokens:.0f}"
    )


def _plan_rows(plan: TrainingPlan) -> list[list[str]]:
    return [forecast_row(name, one) for name, found in plan.forecasts.items() for one in found]
