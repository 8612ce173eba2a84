"""Fine-tuning beside sentence-transformers' trainer: the same model, batches, steps and schedule, in turns, on a CPU.

    python -m benchmarks.train --data pairs.jsonl.gz [--steps 60] [--batch 128] [--precision bfloat16]

Both train on the train part of the rows, in processes of their own with the same number of threads; every few steps the
other one has its turn, and a ratio is the median over turns that followed each other. Theirs is
CachedMultipleNegativesRankingLoss. Then both models, and the one they began with, rank the held-back part.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine import RECIPES, machine

OURS, THEIRS, UNTRAINED = "ours", "sentence-transformers", "untrained"
TEMPERATURE, WEIGHT_DECAY, WARMUP = 0.05, 0.01, 0.1
SEED = 0


def ready(arguments: argparse.Namespace, split: str) -> tuple[Any, Any]:
    """The rows of a split and their set, prepared in a folder once."""
    from operators.corpus.listing import list_source
    from operators.corpus.units import PACK_BELOW_BYTES, plan_units
    from operators.storage import locate
    from operators.storage.cache import Cache
    from operators.training.config.sets import TrainingSet, typed_columns
    from operators.training.data.counts import RowCounts
    from operators.training.data.prepared import PreparedRows, prepare_unit, read_manifest, write_manifest

    chosen = TrainingSet.model_validate(
        {"name": "pairs", "path": str(arguments.data), "kind": "pairs", "dev_fraction": 0.1}
    )
    files = list(list_source(chosen.source()))
    folder = locate(arguments.folder) / chosen.fingerprint(files, SEED)
    manifest = read_manifest(folder)
    if manifest is None:
        units = plan_units(files, chosen.source(), (), PACK_BELOW_BYTES, {})
        types = typed_columns(files, chosen)
        lines = [line for unit in units for line in prepare_unit(unit, chosen, types, folder, SEED)]
        parts = [part for part, _ in lines if part is not None]
        manifest = write_manifest(folder, chosen, parts, RowCounts.total(counts for _, counts in lines))
    return chosen, PreparedRows(folder, manifest, split, Cache.at(None))  # type: ignore[arg-type]


def batch_plan(rows: Any, arguments: argparse.Namespace) -> Any:
    """The batches of both."""
    from operators.training.data.batch_plan import BatchPlan, PlannedSet

    return BatchPlan([PlannedSet("pairs", len(rows), None, rows.hashes)], arguments.batch, SEED)


def train_ours(arguments: argparse.Namespace, folder: Path) -> Iterator[int]:
    """Train and write the model folder; yields after each step, with the pairs that it had."""
    import torch

    from operators.embedder.recipe.recipe import EmbedderConfig
    from operators.embedder.recipe.spec import embedder_spec
    from operators.training.config.objectives import InfoNce
    from operators.training.config.tuning import Tuning
    from operators.training.model.encoder import Encoder, Reader
    from operators.training.model.export import export
    from operators.training.objectives.set_objective import SetObjective
    from operators.training.steps.optimization import Optimization
    from operators.training.steps.passes import VectorPasses
    from operators.training.steps.rank_batches import RankBatches, ReadySet
    from operators.training.steps.step import TrainStep

    chosen, rows = ready(arguments, "train")
    spec = embedder_spec(arguments.model, EmbedderConfig(max_tokens=arguments.max_tokens), RECIPES)
    encoder = Encoder(spec, Tuning(precision=arguments.precision), torch.device("cpu"))
    optimization = Optimization(learning_rate=arguments.rate, weight_decay=WEIGHT_DECAY, warmup=WARMUP)
    objective = SetObjective(InfoNce(temperature=TEMPERATURE), chosen, spec.dim)
    passes = VectorPasses(encoder, objective, arguments.tokens, SEED)
    step = TrainStep(encoder, [passes], ["pairs"], optimization, arguments.steps)
    reader = Reader({"query": spec, "document": spec})
    sets = [ReadySet(chosen, rows, reader)]
    for batch in RankBatches(batch_plan(rows, arguments), sets, 0, 1, 2048)(0, arguments.steps):
        yield step(batch).rows
    export(encoder, folder)


def train_theirs(arguments: argparse.Namespace, folder: Path, turn: Any) -> None:
    """The same with their trainer; `turn` is called after each step with the pairs that it had."""
    import datasets
    import transformers
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    from operators.embedder.recipe.checkpoint import locate
    from operators.embedder.recipe.files import load_recipe

    _, rows = ready(arguments, "train")
    plan = batch_plan(rows, arguments)
    sizes, texts = [], []
    for step in range(arguments.steps):
        table = rows.take(plan.batch(step).rows_B).to_pylist()
        sizes.append(len(table))
        texts += [{"anchor": row["query"], "positive": row["documents"][0]} for row in table]
    starts = np.cumsum([0, *sizes])

    class InOrder(DefaultBatchSampler):  # type: ignore[misc]
        def __iter__(self) -> Iterator[list[int]]:
            yield from (list(range(starts[i], starts[i + 1])) for i in range(arguments.steps))

        def __len__(self) -> int:
            return int(arguments.steps)

    class Turns(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turn(sizes[state.global_step - 1])

    model = SentenceTransformer(str(locate(load_recipe(arguments.model, RECIPES).checkpoint)), device="cpu")
    model.max_seq_length = arguments.max_tokens
    settings = their_settings(arguments, folder, InOrder)
    loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=arguments.mini_batch)
    trainer = SentenceTransformerTrainer(
        model, settings, train_dataset=datasets.Dataset.from_list(texts), loss=loss, callbacks=[Turns()]
    )
    trainer.train()
    model.save_pretrained(str(folder))


def their_settings(arguments: argparse.Namespace, folder: Path, sampler: type) -> Any:
    """What their trainer is told, so that it does as ours."""
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

    return SentenceTransformerTrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch,
        learning_rate=arguments.rate,
        weight_decay=WEIGHT_DECAY,
        warmup_steps=round(WARMUP * arguments.steps),
        batch_sampler=sampler,
        bf16=arguments.precision == "bfloat16",
        use_cpu=True,
        seed=SEED,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def work(connection: Connection, engine: str, arguments: argparse.Namespace, folder: str) -> None:
    """A contender's process: `turn` steps whenever told to, then the model folder."""
    import torch

    torch.set_num_threads(arguments.threads)
    done, clock = [0, 0], [0.0, 0.0]

    def turn(pairs: int) -> None:
        done[0] += 1
        done[1] += pairs
        if done[0] % arguments.turn == 0:
            connection.send((time.perf_counter() - clock[0], time.process_time() - clock[1], done[1]))
            done[1] = 0
            connection.recv()
            clock[:] = time.perf_counter(), time.process_time()

    connection.recv()
    clock[:] = time.perf_counter(), time.process_time()
    if engine == OURS:
        for pairs in train_ours(arguments, Path(folder)):
            turn(pairs)
    else:
        train_theirs(arguments, Path(folder), turn)
    connection.send("done")


