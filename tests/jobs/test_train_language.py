"""The job `train` with losses of language modelling: each run of a recipe goes on with the folder of the last one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
import yaml
from sentence_transformers import SentenceTransformer

from operators.embedder.factory import load_embedder
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.embedder.tokens.tokenizing import Tokenizer
from tests.checkpoints import WORDS, tiny_bert, tiny_decoder, tiny_nv_embed
from tests.jobs.running import run_job, write_jsonl

pytestmark = pytest.mark.usefixtures("local_ray")
RECIPES = Path("configs/models")


def write_texts(folder: Path, count: int = 200) -> None:
    """Texts with an order that can be learnt: each word follows the one before it in the vocabulary."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        start, length = int(rng.integers(len(WORDS))), int(rng.integers(4, 10))
        words = [WORDS[(start + place) % len(WORDS)] for place in range(length)]
        rows.append({"text": " ".join([*words, str(number)]), "half": " ".join([*words[::2], str(number)])})
    write_jsonl(folder / "texts.jsonl", rows)


def write_config(folder: Path, name: str, model: Path, sets: list[dict[str, Any]], **sections: Any) -> Path:
    """A short run of `model` into `folder/name`."""
    config = {
        "model": str(model),
        "sets": sets,
        "batch": {"size": 32},
        "steps": 16,
        "optimization": {"learning_rate": 1e-2},
        "evaluation": {"every": 8},
        "output": {"path": str(folder / name)},
        "compute": {"workers": 1, "cpus_per_worker": 1},
        **sections,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def report_of(folder: Path) -> dict[str, Any]:
    """The run's report."""
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    tiny_decoder(tmp_path / "decoder", kind="llama", auto=transformers.AutoModelForCausalLM)
    recipe = {"checkpoint": "decoder", "attention": "bidirectional", "pooling": "mean", "normalize": True}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "max_tokens": 64}))
    write_texts(tmp_path)
    return tmp_path / "recipe.yaml"


@pytest.mark.slow
def test_masked_next_tokens_then_simcse(decoder: Path, tmp_path: Path) -> None:
    texts = {"name": "texts", "path": str(tmp_path / "texts.jsonl"), "kind": "texts"}
    mntp = {**texts, "dev_fraction": 0.2, "objective": {"loss": "mntp", "mask_probability": 0.3}}
    assert run_job("train", write_config(tmp_path, "mntp", decoder, [mntp])) == 0
    report = report_of(tmp_path / "mntp")
    main = "texts dev negative_loss"
    assert report["after"][main] > report["before"][main] + 1, "masked words are found by those around them"
    simcse = write_config(tmp_path, "simcse", tmp_path / "mntp" / "model", [texts], evaluation=None)
    assert run_job("train", simcse) == 0
    losses = report_of(tmp_path / "simcse")["curve"]["steps"]["loss"]
    assert losses[-1] < losses[0]
    model = tmp_path / "simcse" / "model"
    config = json.loads((model / "config.json").read_text())
    assert config["is_causal"] is False
    assert config["architectures"] == ["LlamaModel"], "a run without language modelling leaves the head out"
    spec = embedder_spec(str(model), EmbedderConfig(), RECIPES)
    some = ["time people year", "hand part place of the world"]
    ours = load_embedder(spec)(Tokenizer(spec)(pa.array(some)).input_ids).values_ND
    np.testing.assert_allclose(ours, SentenceTransformer(str(model), device="cpu").encode(some), atol=1e-4)


@pytest.mark.slow
def test_one_model_embeds_and_generates(decoder: Path, tmp_path: Path) -> None:
    """GRIT: its folder generates by transformers, as well as its held-back loss says, and embeds here."""
    path = str(tmp_path / "texts.jsonl")
    columns = {"query": "half", "positive": "text"}
    pairs = {"name": "pairs", "path": path, "kind": "pairs", "dev_fraction": 0.2, "columns": columns}
    said = {"name": "said", "path": path, "kind": "texts", "dev_fraction": 0.2}
    config = write_config(tmp_path, "grit", decoder, [pairs], generation={"sets": [said], "size": 16, "balance": 1.0})
    assert run_job("train", config) == 0
    report = report_of(tmp_path / "grit")
    assert next(iter(report["before"])) == "pairs dev ndcg_at_10"
    for name in ("pairs dev ndcg_at_10", "said dev negative_loss"):
        assert report["after"][name] > report["before"][name], name
    folder = tmp_path / "grit" / "model"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids_1L = tokenizer("time people year", return_tensors="pt").input_ids
    with torch.no_grad():
        short, whole = (model(input_ids=ids[None]).logits[0] for ids in (ids_1L[0, :3], ids_1L[0]))
    torch.testing.assert_close(whole[:3], short)  # causal
    assert len(model.generate(ids_1L, max_new_tokens=2, do_sample=False)[0]) > ids_1L.shape[1]
    spec = embedder_spec(str(folder), EmbedderConfig(), RECIPES)
    assert spec.recipe.attention == "bidirectional"
    load_embedder(spec)  # whose self-test sees to its attention
    assert not (folder / "modules.json").exists(), "which has no word for two attentions"


