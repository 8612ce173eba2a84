"""Batches: every row once, in budget, longest first, and hardly padded on real text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.embedder.tokens import batching
from operators.embedder.tokens.tokenizing import Tokenizer

ROOT = Path(__file__).parents[4]
PASSAGES = ROOT.parent / "shared" / "data" / "corpus" / "passages.jsonl.gz"


def list_array(rows: list[list[int]]) -> pa.ListArray:
    return pa.array(rows, pa.list_(pa.int32()))


@given(
    lengths=st.lists(st.integers(0, 40), max_size=60),
    budget_tokens=st.integers(1, 200),
    before=st.integers(0, 3),
)
def test_batches_hold_every_row_once_within_budget(lengths: list[int], budget_tokens: int, before: int) -> None:
    rows = [[1000 * i + j for j in range(length)] for i, length in enumerate([5] * before + lengths)]
    input_ids = list_array(rows).slice(before)  # a slice: offsets do not begin at 0
    plan = batching.plan(np.array(lengths, np.int64), budget_tokens)
    found = list(batching.batches(input_ids, plan))
    restored: list[list[int]] = [[] for _ in lengths]
    padded = 0
    cuts = zip(plan.cuts[:-1], plan.cuts[1:], strict=True)
    for (start, end), batch in zip(cuts, found, strict=True):
        ids_BL = batch.pad(-1)
        assert ids_BL.size <= budget_tokens or len(ids_BL) == 1
        assert (np.diff(batch.lengths_B) <= 0).all()
        assert ((ids_BL >= 0) == batch.mask()).all()
        padded += ids_BL.size
        for row, ids in zip(plan.order[start:end], ids_BL.tolist(), strict=True):
            restored[row] = [token for token in ids if token >= 0]
    assert restored == rows[before:]
    assert plan.padding_tokens == padded - sum(lengths)


def test_empty_rows_are_in_no_batch() -> None:
    plan = batching.plan(np.array([0, 3, 0, 2]), 100)
    assert plan.order.tolist() == [1, 3]
    assert [batch.lengths_B.tolist() for batch in batching.batches(list_array([[], [1, 2, 3], [], [4, 5]]), plan)] == [
        [3, 2]
    ]


def test_nothing_to_batch() -> None:
    plan = batching.plan(np.array([], np.int64), 100)
    assert list(batching.batches(list_array([]), plan)) == []


@pytest.mark.skipif(not PASSAGES.is_file(), reason="the shared corpus is not on this machine")
def test_padding_of_real_passages_is_under_two_percent() -> None:
    spec = embedder_spec("minilm", EmbedderConfig(), ROOT / "configs" / "models")
    with gzip.open(PASSAGES, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(16384), strict=False)]
    lengths_N = Tokenizer(spec)(pa.array(texts)).num_tokens.to_numpy()
    for budget_tokens in (2048, 4096, 16384):  # the defaults of CPUs and GPUs
        padding_tokens = batching.plan(lengths_N, budget_tokens).padding_tokens
        assert padding_tokens <= 0.02 * (lengths_N.sum() + padding_tokens)
