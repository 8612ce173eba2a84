"""The job `train` as its user runs it: from files of pairs to a model that others load, and on after a stop."""

from __future__ import annotations

import json
import random
import threading
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer

from operators.embedder.factory import load_embedder
from operators.embedder.model.device import multiplies
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.training.record.curve import Curve
from tests.checkpoints import WORDS, tiny_bert
from tests.jobs.running import run_job, write_jsonl
from tests.jobs.train_kills import kill_workers, losses_of, report_of

pytestmark = pytest.mark.usefixtures("local_ray")
RECIPES = Path("configs/models")


def topics(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Pairs that share a rare word, which a model can learn to find."""
    rng = np.random.default_rng(start)
    rows = []
    for number in range(start, start + count):
        key = f"{WORDS[number % len(WORDS)]} {WORDS[(number // len(WORDS)) % len(WORDS)]}"
        query, positive = (" ".join([*rng.choice(WORDS, 4), key]) for _ in range(2))
        rows.append({"query": f"{query} {number}", "positive": f"{key} {positive} {number}"})
    return rows


def write_train_config(folder: Path, **sections: Any) -> Path:
    """A run on `folder/pairs.jsonl` with a tiny model, into `folder/out`."""
    if not (folder / "model").exists():
        tiny_bert(folder / "model", hidden=32)
    if not (folder / "pairs.jsonl").exists():
        write_jsonl(folder / "pairs.jsonl", topics(300))
    config: dict[str, Any] = {
        "model": str(folder / "model"),
        "sets": [{"name": "pairs", "path": str(folder / "pairs.jsonl"), "kind": "pairs", "dev_fraction": 0.2}],
        "batch": {"size": 16},
        "steps": 20,
        "optimization": {"learning_rate": 4e-3},
        "evaluation": {"every": 10},
        "checkpoints": {"every": 5},
        "output": {"path": str(folder / "out")},
        "compute": {"workers": 1, "cpus_per_worker": 1},
        **sections,
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """A folder with a finished run in `out`, and in `told` what it said; its config has relative paths."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_train_config(folder)
    config.write_text(config.read_text().replace(f"{folder}/", ""))
    with (folder / "told").open("w") as told, redirect_stdout(told), chdir(folder):
        assert run_job("train", config) == 0
    return folder


def test_from_pairs_to_a_model_that_others_load(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = finished / "out"
    report = report_of(output)
    main = next(iter(report["before"]))
    assert main == "pairs dev ndcg_at_10"
    assert report["after"][main] > report["before"][main] + 0.05
    assert [one["step"] for one in report["curve"]["evaluations"]] == [0, 10, 20]
    in_hardware = multiplies(torch.bfloat16, torch.device("cpu"))
    assert report["tuning"]["precision"] == ("bfloat16" if in_hardware else "float32")
    losses = losses_of(output)
    assert len(losses) == 20
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    texts = ["time people year", "hand part place of the world"]
    model = str(output / "model")
    spec = embedder_spec(model, EmbedderConfig(), RECIPES)
    ours = load_embedder(spec)(Tokenizer(spec)(pa.array(texts)).input_ids).values_ND
    np.testing.assert_allclose(ours, SentenceTransformer(model, device="cpu").encode(texts), atol=1e-5)
    assert spec.fingerprint == report["model"]["fingerprint"]
    card = (output / "model" / "README.md").read_text()
    assert "sentence-transformers" in card
    assert "pairs dev ndcg_at_10" in card
    assert (output / "report.html").stat().st_size > 10_000
    assert len(list((output / "tensorboard").iterdir())) == 4
    assert "step 20 of 20: pairs dev ndcg_at_10" in (finished / "told").read_text()
    assert run_job("train", write_train_config(finished)) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_all_paths_may_be_relative(tmp_path: Path) -> None:
    tasks = [{"name": "sts", "kind": "sts", "path": "sts.csv"}]
    (tmp_path / "sts.csv").write_text(
        "sentence1,sentence2,score\ntime,year,3\npeople,world,1\nhand,part,2\nday,day,5\n"
    )
    sections = {"evaluation": {"tasks": tasks}, "prepared": {"path": "sets"}}
    config = write_train_config(tmp_path, **sections)
    config.write_text(config.read_text().replace(f"{tmp_path}/", ""))
    with chdir(tmp_path):
        assert run_job("train", config) == 0
    assert "sts cosine_spearman" in report_of(tmp_path / "out")["after"]
    assert {path.name for path in tmp_path.iterdir()} >= {"out", "sets"}
    SentenceTransformer(str(tmp_path / "out" / "model"), device="cpu")


@pytest.mark.slow
def test_a_killed_worker_goes_on_with_the_same_losses(finished: Path) -> None:
    """The same config into another folder; tests/jobs/test_train_kills.py kills more, and more often."""
    killed = finished / "killed"
    config = write_train_config(finished, output={"path": str(killed)})
    kills: list[int] = []
    killer = threading.Thread(target=kill_workers, args=(killed, 1, random.Random(0), kills))
    killer.start()
    assert run_job("train", config) == 0
    killer.join()
    assert kills, "no worker was killed"
    assert losses_of(killed) == losses_of(finished / "out")
    assert report_of(killed)["after"] == report_of(finished / "out")["after"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sets": [{"name": "a", "path": "{folder}/none.jsonl", "kind": "pairs"}]}, "none.jsonl"),
        (
            {"sets": [{"name": "a", "path": "{folder}/pairs.jsonl", "kind": "pairs", "columns": {"query": "qeury"}}]},
            "set columns.query of the set 'a' to a column that exists: 'qeury'",
        ),
        ({"objective": {"loss": "cosent"}}, "the loss cosent does not fit pairs; info_nce does"),
        ({"objective": {"loss": "info_nce", "temprature": 1}}, "unknown key"),
        ({"steps": 5, "epochs": 1}, "give epochs or steps, not both"),
        pytest.param(
            {"tuning": {"lora": {"targets": ["no_such_layer"]}}}, "tuning.lora.targets", marks=pytest.mark.slow
        ),
        pytest.param(
            {"evaluation": {"main": "loss"}},
            "set evaluation.main to one of: pairs dev ndcg_at_10",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    text = yaml.safe_dump(changes).replace("{folder}", str(tmp_path))
    assert run_job("train", write_train_config(tmp_path, **yaml.safe_load(text))) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_belongs_to_one_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_job("train", write_train_config(finished, steps=3)) == 2
    assert "give output.path another folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_diverging_run_stops_and_keeps_its_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    optimization = {"learning_rate": 1e30, "warmup": 0, "max_gradient_norm": 1e30}
    assert run_job("train", write_train_config(tmp_path, optimization=optimization)) == 2
    error = capsys.readouterr().err
    assert "lower optimization.learning_rate, or look at the batch: at step" in error
    rows = [json.loads(line) for line in (tmp_path / "out" / "diverged.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.slow
def test_it_ends_early_and_keeps_the_best_weights(tmp_path: Path) -> None:
    evaluation = {"every": 2, "patience": 2}
    optimization = {"learning_rate": 0.05, "schedule": "constant", "warmup": 0}
    assert run_job("train", write_train_config(tmp_path, evaluation=evaluation, optimization=optimization)) == 0
    report = report_of(tmp_path / "out")
    evaluations = {one["step"]: next(iter(one["scores"].values())) for one in report["curve"]["evaluations"]}
    trained = {step: score for step, score in evaluations.items() if step}
    assert report["kept_step"] == max(trained, key=lambda step: trained[step])
    assert max(trained) == report["kept_step"] + 4 < 20
    stored = (tmp_path / "out" / "checkpoints" / f"step-{report['kept_step']:08d}" / "curve.jsonl").read_text()
    assert len(Curve.from_jsonl(stored).steps) == report["kept_step"]


@pytest.mark.slow
def test_two_workers_share_a_model(tmp_path: Path) -> None:
    """Each with half of the weights: the run of one worker that has them all, and the same model."""
    found = []
    for sharding, workers in (("none", 1), ("fsdp2", 2)):
        tuning = {"precision": "float32", "dropout": 0.0, "attention_dropout": 0.0, "sharding": sharding}
        compute = {"workers": workers, "cpus_per_worker": 1}
        config = write_train_config(
            tmp_path, tuning=tuning, compute=compute, steps=10, output={"path": str(tmp_path / sharding)}
        )
        assert run_job("train", config) == 0
        model = SentenceTransformer(str(tmp_path / sharding / "model"), device="cpu")
        found.append((losses_of(tmp_path / sharding), model.encode([f"{word} time" for word in WORDS[:9]])))
    (losses, vectors), (shared_losses, shared_vectors) = found
    assert shared_losses == pytest.approx(losses, rel=1e-3)
    np.testing.assert_allclose(shared_vectors, vectors, atol=1e-2)
    stored = sorted(file.name for file in (tmp_path / "fsdp2" / "checkpoints" / "step-00000010").iterdir())
    assert stored == [
        "curve.jsonl",
        "optimizer-0001-of-0002.safetensors",
        "optimizer-0002-of-0002.safetensors",
        "progress.json",
        "weights-0001-of-0002.safetensors",
        "weights-0002-of-0002.safetensors",
    ]
