"""A recipe of several prompts, an adapter and examples through plan, embed and verify, without padding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import transformers
import yaml

from operators.embedder.engine import Embedder
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.embedder.tokens.tokenizing import Tokenizer
from tests import checkpoints
from tests.jobs.running import ROOT, documents, run_job, vectors_of, write_config, write_jsonl

RECIPE = """
checkpoint: model
adapters: [lora]
attention: bidirectional
pooling: mean
pool_over: text
join: apart
normalize: true
max_tokens: 90
prompts:
  document: ["{examples}{task}: {text} again: {text}", "{text}"]
task: the world
example: "{text} is {word}; "
"""


@pytest.mark.usefixtures("without_ray")
@pytest.mark.slow
def test_a_recipe_of_many_parts_in_a_run(tmp_path: Path) -> None:
    base = transformers.AutoModel.from_pretrained(checkpoints.tiny_decoder(tmp_path / "model"))
    checkpoints.with_lora(base, seed=1).save_pretrained(str(tmp_path / "lora"))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(yaml.safe_load(RECIPE)))
    rows = [*documents(40), {"id": "long", "text": "time people " * 60}]
    write_jsonl(tmp_path / "docs.jsonl", rows)
    embedder = {"examples": [{"text": "water", "word": "way"}], "packing": True}
    config = write_config(tmp_path, tmp_path / "mine.yaml", embedder=embedder)
    assert run_job("plan", config) == 0
    plan = json.loads((tmp_path / "vectors" / "plan.json").read_text())
    assert run_job("embed", config) == 0
    assert run_job("verify", config) == 0
    spec = embedder_spec(
        str(tmp_path / "mine.yaml"), EmbedderConfig(**embedder, device="cpu"), ROOT / "configs" / "models"
    )
    texts = {row["id"]: row["text"] for row in rows}
    table = vectors_of(tmp_path)
    tokens = Tokenizer(spec)(pa.array([texts[doc_id] for doc_id in table["doc_id"].to_pylist()]))
    assert table["num_tokens"].to_pylist() == tokens.num_tokens.to_pylist()
    assert plan["tokens"]["value"] == sum(tokens.num_tokens.to_pylist())
    fixed = sum(layout.fixed for layout in Tokenizer(spec).layouts)
    own = (sum(tokens.num_tokens.to_pylist()) - fixed * len(rows)) / 3  # twice in the first prompt, once in the second
    assert plan["tokens_per_text_token"] == pytest.approx(sum(tokens.num_tokens.to_pylist()) / own)
    expected_ND = Embedder(spec, device="cpu")(tokens.input_ids).values_ND
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy(zero_copy_only=False)), expected_ND, atol=1e-5)
