"""An index of a billion vectors and more, on paper: python -m benchmarks.scale [--vectors 1e9] [--nodes 20] [--plan]

Shards, memory, hours, money, and which part of this code gives way first. Nothing is built: sizes come from the
project's own planning code, times from simulations with the measured and estimated costs of benchmarks.scale_model.
--plan prints the tables of docs/scale.md; --set connection_mb=200 changes a cost. Same arguments, same figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.scale_build import BuildSimulation, Built, Trained, train
from benchmarks.scale_model import ITEM_BYTES, Costs, Plan, Scenario
from benchmarks.scale_search import Crew, Searched, SearchSimulation
from operators.errors import InputError
from operators.index.by_list import BUCKETS_PER_SHARD
from operators.index.group import SHARD_BITS
from operators.index.planning import Sharding
from operators.index.sampling import MAX_FRAGMENTS

PLANNED = (
    Scenario("1B x 768", 10**9),
    Scenario("10B x 768", 10**10, nodes=100, memory_per_builder=40_000_000_000),
    Scenario("1B x 384", 10**9, dim=384),
    Scenario("1B x 768, 1,048,576 lists", 10**9, spec="IVF1048576_HNSW32,PQ192x4fs,Refine(SQ8)"),
)
_GROWTH = (20_000_000, 100_000_000, 200_000_000, 1_000_000_000, 2_000_000_000, 5_000_000_000, 10_000_000_000)
_SEEDS = 10  # builds are simulated so often: stragglers and failures differ
_GIB, _RAY_STORE = 2.0**30, 0.3  # of a node's memory, Ray's default for its object store
Rows = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A scenario, planned and simulated."""

    plan: Plan
    trained: Trained
    built: tuple[Built, ...]
    failing: tuple[Built, ...]
    search: SearchSimulation
    searched: Searched

    @staticmethod
    def of(scenario: Scenario, costs: Costs) -> Outcome:
        """Plan, train, build, search; raises InputError where the project's planning refuses."""
        plan = Plan(scenario, costs)
        if not plan.slots:
            raise InputError(
                f"choose nodes of more memory: a builder asks for {_size(plan.request_bytes)}, Ray gives tasks 70 % of "
                f"{_size(scenario.ram)}"
            )
        seeds = range(scenario.seed, scenario.seed + _SEEDS)
        built = tuple(BuildSimulation(plan, costs, math.inf, seed).run() for seed in seeds)
        failing = tuple(BuildSimulation(plan, costs, scenario.mtbf_hours, seed).run() for seed in seeds)
        search = SearchSimulation(plan, costs)
        return Outcome(plan, train(plan, costs), built, failing, search, search.run())

    def rows(self) -> Rows:
        """What is printed of it."""
        return [*self._sizes(), *self._work(), *self._search()]

    def _sizes(self) -> Rows:
        plan, s = self.plan, self.plan.scenario
        embedded = s.vectors * (ITEM_BYTES[s.dtype] * s.dim + plan.costs.row_bytes)
        month = plan.index_bytes / 1e9 * plan.costs.storage_usd
        return [
            ("machines", f"{s.nodes} of {s.cpus} vCPU, {_size(s.ram)}, {s.network_gbit:g} Gbit/s, ${s.price:g}/h"),
            ("index", f"`{plan.spec.factory}`"),
            ("lists; vectors of one", f"{plan.lists:,}; {s.vectors / plan.lists:,.0f}"),
            ("fragments read", f"{len(plan.records):,} of {s.rows_per_fragment:,}, {_size(embedded)}"),
            ("shards; vectors of one", f"{len(plan.shards):,}; {plan.rows:,}"),
            ("vectors of a list in a shard", f"{plan.rows / plan.lists:.1f}"),
            ("trained.faiss", _size(plan.trained_bytes)),
            ("a shard's file; its id map", f"{_size(plan.shard_bytes)}; {_size(plan.ids_bytes)}"),
            ("on storage", f"{_size(plan.index_bytes)} in {3 * len(plan.shards) + 6:,} objects, ${month:,.0f} a month"),
            ("hot codes and ids", _size(s.vectors * plan.bytes.hot)),
            ("the same with padding, resident", _size(plan.resident_bytes * len(plan.shards))),
            ("refine store, on disk", _size(s.vectors * plan.bytes.cold)),
            ("snapshot JSON", _size(plan.snapshot_bytes)),
            ("driver; merging the truth alone", f"{_size(plan.driver_bytes)}; {_size(plan.truth_bytes)}"),
        ]

    def _work(self) -> Rows:
        plan, s, trained = self.plan, self.plan.scenario, self.trained
        share = plan.two_level_flop / plan.kmeans_flop
        hours, failing = (sorted(each.hours for each in builds) for builds in (self.built, self.failing))
        lost = float(np.mean([each.lost for each in self.failing]))
        middle, built = float(np.median(hours)), self.built[0]
        rate, gpu = s.vectors / (middle * 3600), s.price + s.gpus * s.gpu_price
        what = "network" if built.link > 0.7 else "CPU" if built.computing > 0.5 else "one connection a builder"
        return [
            ("sample", f"{plan.drawn:,} vectors, {_size(plan.sample_bytes)}"),
            ("memory of the training process", _size(plan.train_ram_bytes)),
            ("training on its CPUs", f"{trained.hours(0):.1f} h ({plan.kmeans_flop:.1e} FLOP)"),
            (f"training on {s.gpus} GPUs", f"{trained.hours(s.gpus):.1f} h" if s.gpus else "-"),
            ("its CPUs, k-means in two levels", f"{trained.sample + trained.kmeans_cpu * share + trained.rest:.1f} h"),
            ("builders a node x threads", f"{plan.slots} x {plan.threads}"),
            ("a builder's memory, asked; peak", f"{_size(plan.request_bytes)}; {_size(plan.build_peak_bytes)}"),
            ("build", f"{middle:.2f} h ({hours[0]:.2f} to {hours[-1]:.2f})"),
            (
                f"build, a node dies each {s.mtbf_hours:g} h",
                f"{float(np.median(failing)):.2f} h (to {failing[-1]:.2f}), {lost:.1f} shards lost",
            ),
            ("vectors/s; of a vCPU", f"{rate:,.0f}; {rate / s.nodes / s.cpus:,.0f}"),
            ("bound by", f"{what}: {built.computing:.0%} computing, {built.waiting:.0%} waiting for storage"),
            ("network used while building", f"{built.link:.0%}"),
            ("cost: training; build", f"${trained.hours(s.gpus) * gpu:,.0f}; ${s.nodes * s.price * middle:,.0f}"),
        ]

    def _search(self) -> Rows:
        plan, s, search, found = self.plan, self.plan.scenario, self.search, self.searched
        hours = s.batch_queries / found.queries_per_second / 3600
        stages = search.stages(search.crew.batch)
        measuring = SearchSimulation(plan, plan.costs, Crew.measuring(plan)).measuring()
        return [
            ("measuring recall", f"{measuring / 60:.0f} min"),
            ("search: workers x threads; nprobe", f"{search.crew.workers:,} x {search.crew.threads}; {plan.nprobe}"),
            ("memory a node, shards open", _size(search.memory_per_node)),
            ("refine store that fits beside", f"{search.cached:.0%}"),
            ("opening the shards", f"{found.opening_minutes:.1f} min"),
            ("batch search", f"{found.queries_per_second:,.0f} queries/s"),
            ("a batch of", f"{search.crew.batch:,} queries"),
            ("its lists, candidates, finer scores", ", ".join(f"{w:.2f} s" for w, _ in stages)),
            ("after each: sent, merged, ranked", ", ".join(f"{then:.2f} s" for _, then in stages)),
            ("workers' time in use", f"{found.busy:.0%}"),
            (f"{s.batch_queries:,} queries", f"{hours:.2f} h, ${hours * s.nodes * s.price:,.0f}"),
            ("one query, shards open", f"{found.single_ms:.0f} ms"),
        ]