def scored(model: str, arguments: argparse.Namespace) -> Any:
    """The held-back rows as a retrieval task."""
    import pyarrow as pa

    from operators.embedder.factory import load_embedder
    from operators.embedder.recipe.recipe import EmbedderConfig
    from operators.embedder.recipe.spec import embedder_spec
    from operators.embedder.tokens.tokenizing import Tokenizer
    from operators.training.judging.evaluating import rows_as_retrieval

    _, rows = ready(arguments, "dev")
    numbers = np.arange(len(rows))
    table = rows.take(numbers).to_pylist()
    spec = embedder_spec(model, EmbedderConfig(max_tokens=arguments.max_tokens), RECIPES)
    embedder, tokenizer = load_embedder(spec), Tokenizer(spec)
    queries, documents = (
        embedder(tokenizer(pa.array(texts)).input_ids).values_ND
        for texts in ([row["query"] for row in table], [row["documents"][0] for row in table])
    )
    return rows_as_retrieval(queries, documents, rows.hashes(numbers))


def in_turns(arguments: argparse.Namespace, folder: str) -> dict[str, np.ndarray]:
    """Both trained, models in the folder; of each, per turn: seconds, CPU seconds, pairs. Shape [turns, 3]."""
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    for engine in (OURS, THEIRS):
        connections[engine], theirs = context.Pipe()
        context.Process(target=work, args=(theirs, engine, arguments, f"{folder}/{engine}"), daemon=True).start()
        theirs.close()  # so that a process that dies is seen as the end of its pipe
    turns: dict[str, list[tuple[float, float, int]]] = {engine: [] for engine in connections}
    for _ in range(arguments.steps // arguments.turn):
        for engine, connection in connections.items():
            connection.send("go")
            turns[engine].append(connection.recv())
    for connection in connections.values():
        connection.send("go")
        connection.recv()
    return {engine: np.array(values, np.float64)[1:] for engine, values in turns.items()}  # the first one warms up


def speeds(ours: np.ndarray, theirs: np.ndarray) -> list[str]:
    """Cells of the table: pairs a second and a CPU second, and their ratios to theirs."""
    rates, their_rates = (turns[:, 2:] / turns[:, :2] for turns in (ours, theirs))
    ratios = rates / their_rates
    return [f"{median:.1f}" for median in np.median(rates, axis=0)] + [
        f"{median:.2f} ({least:.2f}-{most:.2f})"
        for median, least, most in zip(np.median(ratios, axis=0), ratios.min(axis=0), ratios.max(axis=0), strict=True)
    ]


def print_results(turns: dict[str, np.ndarray], outcomes: dict[str, Any]) -> None:
    """The table, and the difference between the two."""
    from operators.evaluation.statistics import Resampling, compare, intervals

    def against(reference: str, name: str) -> str:
        gain = compare(outcomes[reference], outcomes[name], Resampling())["ndcg_at_10"]
        return f"{gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}, p {gain.p_value:.3f})"

    print("| trainer | pairs/s | pairs/CPU-s | to sentence-transformers | same, CPU time | nDCG@10 held back | gain |")
    print("|---|---|---|---|---|---|---|")
    for name, outcome in outcomes.items():
        bounds = intervals(outcome, Resampling())["ndcg_at_10"]
        cells = [name, *(speeds(turns[name], turns[THEIRS]) if name in turns else [""] * 4)]
        cells += [f"{outcome.metrics['ndcg_at_10']:.4f} ({bounds.low:.4f}-{bounds.high:.4f})"]
        print(f"| {' | '.join([*cells, against(UNTRAINED, name)])} |")
    print(f"\nours less theirs: {against(THEIRS, OURS)}")


def main() -> None:
    """Train in turns, score, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="minilm", help="a recipe of configs/models")
    parser.add_argument("--data", type=Path, required=True, help="JSON lines with query and positive")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--turn", type=int, default=5, help="steps of a turn")
    parser.add_argument("--batch", type=int, default=128, help="pairs of a step")
    parser.add_argument("--tokens", type=int, default=16384, help="padded tokens whose activations we hold")
    parser.add_argument("--mini-batch", type=int, default=32, help="texts of one of their passes")
    parser.add_argument("--max-tokens", type=int, default=128, help="of a text")
    parser.add_argument("--rate", type=float, default=2e-5, help="learning rate")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each contender")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = f"{folder}/sets"
        ready(arguments, "train")
        turns = in_turns(arguments, folder)
        models = {UNTRAINED: arguments.model} | {engine: f"{folder}/{engine}" for engine in turns}
        outcomes = {name: scored(model, arguments) for name, model in models.items()}
    print(f"### {date.today()}: {machine()}\n`python -m benchmarks.train {' '.join(sys.argv[1:])}`\n")
    print_results(turns, outcomes)


if __name__ == "__main__":
    main()
