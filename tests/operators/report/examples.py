"""A made-up run and plan with every field in use, for the tests of this folder."""

from __future__ import annotations

import dataclasses

from operators.planning.estimate import Cost, Estimate
from operators.planning.expansion import Interval
from operators.report.summary import FragmentTally, RunReport, ThroughputPoint
from operators.work.fragment import LENGTH_EDGES, Counts

LENGTHS = (12, 340, 2900, 5210, 7300, 12400, 9900, 8300, 3100, 0, 0, 0, 0, 0, 0, 0, 0)

PLAN = Estimate(
    basis="units",
    num_files=40,
    num_units=40,
    num_bytes=31_400_000,
    sampled_units=32,
    sampled_rows=2016,
    sampled_bytes=1_350_000,
    documents=Interval(48_100.0, 46_200.0, 50_100.0),
    tokens=Interval(5_020_000.0, 4_900_000.0, 5_150_000.0),
    chunks=Interval(49_000.0, 47_000.0, 51_100.0),
    rejected=Interval(24.0, 6.0, 93.0),
    lost_tokens=210_000.0,
    lengths=tuple(round(1.04 * num) for num in LENGTHS),
    length_percentiles={"5": 24, "25": 52, "50": 91, "75": 140, "95": 221, "99": 250, "100": 256},
    padding_share=0.0071,
    flops_per_token=4.5e7,
    bytes_out={
        "float32": Interval(78e6, 75e6, 81e6),
        "float16": Interval(40e6, 38e6, 42e6),
        "int8": Interval(21e6, 20e6, 22e6),
        "binary": Interval(4.1e6, 3.9e6, 4.3e6),
    },
    cost=Cost("laptop", 2, 6400.0, Interval(0.218, 0.2126, 0.2235), Interval(0.0436, 0.0425, 0.0447), 0.31, None),
    notes=("4.0 % of the tokens are cut off by max_tokens; set chunking.tokens to embed them",),
    tokens_per_text_token=2.31,
)

COUNTS = Counts(
    rows=47_167,
    rejected=31,
    chunks=49_462,
    tokens=5_071_233,
    padding_tokens=35_800,
    lost_tokens=204_991,
    truncated=3100,
    deaths=1,
    seconds={"read": 14.2, "tokenize": 96.0, "embed": 1489.0, "write": 21.5},
    lengths=LENGTHS,
)

REPORT = RunReport(
    job="embed",
    started="2026-11-21T10:00:00+00:00",
    finished="2026-11-21T10:12:47+00:00",
    seconds=767.0,
    output="s3://bucket/vectors",
    model="minilm",
    fingerprint="3f" * 32,
    dtype="float16",
    fragments=FragmentTally(done=40, skipped=0, total=40),
    counts=COUNTS,
    dataset=dataclasses.replace(COUNTS, seconds={}),
    dataset_bytes=40_300_000,
    rejected_reasons={"blank_text": 19, "invalid_utf8": 9, "malformed_json": 3},
    throughput=tuple(
        ThroughputPoint(20.0 + 18.0 * i + (i * 7 % 5), round(5_071_233 * i / 40), round(47_167 * i / 40))
        for i in range(1, 41)
    ),
    hardware="laptop",
    lost_by_file={"s3://bucket/corpus/b.jsonl": 150_000, "s3://bucket/corpus/a.jsonl": 54_991},
    workers=2,
    mfu=0.29,
    cost_usd=0.0426,
    versions={"embedfleet": "0.1.0", "ray": "2.60.0", "torch": "2.13.0"},
    config={"source": {"path": "corpus/*.jsonl.gz"}, "model": "minilm", "output": {"path": "s3://bucket/vectors"}},
    plan=PLAN,
)

assert len(LENGTHS) == len(LENGTH_EDGES) + 1