@dataclass(frozen=True, slots=True)
class Limit:
    """Something that gives way, and how near a plan is to it."""

    what: str
    where: str
    at: float
    here: float
    form: str = "B"  # of both numbers: bytes, or a format
    is_least: bool = False  # it gives way below, not above

    @property
    def ratio(self) -> float:
        """Above 1 it has given way."""
        return self.at / self.here if self.is_least else self.here / self.at

    def __str__(self) -> str:
        if math.isinf(self.here):
            return "-"
        sign = "<" if self.is_least else "of"
        text = f"{_number(self.here, self.form)} {sign} {_number(self.at, self.form)}"
        return f"**{text}**" if self.ratio > 1 else text


def limits(plan: Plan, costs: Costs) -> list[Limit]:
    """What gives way, in no order; limits of patience say so in their names."""
    s, shards = plan.scenario, len(plan.shards)
    store = min(_RAY_STORE * s.ram, 200e9)  # Ray's defaults
    fragment = plan.fixed_bytes + 2 * (plan.bytes.hot + plan.bytes.cold) * s.rows_per_fragment
    # Ray fills half of a node's CPUs before it takes the next; a task holds its rows twice while it joins them.
    drawing = min(64, s.cpus // 2) * 2 * plan.sample_bytes / 64
    training = plan.train_ram_bytes + min(plan.sample_bytes, store)  # Ray drops a copy when it needs the place
    search = SearchSimulation(plan, costs)
    merging = search.memory_per_node + search.answers_bytes  # one process a batch, each with a copy of the answers
    files = plan.slots * (plan.trained_bytes + plan.shard_bytes + plan.ids_bytes)
    drawn_rows = min(len(plan.records), MAX_FRAGMENTS) * s.rows_per_fragment
    per_list = plan.rows / plan.lists if plan.is_fast else math.inf
    return [
        Limit("builder of one fragment, of the default memory_bytes", "planning", Sharding().memory_bytes, fragment),
        Limit("builder, of what Ray gives tasks", "index_pipeline", (1 - _RAY_STORE) * s.ram, plan.request_bytes),
        Limit("training beside the sample in the store, of the node's memory", "training", s.ram, training),
        Limit("sample, of the node's object store (then it spills)", "index_workers", store, plan.sample_bytes),
        Limit("sampling tasks on one node, of its memory", "index_workers", s.ram, drawing),
        Limit("k-means on CPUs (patience: a day)", "training", 24, train(plan, costs).kmeans_cpu, ",.1f h"),
        Limit("sample, of the rows it may come from", "sampling", drawn_rows, plan.sample, ",.0f"),
        Limit("rows of 4,096 fragments, for numpy", "sampling", 1e9, drawn_rows, ",.0f"),
        Limit("trained.faiss, of one exclusive PUT", "trained", 5 * _GIB, plan.trained_bytes),
        Limit("vectors of a list in a shard (padding to 32)", "faiss", 32, per_list, ",.1f", is_least=True),
        Limit("builders' files, of a node's disk", "building", s.disk, files),
        Limit("parts of a shard's upload", "transfer", 10_000, plan.shard_bytes / (64 << 20), ",.0f"),
        Limit("driver: merging the truth, of its memory", "truth", s.ram, plan.truth_bytes),
        Limit("snapshot JSON, of one exclusive PUT", "snapshot", 5 * _GIB, plan.snapshot_bytes),
        Limit("search: memory of a node", "open_shards", s.ram, search.memory_per_node),
        Limit("search: finer scores, of the workers' work (half)", "shard", 0.5, search.finer_share(), ".0%"),
        Limit("search: workers' time in use (half)", "search_workers", 0.5, search.run().busy, ".0%", is_least=True),
        Limit("search: answers in flight, of an object store", "open_shards", store, search.answers_bytes),
        Limit("search: answers merged on one node, of its memory", "group", (1 - _RAY_STORE) * s.ram, merging),
        Limit("`search query=`: all shards in one process", "open", s.ram, plan.whole_resident_bytes),
        Limit("by list: open files of a task (ulimit)", "by_list", 1024, BUCKETS_PER_SHARD * shards, ",.0f"),
        Limit("ids: vectors of a shard, 40 bits", "group", 2.0**SHARD_BITS, plan.rows, ",.1e"),
        Limit("ids: shards, 23 bits", "group", 2.0 ** (63 - SHARD_BITS), shards, ",.1e"),
    ]


def _limit_table(outcomes: Sequence[Outcome], costs: Costs, grown: Sequence[Plan]) -> list[list[str]]:
    """A line a limit. Those that a growing index meets first come first, then those that it is nearest to."""
    columns = [limits(outcome.plan, costs) for outcome in outcomes]
    growth = [(plan.scenario.vectors, limits(plan, costs)) for plan in grown]
    from_N = [next((n for n, at in growth if at[i].ratio > 1), math.inf) for i in range(len(columns[0]))]
    order = sorted(range(len(columns[0])), key=lambda i: (from_N[i], -columns[0][i].ratio))
    table = [["what", "where", *(["from"] if grown else []), *(outcome.plan.scenario.name for outcome in outcomes)]]
    for i in order:
        start = [_count(from_N[i]) if math.isfinite(from_N[i]) else "-"] if grown else []
        table.append([columns[0][i].what, columns[0][i].where, *start, *(str(column[i]) for column in columns)])
    return table


def _cost_table(costs: Costs, is_estimate: bool) -> list[list[str]]:
    sources = [(f.name, str(f.metadata["source"])) for f in dataclasses.fields(costs)]
    kept = [(name, source) for name, source in sources if source.startswith("estimate") == is_estimate]
    rows = [[name, f"{getattr(costs, name):.4g}", source.removeprefix("estimate: ")] for name, source in kept]
    return [["estimate" if is_estimate else "measured", "value", "what it is"], *rows]


def _markdown(table: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


def _aligned(table: Sequence[Sequence[str]]) -> str:
    plain = [[cell.replace("*", "").replace("`", "") for cell in row] for row in table]
    widths = [max(len(row[i]) for row in plain) for i in range(len(plain[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in plain)


def _number(value: float, form: str) -> str:
    kind, _, unit = form.partition(" ")
    return _size(value) if form == "B" else f"{value:{kind}} {unit}".rstrip()


def _size(count: float) -> str:
    unit, scale = next((pair for pair in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)) if count >= pair[1]), ("kB", 1e3))
    return f"{count / scale:.3g} {unit}"


def _count(vectors: float) -> str:
    return f"{vectors / 1e9:g}B" if vectors >= 1e9 else f"{vectors / 1e6:g}M"


def _whole(word: str) -> int:
    """A number as people write large ones: 1e9."""
    return int(float(word))


def _print(outcomes: Sequence[Outcome], costs: Costs, grown: Sequence[Plan]) -> None:
    """The tables; as Markdown where `grown` plans are given, with a line for the costs."""
    shown = _markdown if grown else _aligned
    columns = [outcome.rows() for outcome in outcomes]
    table = [["", *(outcome.plan.scenario.name for outcome in outcomes)]]
    table += [[label, *(column[i][1] for column in columns)] for i, (label, _) in enumerate(columns[0])]
    print(shown(table))
    print("\nWhat breaks first\n")
    print(shown(_limit_table(outcomes, costs, grown)))
    if grown:
        print(f"\nCosts\n\n{shown(_cost_table(costs, True))}\n\n{shown(_cost_table(costs, False))}")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").split("\n\n")[1])
    options = (
        ("vectors", "vectors", "to index"),
        ("dim", "dim", "components of a vector"),
        ("dtype", "dtype", f"of the embeddings: {', '.join(ITEM_BYTES)}"),
        ("recall", "recall", "recall wanted"),
        ("spec", "spec", "faiss factory string, or auto"),
        ("rows-per-fragment", "rows_per_fragment", "vectors of a file of the embeddings"),
        ("memory-per-builder", "memory_per_builder", "bytes; shards.memory_bytes of the index job"),
        ("nodes", "nodes", "machines"),
        ("cpus-per-node", "cpus", "vCPUs of a machine"),
        ("ram-per-node", "ram", "bytes"),
        ("disk-per-node", "disk", "bytes"),
        ("network-gbit", "network_gbit", "of a machine, each way"),
        ("price-per-node-hour", "price", "USD"),
        ("gpus", "gpus", "GPUs for k-means; 0 = none"),
        ("price-per-gpu-hour", "gpu_price", "USD"),
        ("node-mtbf-hours", "mtbf_hours", "mean time until a machine dies"),
        ("batch-queries", "batch_queries", "of a search"),
        ("search-workers", "search_workers", "compute.workers of a search; 0 = its default"),
        ("search-threads", "search_threads", "compute.threads_per_worker of a search"),
        ("seed", "seed", "of stragglers, failures and lists"),
    )
    for name, field, text in options:
        value = getattr(PLANNED[0], field)
        kind = _whole if isinstance(value, int) else type(value)
        parser.add_argument(f"--{name}", dest=field, type=kind, default=value, help=f"{text} (default {value})")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change costs (scale_model.Costs)")
    parser.add_argument("--plan", action="store_true", help="the reference scenarios as Markdown (docs/scale.md)")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Print a scenario, or the planned ones; returns the exit code."""
    parser = _arguments()
    given = vars(parser.parse_args(words))
    is_plan, changed = given.pop("plan"), [word.partition("=") for word in given.pop("set")]
    if given["dtype"] not in ITEM_BYTES or {name for name, _, _ in changed} - {
        f.name for f in dataclasses.fields(Costs)
    }:
        parser.error("give a dtype of --help and costs of scale_model.Costs")
    costs = dataclasses.replace(Costs(), **{name: float(value) for name, _, value in changed})
    asked = Scenario(name=f"{_count(given['vectors'])} x {given['dim']}", **given)
    scenarios = [dataclasses.replace(s, seed=asked.seed) for s in PLANNED] if is_plan else [asked]
    try:
        outcomes = [Outcome.of(scenario, costs) for scenario in scenarios]
        grown = [Plan(dataclasses.replace(scenarios[0], vectors=n), costs) for n in _GROWTH] if is_plan else []
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    _print(outcomes, costs, grown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
