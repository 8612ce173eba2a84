"""mteb.evaluate with our embedder on its Ray pool, offline, against sentence-transformers through mteb itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from jobs.embedding.config import Compute
from jobs.evaluating.mteb_model import mteb_model
from operators.embedder.recipe.recipe import EmbedderConfig
from tests.evaluation_sets import sentence, write_beir, write_sts
from tests.operators.evaluation.test_scoring import beir_rows

pytest.importorskip("mteb")

from tests.mteb_tasks import mteb_scores, retrieval_task, sts_task

# mteb 2.26 wraps a sentence-transformers model, which is the reference here, in ways that both warn of
pytestmark = [
    pytest.mark.filterwarnings("ignore:The fill_missing parameter:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `get_sentence_embedding_dimension` method:FutureWarning"),
]
STSB = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "sts" / "stsb-en" / "test.tsv"


def test_tasks_of_mteb_give_what_sentence_transformers_gives(tmp_path: Path, tiny_model: Path, local_ray: None) -> None:
    one, other, score = read_pairs(write_sts(tmp_path / "sts.tsv"))
    rows = beir_rows(write_beir(tmp_path / "beir"))
    candidates = {query: [f"d{i}" for i in range(n, n + 30)] for n, query in enumerate(rows[2])}
    reference = SentenceTransformer(str(tiny_model), device="cpu")
    with mteb_model(str(tiny_model), compute=Compute(workers=(1, 1))) as model:
        for make, names in (
            (lambda: sts_task(one, other, score), ("cosine_spearman", "cosine_pearson", "spearman")),
            (lambda: retrieval_task(*rows), ("ndcg_at_10", "mrr_at_10", "recall_at_100", "map_at_100")),
            (lambda: retrieval_task(*rows, candidates), ("ndcg_at_10", "map_at_1000")),
        ):
            found, expected = mteb_scores(model, make()), mteb_scores(reference, make())
            for name in names:
                assert found[name] == pytest.approx(expected[name], abs=2e-5), name


@pytest.mark.slow
def test_prompts_reach_the_texts(tiny_model: Path, local_ray: None) -> None:
    """A prompt for a task by mteb's name is put before its texts."""
    rng = np.random.default_rng(0)
    texts = [sentence(rng, i % 8) for i in range(20)]
    prompt = "people: "
    task = sts_task(texts, texts[::-1], [float(i % 6) for i in range(20)])
    whole = [prompt + text for text in texts]
    written = sts_task(whole, whole[::-1], [float(i % 6) for i in range(20)])
    compute = Compute(workers=(1, 1))
    with mteb_model(str(tiny_model), EmbedderConfig(), compute, {"LocalSTS": prompt}) as model:
        prompted = mteb_scores(model, task)
    reference = mteb_scores(SentenceTransformer(str(tiny_model), device="cpu"), written)
    assert prompted["cosine_spearman"] == pytest.approx(reference["cosine_spearman"], abs=2e-5)


@pytest.mark.slow
@pytest.mark.skipif(not STSB.exists(), reason=f"needs {STSB}")
def test_the_real_minilm_has_its_published_sts_score(local_ray: None) -> None:
    """STSb test, published .82032 and .82741 (embeddings-benchmark/results, revision 8b3219a)."""
    with mteb_model("minilm") as model:
        found = mteb_scores(model, sts_task(*read_pairs(STSB)))
    assert found["cosine_spearman"] == pytest.approx(0.82032, abs=3e-4)
    assert found["cosine_pearson"] == pytest.approx(0.82741, abs=3e-4)


def read_pairs(path: Path) -> tuple[list[str], list[str], list[float]]:
    """The first three columns of a TSV."""
    rows = [line.split("\t")[:3] for line in path.read_text().splitlines()[1:]]
    one, other, score = zip(*rows, strict=True)
    return list(one), list(other), [float(value) for value in score]
