"""Small evaluation sets in the formats that users have, made of the words that tiny checkpoints know."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.checkpoints import WORDS

TOPICS = 8
_PER_TOPIC = 6  # words that a topic has for itself


def sentence(rng: np.random.Generator, topic: int, length: int = 8) -> str:
    """Words of a topic, and a few of any."""
    own = WORDS[40 + topic * _PER_TOPIC : 40 + (topic + 1) * _PER_TOPIC]
    return " ".join(rng.choice(own if rng.random() < 0.7 else WORDS[:40]) for _ in range(length))


def write_beir(folder: Path, num_docs: int = 120, num_queries: int = 24, seed: int = 0) -> Path:
    """A BEIR folder: documents of a query's topic are relevant, one query is not judged, two documents lack a title."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    topics = rng.integers(0, TOPICS, num_docs)
    documents = [
        {"_id": f"d{i}", "title": "" if i < 2 else f"title {WORDS[i % 40]}", "text": sentence(rng, int(topic), 20)}
        for i, topic in enumerate(topics)
    ]
    queries = [{"_id": f"q{i}", "text": sentence(rng, i % TOPICS, 4)} for i in range(num_queries)]
    with gzip.open(folder / "corpus.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in documents)
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    lines = [
        f"q{i}\td{doc}\t{1 + int(doc) % 3}\n"
        for i in range(num_queries - 1)
        for doc in np.flatnonzero(topics == i % TOPICS)
    ]
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def write_sts(path: Path, num: int = 150, seed: int = 0) -> Path:
    """Pairs with scores 0 to 5, as TSV without quoting: one sentence begins with a quotation mark."""
    rng = np.random.default_rng(seed)
    lines = ["sentence1\tsentence2\tscore"]
    for i in range(num):
        topic = int(rng.integers(TOPICS))
        words = sentence(rng, topic).split()
        same = int(rng.integers(0, 6))
        other = words[:same] + sentence(rng, int(rng.integers(TOPICS))).split()[same:]
        lines.append(f"{'“' if i % 2 else chr(34) if i == 4 else ''}{' '.join(words)}\t{' '.join(other)}\t{same}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def write_labelled(path: Path, num: int = 200, seed: int = 0, labels: int = TOPICS) -> Path:
    """Texts with their topic as label, as RFC-4180 CSV: commas and quotation marks in fields."""
    rng = np.random.default_rng(seed)
    rows = [(f'{sentence(rng, i % labels)}, "{WORDS[i % 40]}"', f"topic {i % labels}") for i in range(num)]
    return write_csv(path, ("text", "label"), rows)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    """An RFC-4180 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([header, *rows])
    return path
