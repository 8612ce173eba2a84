"""Our engine against SentenceTransformer.encode on a CPU; or our engine alone, on a random checkpoint of a given shape.

    python -m benchmarks.engine --data FILE.jsonl.gz                 ours against sentence-transformers, same texts
    python -m benchmarks.engine --shape mistral-7b --device cuda     tokens/s, padding and MFU: benchmarks/shapes.py

Other work on a machine and its clock change what is measured by tens of percent within minutes. So every contender is
loaded first, in processes of its own, and then they take turns, round after round; a ratio is the median over rounds of
two that ran side by side. Tokens are counted as the model reads them, without padding. `tokens/CPU-s` divides by the
CPU time of all threads: what is left of a comparison where other processes take the cores.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import itertools
import json
import multiprocessing
import platform
import random
import statistics
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import shapes

RECIPES = Path(__file__).parent.parent / "configs" / "models"
OURS, OURS_FROM_TEXT, THEIRS = "ours", "ours, tokenizing too", "sentence-transformers"
WARM_UP_ROWS = 64


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to embed."""

    engine: str
    dtype: str
    processes: int
    threads: int  # per process

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.engine}, {self.dtype}"


@dataclass(slots=True)
class Pool:
    """A contender's processes, loaded and waiting for their turn."""

    contender: Contender
    rows: list[NDArray[np.int64]]  # of each process
    connections: list[Connection]
    wall_seconds: list[float] = field(default_factory=list)  # per round, as are the others
    cpu_seconds: list[float] = field(default_factory=list)
    padding_tokens: list[int] = field(default_factory=list)

    def round(self) -> None:
        """Embed all texts once."""
        start = time.perf_counter()
        for connection in self.connections:
            connection.send("embed")
        answers = [connection.recv() for connection in self.connections]
        self.wall_seconds.append(time.perf_counter() - start)
        self.cpu_seconds.append(sum(seconds for seconds, _ in answers))
        self.padding_tokens.append(sum(padding for _, padding in answers))

    def vectors(self) -> NDArray[np.float32]:
        """values_ND of the last round, of length 1."""
        for connection in self.connections:
            connection.send("vectors")
        parts = [connection.recv() for connection in self.connections]
        values_ND: NDArray[np.float32] = np.concatenate(parts)[np.argsort(np.concatenate(self.rows))]
        values_ND /= np.linalg.norm(values_ND, axis=1, keepdims=True)
        return values_ND


class Ours:
    """The embedder of this repository, without Ray."""

    def __init__(self, contender: Contender, model: str, batch_tokens: int | None) -> None:
        from operators.embedder.engine import Embedder
        from operators.embedder.recipe.recipe import EmbedderConfig
        from operators.embedder.recipe.spec import embedder_spec
        from operators.embedder.tokens.tokenizing import Tokenizer

        config = EmbedderConfig.model_validate({"compute_dtype": contender.dtype, "device": "cpu"})
        spec = embedder_spec(model, config, RECIPES)
        self._embedder = Embedder(spec, batch_tokens, device="cpu", threads=contender.threads)
        self._tokenizer = Tokenizer(spec)
        self._tokenizes = contender.engine == OURS_FROM_TEXT
        self.padding_tokens = 0

    def prepare(self, texts: list[str]) -> Any:
        """What `embed` takes."""
        import pyarrow as pa

        array = pa.array(texts, pa.string())
        return array if self._tokenizes else self._tokenizer(array).input_ids

    def embed(self, prepared: Any) -> NDArray[np.float32]:
        """values_ND of the texts."""
        vectors = self._embedder(self._tokenizer(prepared).input_ids if self._tokenizes else prepared)
        self.padding_tokens = vectors.padding_tokens
        return vectors.values_ND


class Theirs:
    """SentenceTransformer.encode with its defaults: texts sorted by length, batches of 32."""

    padding_tokens = 0  # it does not tell

    def __init__(self, contender: Contender, model: str) -> None:
        import sentence_transformers
        import torch

        from operators.embedder.recipe import checkpoint
        from operators.embedder.recipe.files import load_recipe

        torch.set_num_threads(contender.threads)
        recipe = load_recipe(model, RECIPES)
        self._model = sentence_transformers.SentenceTransformer(
            str(checkpoint.locate(recipe.checkpoint, recipe.revision)),
            device="cpu",
            model_kwargs={"dtype": getattr(torch, contender.dtype)},
        )
        self._model.max_seq_length = recipe.max_tokens

    def prepare(self, texts: list[str]) -> Any:
        """What `embed` takes."""
        return texts

    def embed(self, prepared: Any) -> NDArray[np.float32]:
        """values_ND of the texts."""
        return np.asarray(self._model.encode(prepared, show_progress_bar=False), np.float32)


