"""The lexical baseline against the formula."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest

from operators.evaluation.beir import DocumentBlock
from operators.evaluation.bm25 import bm25_run


def test_scores_are_bm25s() -> None:
    texts = ["a cat sat on the mat", "dogs and cats running", "a bird", "cat cat cat"]
    stems = [["cat", "sat", "mat"], ["dog", "cat", "run"], ["bird"], ["cat", "cat", "cat"]]
    blocks = [
        DocumentBlock(i, pa.array([f"d{j}" for j in range(i, i + 2)]), pa.array(texts[i : i + 2])) for i in (0, 2)
    ]
    run = bm25_run(["q", "none"], ["running cats", "zebra"], blocks, 10)
    mean = sum(map(len, stems)) / 4

    def score(words: list[str]) -> float:
        total = 0.0
        for word in ("run", "cat"):
            holding, times = sum(word in other for other in stems), words.count(word)
            rarity = math.log(1 + (4 - holding + 0.5) / (holding + 0.5))
            total += rarity * times / (times + 1.5 * (1 - 0.75 + 0.75 * len(words) / mean))
        return total

    assert run["q"] == pytest.approx({f"d{i}": score(stems[i]) for i in (0, 1, 3)}, rel=1e-5)
    assert run["none"] == {}
