"""How true the time left is, for many small files, one .gz and Parquet: python -m benchmarks.progress [--record DIR]

Embeds the three and puts the time left at half of the run, and at half of the embedding, against what it then took; and
says how soon after the first tokens a line had their speed.
`--record` keeps what the progress was told as DIR/CORPUS.json, which tests/cluster/test_forecast.py plays back.

`--quiet-clock` counts time as the busiest worker's CPU seconds: on a machine that others use at the same moment their
work slows a run down by turns, which no forecast can know.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

import cluster.progress
from benchmarks.engine import read_texts
from cluster.forecast import Expected, Forecast, InHand

CORPORA = ("small_files", "gzip", "parquet")
WORKER = "ray::MapWorker(MapBatches(EmbedWorker))"


class QuietClock:
    """Seconds in which at least one worker computed, after the first of them began; real ones before."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._used: dict[int, float] = {}
        self._seconds: float | None = None

    def __call__(self) -> float:
        """Seconds so far."""
        used = {}
        for process in psutil.Process().children(recursive=True):
            try:
                if " ".join(process.cmdline()).startswith(WORKER):
                    times = process.cpu_times()
                    used[process.pid] = times.user + times.system
            except psutil.Error:
                continue
        if not used and self._seconds is None:
            return time.monotonic() - self._started
        if self._seconds is None:
            self._seconds, self._used = time.monotonic() - self._started, used
        self._seconds += max((now - self._used.get(pid, 0.0) for pid, now in used.items()), default=0.0)
        self._used = {**self._used, **used}
        return self._seconds


class Recorded(Forecast):
    """A forecast that remembers what it was told and what it said; of the last one that was made."""

    events: ClassVar[list[list[Any]]] = []
    said: ClassVar[list[tuple[float, float | None, float]]] = []  # seconds, time left, tokens a second
    source_bytes: int | None = None
    clock: QuietClock | None = None

    def __init__(self, expected: Expected, began: float = 0.0) -> None:
        super().__init__(expected, began)
        Recorded.events, Recorded.said = [], []
        Recorded.source_bytes = expected.source_bytes
        self._names: dict[str, str] = {}

    def in_hand(self, seconds: float, fragments: Mapping[str, InHand]) -> None:
        """As the forecast's own."""
        seconds = self._time(seconds)
        super().in_hand(seconds, fragments)
        told = {self._name(k): [f.done_tokens, f.tokens, f.source_bytes] for k, f in self._in_hand.items()}
        Recorded.events.append([round(seconds, 2), "look", told])
        Recorded.said.append((seconds, super().seconds_left(seconds), super().tokens_per_second(seconds)))

    def finished(
        self,
        seconds: float,
        rows: int,
        rejected: int,
        tokens: int,
        source_bytes: int = 0,
        fragments: int = 1,
        key: str | None = None,
    ) -> None:
        """As the forecast's own."""
        seconds = self._time(seconds)
        super().finished(seconds, rows, rejected, tokens, source_bytes, fragments, key)
        Recorded.events.append([round(seconds, 2), "fragment", self._name(key or ""), rows, tokens, source_bytes])

    def _time(self, seconds: float) -> float:
        return seconds if Recorded.clock is None else Recorded.clock()

    def _name(self, key: str) -> str:
        return self._names.setdefault(key, str(len(self._names)))


def main() -> None:
    """Run each corpus once and print what was said of it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.progress", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--data", type=Path, help="JSON lines (.gz) with a `text`; default: Python's standard library")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--corpora", nargs="+", default=CORPORA, choices=CORPORA)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--quiet-clock", action="store_true")
    arguments = parser.parse_args()
    cluster.progress.Forecast = Recorded  # type: ignore[misc]  # the display makes its forecast by this name
    for corpus in arguments.corpora:
        Recorded.clock = QuietClock() if arguments.quiet_clock else None
        _run(corpus, arguments)


def _run(corpus: str, arguments: argparse.Namespace) -> None:
    from jobs.command_line.main import main as run_job

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_corpus(corpus, folder / "in", read_texts(arguments.data, arguments.rows))
        config = {
            "source": source,
            "model": arguments.model,
            "output": {"path": str(folder / "vectors")},
            "compute": {"workers": [2, 2]},
            "chunking": {"tokens": 200} if corpus == "small_files" else {},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        lines, screen = io.StringIO(), sys.stderr
        sys.stderr = lines
        try:
            code = run_job(["embed", str(folder / "config.yaml")])
        finally:
            sys.stderr = screen
        assert code == 0, lines.getvalue()
    last = max(place for place, event in enumerate(Recorded.events) if event[1] == "fragment")
    events = Recorded.events[: last + 1]
    end = events[-1][0]
    first = next(seconds for seconds, _, speed in Recorded.said if speed > 0)
    first_line = next(_seconds(line) for line in lines.getvalue().splitlines() if "tokens/s" in line)
    print(f"{corpus}: {end:.0f} s, first tokens after {first:.0f} s, in a line after {first_line} s")
    for what, moment in (("half of the run", end / 2), ("half of the embedding", (first + end) / 2)):
        seconds, left, speed = max(said for said in Recorded.said if said[0] <= moment)
        took = end - seconds
        print(
            f"  {what} ({seconds:.0f} s): {left or 0:.0f} s left, took {took:.0f} s; {speed:,.0f} tokens/s", flush=True
        )
    if arguments.record is not None:
        arguments.record.mkdir(parents=True, exist_ok=True)
        recorded = {"source_bytes": Recorded.source_bytes, "events": events}
        (arguments.record / f"{corpus}.json").write_text(json.dumps(recorded, separators=(",", ":")) + "\n")


def write_corpus(kind: str, folder: Path, texts: list[str]) -> dict[str, Any]:
    """Texts as files of one kind; returns the `source` section that reads them."""
    folder.mkdir()
    if kind == "small_files":  # documents of many passages, a file each
        start = 0
        while start < len(texts):
            size = 1 + start * 7 % 23
            (folder / f"{start:06d}.txt").write_text("\n".join(texts[start : start + size]))
            start += size
        return {"path": str(folder), "format": "text", "id": "path"}
    if kind == "gzip":
        with gzip.open(folder / "docs.jsonl.gz", "wt", compresslevel=6) as lines:
            lines.writelines(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))
        return {"path": str(folder), "id": "id"}
    part = -(-len(texts) // 4)
    for start in range(0, len(texts), part):
        ids = list(range(start, min(start + part, len(texts))))
        table = pa.table({"id": ids, "text": [texts[i] for i in ids]})
        pq.write_table(table, folder / f"{start}.parquet", row_group_size=500)
    return {"path": str(folder), "id": "id"}


def _seconds(line: str) -> int:
    found = re.match(r"\[(\d+):(\d+):(\d+)\]", line)
    assert found is not None, line
    return int(found[1]) * 3600 + int(found[2]) * 60 + int(found[3])


if __name__ == "__main__":
    main()
