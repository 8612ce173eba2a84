"""What an embed run will make and cost, from a sample of the source: counts, lengths, padding, bytes, hours, money.

Counts carry a 95 % interval (operators/planning/expansion.py). Bytes follow from them by factors that are known; hours
and money by a speed that is not quite, so that its own error (`Hardware.speed_error`) widens their intervals. The time
to start workers is not in them. Nothing here reads files or loads a model; memory is the sample's counts.

    D drawn units, C sampled chunks, N simulated chunks of a fragment
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from operators.embedder.tokens import batching
from operators.planning.expansion import Expansion, Interval, expand, is_complete
from operators.planning.sampling import Floats, Ints, UnitDraw, UnitSample
from operators.work.fragment import LENGTH_EDGES, Counts

DTYPES = ("float32", "float16", "int8", "binary")
PERCENTILES = (5, 25, 50, 75, 95, 99, 100)
# Parquet as operators/store/fragments.py writes it, measured at 384 and 1024 dimensions and 16k rows a file: hash,
# spans, lengths and levels take 24 bytes a chunk, ids 0.5 (numbered) to 0.65 (hexadecimal) of theirs, a footer 4 kB.
_CHUNK_BYTES, _ID_SHARE, _FILE_BYTES = 24, 0.6, 4096
# Sparse vectors: two lists, and an index with its weight; measured at 128 entries of 30522 ids
_SPARSE_BYTES, _ENTRY_BYTES = 4, 6.0


class Hardware(BaseModel):
    """What the run is to be priced on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="what to call it in the plan and the report, such as H200")
    tokens_per_second: float | None = Field(
        default=None,
        gt=0,
        description="real tokens (padding not counted) per second of one worker; a run's report has it",
    )
    speed_error: float = Field(
        default=0.1,
        ge=0,
        description="95 % error of tokens_per_second, a share; widens hours and money",
    )
    workers: int | None = Field(default=None, ge=1, description="embedding workers")
    price_per_hour: float | None = Field(default=None, ge=0, description="USD per hour of one worker")
    peak_tflops: float | None = Field(
        default=None,
        gt=0,
        description="peak of one worker at the compute dtype, 10^12 FLOP/s (H200 in bf16: 989)",
    )


@dataclass(frozen=True, slots=True)
class Reading:
    """What a recipe reads of a chunk: its tokens, and those that are the recipe's."""

    rows: int = 1  # that the model computes: one for each prompt of the role
    copies: int = 1  # of the chunk's own tokens, in all rows
    fixed_tokens: int = 0  # of prompts, special and end tokens, in all rows


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run does with its chunks, as far as a plan needs it."""

    dim: int  # components of a vector
    fragment_rows: int  # rows that are sorted by length together (source.rows_per_fragment)
    batch_tokens: int | None = None  # padded tokens of a batch; None: the engine does not pad, or it is not known
    flops: Callable[[Ints], float] | None = None  # of texts of given token lengths: engine.Flops.total
    kept_bytes_per_chunk: float = 0.0  # of the kept columns
    reading: Reading = Reading()
    sparse_entries: Callable[[float], float] | None = None  # of a vector, at most, by the tokens of a chunk


@dataclass(frozen=True, slots=True)
class Cost:
    """Time and money of a run; what cannot be known is None and `message` says which key to set."""

    hardware: str | None = None
    workers: int | None = None
    tokens_per_second: float | None = None  # of all workers
    hours: Interval | None = None
    usd: Interval | None = None
    mfu: float | None = None  # model FLOPs utilisation that this speed amounts to, 0 to 1
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A plan: what a full run over the source would read, make and cost."""

    basis: Literal["complete", "units", "one_unit"]  # what the intervals rest on; one_unit: on rows of a single unit
    num_files: int
    num_units: int
    num_bytes: int  # of the source, as listed
    sampled_units: int
    sampled_rows: int
    sampled_bytes: int
    documents: Interval  # input rows, rejected ones included
    tokens: Interval  # that the model reads, padding not included
    chunks: Interval
    rejected: Interval
    lost_tokens: float  # cut off by truncation
    lengths: tuple[int, ...]  # expected histogram of chunk lengths over LENGTH_EDGES, a last bin for longer ones
    length_percentiles: dict[str, int]  # "50" -> tokens; "100" is the longest in the sample
    padding_share: float | None  # of the tokens computed
    flops_per_token: float | None
    bytes_out: dict[str, Interval]  # dtype -> bytes of the data files
    cost: Cost
    notes: tuple[str, ...]
    tokens_per_text_token: float | None = None  # computed (padding excluded) per token of the texts: prompts, copies

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str | bytes) -> Estimate:
        """The plan that `to_json` wrote; raises pydantic.ValidationError for any other text."""
        return TypeAdapter(Estimate).validate_json(text)


