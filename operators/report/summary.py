"""The record of a finished run, its JSON form, and the plan put against what came out.

`counts` is what this run did, `dataset` what lies in the output after it: a resumed run does a part, while the plan is
of the whole, so counts and bytes are compared with the dataset, hours and money only where this run did everything.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pydantic

from operators.errors import InputError
from operators.planning.estimate import Estimate, Hardware
from operators.planning.expansion import Interval
from operators.work.fragment import Counts


@dataclass(frozen=True, slots=True)
class FragmentTally:
    """Fragments of the source, by what this run did with them."""

    done: int  # embedded now
    skipped: int  # already there
    total: int


@dataclass(frozen=True, slots=True)
class ThroughputPoint:
    """How far a run was."""

    seconds: float  # since its start
    tokens: int  # so far
    rows: int


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run did; nothing in it is secret (`config` comes redacted)."""

    job: str
    started: str  # ISO 8601, UTC
    finished: str
    seconds: float
    output: str
    model: str
    fingerprint: str
    dtype: str
    fragments: FragmentTally
    counts: Counts
    dataset: Counts
    dataset_bytes: int
    rejected_reasons: dict[str, int]  # of this run
    throughput: tuple[ThroughputPoint, ...]
    hardware: str
    lost_by_file: dict[str, int] = dataclasses.field(default_factory=dict)  # tokens cut off, of the whole dataset
    workers: int | None = None
    mfu: float | None = None  # model FLOPs utilisation, 0 to 1, padding excluded
    cost_usd: float | None = None
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    plan: Estimate | None = None
    notes: tuple[str, ...] = ()

    @property
    def tokens_per_second(self) -> float:
        """Real tokens over the whole run, its start included."""
        return self.counts.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def steady_tokens_per_second(self) -> float:
        """Real tokens per second after the first came out, so without the time to start; else over the whole run."""
        points = [point for point in self.throughput if point.tokens > 0]
        if len(points) < 2 or points[-1].seconds <= points[0].seconds:
            return self.tokens_per_second
        return (points[-1].tokens - points[0].tokens) / (points[-1].seconds - points[0].seconds)

    @property
    def padding_share(self) -> float:
        """Padding as a share of the tokens computed."""
        computed = self.counts.tokens + self.counts.padding_tokens
        return self.counts.padding_tokens / computed if computed else 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """One planned quantity and what it turned out to be; `inside` is None where the plan gave no interval."""

    quantity: str
    unit: str  # "" (a count), bytes, tokens/s, share, hours, USD
    planned: Interval
    actual: float
    inside: bool | None


def sum_counts(counts: Iterable[Counts]) -> Counts:
    """All fragments' counts as one."""
    names = {field.name for field in dataclasses.fields(Counts)} - {"seconds", "lengths"}
    numbers: dict[str, Any] = dict.fromkeys(names, 0)
    seconds: dict[str, float] = {}
    lengths: list[int] = []
    for one in counts:
        for name in numbers:
            numbers[name] += getattr(one, name)
        for stage, spent in one.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
        lengths += [0] * (len(one.lengths) - len(lengths))
        for i, num in enumerate(one.lengths):
            lengths[i] += num
    return Counts(**numbers, seconds=seconds, lengths=tuple(lengths))


def compare(report: RunReport) -> tuple[Comparison, ...]:
    """Plan against actual; empty where there was no plan."""
    plan = report.plan
    if plan is None:
        return ()
    whole = report.dataset
    rows = [
        _bounded("documents", "", plan.documents, whole.rows),
        _bounded("rejected rows", "", plan.rejected, whole.rejected),
        _bounded("chunks", "", plan.chunks, whole.chunks),
        _bounded("tokens", "", plan.tokens, whole.tokens),
        _bounded("bytes out", "bytes", plan.bytes_out[report.dtype], report.dataset_bytes),
    ]
    if plan.padding_share is not None and report.counts.tokens:
        rows.append(_point("padding", "share", plan.padding_share, report.padding_share))
    if plan.cost.tokens_per_second is not None and report.counts.tokens:
        rows.append(_point("tokens/s", "tokens/s", plan.cost.tokens_per_second, report.steady_tokens_per_second))
    if report.fragments.skipped == 0:
        if plan.cost.hours is not None:
            rows.append(_bounded("hours", "hours", plan.cost.hours, report.seconds / 3600))
        if plan.cost.usd is not None and report.cost_usd is not None:
            rows.append(_bounded("cost", "USD", plan.cost.usd, report.cost_usd))
    return tuple(rows)


def to_json(report: RunReport) -> str:
    """The report as JSON text, with the figures that follow from others written out."""
    derived = {
        "tokens_per_second": report.tokens_per_second,
        "steady_tokens_per_second": report.steady_tokens_per_second,
        "padding_share": report.padding_share,
        "plan_against_actual": [dataclasses.asdict(row) for row in compare(report)],
    }
    return json.dumps({**dataclasses.asdict(report), **derived}, indent=1)


def from_json(text: str | bytes, name: str = "report.json") -> RunReport:
    """The report that `to_json` wrote; InputError names the file (`name`) and the first key that is wrong."""
    try:
        return pydantic.TypeAdapter(RunReport).validate_json(text)
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        raise InputError(
            f"give a report.json that an embed run wrote: {name} is none ({key + ': ' if key else ''}{fault['msg']})"
        ) from error


def with_measured_speed(hardware: Hardware | None, earlier: RunReport, model: str) -> Hardware:
    """The hardware with the tokens per second of one worker that an earlier run had.

    What `hardware` states itself stays. Raises InputError where the earlier run was of another model.
    """
    if earlier.model != model:
        raise InputError(
            f"set plan.report to a run of {model!r}: that report is of {earlier.model!r}, whose speed says nothing here"
        )
    speed = earlier.steady_tokens_per_second / (earlier.workers or 1)
    if speed <= 0:
        raise InputError("set plan.report to a run that embedded something: that report has no tokens per second")
    measured = Hardware(name=earlier.hardware, tokens_per_second=speed, workers=earlier.workers)
    if hardware is None:
        return measured
    stated = {key: value for key, value in hardware.model_dump().items() if value is not None}
    return measured.model_copy(update=stated)


def _bounded(quantity: str, unit: str, planned: Interval, actual: float) -> Comparison:
    # A whole number against rounded bounds: 47167 is inside 47166.9999 to 47166.9999.
    slack = 1e-9 * max(abs(planned.high), 1.0)
    return Comparison(quantity, unit, planned, actual, planned.low - slack <= actual <= planned.high + slack)


def _point(quantity: str, unit: str, planned: float, actual: float) -> Comparison:
    return Comparison(quantity, unit, Interval.exactly(planned), actual, None)
