"""`plan` with the config of `train`: nothing is trained, and no Ray is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
import yaml

from jobs.command_line.main import main
from tests.checkpoints import tiny_bert


def write_config(folder: Path, rows: list[dict[str, str]], **settings: Any) -> Path:
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "model": str(tiny_bert(folder / "model")),
        "sets": [{"name": "pairs", "path": str(folder / "pairs.jsonl"), "kind": "pairs"}],
        "output": {"path": str(folder / "out")},
        "forecast": {"gpu": "A100", "num_gpus": [8, 16]},
        **settings,
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(content))
    return folder / "train.yaml"


def test_plan_reads_the_model_and_the_length_of_its_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"query": "the cat", "positive": "the cat and the dog " * (1 + i % 3)} for i in range(30)]
    config = write_config(tmp_path, rows, batch={"size": 32, "tokens": 64, "pass_tokens": 64})
    assert main(["plan", str(config)]) == 0
    assert "fits each of 8, 16 A100" in capsys.readouterr().out
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    lengths = {key: np.mean([len(tokenizer(row[key]).input_ids) for row in rows]) for key in ("query", "positive")}
    assert plan["load"]["query_tokens"] == pytest.approx(lengths["query"])
    assert plan["load"]["document_tokens"] == pytest.approx(lengths["positive"])
    model = transformers.AutoModel.from_pretrained(tmp_path / "model", add_pooling_layer=False)
    assert plan["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    own = plan["forecasts"][0]
    assert (own["method"], own["gpu"], own["num_gpus"]) == ("as configured", "A100", 8)
    assert own["memory"]["moments"] == 8 * plan["num_parameters"]
    assert own["held_tokens"] == min(64, 32 * sum(lengths.values()) / 8)
    assert "Memory of one GPU" in (tmp_path / "out" / "plan.html").read_text()


def test_lengths_of_the_config_are_taken_as_they_are(tmp_path: Path) -> None:
    config = write_config(tmp_path, [{"query": "a", "positive": "b"}])
    assert main(["plan", str(config), "forecast.query_tokens=20", "forecast.document_tokens=300"]) == 0
    load = json.loads((tmp_path / "out" / "plan.json").read_text())["load"]
    assert (load["query_tokens"], load["document_tokens"]) == (20, 300)


def test_a_set_without_a_good_row_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, [{"query": "", "positive": "b"}])
    assert main(["plan", str(config)]) == 2
    assert "check the set 'pairs'" in capsys.readouterr().err