def estimate_run(
    samples: Sequence[UnitSample],
    draw: UnitDraw,
    setting: Setting,
    num_files: int,
    hardware: Hardware | None = None,
) -> Estimate:
    """Put the samples of the drawn units (in the draw's order) together to the plan of a full run."""
    expansion = expand(samples, draw)
    totals, weights_D = expansion.totals, expansion.weights_D
    lengths_C = np.concatenate([sample.tokens_by_chunk_C for sample in samples])
    weights_C = np.repeat(weights_D, [len(sample.tokens_by_chunk_C) for sample in samples])
    num_chunks = _chunks_per_fragment(samples, expansion, setting.fragment_rows)
    read_C = np.concatenate([sample.read_C for sample in samples])
    fragment_N = _typical_lengths(read_C, weights_C, num_chunks)
    fragment_N = np.repeat(fragment_N // setting.reading.rows, setting.reading.rows)
    flops_per_token = setting.flops(fragment_N) / fragment_N.sum() if setting.flops and len(fragment_N) else None
    sampled_rows = sum(len(sample.chunks_by_row_R) for sample in samples)
    id_bytes = sum(sample.id_bytes for sample in samples) / max(sampled_rows, 1)
    lost_tokens = float(weights_D @ [sample.lost_tokens for sample in samples])
    basis = _basis(samples, draw)
    return Estimate(
        basis=basis,
        num_files=num_files,
        num_units=draw.num_units,
        num_bytes=draw.num_bytes,
        sampled_units=len(samples),
        sampled_rows=sampled_rows,
        sampled_bytes=sum(min(sample.bytes_read, sample.unit_bytes) for sample in samples),
        documents=totals["documents"],
        tokens=totals["tokens"],
        chunks=totals["chunks"],
        rejected=totals["rejected"],
        lost_tokens=lost_tokens,
        lengths=_histogram(lengths_C, weights_C, totals["chunks"].value),
        length_percentiles=_percentiles(lengths_C, weights_C),
        padding_share=_padding_share(fragment_N, setting.batch_tokens),
        flops_per_token=flops_per_token,
        bytes_out={dtype: _bytes_out(dtype, totals, setting, id_bytes, draw.num_units) for dtype in DTYPES},
        cost=price(totals["tokens"], hardware, flops_per_token),
        notes=_notes(basis, draw.num_units, totals, lost_tokens),
        tokens_per_text_token=_per_text_token(setting.reading, read_C, lengths_C, weights_C),
    )


def price(tokens: Interval, hardware: Hardware | None, flops_per_token: float | None = None) -> Cost:
    """Hours and money of so many tokens; what the hardware section leaves open stays open."""
    if hardware is None:
        return Cost(message="for hours and money set hardware.name, tokens_per_second, workers and price_per_hour")
    missing = [key for key in ("tokens_per_second", "workers", "price_per_hour") if getattr(hardware, key) is None]
    message = f"for {'hours and money' if missing[0] != 'price_per_hour' else 'money'} set " if missing else None
    if message is not None:
        message += " and ".join(f"hardware.{key}" for key in missing)
        message += " (or plan.report, an earlier report.json)" if "tokens_per_second" in missing else ""
    speed = hours = usd = None
    if hardware.tokens_per_second is not None and hardware.workers is not None:
        speed = hardware.tokens_per_second * hardware.workers
        hours = tokens.times(1 / speed / 3600).widened(hardware.speed_error)
        usd = run_usd(hours, hardware)
    utilisation = mfu(hardware.tokens_per_second, flops_per_token, hardware.peak_tflops)
    return Cost(hardware.name, hardware.workers, speed, hours, usd, utilisation, message)


def run_usd(hours: Interval, hardware: Hardware) -> Interval | None:
    """What so many hours of all workers cost; None where price or workers are not known."""
    if hardware.price_per_hour is None or hardware.workers is None:
        return None
    return hours.times(hardware.price_per_hour * hardware.workers)


def mfu(tokens_per_second: float | None, flops_per_token: float | None, peak_tflops: float | None) -> float | None:
    """Model FLOPs utilisation of one worker (padding excluded), 0 to 1; None where one of the three is not known."""
    if tokens_per_second is None or flops_per_token is None or peak_tflops is None:
        return None
    return tokens_per_second * flops_per_token / (peak_tflops * 1e12)


def mfu_of(counts: Counts, hardware: Hardware | None) -> float | None:
    """MFU of the embedding stage while it was busy, from what fragments report; None without `peak_tflops`."""
    seconds, tokens = counts.seconds.get("embed", 0.0), counts.tokens
    if hardware is None or not counts.flops or not seconds or not tokens:
        return None
    return mfu(tokens / seconds, counts.flops / tokens, hardware.peak_tflops)


def _basis(samples: Sequence[UnitSample], draw: UnitDraw) -> Literal["complete", "units", "one_unit"]:
    if is_complete(samples, draw):
        return "complete"
    return "one_unit" if len(samples) == 1 else "units"


def _notes(basis: str, num_units: int, totals: dict[str, Interval], lost_tokens: float) -> tuple[str, ...]:
    notes = []
    if basis == "complete":
        notes.append("the sample is the whole source: the counts are exact")
    if basis == "one_unit" and num_units == 1:
        notes.append(
            "the source is a single unit and only its beginning was read: the intervals assume that the rest is alike"
        )
    elif basis == "one_unit":
        notes.append(
            f"one of {num_units} units was read: how much units differ is unknown and not in the intervals; "
            "set plan.sample_units to 8 or more"
        )
    if not totals["chunks"].value:
        notes.append("no sampled row could be embedded: look at source.text, source.id and source.format")
    if lost_tokens > 0:
        share = 100 * lost_tokens / (lost_tokens + totals["tokens"].value)
        notes.append(f"{share:.1f} % of the tokens are cut off by max_tokens; set chunking.tokens to embed them")
    return tuple(notes)


def _chunks_per_fragment(samples: Sequence[UnitSample], expansion: Expansion, fragment_rows: int) -> int:
    """Chunks of the fragment in which a row of the source finds itself on average: small files make small ones."""
    rows_D = np.array([len(sample.chunks_by_row_R) for sample in samples], dtype=np.float64)
    if not rows_D.any():
        return 0
    unit_rows_D = np.minimum(rows_D / [sample.share_read for sample in samples], fragment_rows)
    typical_rows = float(np.average(unit_rows_D, weights=rows_D * expansion.weights_D))
    return max(1, round(typical_rows * expansion.totals["chunks"].value / expansion.totals["documents"].value))


def _typical_lengths(read_C: Ints, weights_C: Floats, num_chunks: int) -> Ints:
    """Lengths of all that the model reads at once in a fragment of so many chunks."""
    begins_C = read_C > 0
    num = round(num_chunks * weights_C[begins_C].sum() / weights_C.sum()) if begins_C.any() else 0
    # As evenly spaced quantiles: the plan gets no noise of its own.
    return _quantiles(read_C[begins_C], weights_C[begins_C], (np.arange(num) + 0.5) / max(num, 1))


def _per_text_token(reading: Reading, read_C: Ints, lengths_C: Ints, weights_C: Floats) -> float | None:
    """What a recipe costs over the texts alone: 2 and more for echo, 8 and more for eight prompts."""
    text_tokens = (weights_C @ (lengths_C - reading.fixed_tokens)) / reading.copies
    return float(weights_C @ read_C / text_tokens) if text_tokens > 0 else None


def _quantiles(lengths_C: Ints, weights_C: Floats, shares: Floats) -> Ints:
    """Weighted quantiles of the sampled lengths at `shares` (0 to 1) of the mass; empty where there are none."""
    if len(lengths_C) == 0:
        return np.zeros(0, dtype=np.int64)
    order = np.argsort(lengths_C, kind="stable")
    reached = np.cumsum(weights_C[order])
    places = np.minimum(np.searchsorted(reached, shares * reached[-1]), len(order) - 1)
    lengths: Ints = lengths_C[order][places].astype(np.int64)
    return lengths


def _padding_share(fragment_N: Ints, batch_tokens: int | None) -> float | None:
    if batch_tokens is None or len(fragment_N) == 0:
        return None
    padding = batching.plan(fragment_N, batch_tokens).padding_tokens
    return float(padding / (padding + fragment_N.sum()))


def _histogram(lengths_C: Ints, weights_C: Floats, num_chunks: float) -> tuple[int, ...]:
    bins = np.searchsorted(np.array(LENGTH_EDGES), lengths_C, side="left")
    counts = np.bincount(bins, weights=weights_C, minlength=len(LENGTH_EDGES) + 1)
    total = counts.sum()
    return tuple(round(float(count) * num_chunks / total) if total else 0 for count in counts)


def _percentiles(lengths_C: Ints, weights_C: Floats) -> dict[str, int]:
    lengths = _quantiles(lengths_C, weights_C, np.array(PERCENTILES) / 100)
    return {str(percent): int(length) for percent, length in zip(PERCENTILES, lengths, strict=False)}


def vector_bytes(dtype: str, dim: int) -> int:
    """Bytes of one vector."""
    return {"float32": 4 * dim, "float16": 2 * dim, "int8": dim, "binary": math.ceil(dim / 8)}[dtype]


def _bytes_out(dtype: str, totals: dict[str, Interval], setting: Setting, id_bytes: float, num_units: int) -> Interval:
    documents = totals["documents"].value
    per_chunk = vector_bytes(dtype, setting.dim) + _CHUNK_BYTES + setting.kept_bytes_per_chunk
    if setting.sparse_entries is not None and totals["chunks"].value:
        tokens = totals["tokens"].value / totals["chunks"].value
        per_chunk += _SPARSE_BYTES + _ENTRY_BYTES * setting.sparse_entries(tokens)
    num_files = max(num_units, math.ceil(documents / setting.fragment_rows))
    fixed = documents * id_bytes * _ID_SHARE + num_files * _FILE_BYTES
    chunks = totals["chunks"].times(per_chunk)
    return Interval(chunks.value + fixed, chunks.low + fixed, chunks.high + fixed)
