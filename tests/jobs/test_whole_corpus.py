"""A real corpus with the real MiniLM, from local files and from S3, against sentence-transformers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from operators.storage import locate, write_whole
from operators.store.fragments import data_file, read_table
from operators.store.snapshots import latest_snapshot
from tests.jobs.running import ROOT, start_job, write_config
from tests.s3_servers import S3Server

PASSAGES = ROOT.parent / "shared" / "data" / "corpus" / "passages.jsonl.gz"
SAMPLE = 2000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not PASSAGES.exists(), reason=f"needs {PASSAGES}, which is not part of the repository"),
]


@pytest.fixture(scope="module")
def reference() -> dict[str, NDArray[np.float32]]:
    """Vectors of a random sample of documents by sentence-transformers in float32."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from operators.embedder.recipe import checkpoint
    from operators.embedder.recipe.files import load_recipe

    recipe = load_recipe("minilm", ROOT / "configs" / "models")
    with gzip.open(PASSAGES, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    sample = [rows[i] for i in np.random.default_rng(7).choice(len(rows), SAMPLE, replace=False)]
    folder = checkpoint.locate(recipe.checkpoint, recipe.revision)
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = recipe.max_tokens
    vectors = model.encode([row["text"] for row in sample], normalize_embeddings=True, show_progress_bar=False)
    return dict(zip((row["id"] for row in sample), vectors, strict=True))


@pytest.mark.parametrize(
    ("server", "compute_dtype", "least"),
    [("local", "float32", 0.9999), ("moto_server", "bfloat16", 0.999), ("rgw_server", "bfloat16", 0.999)],
)
def test_every_passage_is_embedded_as_sentence_transformers_does(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    reference: dict[str, NDArray[np.float32]],
    server: str,
    compute_dtype: str,
    least: float,
) -> None:
    base, options, env = str(tmp_path), {}, {}
    if server != "local":
        running: S3Server = request.getfixturevalue(server)
        options, env = running.storage_options, running.environment
        base = f"s3://{running.make_bucket()}"
    write_whole(locate(f"{base}/in/passages.jsonl.gz", options), PASSAGES.read_bytes())
    config = write_config(
        tmp_path,
        "minilm",
        source={"path": f"{base}/in/passages.jsonl.gz", "rows_per_fragment": 4096},
        output={"path": f"{base}/vectors"},
        embedder={"compute_dtype": compute_dtype},
        compute={"workers": [1, 2]},
    )
    output, _ = start_job("embed", config, env=env).communicate(timeout=1800)
    with gzip.open(PASSAGES, "rb") as lines:
        num_rows = sum(1 for _ in lines)
    dataset = locate(f"{base}/vectors", options)
    snapshot = latest_snapshot(dataset)
    assert snapshot is not None, output
    assert sum(record.rows for record in snapshot.records) == num_rows
    assert sum(record.chunks + record.rejected for record in snapshot.records) == num_rows
    cosines = []
    for record in snapshot.records:
        table = read_table(data_file(dataset, record.key), ["doc_id", "embedding"])
        values_ND = table["embedding"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
        for doc_id, vector_D in zip(table["doc_id"].to_pylist(), values_ND, strict=True):
            if doc_id in reference:
                cosines.append(float(reference[doc_id] @ vector_D))
    print(f"{server} {compute_dtype}: {num_rows} rows, least cosine of {len(cosines)}: {min(cosines):.7f}")
    assert len(cosines) == SAMPLE
    assert min(cosines) >= least
