"""The real MiniLM on real sets, against published scores and BM25; skipped where the sets are absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.jobs.running import ROOT, run_job
from tests.jobs.test_evaluate import evaluate_config

DATA = ROOT.parent / "shared" / "data"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.exists(), reason=f"needs evaluation sets in {DATA}")]


def test_published_scores_come_out(tmp_path: Path, local_ray: None) -> None:
    """STSb .82032 / .82741 and Banking77 .80042: embeddings-benchmark/results, revision 8b3219a."""
    tasks = [
        {"name": "stsb", "kind": "sts", "path": str(DATA / "sts/stsb-en/test.tsv")},
        {"name": "banking77", "kind": "classification", "path": str(DATA / "classification/banking77")},
    ]
    assert run_job("evaluate", evaluate_config(tmp_path, model="minilm", tasks=tasks, compute={})) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["stsb"]["cosine_spearman"] == pytest.approx(0.82032, abs=3e-4)
    assert found["stsb"]["cosine_pearson"] == pytest.approx(0.82741, abs=3e-4)
    assert found["banking77"]["accuracy"] == pytest.approx(0.80042, abs=2e-3)


def test_retrieval_beside_bm25(tmp_path: Path, local_ray: None) -> None:
    """No published figures for MiniLM; a small BM25 of another hand has .739 on TIME (k1 1.2, light stems)."""
    tasks = [
        {"name": name, "kind": "retrieval", "path": str(DATA / "retrieval" / name)} for name in ("time", "xquad/en")
    ]
    models = [{"name": "minilm", "model": "minilm"}, {"name": "bm25", "model": "bm25"}]
    assert run_job("evaluate", evaluate_config(tmp_path, models=models, tasks=tasks, compute={})) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["bm25"]["time"]["ndcg_at_10"] == pytest.approx(0.739, abs=0.02)
    assert found["minilm"]["time"]["ndcg_at_10"] == pytest.approx(0.655, abs=0.005)
    assert found["minilm"]["xquad/en"]["ndcg_at_10"] == pytest.approx(0.943, abs=0.005)