@pytest.mark.slow
def test_splade_makes_a_folder_of_sparse_vectors(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "bert", auto=transformers.AutoModelForMaskedLM)
    recipe = {"checkpoint": "bert", "pooling": "none", "sparse": {"head": "mlm"}, "normalize": False, "max_tokens": 32}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_texts(tmp_path)
    columns = {"query": "half", "positive": "text"}
    pairs = {"name": "pairs", "path": str(tmp_path / "texts.jsonl"), "kind": "pairs", "columns": columns}
    flops = {"query": 0.01, "document": 0.01, "ramp_steps": 8}
    objective = {"loss": "info_nce", "similarity": "dot", "temperature": 1.0, "flops": flops}
    sets = [{**pairs, "dev_fraction": 0.2, "objective": objective}]
    assert run_job("train", write_config(tmp_path, "splade", tmp_path / "recipe.yaml", sets)) == 0
    report = report_of(tmp_path / "splade")
    assert 0 < report["after"]["pairs dev ndcg_at_10"] < 1, "by the inner product"
    losses = report["curve"]["steps"]["loss"]
    assert losses[-1] < 0.7 * losses[0]
    entries = [sparse_of(path).lengths_N.mean() for path in (tmp_path / "recipe.yaml", tmp_path / "splade" / "model")]
    assert entries[1] < entries[0], "the regularisation leaves fewer entries"


def sparse_of(model: Path) -> Any:
    spec = embedder_spec(str(model), EmbedderConfig(), RECIPES)
    found = load_embedder(spec)(Tokenizer(spec)(pa.array(["time people year", "the hand of the world"])).input_ids)
    assert found.sparse is not None
    return found.sparse


@pytest.mark.slow
def test_the_two_stages_of_nv_embed(tmp_path: Path) -> None:
    """Stage 2 goes on with the folder of stage 1, and its rows are not contrasted with each other."""
    (tmp_path / "nv").mkdir()
    tiny_nv_embed(tmp_path / "nv")
    fields = yaml.safe_load((RECIPES / "nv-embed-v2.yaml").read_text())
    fields |= {"checkpoint": "nv", "max_tokens": 64, "compute_dtype": "float32"}
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump({**fields, "latent_attention": {**fields["latent_attention"], "heads": 2}})
    )
    write_texts(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    other = [*rows[7:], *rows[:7]]
    triples = [{**row, "negative": no["text"]} for row, no in zip(rows, other, strict=True)]
    write_jsonl(tmp_path / "triples.jsonl", triples)
    columns = {"query": "half", "positive": "text"}
    retrieval = {"name": "retrieval", "path": str(tmp_path / "triples.jsonl"), "kind": "triples", "columns": columns}
    tuning = {"lora": {"rank": 4}}
    first = write_config(tmp_path, "first", tmp_path / "recipe.yaml", [retrieval], tuning=tuning, evaluation=None)
    assert run_job("train", first) == 0
    sets = [{**retrieval, "in_batch_negatives": False}]
    second = write_config(tmp_path, "second", tmp_path / "first" / "model", sets, tuning=tuning, evaluation=None)
    assert run_job("train", second) == 0
    one, two = report_of(tmp_path / "first"), report_of(tmp_path / "second")
    assert two["model"]["base_fingerprint"] == one["model"]["fingerprint"]
    # 1 negative of a row's own: a loss of ln 2 where nothing is known; with 31 other rows' it begins far above
    assert one["curve"]["steps"]["loss"][0] > 2 > two["curve"]["steps"]["loss"][0]
    spec = embedder_spec(str(tmp_path / "second" / "model"), EmbedderConfig(role="query"), RECIPES)
    load_embedder(spec)
