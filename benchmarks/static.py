"""A static embedder against sentence-transformers' StaticEmbedding, from the same folder and texts, on a CPU.

    python -m benchmarks.static --model out/static-minilm --data FILE.jsonl.gz

Both are loaded first, in processes of their own with the same number of threads, and then take turns, round after
round; a ratio is the median over rounds of two that ran side by side (benchmarks/engine.py says why).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine import RECIPES, machine, read_texts

OURS, OURS_FROM_IDS, THEIRS = "ours", "ours, token ids ready", "sentence-transformers"


def embed_with(engine: str, model: str, texts: list[str], threads: int) -> Callable[[], Any]:
    """What embeds all the texts once, for a contender."""
    if engine == THEIRS:
        import sentence_transformers
        import torch

        from operators.embedder.recipe.files import load_recipe

        torch.set_num_threads(threads)
        folder = load_recipe(model, RECIPES).checkpoint
        reference = sentence_transformers.SentenceTransformer(folder, device="cpu")
        # its default of 32 texts a batch is meant for transformers, and would be half as fast
        return lambda: reference.encode(texts, batch_size=1024, show_progress_bar=False)
    import pyarrow as pa

    from operators.embedder.factory import load_embedder
    from operators.embedder.recipe.recipe import EmbedderConfig
    from operators.embedder.recipe.spec import embedder_spec
    from operators.embedder.tokens.tokenizing import Tokenizer

    spec = embedder_spec(model, EmbedderConfig(), RECIPES)
    embedder, tokenizer = load_embedder(spec, threads=threads), Tokenizer(spec)
    array = pa.array(texts, pa.string())
    ids = tokenizer(array).input_ids
    if engine == OURS_FROM_IDS:
        return lambda: embedder(ids).values_ND
    return lambda: embedder(tokenizer(array).input_ids).values_ND


def work(connection: Connection, engine: str, arguments: argparse.Namespace) -> None:
    """A contender's process: load, warm up, then embed all texts whenever told to."""
    embed = embed_with(engine, arguments.model, read_texts(arguments.data, arguments.rows), arguments.threads)
    values_ND = embed()
    connection.send("ready")
    while (command := connection.recv()) != "stop":
        if command == "vectors":
            connection.send(values_ND)
            continue
        wall, cpu = time.perf_counter(), time.process_time()
        values_ND = embed()
        connection.send((time.perf_counter() - wall, time.process_time() - cpu))


def main() -> None:
    import pyarrow as pa

    from operators.embedder.recipe.recipe import EmbedderConfig
    from operators.embedder.recipe.spec import embedder_spec
    from operators.embedder.tokens.tokenizing import Tokenizer

    parser = argparse.ArgumentParser(prog="python -m benchmarks.static", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="static-minilm", help="a recipe of configs/models or a folder")
    parser.add_argument("--data", type=Path, help="JSON lines (.gz) with a `text`; default: Python's standard library")
    parser.add_argument("--rows", type=int, default=20_000, help="texts")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--threads", type=int, default=1, help="of each contender")
    arguments = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)  # the threads of the tokenizers library
    texts = read_texts(arguments.data, arguments.rows)
    tokenizer = Tokenizer(embedder_spec(arguments.model, EmbedderConfig(), RECIPES))
    num_tokens = int(tokenizer(pa.array(texts, pa.string())).num_tokens.to_numpy().sum())
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    for engine in (OURS, OURS_FROM_IDS, THEIRS):
        connections[engine], theirs = context.Pipe()
        context.Process(target=work, args=(theirs, engine, arguments), daemon=True).start()
        theirs.close()  # so that a process that dies is seen as the end of its pipe
        connections[engine].recv()
    seconds: dict[str, list[tuple[float, float]]] = {engine: [] for engine in connections}
    for _ in range(arguments.rounds):
        for engine, connection in connections.items():
            connection.send("embed")
            seconds[engine].append(connection.recv())
    for connection in connections.values():
        connection.send("vectors")
    vectors = {engine: connection.recv() for engine, connection in connections.items()}
    for connection in connections.values():
        connection.send("stop")
    print(f"### {date.today()}: {machine()}\n`python -m benchmarks.static {' '.join(sys.argv[1:])}`\n")
    print(f"{len(texts):,} texts, {num_tokens:,} tokens, {arguments.rounds} rounds, {arguments.threads} threads\n")
    print("| engine | tokens/s | least-most | tokens/CPU-s | to sentence-transformers | largest difference |")
    print("|---|---|---|---|---|---|")
    for engine, times in seconds.items():
        walls = [wall for wall, _ in times]
        ratios = [theirs / ours for ours, (theirs, _) in zip(walls, seconds[THEIRS], strict=True)]
        cells = (
            engine,
            f"{num_tokens / statistics.median(walls):,.0f}",
            f"{num_tokens / max(walls):,.0f}-{num_tokens / min(walls):,.0f}",
            f"{num_tokens / statistics.median(cpu for _, cpu in times):,.0f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            f"{np.abs(vectors[engine] - vectors[THEIRS]).max():.1e}",
        )
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