def work(connection: Connection, contender: Contender, model: str, texts: list[str], batch_tokens: int | None) -> None:
    """A process of a contender: load, warm up, then embed all its texts whenever told to."""
    engine = Theirs(contender, model) if contender.engine == THEIRS else Ours(contender, model, batch_tokens)
    prepared = engine.prepare(texts)
    values_ND = engine.embed(engine.prepare(texts[:: max(1, len(texts) // WARM_UP_ROWS)]))
    connection.send("ready")
    while (command := connection.recv()) != "stop":
        if command == "vectors":
            connection.send(values_ND)
        else:
            start = time.process_time()
            values_ND = engine.embed(prepared)
            connection.send((time.process_time() - start, engine.padding_tokens))


def start(
    contender: Contender, texts: list[str], lengths_N: NDArray[np.int64], arguments: argparse.Namespace
) -> tuple[Pool, list[Any]]:
    """A contender's pool, loaded and warm, and its processes."""
    context = multiprocessing.get_context("spawn")
    order = np.argsort(-lengths_N, kind="stable")
    rows = [order[i :: contender.processes] for i in range(contender.processes)]
    connections, processes = [], []
    for share in rows:
        ours, theirs = context.Pipe()
        process = context.Process(
            target=work,
            args=(theirs, contender, arguments.model, [texts[i] for i in share], arguments.batch_tokens),
            daemon=True,
        )
        process.start()
        theirs.close()  # so that a process that dies is seen as the end of its pipe
        connections.append(ours)
        processes.append(process)
    for connection in connections:
        connection.recv()
    return Pool(contender, rows, connections), processes


def compare(arguments: argparse.Namespace) -> None:
    """Print every contender's speed, and the ratios that the project promises."""
    from operators.embedder.recipe.recipe import EmbedderConfig
    from operators.embedder.recipe.spec import embedder_spec

    texts = read_texts(arguments.data, arguments.rows)
    lengths_N, flops = count(embedder_spec(arguments.model, EmbedderConfig(device="cpu"), RECIPES), texts)
    cores = arguments.processes * arguments.threads
    contenders = [Contender(OURS, dtype, arguments.processes, arguments.threads) for dtype in ("bfloat16", "float32")]
    contenders.append(Contender(OURS_FROM_TEXT, "bfloat16", arguments.processes, arguments.threads))
    contenders += [Contender(THEIRS, dtype, 1, cores) for dtype in ("float32", "bfloat16")]
    started = [start(contender, texts, lengths_N, arguments) for contender in contenders]
    pools = {pool.contender.name: pool for pool, _ in started}
    for number in range(arguments.rounds):
        for pool in pools.values():
            pool.round()
            print(f"round {number}: {pool.contender.name}: {lengths_N.sum() / pool.wall_seconds[-1]:,.0f} tokens/s")
    report(pools, int(lengths_N.sum()), flops, arguments)
    for pool, processes in started:
        for connection, process in zip(pool.connections, processes, strict=True):
            connection.send("stop")
            process.join()


def count(spec: Any, texts: list[str]) -> tuple[NDArray[np.int64], float]:
    """lengths_N in tokens, and the FLOPs of embedding all of them."""
    import pyarrow as pa
    import transformers

    from operators.embedder.model.flops import Flops
    from operators.embedder.recipe import checkpoint
    from operators.embedder.tokens.tokenizing import Tokenizer

    lengths_N = Tokenizer(spec)(pa.array(texts, pa.string())).num_tokens.to_numpy().astype(np.int64)
    config = transformers.AutoConfig.from_pretrained(checkpoint.locate(spec.recipe.checkpoint, spec.recipe.revision))
    return lengths_N, Flops.of(shapes.model_without_weights(config)).total(lengths_N)


def report(pools: dict[str, Pool], num_tokens: int, flops: float, arguments: argparse.Namespace) -> None:
    """Print the table of contenders and that of ratios, in Markdown."""
    if arguments.markdown:
        print(f"\n### {date.today()}: {machine()}\n`python -m benchmarks.engine {' '.join(sys.argv[1:])}`")
    reference_ND = pools[f"{THEIRS}, float32"].vectors()
    print(
        f"\n{len(reference_ND):,} texts, {num_tokens:,} tokens, {arguments.rounds} rounds\n\n"
        "| engine | processes x threads | tokens/s | least-most | tokens/CPU-s | MFU | padding | least cosine |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name, pool in pools.items():
        speeds = [num_tokens / seconds for seconds in pool.wall_seconds]
        seconds, padding = statistics.median(pool.wall_seconds), pool.padding_tokens[-1]
        cells = (
            name,
            f"{pool.contender.processes} x {pool.contender.threads}",
            f"{num_tokens / seconds:,.0f}",
            f"{min(speeds):,.0f}-{max(speeds):,.0f}",
            f"{num_tokens / statistics.median(pool.cpu_seconds):,.0f}",
            f"{flops / seconds / arguments.peak_tflops / 1e12:.0%}" if arguments.peak_tflops else "-",
            "?" if pool.contender.engine == THEIRS else f"{padding / (padding + num_tokens):.1%}",
            f"{(pool.vectors() * reference_ND).sum(axis=1).min():.6f}",
        )
        print(f"| {' | '.join(cells)} |")
    print("\n| ratio | wall clock, median of rounds | least-most | CPU time |\n|---|---|---|---|")
    mine = [pool for pool in pools.values() if pool.contender.engine != THEIRS]
    theirs = [pool for pool in pools.values() if pool.contender.engine == THEIRS]
    for one, two in itertools.product(mine, theirs):
        ratios = [b / a for a, b in zip(one.wall_seconds, two.wall_seconds, strict=True)]
        cpu = statistics.median(two.cpu_seconds) / statistics.median(one.cpu_seconds)
        print(
            f"| {one.contender.name} / {two.contender.name} | {statistics.median(ratios):.2f} "
            f"| {min(ratios):.2f}-{max(ratios):.2f} | {cpu:.2f} |"
        )


def machine() -> str:
    """CPU and versions, for the record."""
    import torch

    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    has = [name for name in ("avx512_f", "avx512_bf16", "amx_bf16") if torch.cpu.get_capabilities().get(name)]
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))
    cpu = names[0].split(":")[1].strip() if names else platform.processor()
    return f"{cpu} x {len(names)} ({', '.join(has)}), {', '.join(versions)}, Python {platform.python_version()}"


def read_texts(path: Path | None, rows: int) -> list[str]:
    """The first `rows` texts of a JSON lines file; without one, passages of the Python standard library."""
    if path is not None:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            return [json.loads(line)["text"] for line, _ in zip(lines, range(rows), strict=False)]
    generator = random.Random(0)
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
    sizes = [int(generator.lognormvariate(6, 0.6)) + 20 for _ in range(rows)]  # characters; median 400
    starts = [generator.randrange(len(text) - size) for size in sizes]
    return [text[begin : begin + size] for begin, size in zip(starts, sizes, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="JSON lines (.gz) with a `text`; default: Python's standard library")
    parser.add_argument("--model", default="minilm", help="a recipe of configs/models or a checkpoint folder")
    parser.add_argument("--rows", type=int, default=1000, help="texts")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender")
    parser.add_argument("--processes", type=int, default=2, help="of ours")
    parser.add_argument("--threads", type=int, default=1, help="of each of our processes; theirs is one, with as many")
    parser.add_argument("--batch-tokens", type=int, default=None, help="budget of a batch; default: the engine's own")
    parser.add_argument("--peak-tflops", type=float, default=None, help="of all cores or the GPU, for MFU")
    parser.add_argument("--markdown", action="store_true", help="begin with machine, versions and command")
    shapes.add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.shape is None:
        compare(arguments)
    else:
        if arguments.markdown:
            print(f"### {date.today()}\n`python -m benchmarks.engine {' '.join(sys.argv[1:])}`")
        shapes.measure(arguments)


if __name__ == "__main__":
    main()
