"""The job `distill`: a student of a teacher's layers, taught by stored vectors and scores; and a model on S3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from tests.checkpoints import tiny_bert
from tests.jobs.running import run_job, write_jsonl
from tests.jobs.test_train import RECIPES, topics
from tests.jobs.train_kills import losses_of, report_of

pytestmark = pytest.mark.usefixtures("local_ray")


def write_distill_config(folder: Path, **sections: Any) -> Path:
    """A student of two of four layers, on the texts of `folder/texts.jsonl`."""
    tiny_bert(folder / "teacher", hidden=32, layers=4)
    write_jsonl(folder / "texts.jsonl", [{"text": row["positive"]} for row in topics(240)])
    config: dict[str, Any] = {
        "model": str(folder / "teacher"),
        "student": {"num_layers": 2},
        "teachers": [{"kind": "embedder", "name": "large", "model": str(folder / "teacher")}],
        "sets": [{"name": "texts", "path": str(folder / "texts.jsonl"), "kind": "texts", "dev_fraction": 0.2}],
        "batch": {"size": 24},
        "steps": 30,
        "optimization": {"learning_rate": 2e-3},
        "tuning": {"dropout": 0.0, "attention_dropout": 0.0},
        "evaluation": {"every": 15},
        "output": {"path": str(folder / "out")},
        "compute": {"workers": 1, "cpus_per_worker": 1},
        **sections,
    }
    path = folder / "distill.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
def test_a_student_learns_what_its_teacher_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_distill_config(tmp_path)
    assert run_job("distill", config) == 0
    report = report_of(tmp_path / "out")
    main = "texts dev teacher_spearman"
    assert next(iter(report["before"])) == main
    assert report["after"][main] > report["before"][main] + 0.05
    assert losses_of(tmp_path / "out")[-1] < 0.7 * losses_of(tmp_path / "out")[0]
    model = tmp_path / "out" / "model"
    assert embedder_spec(str(model), EmbedderConfig(), RECIPES).dim == 32
    assert yaml.safe_load((model / "config.json").read_text())["num_hidden_layers"] == 2
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert run_job("distill", config) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == written


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "student"),
    [
        ({"loss": "teacher_mse", "teachers": ["large"]}, {"num_layers": 2}),
        ({"loss": "teacher_cosine", "teachers": ["large", "other"]}, {"num_layers": 2, "dims": 12}),
        ({"loss": "stella", "teachers": ["large"], "dims": [16, 32]}, {"layers": [0, 3]}),
    ],
)
def test_other_losses_by_vectors(tmp_path: Path, objective: dict[str, Any], student: dict[str, Any]) -> None:
    tiny_bert(tmp_path / "other", hidden=16, seed=3)
    teachers = [
        {"kind": "embedder", "name": name, "model": str(tmp_path / folder)}
        for name, folder in (("large", "teacher"), ("other", "other"))
    ]
    config = write_distill_config(tmp_path, objective=objective, student=student, teachers=teachers)
    assert run_job("distill", config) == 0
    assert losses_of(tmp_path / "out")[-1] < losses_of(tmp_path / "out")[0]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["margin_mse", "kl", "list_net", "list_mle"])
def test_losses_by_scores(tmp_path: Path, loss: str) -> None:
    rows = topics(240)
    triples = [{**row, "negative": [rows[i - 1]["positive"], rows[i - 2]["positive"]]} for i, row in enumerate(rows)]
    write_jsonl(tmp_path / "triples.jsonl", triples)
    sets = [
        {
            "name": "triples",
            "path": str(tmp_path / "triples.jsonl"),
            "kind": "triples",
            "num_negatives": 2,
            "dev_fraction": 0.1,
        }
    ]
    config = write_distill_config(tmp_path, sets=sets, objective={"loss": loss, "teacher": "large"})
    assert run_job("distill", config) == 0
    losses = losses_of(tmp_path / "out")
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": []}, "teachers: Tuple should have at least 1 item"),
        ({"objective": {"loss": "stella", "teachers": ["smal"]}}, "the loss stella asks 'smal'; teachers: large"),
        ({"objective": {"loss": "kl", "teacher": "large"}}, "the loss kl compares a row's documents"),
        ({"student": {"num_layers": 5}}, "4 layers"),
        ({"student": {"num_layers": 2, "layers": [1]}}, "give layers or num_layers, and not both"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    assert run_job("distill", write_distill_config(tmp_path, **changes)) == 2
    assert message in capsys.readouterr().err
