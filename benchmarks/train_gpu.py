"""Tuning a random checkpoint of a known shape, ours and sentence-transformers' trainer: tokens/s, MFU, peak memory.

    python -m benchmarks.train_gpu --shape qwen3-0.6b                  full tuning
    python -m benchmarks.train_gpu --shape mistral-7b --lora 16        adapters beside frozen weights in bfloat16
    python -m benchmarks.train_gpu --shape tiny --device cpu --rows 16 --steps 3     whether it runs

For a machine that has torch, transformers, peft and sentence-transformers; no Ray. Both train on the same pairs of
texts of random words, InfoNCE over the whole batch, products in bfloat16, AdamW, checkpointing of activations or not:
ours with GradCache where a batch has more than `--tokens`, theirs with CachedMultipleNegativesRankingLoss in
mini-batches of `--mini-batch` texts. Each has a process of its own. Tokens are counted without padding, and a step's
time is the median of all but the first two. MFU counts a forward pass and its backward once, whatever is computed
again: 3 times the forward pass where all weights are trained, 2 times where adapters are.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.shapes import SHAPES, device_name, known_peak, random_model
from operators.embedder.model.flops import Flops
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.training.config.objectives import InfoNce
from operators.training.config.sets import TrainingSet
from operators.training.config.tuning import Lora, Tuning
from operators.training.data.batch_plan import PlannedBatch
from operators.training.data.candidates import text_hashes
from operators.training.model.encoder import Encoder, Reader
from operators.training.objectives.gathering import RankRows
from operators.training.objectives.set_objective import RowFacts, SetObjective
from operators.training.steps.micro_batches import micro_batches
from operators.training.steps.optimization import Optimization
from operators.training.steps.passes import VectorPasses
from operators.training.steps.rank_batches import RankBatch
from operators.training.steps.step import TrainStep

MAX_TOKENS = 512
UNCOUNTED = 2  # steps: kernels are loaded, and memory is found
TEMPERATURE = 0.05


def main() -> None:
    """Build the checkpoint, let each contender train in a process of its own, print the table."""
    arguments = _arguments()
    if arguments.contender is not None:
        train = {"ours": train_ours, "theirs": train_theirs}[arguments.contender]
        print(json.dumps(train(arguments)))
        return
    device = torch.device(arguments.device)
    peak_tflops = known_peak(device)
    kind = f"LoRA {arguments.lora}" if arguments.lora else "full"
    print(f"\n{arguments.shape}, {kind}, {arguments.rows} pairs a step, bfloat16, {device_name(device)}")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peak {peak_tflops or '?'} TFLOP/s\n")
    print("| trainer | tokens/s | step, s | least-most | peak memory | TFLOP/s | MFU |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        build_checkpoint(arguments.shape, Path(folder), device)
        for contender in arguments.contenders:
            command = [sys.executable, "-m", "benchmarks.train_gpu", *sys.argv[1:], "--contender", contender]
            done = subprocess.run([*command, "--folder", folder], stdout=subprocess.PIPE, text=True, check=True)
            _print_row(contender, json.loads(done.stdout.splitlines()[-1]), peak_tflops)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters; 0: all weights are trained")
    parser.add_argument("--rows", type=int, default=256, help="pairs in a step")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--words", type=int, default=60, help="median words of a text; lognormal")
    parser.add_argument("--tokens", type=int, default=65536, help="ours: padded tokens whose activations are held")
    parser.add_argument("--pass-tokens", type=int, default=16384, help="ours: padded tokens of one forward pass")
    parser.add_argument("--mini-batch", type=int, default=64, help="theirs: texts of one forward pass")
    parser.add_argument("--checkpointing", action="store_true", help="of activations, both")
    parser.add_argument("--contenders", nargs="+", choices=("ours", "theirs"), default=["ours", "theirs"])
    parser.add_argument("--contender", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def build_checkpoint(shape: str, folder: Path, device: torch.device) -> None:
    """The shape with random weights and a byte-level tokenizer, and a recipe that pools the last token."""
    from tests.checkpoints import byte_level_tokenizer, save_tokenizer, sentence_transformers_layout

    model = random_model(shape, device, causal=True)
    model.config.pad_token_id = 0
    model.save_pretrained(folder)
    save_tokenizer(folder, byte_level_tokenizer(), {"pad_token": "<|endoftext|>"}, MAX_TOKENS)
    sentence_transformers_layout(folder, model.config.hidden_size, "last", max_tokens=MAX_TOKENS)


def pairs_of_step(step: int, arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Queries and documents of random words, the same for both."""
    from tests.checkpoints import WORDS

    rng = np.random.default_rng(step)
    lengths = np.exp(rng.normal(np.log(arguments.words), 0.8, 2 * arguments.rows)).clip(2, MAX_TOKENS).astype(int)
    texts = [" ".join(rng.choice(WORDS, length)) for length in lengths]
    return texts[: arguments.rows], texts[arguments.rows :]


