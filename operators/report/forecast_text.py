"""A training on paper, as rows of a table and as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from operators.report.figures import count, duration, percent, size
from operators.training.forecast.forecast import Forecast

HEAD = ("method", "GPUs", "tokens held", "memory of one", "fits", "a step", "M rows in", "tokens/s", "MFU", "waiting")
PARTS_NONE = "–"


def forecast_row(name: str, found: Forecast) -> list[str]:
    """A forecast as cells under `HEAD`; of one that does not fit, what takes most in place of the times."""
    memory, gpu = found.memory, found.gpu
    first = [name, f"{found.num_gpus} {gpu.name}", f"{found.held_tokens:,.0f}", size(memory.total)]
    if not found.fits:
        part = found.largest_part
        return [*first, f"no: {part} {size(memory.parts[part])}", *([PARTS_NONE] * 5)]
    return [
        *first,
        f"of {size(gpu.memory_bytes)}",
        duration(found.time.total),
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


def forecast_text(rows: Sequence[Sequence[str]]) -> str:
    """Rows under `HEAD` in columns."""
    lines = [HEAD, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
