"""plan, of a training: memory of a GPU, time of a step and hours per million rows, on paper, for several GPUs.

    python -m jobs plan TRAIN_CONFIG.yaml [forecast.gpu=H200 forecast.num_gpus=[8,64]]

Takes the config of `train`, reads the first rows of its sets for the length of their texts, and loads no weight. Prints
the table and leaves it as plan.json and plan.html in the run's folder.
"""

from __future__ import annotations

from typing import Literal

from jobs.training.config import TrainConfig
from jobs.training.run import prompted_spec, start_spec
from operators.embedder.recipe import checkpoint
from operators.embedder.recipe.spec import EmbedderSpec
from operators.errors import InputError
from operators.report.forecast_text import training_plan_page, training_plan_text
from operators.storage import locate, redact, write_whole
from operators.training.config.sets import Side, TrainingSet
from operators.training.forecast.lengths import first_rows
from operators.training.forecast.method import Load, Method
from operators.training.forecast.planning import plan_training
from operators.training.forecast.shape import ModelShape


def run(config: TrainConfig) -> int:
    """Forecast, print and store; returns the exit code."""
    spec = start_spec(config)
    recipe = spec.recipe
    shape = ModelShape.of_folder(checkpoint.locate(recipe.checkpoint, recipe.revision, weights=False), recipe)
    plan = plan_training(config.model, shape, method_of(config), load_of(config, spec), config.forecast)
    output = locate(config.output.path, config.output.storage_options)
    write_whole(output / "plan.json", plan.to_json().encode())
    shown = redact(config.model_dump(mode="json", exclude={"output": {"storage_options"}}))
    write_whole(output / "plan.html", training_plan_page(plan, shown).encode())
    print(training_plan_text(plan))
    return 0


def method_of(config: TrainConfig) -> Method:
    """How the config trains."""
    tuning = config.tuning
    frozen: Literal["float32", "bfloat16", "nf4"] = "float32"
    precision = tuning.settled(in_hardware=True).precision  # of the GPUs that a forecast is for
    assert precision != "auto", "settled"
    if tuning.lora is not None and precision == "bfloat16":
        frozen = tuning.lora.quantized or "bfloat16"
    return Method(
        precision=precision,
        rank=tuning.lora.rank if tuning.lora is not None else None,
        adapter_dropout=tuning.lora is not None and tuning.lora.dropout > 0,
        frozen=frozen,
        dropout=tuning.dropout != 0,
        checkpointing=tuning.gradient_checkpointing,
        sharded=tuning.sharding == "fsdp2",
    )


def load_of(config: TrainConfig, spec: EmbedderSpec) -> Load:
    """The batches of the config: texts as long as the sets' first ones, sets by their weights."""
    weights = [one.weight or 1.0 for one in config.sets]
    measured = [_lengths(config, one) for one in config.sets]

    def mean(values: list[float]) -> float:
        return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)

    documents = max(1, round(mean([float(one.num_documents) for one in config.sets])))
    return Load(
        rows=config.batch.size,
        query_tokens=config.forecast.query_tokens or mean([query for query, _ in measured]),
        document_tokens=config.forecast.document_tokens or mean([document for _, document in measured]),
        documents=documents,
        dim=spec.dim,
        tokens=config.batch.tokens,
        pass_tokens=config.batch.pass_tokens or config.batch.tokens,
    )


def _lengths(config: TrainConfig, training_set: TrainingSet) -> tuple[float, float]:
    """Mean tokens of a query and of a document, prompts included; of texts alone both are theirs."""
    rows = first_rows(training_set, config.forecast.sample_rows, config.seed)
    if not rows.num_rows:
        raise InputError(f"check the set {training_set.name!r}: none of its first rows can be trained on")
    query = _mean_tokens(config, training_set.query, "query", rows["query"].to_pylist())
    documents = [text for texts in rows["documents"].to_pylist() for text in texts or ()]
    if not documents:
        return query, query
    return query, _mean_tokens(config, training_set.document_side, "document", documents)


def _mean_tokens(config: TrainConfig, side: Side, role: str, texts: list[str]) -> float:
    import pyarrow as pa

    from operators.embedder.tokens.tokenizing import (
        Tokenizer,  # transformers takes seconds, and a wrong config shows at once
    )

    tokenizer = Tokenizer(prompted_spec(config, side.role or role, side.prompt, side.task))
    ids = tokenizer(pa.array(texts, pa.string())).input_ids
    return float(len(ids.flatten()) / len(texts))