def train_ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Our step on prepared batches."""
    device = torch.device(arguments.device)
    spec = embedder_spec(str(arguments.folder), EmbedderConfig(), Path("configs/models"))
    lora = Lora(rank=arguments.lora, alpha=2 * arguments.lora) if arguments.lora else None
    tuning = Tuning(lora=lora, precision="bfloat16", gradient_checkpointing=arguments.checkpointing)
    encoder = Encoder(spec, tuning, device)
    training_set = TrainingSet.model_validate({"name": "pairs", "path": "none", "kind": "pairs"})
    objective = SetObjective(InfoNce(temperature=TEMPERATURE), training_set, spec.dim).to(device)
    optimization = Optimization(learning_rate=1e-5)
    passes = VectorPasses(encoder, objective, arguments.tokens, seed=0)
    step = TrainStep(encoder, [passes], ["pairs"], optimization, arguments.steps)
    reader = Reader({"query": spec, "document": spec})
    _reset_peak(device)
    seconds = []
    for number in range(arguments.steps):
        start = time.perf_counter()
        step(_rank_batch(number, reader, arguments))  # tokenized here, as theirs are
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    return _figures(arguments, seconds, device)


def _rank_batch(number: int, reader: Reader, arguments: argparse.Namespace) -> RankBatch:
    import pyarrow as pa

    queries, documents = pairs_of_step(number, arguments)
    tokenized = reader(queries + documents, ["query"] * len(queries) + ["document"] * len(documents))
    lengths_N = np.array([len(ids) for ids in tokenized.ids], np.int64)
    hashes_T2 = np.stack([text_hashes(pa.array(texts)) for texts in (queries, documents)], axis=1)
    facts = RowFacts(RankRows((len(queries),), 0), torch.from_numpy(hashes_T2.view(np.int64)))
    planned = PlannedBatch(number, 0, 0, np.arange(len(queries)))
    cut = micro_batches(lengths_N, arguments.pass_tokens)
    return RankBatch(planned, tokenized, cut, facts, int(lengths_N.sum()))


def train_theirs(arguments: argparse.Namespace) -> dict[str, Any]:
    """sentence-transformers' trainer with its own GradCache loss."""
    import datasets
    import peft
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if arguments.lora else torch.float32  # as ours are loaded
    model = SentenceTransformer(str(arguments.folder), device=arguments.device, model_kwargs={"dtype": dtype})
    if arguments.lora:
        model.add_adapter(
            peft.LoraConfig(
                r=arguments.lora, lora_alpha=2 * arguments.lora, lora_dropout=0.1, target_modules="all-linear"
            )
        )
    rows: dict[str, list[str]] = {"anchor": [], "positive": []}
    for number in range(arguments.steps):
        for column, texts in zip(rows, pairs_of_step(number, arguments), strict=True):
            rows[column] += texts
    clock = _Clock(device)
    with tempfile.TemporaryDirectory() as output:
        settings = SentenceTransformerTrainingArguments(
            output_dir=output,
            max_steps=arguments.steps,
            per_device_train_batch_size=arguments.rows,
            learning_rate=1e-5,
            bf16=True,
            use_cpu=arguments.device == "cpu",
            gradient_checkpointing=arguments.checkpointing,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=arguments.mini_batch)
        trainer = SentenceTransformerTrainer(
            model=model,
            args=settings,
            train_dataset=datasets.Dataset.from_dict(rows),
            loss=loss,
            callbacks=[clock],
        )
        _reset_peak(device)
        trainer.train()
    return _figures(arguments, clock.seconds, device)


class _Clock(transformers.TrainerCallback):
    """Time from the end of one step to that of the next: tokenizing counts, as it does for ours."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = 0.0
        self.seconds: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        _synchronize(self._device)
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def _figures(arguments: argparse.Namespace, seconds: list[float], device: torch.device) -> dict[str, Any]:
    """What the first process prints; tokens and FLOPs of the texts, which are the same for both."""
    import pyarrow as pa

    spec = embedder_spec(str(arguments.folder), EmbedderConfig(), Path("configs/models"))
    tokenizer, flops = Tokenizer(spec), Flops.of_folder(arguments.folder, spec.recipe)
    lengths = []
    for number in range(arguments.steps):
        queries, documents = pairs_of_step(number, arguments)
        lengths.append(np.diff(tokenizer(pa.array(queries + documents)).input_ids.offsets.to_numpy()))
    tokens = statistics.mean(int(one.sum()) for one in lengths)
    forward_flops = statistics.mean(flops.total(one) for one in lengths)
    counted = seconds[UNCOUNTED:] or seconds
    if device.type == "cuda":
        peak_bytes = torch.cuda.max_memory_allocated(device)
    else:
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "tokens": tokens,
        "flops": (2 if arguments.lora else 3) * forward_flops,
        "seconds": counted,
        "peak_bytes": peak_bytes,
    }


def _print_row(contender: str, found: dict[str, Any], peak_tflops: float | None) -> None:
    seconds = statistics.median(found["seconds"])
    tflops = found["flops"] / seconds / 1e12
    name = {"ours": "ours", "theirs": "sentence-transformers"}[contender]
    print(
        f"| {name} | {found['tokens'] / seconds:,.0f} | {seconds:.3f} "
        f"| {min(found['seconds']):.3f}-{max(found['seconds']):.3f} | {found['peak_bytes'] / 1e9:.2f} GB "
        f"| {tflops:.2f} | {f'{tflops / peak_tflops:.1%}' if peak_tflops else '-'} |",
        flush=True,
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


if __name__ == "__main__":
    main()
