"""Peak memory of a training step by its batch: flat, as what a batch has beyond `tokens` is encoded twice (GradCache).

    python -m benchmarks.train_memory [--batches 256 1024 4096 16384] [--tokens 8192]

One process for each batch size trains two steps on generated pairs of some 12 tokens a text; its peak is that of its
resident memory (ru_maxrss), less what it had before the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.engine import RECIPES, machine
from cluster.environment import COMPUTE_VARIABLES

SEED = 0


def write_pairs(path: Path, count: int) -> None:
    """Pairs of random words that real tokenizers know."""
    rng = np.random.default_rng(SEED)
    words = [f"{a}{b}" for a in ("time", "water", "house", "work") for b in ("", "s", "day", "man", "life")]
    with path.open("w") as file:
        for number in range(count):
            query, positive = (" ".join(rng.choice(words, 8)) for _ in range(2))
            file.write(json.dumps({"query": f"{query} {number}", "positive": f"{positive} {number}"}) + "\n")


def measure(arguments: argparse.Namespace, batch: int, folder: Path) -> None:
    """Two steps in this process; prints its figures as JSON."""
    import torch

    from operators.corpus.listing import list_source
    from operators.corpus.units import PACK_BELOW_BYTES, plan_units
    from operators.embedder.recipe.recipe import EmbedderConfig
    from operators.embedder.recipe.spec import embedder_spec
    from operators.storage import locate
    from operators.storage.cache import Cache
    from operators.training.config.objectives import InfoNce
    from operators.training.config.sets import TrainingSet, typed_columns
    from operators.training.config.tuning import Tuning
    from operators.training.data.batch_plan import BatchPlan, PlannedSet
    from operators.training.data.counts import RowCounts
    from operators.training.data.prepared import PreparedRows, prepare_unit, write_manifest
    from operators.training.model.encoder import Encoder, Reader
    from operators.training.objectives.set_objective import SetObjective
    from operators.training.steps.optimization import Optimization
    from operators.training.steps.passes import VectorPasses
    from operators.training.steps.rank_batches import RankBatches, ReadySet
    from operators.training.steps.step import TrainStep

    torch.set_num_threads(arguments.threads)
    chosen = TrainingSet(name="pairs", path=str(folder / "pairs.jsonl"), kind="pairs")
    files, home = list(list_source(chosen.source())), locate(str(folder / f"sets-{batch}"))
    types = typed_columns(files, chosen)
    units = plan_units(files, chosen.source(), (), PACK_BELOW_BYTES, {})
    lines = [line for unit in units for line in prepare_unit(unit, chosen, types, home, SEED)]
    parts = [part for part, _ in lines if part is not None]
    manifest = write_manifest(home, chosen, parts, RowCounts.total(counts for _, counts in lines))
    rows = PreparedRows(home, manifest, "train", Cache.at(None))
    spec = embedder_spec(arguments.model, EmbedderConfig(max_tokens=64), RECIPES)
    encoder = Encoder(spec, Tuning(precision=arguments.precision), torch.device("cpu"))
    passes = VectorPasses(encoder, SetObjective(InfoNce(), chosen, spec.dim), arguments.tokens, SEED)
    step = TrainStep(encoder, [passes], ["pairs"], Optimization(), 2)
    plan = BatchPlan([PlannedSet("pairs", len(rows), None, rows.hashes)], batch, SEED)
    sets = [ReadySet(chosen, rows, Reader({"query": spec, "document": spec}))]
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.perf_counter()
    tokens = sum(step(one).tokens for one in RankBatches(plan, sets, 0, 1, 2048)(0, 2))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = {"before": before, "peak": peak, "tokens": tokens, "seconds": time.perf_counter() - started}
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_memory", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--model", default="minilm", help="a recipe of configs/models")
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024, 4096, 16384])
    parser.add_argument("--tokens", type=int, default=8192, help="padded tokens whose activations are held")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        measure(arguments, arguments.only, arguments.folder)
        return
    print(f"### {date.today()}: {machine()}\n`python -m benchmarks.train_memory {' '.join(sys.argv[1:])}`\n")
    print(
        "| batch | tokens of a step | before the first step | peak | steps take | tokens/s |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(Path(folder) / "pairs.jsonl", 2 * max(arguments.batches))
        for batch in arguments.batches:
            command = [sys.executable, "-m", "benchmarks.train_memory", *sys.argv[1:], "--folder", folder]
            found = subprocess.run(
                [*command, "--only", str(batch)],
                check=True,
                capture_output=True,
                text=True,
                env={**os.environ, **COMPUTE_VARIABLES},  # as the workers of `train` have them
            )
            figures = json.loads(found.stdout.strip().splitlines()[-1])
            cells = (
                f"{batch:,}",
                f"{figures['tokens'] / 2:,.0f}",
                f"{figures['before'] / 1e6:,.0f} MB",
                f"{figures['peak'] / 1e6:,.0f} MB",
                f"{figures['seconds']:.0f} s",
                f"{figures['tokens'] / figures['seconds']:,.0f}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
