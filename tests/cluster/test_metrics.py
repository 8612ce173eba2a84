"""Metrics on a real local Ray: what Prometheus would read from the node's port."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from cluster.environment import ROOT

JOB = """
import time, urllib.request
from cluster.environment import sane_environment
sane_environment()
import ray
from cluster.metrics import embed_metrics, train_metrics
from cluster.session import connect
from operators.work.fragment import Counts
from operators.training.record.curve import StepMetrics

with connect():
    metrics = embed_metrics("job-1")
    metrics.record(Counts(rows=10, rejected=3, chunks=7, tokens=100, padding_tokens=2, seconds={"embed": 0.5}), None)
    embed_metrics("job-1").record(Counts(rows=5, chunks=5, tokens=50, seconds={"embed": 1.5, "read": 0.25}), 0.25)
    for step, loss in enumerate((1.5, 0.75)):
        train_metrics("job-1").record(StepMetrics(step, "pairs", 0, loss, 2e-5, 0.5, 64, 4096, 2.0))
    train_metrics("job-1").evaluated({"pairs ndcg_at_10": 0.625})
    port = ray.nodes()[0]["MetricsExportPort"]
    deadline = time.monotonic() + 60
    text = ""
    while not ("ray_embed_mfu" in text and "ray_train_evaluation_score" in text) and time.monotonic() < deadline:
        time.sleep(0.5)
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    print(text)
"""


def test_metrics_show_on_the_port_that_prometheus_reads(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"PYTHONPATH": str(ROOT), "RAY_metrics_report_interval_ms": "500", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", JOB], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert _values(done.stdout) == {
        "embed_tokens_total": 150,
        "embed_padding_tokens_total": 2,
        "embed_vectors_total": 12,
        "embed_rows_total embedded": 12,
        "embed_rows_total rejected": 3,
        "embed_stage_seconds_total embed": 2,
        "embed_stage_seconds_total read": 0.25,
        "embed_mfu": 0.25,
        "train_steps_total": 2,
        "train_pairs_total": 128,
        "train_tokens_total": 8192,
        "train_loss": 0.75,
        "train_learning_rate": 2e-5,
        "train_gradient_norm": 0.5,
        "train_pairs_per_second": 32,
        "train_tokens_per_second": 2048,
        "train_evaluation_score pairs ndcg_at_10": 0.625,
    }


def _values(text: str) -> dict[str, float]:
    """The samples of job-1: name and the value of the label status, stage or score -> value."""
    values = {}
    for name, labels, value in re.findall(r'^ray_((?:embed|train)_\w+)\{(.*job="job-1".*)\} (\S+)', text, re.MULTILINE):
        label = re.search(r'(?:status|stage|score)="([^"]+)"', labels)
        values[f"{name} {label[1]}" if label else name] = float(value)
    return values
