"""Numbers as people read them, and text that is safe to print: the words of every plan, summary and report."""

from __future__ import annotations

from operators.planning.expansion import Interval
from operators.work.fragment import LENGTH_EDGES

_LARGE = ((1e12, " T"), (1e9, " B"), (1e6, " M"))
_BYTES = ((1e15, " PB"), (1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB"))
_DURATIONS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
_BLOCKS = "▁▂▃▄▅▆▇█"


def count(number: float) -> str:
    """47,167 up to a million, then three digits: 4.72 M, 1.00 B (10^9), 3.10 T."""
    return _scaled(number, _LARGE) if abs(number) >= 999_999.5 else f"{number:,.0f}"


def files(num_files: int) -> str:
    """1 file, 4,096 files."""
    return f"{num_files:,} file{'' if num_files == 1 else 's'}"


def size(num_bytes: float) -> str:
    """Bytes in powers of 1000: 812 B, 73.4 MB."""
    return _scaled(num_bytes, _BYTES) if abs(num_bytes) >= 999.5 else f"{num_bytes:.0f} B"


def duration(seconds: float) -> str:
    """0.4 s, 42 s, 12 min 30 s, 3 h 5 min, 4 d 7 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    unit, name, rest_unit, rest_name = next(step for step in _DURATIONS if whole >= step[0])
    rest = whole % unit // rest_unit
    return f"{whole // unit} {name}" + (f" {rest} {rest_name}" if rest else "")


def percent(share: float) -> str:
    """A share of 1 as per cent, with two digits that tell something."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 99.95 or value == 0 else f"{value:.1f} %" if value >= 1 else f"{value:#.2g} %"


def money(usd: float) -> str:
    """$0.042, $3.10, $1,033."""
    if 0 < abs(usd) < 1:
        return f"${usd:.2g}"
    return f"${usd:,.2f}" if abs(usd) < 100 else f"${usd:,.0f}"


def plus_minus(interval: Interval) -> str:
    """The error as "exact", "± 2.5 %" or, above a half, as the factor "x/÷ 1.8"; "none seen" at zero."""
    if interval.high <= interval.low:
        return "exact"
    if interval.value <= 0:
        return "none seen"
    if interval.error > 0.5:
        return "wide" if interval.low <= 0 else f"x/÷ {(interval.high / interval.low) ** 0.5:.1f}"
    return f"± {percent(interval.error)}"


def bars(histogram: tuple[int, ...]) -> str:
    """A token-length histogram in one line: the first and last length seen, and a block for each bin between."""
    used = [i for i, num in enumerate(histogram) if num]
    if not used:
        return ""
    shown = histogram[used[0] : used[-1] + 1]
    blocks = "".join(_BLOCKS[round(num / max(shown) * (len(_BLOCKS) - 1))] if num else " " for num in shown)
    first = LENGTH_EDGES[used[0] - 1] + 1 if used[0] else 1
    last = f"{LENGTH_EDGES[used[-1]]}" if used[-1] < len(LENGTH_EDGES) else "and more"
    return f"{first} {blocks} {last}"


def printable(text: str) -> str:
    """The text without what could steer a terminal or break a document: control characters, lone surrogates."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _scaled(number: float, steps: tuple[tuple[float, str], ...]) -> str:
    step, name = next(((step, name) for step, name in steps if abs(number) >= step * 0.9995), steps[-1])
    value = number / step
    digits = max(0, 2 - len(f"{abs(value):.0f}") + 1)
    return f"{value:.{digits}f}{name}"
