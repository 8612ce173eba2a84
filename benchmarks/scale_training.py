"""Training a 7B model on 8 to 64 GPUs, on paper: python -m benchmarks.scale_training [--gpu H100] [--rows 2048]

Memory, step time, hours per million rows, and what does not fit. Nothing is loaded or measured: figures come from
operators.training.forecast, whose formulas and assumptions stand there. Without arguments it prints the tables of
docs/scale-training.md. Same arguments, same figures.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Sequence

import transformers

from operators.report.forecast_text import HEAD, forecast_row, part_rows
from operators.report.markdown import table
from operators.training.forecast.accelerators import ACCELERATORS, Accelerator
from operators.training.forecast.forecast import Forecast, forecast, widest
from operators.training.forecast.method import Load, Method
from operators.training.forecast.shape import ModelShape

METHODS = {
    "full, each GPU all": Method(checkpointing=True),
    "full, FSDP2": Method(sharded=True),
    "full, FSDP2, checkpointing": Method(sharded=True, checkpointing=True),
    "full float32, FSDP2, ckpt.": Method(precision="float32", sharded=True, checkpointing=True),
    "LoRA 16 on float32, ckpt.": Method(rank=16, checkpointing=True),
    "LoRA 16 on bfloat16": Method(rank=16, frozen="bfloat16"),
    "LoRA 16 on bfloat16, ckpt.": Method(rank=16, frozen="bfloat16", checkpointing=True),
    "QLoRA 16, ckpt.": Method(rank=16, frozen="nf4", checkpointing=True),
}
BEST = "full, FSDP2, checkpointing"
OF_OTHERS = ("full, each GPU all", BEST, "LoRA 16 on bfloat16, ckpt.", "QLoRA 16, ckpt.")
NUM_GPUS = (8, 16, 32, 64)
BATCHES = (2048, 16384, 131072, 1048576)
LENGTHS = (512, 4096, 32768)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=ACCELERATORS, default="H100", help="of most tables")
    parser.add_argument("--rows", type=int, default=2048, help="of a step: a query, a positive, a hard negative each")
    parser.add_argument("--query-tokens", type=float, default=64)
    parser.add_argument("--document-tokens", type=float, default=256)
    parser.add_argument("--utilization", type=float, default=None, help="of the peak, in place of each GPU's")
    chosen = parser.parse_args(arguments)
    shape = ModelShape.of_config(transformers.MistralConfig())  # its defaults are Mistral-7B's
    load = Load(
        rows=chosen.rows,
        query_tokens=chosen.query_tokens,
        document_tokens=chosen.document_tokens,
        documents=2,
        dim=shape.hidden,
        tokens=65536,
    )
    gpu = ACCELERATORS[chosen.gpu]
    _print(f"{gpu.name}", HEAD, _rows(shape, load, gpu, METHODS, NUM_GPUS, chosen.utilization))
    others = [
        row
        for other in ACCELERATORS.values()
        if other is not gpu
        for row in _rows(shape, load, other, OF_OTHERS, (NUM_GPUS[0], NUM_GPUS[-1]), chosen.utilization)
    ]
    _print("Other GPUs", HEAD, others)
    _print(f"Memory by part, 8 {gpu.name}, 8,192 tokens held", *part_rows(_parts(shape, load, gpu)))
    head = HEAD[1:]
    _print(f"Larger batches, 64 {gpu.name}", ("rows", *head), _batches(shape, load, gpu, chosen.utilization))
    _print(f"Longer texts, 8 {gpu.name}", ("tokens", *head), _lengths(shape, load, gpu, chosen.utilization))


def _rows(
    shape: ModelShape,
    load: Load,
    gpu: Accelerator,
    names: Iterable[str],
    nums: Sequence[int],
    utilization: float | None,
) -> list[list[str]]:
    return [
        forecast_row(name, _found(shape, METHODS[name], load, gpu, num, utilization)) for name in names for num in nums
    ]


def _parts(shape: ModelShape, load: Load, gpu: Accelerator) -> dict[str, Forecast]:
    """At the same tokens held, so that methods compare."""
    same = dataclasses.replace(load, tokens=8192, pass_tokens=8192)
    return {name: forecast(shape, method, same, gpu, 8) for name, method in METHODS.items()}


def _batches(shape: ModelShape, load: Load, gpu: Accelerator, utilization: float | None) -> list[list[str]]:
    larger = [dataclasses.replace(load, rows=rows) for rows in BATCHES]
    return [forecast_row(f"{one.rows:,}", _found(shape, METHODS[BEST], one, gpu, 64, utilization)) for one in larger]


def _lengths(shape: ModelShape, load: Load, gpu: Accelerator, utilization: float | None) -> list[list[str]]:
    longer = [dataclasses.replace(load, document_tokens=float(length)) for length in LENGTHS]
    return [
        forecast_row(f"{one.document_tokens:,.0f}", _found(shape, METHODS[BEST], one, gpu, 8, utilization))
        for one in longer
    ]


def _found(
    shape: ModelShape, method: Method, load: Load, gpu: Accelerator, num_gpus: int, utilization: float | None
) -> Forecast:
    return forecast(shape, method, widest(shape, method, load, gpu, num_gpus), gpu, num_gpus, utilization)


def _print(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"## {title}", "", *table(head, rows), "", sep="\n")


if __name__ == "__main__":
    main()
