"""The example configs of `train`: every one is valid, and together they show the losses that have recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
import pytest

from jobs.command_line.config_file import load_config
from jobs.distilling.config import DistillConfig
from jobs.training.config import TrainConfig
from operators.embedder.recipe.files import load_recipe
from operators.training.config.choice import fault_of_sparse
from operators.training.config.objectives import InfoNce

CONFIGS = sorted(Path("configs/train").glob("*.yaml"))
RECIPES = Path("configs/models")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_example_is_valid(path: Path) -> None:
    config = load_config(TrainConfig, path, [])
    assert config.output.path == ("out/quickstart-trained" if path.stem == "quickstart" else f"out/{path.stem}")
    if config.model.startswith("out/"):
        return  # what another run leaves behind
    recipe = load_recipe(config.model, RECIPES)
    for training_set in config.sets:
        assert fault_of_sparse(config.objective_of(training_set), recipe.sparse is not None) is None


def test_the_quickstarts_read_what_every_machine_has() -> None:
    trained = load_config(TrainConfig, Path("configs/train/quickstart.yaml"), ["sets.0.path=Lib/*.py"])
    student = load_config(DistillConfig, Path("configs/distill/quickstart.yaml"), ["sets.0.path=Lib/*.py"])
    assert trained.sets[0].path == student.sets[0].path == "Lib/*.py"
    assert [teacher.model for teacher in student.teachers] == [student.model]


def test_stages_follow_each_other() -> None:
    one, two, step_two = (
        load_config(TrainConfig, Path("configs/train") / f"{name}.yaml", [])
        for name in ("nv-embed-stage-1", "nv-embed-stage-2", "mntp-simcse")
    )
    assert two.model == f"{one.output.path}/model"
    assert step_two.model == "out/mntp/model"
    assert all(training_set.has_in_batch_negatives for training_set in one.sets)
    assert not any(training_set.has_in_batch_negatives for training_set in two.sets)


def test_the_examples_show_the_recipes() -> None:
    configs = [load_config(TrainConfig, path, []) for path in CONFIGS]
    losses = [config.objective_of(one) for config in configs for one in config.sets]
    assert {"info_nce", "mntp", "causal_lm", "cosent"} <= {loss.loss for loss in losses}
    contrastive = [loss for loss in losses if isinstance(loss, InfoNce)]
    for shown in ("matryoshka", "flops", "template_denoising"):
        assert any(getattr(loss, shown) for loss in contrastive), shown
    assert any(config.generation is not None for config in configs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"loss": "mntp"}}, "the loss mntp does not fit pairs; texts do"),
        ({"objective": {"loss": "info_nce", "template_denoising": True}}, "template_denoising is for texts"),
        ({"generation": {"sets": [{"name": "a", "path": "a.jsonl", "kind": "texts"}]}}, "each has a name of its own"),
        ({"generation": {"sets": [{"name": "b", "path": "b.jsonl", "kind": "triples"}]}}, "causal_lm does not fit"),
        (
            {"generation": {"sets": [{"name": "b", "path": "b", "kind": "texts", "objective": {"loss": "mntp"}}]}},
            "leave out objective",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    pairs = {"name": "a", "path": "a.jsonl", "kind": "pairs"}
    with pytest.raises(pydantic.ValidationError, match=message):
        TrainConfig.model_validate({"model": "minilm", "sets": [pairs], "output": {"path": "out"}, **changes})
